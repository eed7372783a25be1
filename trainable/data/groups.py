"""Groups of images, such as a slide's or a patient's, that two splits must not share."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainable.data.sources import DataError

# Columns that are taken for groups unasked, the first that is there.
COLUMNS = ("group", "patient", "patient_id", "slide", "slide_id", "wsi")
# Words of `split_by` that are no columns: no groups, and two that go by where an image is.
IMAGE, FOLDER, PREFIX = "image", "folder", "prefix"
MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The group of each image of a split, in its order; `by` is the column or rule."""

    by: str
    of_images: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The different groups."""
        return sorted(set(self.of_images))


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column; a cell that a row lacks is empty.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, restval="", restkey=""))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as CSV: {error}") from error


def column_of(
    split_by: str | None, columns: Collection[str], where: Path, *, rules: Sequence[str] = ()
) -> str | None:
    """The column with the groups; None if there is none, or `split_by` is one of the `rules`.

    Columns of a usual name are taken unasked.

    Raises:
        DataError: there is no such column.
    """
    if split_by is None:
        return next((name for name in COLUMNS if name in columns), None)
    if split_by in (IMAGE, *rules):
        return None
    if split_by in columns:
        return split_by
    known = [name for name in columns if name not in ("", "id", "image", "label", "file_name")]
    raise DataError(
        f"split_by={split_by}, but {where} has no column {split_by}: take "
        f"{' or '.join(f'split_by={name}' for name in [*known[:MOST_NAMED], *rules, IMAGE])}"
    )


def groups_in(
    column: str, values: Sequence[object], where: Path, *, names: Sequence[str]
) -> Groups:
    """The groups that a column names, of the images of those names.

    Raises:
        DataError: an image has none.
    """
    of_images = ["" if value is None else str(value).strip() for value in values]
    if empty := [name for name, group in zip(names, of_images, strict=True) if not group]:
        raise DataError(
            f"{where}: {column} is empty for {len(empty)} of {len(names)} images, the first is "
            f"{empty[0]}: fill it in, or take split_by={IMAGE} to ignore {column}"
        )
    return Groups(by=column, of_images=of_images)


def prefixes(names: Sequence[str], where: Path) -> Groups:
    """Groups by the part of a file's name before the first `_`.

    Raises:
        DataError: a name has no such part.
    """
    if without := [name for name in names if not name.partition("_")[0] or "_" not in name]:
        raise DataError(
            f"split_by={PREFIX} takes the part of a file's name before the first _, but "
            f"{len(without)} of {len(names)} images in {where} have none, such as {without[0]}"
        )
    return Groups(by=PREFIX, of_images=[name.partition("_")[0] for name in names])


def check_apart(groups: Mapping[str, Groups], where: Path) -> None:
    """Raises DataError where two splits have a group in common."""
    splits = list(groups)
    for i, one in enumerate(splits):
        for other in splits[i + 1 :]:
            if common := sorted(set(groups[one].of_images) & set(groups[other].of_images)):
                by = groups[one].by
                raise DataError(
                    f"{where}: {one} and {other} share {len(common)} of {by}'s groups "
                    f"({named(common)}), which makes scores too good: put each into one split, or "
                    f"take split_by={IMAGE} to use the splits as they are"
                )


def named(names: Sequence[str]) -> str:
    """The first of some names."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
