"""Parquet files with image bytes and labels, as on Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from trainable.data.groups import IMAGE, Groups, check_apart, column_of, groups_in
from trainable.data.images import decode
from trainable.data.sources import (
    CHUNK_IMAGES,
    SPLIT_NAMES,
    DataError,
    Images,
    Labels,
    Source,
    SplitSource,
    as_labels,
    classes_of,
)
from trainable.data.splits import Draw, draw, given

if TYPE_CHECKING:
    import pyarrow.parquet as pq

REQUIRED = ("image", "label")


def find_parquet(folder: Path, split_by: str | None = None) -> Source | None:
    """Files `train*`, `valid*` and `test*` with columns image and label, here or in `data/`.

    Without `valid*`, validation is a part of train where a column names groups.
    """
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if not files:
        return None
    parts = {
        split: [f for f in files if f.name.startswith(names)]
        for split, names in SPLIT_NAMES.items()
    }
    if not parts["train"]:
        raise DataError(
            f"{folder} has Parquet files such as {files[0].name}, but no train*.parquet; expected "
            f"train*, valid* and test*"
        )
    parts = {split: paths for split, paths in parts.items() if paths}
    labels = {split: as_labels(_cells(paths, "label"), paths[0]) for split, paths in parts.items()}
    groups = _groups(parts, split_by)
    splits = {
        split: SplitSource(labels_N=labels[split], read=_parquet_reader(paths))
        for split, paths in parts.items()
    }
    if "val" in parts:
        division = given(list(parts), groups, folder)
    else:
        check_apart(groups, folder)
        drawn = _drawn(folder, parts["train"], labels["train"], groups.get("train"), split_by)
        division = drawn.division
        for split, index in (("train", drawn.train), ("val", drawn.val)):
            reader = _parquet_reader(parts["train"], only=index)
            splits[split] = SplitSource(labels_N=labels["train"][index], read=reader)
    used = tuple(path for paths in parts.values() for path in paths)
    return Source(
        layout="parquet", files=used, classes=classes_of(splits), splits=splits, division=division
    )


def _drawn(
    folder: Path,
    paths: Sequence[Path],
    labels_N: Labels,
    groups: Groups | None,
    split_by: str | None,
) -> Draw:
    """Raises DataError where there are no groups and nobody asked for a draw without them."""
    if groups is None and split_by != IMAGE:
        columns = [n for n in _open_parquet(paths[0]).schema_arrow.names if n not in REQUIRED]
        raise DataError(
            f"{folder} has no valid*.parquet: add one, or take split_by=COLUMN where a column "
            f"names the slides (there {'are ' + ', '.join(columns) if columns else 'is none'}). "
            f"It is not taken from train, because patches of the same slide must not be in both "
            f"splits; split_by={IMAGE} does so"
        )
    return draw(labels_N, folder, groups=groups)


def _groups(parts: Mapping[str, Sequence[Path]], split_by: str | None) -> dict[str, Groups]:
    """The groups of each split whose files have the column."""
    columns = {s: _open_parquet(paths[0]).schema_arrow.names for s, paths in parts.items()}
    column = column_of(split_by, columns["train"], parts["train"][0])
    groups = {}
    for split, paths in parts.items():
        if column is None or (split_by is None and column not in columns[split]):
            continue
        column_of(column, columns[split], paths[0])
        cells = _cells(paths, column)
        names = [f"that of row {i + 1}" for i in range(len(cells))]
        groups[split] = groups_in(column, cells, paths[0], names=names)
    return groups


def _open_parquet(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; download it again") from error
    missing = set(REQUIRED) - set(file.schema_arrow.names)
    if missing:
        raise DataError(
            f"{path} must have the columns image and label, it has {file.schema_arrow.names}"
        )
    return file


def _cells(paths: Sequence[Path], column: str) -> list[object]:
    """A column of some files, one after the other."""
    return [cell for path in paths for cell in _parquet_column(path, column)]


def _parquet_column(path: Path, column: str) -> list[object]:
    try:
        values: list[object] = _open_parquet(path).read(columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}; download it again") from error
    return values


def _parquet_reader(
    paths: Sequence[Path], *, only: Labels | None = None
) -> Callable[[], Iterator[Images]]:
    """The images in chunks; with `only`, those of these indices."""
    kept = None if only is None else set(only.tolist())

    def read() -> Iterator[Images]:
        number = 0
        for path in paths:
            try:
                for batch in _open_parquet(path).iter_batches(CHUNK_IMAGES, columns=["image"]):
                    cells = batch.column(0).to_pylist()
                    packed = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
                    numbered = enumerate(packed, number)
                    number += len(packed)
                    wanted = [data for i, data in numbered if kept is None or i in kept]
                    if wanted:
                        yield decode([(f"image of {path}", data) for data in wanted])
            except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
                raise DataError(f"{path} is damaged: {error}; download it again") from error

    return read
