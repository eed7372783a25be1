"""Describe the data in a folder, and draw some of its images.

python -m trainable.data DIR [--out sheet.png]
python -m trainable.data DIR --split-by slide
python -m trainable.data DIR --augment hflip+stain --out augmented.png
python -m trainable.data synthetic
python -m trainable.data DIR --task segmentation --out masks.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from rich.console import Console
from rich.table import Table
from torch import Tensor

from trainable.config import CLASSIFICATION, DETECTION, SCORES_OF, SEGMENTATION, augmentations
from trainable.data.augment import DRAWS, augment, augment_masks, flip_boxes
from trainable.data.batches import generator_for, stratified_subset
from trainable.data.cache import EMBEDDED, PCAM, Dataset, Split, embedded, locate, open_data
from trainable.data.sources import VOID, DataError, Images, Source, Targets
from trainable.data.splits import BY_IMAGE

ROWS, COLUMNS = 4, 10
MOST_CLASSES = 20  # that are listed and drawn


def describe(data: Dataset) -> Table:
    """Images, size, bytes and classes of each split, as a table with a column for each split."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    there = {name: split for name, split in splits.items() if split is not None}
    counts_SK = [_counts(split, len(data.classes)) for split in there.values()]
    kind = {CLASSIFICATION: "class", SEGMENTATION: "pixels of", DETECTION: "boxes of"}[data.task]
    table = Table(title=f"dataset={data.name} layout={data.layout}", title_justify="left")
    table.add_column("")
    for name in there:
        table.add_column(name, justify="right")
    shapes = [split.images_NHWC.shape for split in there.values()]
    table.add_row("images", *(f"{n:,}" for n, *_ in shapes))
    table.add_row("size", *(f"{height}x{width}" for _, height, width, _ in shapes))
    megabytes = [split.images_NHWC.nbytes / 1e6 for split in there.values()]
    table.add_row("bytes", *(f"{size:,.1f} MB" for size in megabytes), end_section=True)
    for number, name in enumerate(data.classes[:MOST_CLASSES]):
        table.add_row(f"{kind} {name}", *(f"{counts_K[number]:,}" for counts_K in counts_SK))
    if len(data.classes) > MOST_CLASSES:
        rest_SK = [counts_K[MOST_CLASSES:] for counts_K in counts_SK]
        ranges = [f"{rest_K.min():,} to {rest_K.max():,}" for rest_K in rest_SK]
        table.add_row(f"{len(data.classes) - MOST_CLASSES} more classes, each", *ranges)
    if data.test is None:
        table.caption = "no test split"
    return table


def _counts(split: Split, num_classes: int) -> NDArray[np.intp]:
    """The images of each class; with masks the pixels, and with boxes those."""
    if split.targets_N is None:
        return np.bincount(split.labels_N, minlength=num_classes)
    if split.targets_N.dtype != np.uint8:
        of_boxes = np.bincount(split.targets_N[..., 4].astype(int).ravel(), minlength=num_classes)
        of_boxes[0] = 0  # rows without a box
        return of_boxes
    counts = np.zeros(VOID + 1, np.intp)
    for mask in split.targets_N:
        counts += np.bincount(mask.ravel(), minlength=VOID + 1)
    return counts[:num_classes]


def sheet_with_targets(data: Dataset, targets_N: Targets) -> Image.Image:
    """Training images, each above itself with its mask or boxes, in a colour for each class."""
    side = max(64, min(128, data.train.images_NHWC.shape[1]))
    sheet = Image.new("RGB", (COLUMNS * (side + 4), 2 * ROWS * (side + 4)), "white")
    for k in range(min(COLUMNS * ROWS, len(data.train.labels_N))):
        image, own = data.train.images_NHWC[k], targets_N[k]
        x, y = k % COLUMNS * (side + 4), k // COLUMNS * 2 * (side + 4)
        for below, tile in enumerate((np.asarray(image), overlaid(image, own))):
            tile_image = Image.fromarray(tile).resize((side, side))
            sheet.paste(tile_image, (x, y + below * (side + 4)))
    return sheet


def overlaid(image: Images, own: Targets) -> Images:
    """The image with its boxes, or with half of the colour of each pixel's class; void is white."""
    hues = np.array([0, *np.arange(VOID - 1) * 360 * 0.382, 0])  # far from each other
    colours = np.array([ImageColor.getrgb(f"hsl({hue % 360:.0f},100%,50%)") for hue in hues])
    colours[VOID] = 255
    if own.dtype == np.uint8:
        mixed = (image.astype(np.uint16) + colours[own]) // 2
        return np.where((own > 0)[..., None], mixed, image).astype(np.uint8)
    picture = Image.fromarray(np.array(image))
    for left, top, right, bottom, label in own[own[:, 4] > 0].tolist():
        outline = tuple(colours[int(label)].tolist())
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=outline)
    return np.asarray(picture)


