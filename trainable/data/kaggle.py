"""Kaggle's histopathologic-cancer-detection: a folder of .tif with a table of labels."""

from __future__ import annotations

from pathlib import Path

from trainable.data.groups import PREFIX, Groups, column_of, groups_in, prefixes, read_rows
from trainable.data.images import file_reader
from trainable.data.sources import DataError, Source, SplitSource, as_labels, classes_of
from trainable.data.splits import draw
from trainable.host.storage import is_name


def find_kaggle(folder: Path, split_by: str | None = None) -> Source | None:
    """Kaggle's `train_labels.csv` with `train/ID.tif`; a part of train becomes validation.

    Other columns than id and label may name groups.
    """
    table = folder / "train_labels.csv"
    if not table.is_file():
        return None
    rows = read_rows(table)
    if not rows or not {"id", "label"} <= set(rows[0]):
        raise DataError(f"{table} must have the columns id,label and one row per image")
    ids = [row["id"] for row in rows]
    if unsafe := [name for name in ids if not is_name(name)]:
        raise DataError(f"{table}: id must be the name of a file in train/, got {unsafe[0]!r}")
    paths = [folder / "train" / f"{name}.tif" for name in ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{table} lists {len(missing)} images that do not exist; the first is {missing[0]}"
        )
    labels = as_labels([row["label"] for row in rows], table)
    drawn = draw(labels, table, groups=_groups(rows, split_by, table))
    splits = {  # Kaggle's test labels are not public: no test split
        split: SplitSource(labels_N=labels[index], read=file_reader([paths[i] for i in index]))
        for split, index in (("train", drawn.train), ("val", drawn.val))
    }
    return Source(
        layout="kaggle",
        files=(table, *paths),
        classes=classes_of(splits),
        splits=splits,
        division=drawn.division,
    )


def _groups(rows: list[dict[str, str]], split_by: str | None, table: Path) -> Groups | None:
    ids = [row["id"] for row in rows]
    column = column_of(split_by, rows[0], table, rules=[PREFIX])
    if column is not None:
        return groups_in(column, [row[column] for row in rows], table, names=ids)
    return prefixes(ids, table) if split_by == PREFIX else None
