"""Pascal VOC's layout: JPEGImages, with masks in SegmentationClass or boxes in Annotations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from trainable.config import DETECTION, SEGMENTATION
from trainable.data.images import IMAGE_SUFFIXES, all_of_one_size, decoded
from trainable.data.sources import (
    CHUNK_IMAGES,
    MOST_BOXES,
    VOID,
    DataError,
    Images,
    Source,
    SplitSource,
    Targets,
)
from trainable.data.splits import given
from trainable.data.standard import check_ungrouped

IMAGES, MASKS, BOXES, LISTS = "JPEGImages", "SegmentationClass", "Annotations", "ImageSets"
# Of each task the folder of the targets, how their files end, and the folder of the lists.
KINDS = {SEGMENTATION: (MASKS, ".png", "Segmentation"), DETECTION: (BOXES, ".xml", "Main")}
CLASSES_FILE = "classes.txt"
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
SIDE_PX = 480  # of images of different sizes: resize the long side to this, pad the short one
PADDING = (124, 116, 104)  # ImageNet's mean colour
PADDED = (
    f"The images differ in size: their long side is resized to {SIDE_PX} px, and the short one is "
    f"padded to {SIDE_PX} px at the right or the bottom. Padding has no class and counts nowhere."
)

Reader = Callable[[str], tuple[Images, Targets]]  # the name in a list -> image, and mask or boxes


def find_voc_masks(folder: Path, split_by: str | None = None) -> Source | None:
    """Images with a mask each, a PNG of class numbers; 255 is a pixel of no class."""
    return _find(folder, split_by, task=SEGMENTATION)


def find_voc_boxes(folder: Path, split_by: str | None = None) -> Source | None:
    """Images with boxes, in an XML file each; boxes that are marked as difficult are left out."""
    return _find(folder, split_by, task=DETECTION)


def _find(folder: Path, split_by: str | None, *, task: str) -> Source | None:
    roots = [folder, *sorted(folder.glob("VOC2*")), *sorted(folder.glob("VOCdevkit/VOC2*"))]
    roots = [root for root in roots if (root / IMAGES).is_dir()]
    if not roots:
        return None
    if len(roots) > 1:
        raise DataError(f"{folder} has several years: pass one of them, such as {roots[-1]}")
    root = roots[0]
    check_ungrouped(f"{root} (Pascal VOC's layout)", split_by)
    targets, suffix, kind = KINDS[task]
    names = _listed(root, targets, suffix, kind=kind)
    classes = _classes(root)
    images = {path.stem: path for path in (root / IMAGES).iterdir() if _is_image(path)}
    every = [name for part in names.values() for name in part]
    if missing := [name for name in every if name not in images]:
        raise DataError(f"{root / IMAGES} has no image {missing[0]}, which {LISTS} names")
    files = [images[name] for name in every]

    @functools.cache
    def unequal() -> bool:
        return not all_of_one_size(files)

    def read_one(name: str) -> tuple[Images, Targets]:
        path = root / targets / f"{name}{suffix}"
        image = decoded(images[name])
        with_targets = _with_mask if task == SEGMENTATION else _with_boxes
        return with_targets(image, path, classes, pad=unequal())

    return Source(
        layout=f"voc_{task}",
        files=(
            *files,
            *(root / targets / f"{name}{suffix}" for name in every),
            *root.glob(CLASSES_FILE),
        ),
        classes=classes,
        splits={split: _split(part, read_one, unequal) for split, part in names.items()},
        division=given(list(names), {}, root),
        changes=lambda: [PADDED] if unequal() else [],
        task=task,
    )


def is_voc(folder: Path) -> bool:
    """Whether a folder has the layout, whatever of it is there."""
    return (folder / IMAGES).is_dir() and (folder / LISTS).is_dir()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _listed(root: Path, targets: str, suffix: str, *, kind: str) -> dict[str, list[str]]:
    """The names of each split; a test split without masks or boxes is left out.

    Raises:
        DataError: a list or a target is missing.
    """
    names: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        path = root / LISTS / kind / f"{split}.txt"
        if not path.is_file():
            if split == "test":
                continue
            raise DataError(f"there is no {path}: write the names of its images, one a line")
        names[split] = [line.split()[0] for line in _lines(path)]
        there = [(root / targets / f"{name}{suffix}").is_file() for name in names[split]]
        if split == "test" and not any(there):
            del names[split]
        elif not names[split]:
            raise DataError(f"{path} names no image")
        elif not all(there):
            raise DataError(
                f"there is no {root / targets / names[split][there.index(False)]}{suffix}"
            )
    return names


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not empty."""
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: {error}") from error


