"""Folders of images by class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainable.data.groups import (
    FOLDER,
    IMAGE,
    PREFIX,
    Groups,
    check_apart,
    column_of,
    groups_in,
    prefixes,
    read_rows,
)
from trainable.data.images import RESIZED, all_of_one_size, file_reader, image_files
from trainable.data.sources import SPLIT_NAMES, DataError, Labels, Source, SplitSource
from trainable.data.splits import draw, given

# A row an image, as Hugging Face's image folders have it: `file_name` and other columns.
METADATA, FILE_NAME = "metadata.csv", "file_name"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The images of a split and their class numbers."""

    paths: list[Path]
    labels_N: Labels


def find_folders(folder: Path, split_by: str | None = None) -> Source | None:
    """`train/CLASS/x.png` with optional `val/` and `test/` folders; or only `CLASS/x.png`.

    With split_by=folder: `CLASS/GROUP/x.png`.
    """
    if not folder.is_dir():
        return None
    roots = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_NAMES.items()
    }
    train = roots["train"] or folder
    nested = split_by == FOLDER
    classes = tuple(sorted(d.name for d in subfolders(train) if _images_of(d, nested=nested)))
    if not classes:
        if nested and (flat := [d for d in subfolders(train) if image_files(d)]):
            raise DataError(
                f"split_by={FOLDER} reads CLASS/GROUP/x.png, but the images of {flat[0]} are in "
                f"the folder of their class itself: move each into a folder of its group"
            )
        return None
    listed: dict[str, Listed] = {}
    for split, root in {**roots, "train": train}.items():
        if root is None or (roots["train"] is None and split != "train"):
            continue
        unknown = {d.name for d in subfolders(root)} - set(classes)
        if unknown and split != "train":
            raise DataError(
                f"{root} has classes that {train} does not have: {', '.join(sorted(unknown))}"
            )
        listed[split] = _listed(root, classes, nested=nested)
    return _source(folder, train, classes, listed, split_by)


def _source(
    folder: Path,
    train: Path,
    classes: tuple[str, ...],
    listed: Mapping[str, Listed],
    split_by: str | None,
) -> Source:
    groups, tables = _groups(folder, listed, split_by)
    files = (*tables, *(path for part in listed.values() for path in part.paths))

    @functools.cache
    def unequal() -> bool:
        return not all_of_one_size(files[len(tables) :])

    if "val" in listed:
        division = given(list(listed), groups, folder)
        parts = dict(listed)
    else:
        check_apart(groups, folder)
        whole = listed["train"]
        drawn = draw(whole.labels_N, train, groups=groups.get("train"), classes=classes)
        division = drawn.division
        parts = {"train": _part(whole, drawn.train), "val": _part(whole, drawn.val)}
        parts |= {split: part for split, part in listed.items() if split != "train"}
    return Source(
        layout="folder",
        files=files,
        classes=classes,
        splits={
            split: SplitSource(labels_N=part.labels_N, read=file_reader(part.paths, unequal))
            for split, part in parts.items()
        },
        changes=lambda: [RESIZED] if unequal() else [],
        division=division,
    )


def _part(whole: Listed, index: Labels) -> Listed:
    return Listed(paths=[whole.paths[i] for i in index], labels_N=whole.labels_N[index])


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden."""
    return [d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "_"))]


def _images_of(folder: Path, *, nested: bool) -> list[Path]:
    """The images of a class; of all its groups' folders where it is `nested`."""
    if not nested or not folder.is_dir():
        return image_files(folder)
    return [path for group in sorted(subfolders(folder)) for path in image_files(group)]


def _listed(root: Path, classes: tuple[str, ...], *, nested: bool) -> Listed:
    if nested:
        for name in classes:
            if astray := image_files(root / name):
                raise DataError(
                    f"split_by={FOLDER}: {len(astray)} images of class {name} are in no group's "
                    f"folder, such as {astray[0]}: move each into the folder of its group"
                )
    paths = [
        (p, i) for i, name in enumerate(classes) for p in _images_of(root / name, nested=nested)
    ]
    return Listed(paths=[p for p, _ in paths], labels_N=np.array([i for _, i in paths], np.int64))


# --- groups --------------------------------------------------------------------------------------


def _groups(
    folder: Path, listed: Mapping[str, Listed], split_by: str | None
) -> tuple[dict[str, Groups], tuple[Path, ...]]:
    """The groups of each split, if there are groups; and the file that names them, if one does.

    Raises:
        DataError: there is no such column, or an image has no group.
    """
    paths = [path for part in listed.values() for path in part.paths]
    if split_by == FOLDER:
        groups = Groups(by=FOLDER, of_images=[path.parent.name for path in paths])
    elif split_by == PREFIX:
        groups = prefixes([path.name for path in paths], folder)
    else:
        table = folder / METADATA
        rows = read_rows(table) if split_by != IMAGE and table.is_file() else []
        column = _column(split_by, rows, table)
        if column is None:
            return {}, ()
        names = [path.relative_to(folder).as_posix() for path in paths]
        groups = groups_in(column, _cells(column, rows, names, table), table, names=names)
        return _by_split(groups, listed), (table,)
    return _by_split(groups, listed), ()


def _by_split(groups: Groups, listed: Mapping[str, Listed]) -> dict[str, Groups]:
    """The groups of all images, as those of each split."""
    rest = iter(groups.of_images)
    return {
        split: Groups(by=groups.by, of_images=list(itertools.islice(rest, len(part.paths))))
        for split, part in listed.items()
    }


def _column(split_by: str | None, rows: Sequence[Mapping[str, str]], table: Path) -> str | None:
    """The column of `metadata.csv` with the groups; None if there is none."""
    columns = list(rows[0]) if rows and FILE_NAME in rows[0] else []
    if columns or split_by in (None, IMAGE):
        return column_of(split_by, columns, table, rules=[FOLDER, PREFIX])
    why = f"{table} has no column {FILE_NAME}" if rows else f"there is no {table}"
    raise DataError(
        f"split_by={split_by} names a column, but {why}: write {METADATA} with the columns "
        f"{FILE_NAME},{split_by}, or take split_by={FOLDER} (CLASS/GROUP/x.png) or "
        f"split_by={PREFIX} (the file's name before the first _)"
    )


def _cells(
    column: str, rows: Sequence[Mapping[str, str]], names: Sequence[str], table: Path
) -> list[str]:
    """A column's cell of each image; a row names it by its path, or by its file's name alone.

    Raises:
        DataError: an image has no row, or two; or two images have the name.
    """
    cells = {row[FILE_NAME]: row[column] for row in rows}
    if len(cells) < len(rows):
        double = Counter(row[FILE_NAME] for row in rows).most_common(1)[0][0]
        raise DataError(f"{table} has more than one row of {double}: leave one")
    alone = Counter(name.rpartition("/")[2] for name in names)
    found = []
    for name in names:
        file_name = name.rpartition("/")[2]
        if name not in cells and file_name in cells and alone[file_name] > 1:
            raise DataError(
                f"{table} names {file_name}, and {alone[file_name]} images have that name: write "
                f"paths such as {name}"
            )
        found.append(cells.get(name, cells.get(file_name)))
    if missing := [name for name, cell in zip(names, found, strict=True) if cell is None]:
        raise DataError(
            f"{table} has no row of {len(missing)} of {len(names)} images, the first is "
            f"{missing[0]}: add them, or take split_by={IMAGE} to ignore {column}"
        )
    return [cell for cell in found if cell is not None]
