"""A data set before decoding: its splits, its classes, and how validation was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (N, H, W, 3)
Labels = NDArray[np.int64]  # (N,)

CHUNK_IMAGES = 2048
SPLIT_NAMES = {"train": ("train",), "val": ("valid", "validation", "val"), "test": ("test",)}
MAX_CLASSES = 100_000  # a label in a broken file could require any number of class names


class DataError(ValueError):
    """The data cannot be used; the message names the file, what is expected and what it has."""


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """One split before decoding: its labels, and its images in chunks (N, H, W, 3) in order."""

    labels_N: Labels
    read: Callable[[], Iterator[Images]]


@dataclass(frozen=True, kw_only=True)
class Division:
    """How validation was made: `given`, `by_image`, or `by_` and what its groups are of.

    `note` says it in a sentence.
    """

    kind: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised data set: its layout, files, classes and splits.

    `changes` gives what is done to the images, in sentences.
    """

    layout: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    splits: dict[str, SplitSource]
    division: Division
    changes: Callable[[], Sequence[str]] = tuple


def as_labels(values: Sequence[object] | NDArray[np.generic], where: Path) -> Labels:
    """Class numbers (N,).

    Raises:
        DataError: the values are not class numbers; the message names `where`.
    """
    rule = f"labels must be integers from 0 to {MAX_CLASSES - 1:,}"
    array = np.asarray(values)
    if array.dtype.kind == "f" and not (
        np.isfinite(array).all() and (array == np.round(array)).all()
    ):
        raise DataError(f"{where}: {rule}, got a fraction, infinity or NaN")
    try:
        labels = array.astype(np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: {rule}, {error}") from error
    if labels.ndim != 1 or len(labels) == 0:
        raise DataError(f"{where}: {rule}, one per image")
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise DataError(f"{where}: {rule}, got {labels.min()} to {labels.max()}")
    return labels


def classes_of(splits: dict[str, SplitSource]) -> tuple[str, ...]:
    """Class names for labels that are only numbers: `0`, `1`, ..."""
    highest = max(int(split.labels_N.max()) for split in splits.values())
    return tuple(str(label) for label in range(highest + 1))