def contact_sheet(data: Dataset) -> Image.Image:
    """Training images with their labels: a band for each class, of two rows if there are few."""
    if data.train.targets_N is not None:
        return sheet_with_targets(data, data.train.targets_N)
    side = max(64, min(128, data.train.images_NHWC.shape[1]))
    cell = side + 14
    bands = min(len(data.classes), MOST_CLASSES)
    rows = 2 if bands <= ROWS else 1
    sheet = Image.new("RGB", (COLUMNS * cell, bands * rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for band in range(bands):
        index = np.flatnonzero(data.train.labels_N == band)[: rows * COLUMNS]
        for k, i in enumerate(index):
            x, y = k % COLUMNS * cell, (rows * band + k // COLUMNS) * cell
            patch = Image.fromarray(np.asarray(data.train.images_NHWC[i]))
            sheet.paste(patch.resize((side, side)), (x + 2, y))
            draw.text((x + 2, y + side), data.classes[band][:16], fill="black")
    return sheet


def _moved(own: Tensor, draws: Tensor, names: tuple[str, ...], images: Tensor) -> Tensor:
    """Masks or boxes, moved as their images were."""
    if own.dtype == torch.uint8:
        return augment_masks(own, draws, names)
    return flip_boxes(own, draws, names, height=images.shape[1], width=images.shape[2])


def augmented_sheet(data: Dataset, names: str) -> Image.Image:
    """One row per image: the original, then its augmentations in the first epochs."""
    index = stratified_subset(data.train.labels_N, 2 * ROWS)
    cell = max(64, min(128, data.train.images_NHWC.shape[1])) + 4
    sheet = Image.new("RGB", (COLUMNS * cell, len(index) * cell), "white")
    images = torch.from_numpy(np.array(data.train.images_NHWC[index]))
    targets = data.train.targets_N
    own = torch.zeros(images.shape[:3], dtype=torch.uint8)
    own = moved = own if targets is None else torch.from_numpy(np.array(targets[index]))
    for column in range(COLUMNS):
        drawn = images
        if column:
            draws = torch.rand(len(index), DRAWS, generator=generator_for(0, "augment", column))
            drawn = augment(images, draws, augmentations(names)).clamp(0, 255).to(torch.uint8)
            moved = _moved(own, draws, augmentations(names), drawn)
        patches = [overlaid(*pair) for pair in zip(drawn.numpy(), moved.numpy(), strict=True)]
        for row, patch in enumerate(patches):
            tile = Image.fromarray(patch).resize((cell - 4, cell - 4))
            sheet.paste(tile, (column * cell, row * cell))
    return sheet


def main() -> int:
    """Run the command; exit status 2 if there is no usable data."""
    parser = argparse.ArgumentParser(
        prog="python -m trainable.data", description="Describe the data in a folder."
    )
    parser.add_argument("folder", help="a folder with data, or `synthetic` or `digits`")
    parser.add_argument(
        "--out", type=Path, help="image file to draw a sheet of training images into"
    )
    parser.add_argument(
        "--split-by", help="groups that train and validation do not share, as a trial's split_by"
    )
    parser.add_argument(
        "--task", default=CLASSIFICATION, choices=list(SCORES_OF), help="as a trial's task"
    )
    parser.add_argument("--augment", help="draw augmented images: names joined with +")
    arguments = parser.parse_args()
    console = Console()
    try:
        if arguments.augment and not arguments.out:
            raise ValueError("--augment draws a picture: add --out FILE, such as augmented.png")
        data, source = _opened(arguments.folder, arguments.split_by, arguments.task)
        if arguments.out:
            names = arguments.augment
            sheet = augmented_sheet(data, names) if names else contact_sheet(data)
            sheet.save(arguments.out)
    except (DataError, OSError, ValueError) as error:
        Console(stderr=True).print(
            f"data: {error}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        return 2
    console.print(describe(data))
    console.print(f"mean {_three(data.mean)}  std {_three(data.std)} (train, 0..1)")
    console.print(f"fingerprint {data.fingerprint} (SHA-256 of images and labels)")
    style = "yellow" if data.split == BY_IMAGE else None
    note = f"split={data.split}: {source.division.note}"
    console.print(note, style=style, soft_wrap=True, highlight=False, markup=False)
    for change in source.changes():
        console.print(change, style="yellow", soft_wrap=True, highlight=False)
    if arguments.out:
        console.print(f"contact sheet: {arguments.out}")
    return 0


def _opened(folder: str, split_by: str | None, task: str) -> tuple[Dataset, Source]:
    """The data in a folder, or an embedded set; and what it was before decoding."""
    if folder in EMBEDDED:
        return open_data(folder, split_by=split_by, task=task), embedded(folder, task)
    path = Path(folder)
    data = open_data(PCAM, path, split_by=split_by, task=task)
    source = locate(PCAM, path, split_by=split_by, task=task)
    assert source is not None  # noqa: S101 - it was opened
    return data, source


def _three(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
