"""The embedded synthetic data set: patches that look like H&E stained tissue.

As in PatchCamelyon, the label says whether the central 32x32 pixels contain a tumour nucleus
(larger, darker, irregular). Both classes have tumour nuclei outside the centre as distractors.
Stain and density vary between patches, and some labels are wrong, so no network reaches an AUROC
of 1.

For the other tasks the same patches come with the nuclei's masks, or with boxes around them. These
are right everywhere; what limits the scores is that nuclei overlap and that the two kinds do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainable.config import CLASSIFICATION, SEGMENTATION
from trainable.data.sources import MOST_BOXES, Images, Labels, Source, SplitSource, Targets
from trainable.data.splits import given

SIZE_PX = 96
CENTRE_PX = (32, 64)
NUM_IMAGES = {"train": 4096, "val": 1024, "test": 1024}
LABEL_NOISE = 0.04
LEAST_BOX_PX = 3  # of a nucleus at the patch's edge
SEED = 20200105  # of the images: they are the same in every study

_NUCLEI = 26
_HALF_WINDOW = 12
_CHUNK = 512
# Optical density of the two stains in R, G, B (Ruifrok & Johnston 2001).
_HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.07, 0.99, 0.11], np.float32)

Floats = NDArray[np.float32]


def synthetic_source(task: str = CLASSIFICATION) -> Source:
    """The embedded patches, balanced, with their three splits, and with what the task learns."""
    classes: tuple[str, ...]
    if task == CLASSIFICATION:
        layout, classes = "synthetic", ("normal", "tumour")
        splits = {
            split: SplitSource(labels_N=_given_labels(split, n), read=_reader(split, n))
            for split, n in NUM_IMAGES.items()
        }
    else:
        layout, classes = f"synthetic_{task}", ("background", "nucleus", "tumour nucleus")
        splits = {
            split: SplitSource(
                labels_N=_true_labels(split, n),
                read_with_targets=_reader_with_targets(split, n, masks=task == SEGMENTATION),
            )
            for split, n in NUM_IMAGES.items()
        }
    return Source(
        layout=layout,
        files=(),
        classes=classes,
        splits=splits,
        division=given(list(splits), {}, Path("synthetic")),
        task=task,
    )


def _rng(split: str, purpose: int) -> np.random.Generator:
    return np.random.default_rng([SEED, list(NUM_IMAGES).index(split), purpose])


def _true_labels(split: str, n: int) -> Labels:
    return _rng(split, 0).permutation(np.arange(n, dtype=np.int64) % 2)


def _given_labels(split: str, n: int) -> Labels:
    wrong = _rng(split, 1).random(n) < LABEL_NOISE
    return np.where(wrong, 1 - _true_labels(split, n), _true_labels(split, n))


def _reader_with_targets(
    split: str, n: int, *, masks: bool
) -> Callable[[], Iterator[tuple[Images, Targets]]]:
    def read() -> Iterator[tuple[Images, Targets]]:
        labels_N, rng = _true_labels(split, n), _rng(split, 2)
        for start in range(0, n, _CHUNK):
            images, nuclei = draw_with_nuclei(labels_N[start : start + _CHUNK], rng)
            yield images, nuclei.masks_NHW if masks else nuclei.boxes_NM5

    return read


def _reader(split: str, n: int) -> Callable[[], Iterator[Images]]:
    def read() -> Iterator[Images]:
        labels_N, rng = _true_labels(split, n), _rng(split, 2)
        for start in range(0, n, _CHUNK):
            yield draw_patches(labels_N[start : start + _CHUNK], rng)

    return read


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """Where the nuclei are: the class of each pixel (N, H, W), and boxes (N, MOST_BOXES, 5)."""

    masks_NHW: NDArray[np.uint8]
    boxes_NM5: Floats


def draw_patches(labels_N: Labels, rng: np.random.Generator) -> Images:
    """Patches (N, 96, 96, 3), each with or without a tumour nucleus in its centre."""
    return draw_with_nuclei(labels_N, rng)[0]


def draw_with_nuclei(labels_N: Labels, rng: np.random.Generator) -> tuple[Images, Nuclei]:
    """The same patches, and their nuclei."""
    n = len(labels_N)
    tumour_NK, centres_NK2 = _place_nuclei(labels_N, rng)
    hematoxylin_NHW, nuclei = _draw_nuclei(tumour_NK, centres_NK2, rng)
    hematoxylin_NHW *= 0.75 + 0.5 * rng.random((n, 1, 1), np.float32)
    hematoxylin_NHW += 0.10 * _texture(n, 6, rng)
    eosin_NHW = 0.15 + 0.35 * rng.random((n, 1, 1), np.float32) + 0.25 * _texture(n, 12, rng)
    jitter = 0.08
    h_N3 = _HEMATOXYLIN + jitter * rng.standard_normal((n, 3), np.float32)
    e_N3 = _EOSIN * (1 - 0.3 * rng.random((n, 1), np.float32))
    density = (
        hematoxylin_NHW[..., None] * h_N3[:, None, None, :]
        + np.maximum(eosin_NHW, 0)[..., None] * e_N3[:, None, None, :]
    )
    image = 245 * np.exp(-density) + 4 * rng.standard_normal(density.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), nuclei


def _place_nuclei(labels_N: Labels, rng: np.random.Generator) -> tuple[NDArray[np.bool_], Floats]:
    """Which nuclei are tumour (N, K), and the centre of each (N, K, 2)."""
    n = len(labels_N)
    low, high = CENTRE_PX
    centres = rng.random((n, _NUCLEI, 2), np.float32) * SIZE_PX
    inside = ((centres >= low) & (centres < high)).all(-1)
    # Both classes have tumour nuclei outside the centre: these say nothing about the label.
    share = 0.2 * rng.random((n, 1), np.float32)
    tumour = (rng.random((n, _NUCLEI), np.float32) < share) & ~inside
    # Every patch has one to three nuclei in its centre. The label says what they are.
    central = np.arange(_NUCLEI) < rng.integers(1, 4, (n, 1))
    placed = low + 2 + rng.random((n, _NUCLEI, 2), np.float32) * (high - low - 4)
    centres = np.where(central[:, :, None], placed, centres)
    tumour = np.where(central, labels_N[:, None] == 1, tumour)
    return tumour, centres


def _draw_nuclei(
    tumour_NK: NDArray[np.bool_], centres_NK2: Floats, rng: np.random.Generator
) -> tuple[Floats, Nuclei]:
    """Density of hematoxylin (N, H, W): each nucleus an ellipse with a wavy outline.

    Of nuclei that overlap the darker one has the pixel.
    """
    n, pad = len(tumour_NK), _HALF_WINDOW
    canvas = np.zeros((n, SIZE_PX + 2 * pad, SIZE_PX + 2 * pad), np.float32)
    masks = np.zeros(canvas.shape, np.uint8)
    boxes = np.zeros((n, MOST_BOXES, 5), np.float32)
    window = np.arange(-pad, pad + 1)
    rows, columns = np.meshgrid(window, window, indexing="ij")
    patch = np.arange(n)[:, None, None]

    def column(normal: float, tumour: float, deviation: float, flags: NDArray[np.bool_]) -> Floats:
        drawn = np.where(flags, tumour, normal) + deviation * rng.standard_normal(n)
        return drawn.astype(np.float32)[:, None, None]

    for k in range(tumour_NK.shape[1]):
        flags = tumour_NK[:, k]
        radius = np.clip(column(3.3, 5.2, 0.6, flags), 2.0, 8.0)
        darkness = np.clip(column(0.75, 1.0, 0.15, flags), 0.3, 1.4)
        waviness = np.abs(column(0.05, 0.14, 0.04, flags))
        stretch = np.exp(column(0.0, 0.0, 0.18, flags))
        turn = column(0.0, 0.0, 2.0, flags)
        corner = np.floor(centres_NK2[:, k]).astype(int)
        offset = (centres_NK2[:, k] - corner)[:, :, None, None]
        dy, dx = rows - offset[:, 0], columns - offset[:, 1]
        angle = np.arctan2(dy, dx) + turn
        distance = np.hypot(dy, dx)
        outline = (
            radius
            * (1 + waviness * (np.sin(3 * angle) + np.sin(5 * angle + turn)))
            * (stretch * np.cos(angle) ** 2 + np.sin(angle) ** 2 / stretch)
        )
        shade = darkness / (1 + np.exp(np.clip(2.5 * (distance - outline), -30, 30)))
        window_pixels = (
            patch,
            corner[:, 0, None, None] + pad + rows,
            corner[:, 1, None, None] + pad + columns,
        )
        before, inside = canvas[window_pixels], distance < outline
        canvas[window_pixels] = np.maximum(before, shade)
        classes = np.where(flags, 2, 1).astype(np.uint8)
        is_seen = inside & (shade > before)
        masks[window_pixels] = np.where(is_seen, classes[:, None, None], masks[window_pixels])
        boxes[:, k] = _boxes_around(inside, corner - pad, classes)
    middle = (slice(None), slice(pad, -pad), slice(pad, -pad))
    return canvas[middle].copy(), Nuclei(masks_NHW=masks[middle].copy(), boxes_NM5=boxes)


def _boxes_around(
    inside_NHW: NDArray[np.bool_], corners_N2: NDArray[np.int_], classes_N: NDArray[np.uint8]
) -> Floats:
    """Boxes (N, 5) around what is inside windows; zeros where the patch has too little of it."""
    boxes = np.zeros((len(classes_N), 5), np.float32)
    for axis, (low, high) in enumerate(((1, 3), (0, 2))):  # rows, then columns
        seen: NDArray[np.bool_] = np.any(inside_NHW, axis=2 - axis)
        boxes[:, low] = corners_N2[:, axis] + seen.argmax(1)
        boxes[:, high] = corners_N2[:, axis] + seen.shape[1] - seen[:, ::-1].argmax(1)
    boxes[:, :4] = boxes[:, :4].clip(0, SIZE_PX)
    boxes[:, 4] = classes_N
    boxes[(boxes[:, 2:4] - boxes[:, :2]).min(1) < LEAST_BOX_PX] = 0
    return boxes


def _texture(n: int, cells: int, rng: np.random.Generator) -> Floats:
    """Smooth noise (N, H, W) with a standard deviation of about 1: a coarse grid, interpolated."""
    grid = rng.standard_normal((n, cells + 1, cells + 1), np.float32)
    position = np.linspace(0, cells, SIZE_PX, endpoint=False, dtype=np.float32)
    i, t = position.astype(int), position % 1
    rows = grid[:, i] * (1 - t)[:, None] + grid[:, i + 1] * t[:, None]
    smooth: Floats = (rows[:, :, i] * (1 - t) + rows[:, :, i + 1] * t).astype(np.float32)
    return smooth
