"""A data set before decoding: its splits, its classes, and how validation was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainable.config import CLASSIFICATION

Images = NDArray[np.uint8]  # (N, H, W, 3)
Labels = NDArray[np.int64]  # (N,)
# What is learnt of an image that is not its label: of each pixel the class (N, H, W), uint8; or
# boxes (N, MOST_BOXES, 5), float32: left, top, right, bottom in pixels, and the class.
Targets = NDArray[np.uint8] | NDArray[np.float32]

CHUNK_IMAGES = 2048
SPLIT_NAMES = {"train": ("train",), "val": ("valid", "validation", "val"), "test": ("test",)}
VOID = 255  # in a mask: a pixel of no class, which counts nowhere
# Boxes of an image; rows that are left have the class 0, which is the background's.
MOST_BOXES = 100
MAX_CLASSES = 100_000  # a label in a broken file could require any number of class names


class DataError(ValueError):
    """The data cannot be used; the message names the file, what is expected and what it has."""


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """One split before decoding: its labels, and its images in chunks (N, H, W, 3) in order.

    Of tasks beyond classification, `read_with_targets` is there in place of `read`. The labels are
    then only as many as the images: those that are used are of the targets (`labels_of`).
    """

    labels_N: Labels
    read: Callable[[], Iterator[Images]] = lambda: iter(())
    read_with_targets: Callable[[], Iterator[tuple[Images, Targets]]] | None = None


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

    Of tasks beyond classification the first class is the background. `changes` gives what is done
    to the images, in sentences.
    """

    layout: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    splits: dict[str, SplitSource]
    division: Division
    changes: Callable[[], Sequence[str]] = tuple
    task: str = CLASSIFICATION


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


def labels_of(targets_N: Targets) -> Labels:
    """The class that has most of each image besides the background; 0 if there is none.

    A part of a split is drawn by it, so that each class keeps its share of the images.
    """
    if targets_N.ndim == 3 and targets_N.dtype == np.uint8:
        return np.array([_most(np.bincount(m.ravel(), minlength=VOID + 1)) for m in targets_N])
    sides = np.maximum(targets_N[..., 2:4] - targets_N[..., :2], 0)
    areas, classes = sides.prod(-1), targets_N[..., 4].astype(np.int64)
    return np.array([_most(np.bincount(c, a)) for c, a in zip(classes, areas, strict=True)])


def _most(area_by_class: NDArray[np.generic]) -> int:
    area_by_class = area_by_class[:VOID].copy()
    area_by_class[0] = 0
    return int(area_by_class.argmax())