def _classes(root: Path) -> tuple[str, ...]:
    """The names in `classes.txt`, of which the first is the background's; else VOC's own."""
    path = root / CLASSES_FILE
    if not path.is_file():
        return VOC_CLASSES
    classes = tuple(_lines(path))
    if not 2 <= len(classes) <= VOID or len(set(classes)) < len(classes):
        raise DataError(
            f"{path} must have 2 to {VOID} different names, one a line, the first for the "
            f"background; got {len(classes)}"
        )
    return classes


def _split(names: Sequence[str], read_one: Reader, unequal: Callable[[], bool]) -> SplitSource:
    def read() -> Iterator[tuple[Images, Targets]]:
        unequal()  # found out once, not in every thread
        with ThreadPoolExecutor() as pool:  # PIL releases the interpreter's lock
            for start in range(0, len(names), CHUNK_IMAGES // 8):
                pairs = list(pool.map(read_one, names[start : start + CHUNK_IMAGES // 8]))
                own: Any = np.stack([target for _, target in pairs])
                yield np.stack([image for image, _ in pairs]), own

    return SplitSource(labels_N=np.zeros(len(names), np.int64), read_with_targets=read)


# --- masks ----------------------------------------------------------------------------------------


def _with_mask(
    image: Images, path: Path, classes: Sequence[str], *, pad: bool
) -> tuple[Images, Targets]:
    mask = decoded(path, mode=None)
    if mask.ndim != 2:
        raise DataError(
            f"{path} has colours: a mask is a PNG of class numbers, with a palette or in grey"
        )
    if mask.shape != image.shape[:2]:
        (height, width), (rows, columns) = mask.shape, image.shape[:2]
        raise DataError(f"{path} is {height}x{width} px, but its image is {rows}x{columns} px")
    unknown = np.setdiff1d(mask, [*range(len(classes)), VOID])
    if len(unknown):
        raise DataError(
            f"{path} has the class {unknown[0]}, but there are {len(classes)}: write their names "
            f"into {CLASSES_FILE} beside {IMAGES}, one a line, that of 0 first"
        )
    mask = mask.astype(np.uint8)
    if not pad:
        return image, mask
    return _resized(image, PADDING, smooth=True), _resized(mask, VOID, smooth=False)


def _resized(
    image: NDArray[np.uint8], fill: int | tuple[int, ...], *, smooth: bool
) -> NDArray[np.uint8]:
    from PIL import Image

    (height, width), kinds = image.shape[:2], Image.Resampling
    scale = SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(image).resize(size, kinds.BILINEAR if smooth else kinds.NEAREST)
    square = Image.new(small.mode, (SIDE_PX, SIDE_PX), fill)
    square.paste(small)
    return np.asarray(square)


# --- boxes ----------------------------------------------------------------------------------------


def _with_boxes(
    image: Images, path: Path, classes: Sequence[str], *, pad: bool
) -> tuple[Images, Targets]:
    boxes = np.zeros((MOST_BOXES, 5), np.float32)
    found = _boxes_in(path, classes)
    if len(found) > MOST_BOXES:
        raise DataError(f"{path} has {len(found)} boxes: at most {MOST_BOXES} of an image are read")
    boxes[: len(found)] = np.array(found, np.float32).reshape(-1, 5)
    height, width = image.shape[:2]
    boxes[:, :4] = boxes[:, :4].clip(0, [width, height, width, height])
    sides = boxes[: len(found), 2:4] - boxes[: len(found), :2]
    if not (sides > 0).all():  # nor where one is no number
        raise DataError(f"{path} has a box without any area in its image of {width}x{height} px")
    if not pad:
        return image, boxes
    boxes[:, :4] *= SIDE_PX / max(height, width)
    return _resized(image, PADDING, smooth=True), boxes


def _boxes_in(path: Path, classes: Sequence[str]) -> list[tuple[float, ...]]:
    """Left, top, right, bottom and class of each object; VOC counts pixels from 1."""
    try:
        text = path.read_text()
        if "<!ENTITY" in text:  # which could stand for gigabytes
            raise ValueError("it defines entities, which annotations do not need")
        objects = ElementTree.fromstring(text).findall("object")
        return [
            (
                float(box.findtext("bndbox/xmin", "")) - 1,
                float(box.findtext("bndbox/ymin", "")) - 1,
                float(box.findtext("bndbox/xmax", "")),
                float(box.findtext("bndbox/ymax", "")),
                classes.index(box.findtext("name", "").strip()),
            )
            for box in objects
            if box.findtext("difficult", "0").strip() != "1"
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; names of classes are those in {CLASSES_FILE}, else "
            f"VOC's"
        ) from error
