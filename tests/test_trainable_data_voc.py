"""Pascal VOC's layout: what is read of it, and what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainable.config import TrialConfig
from trainable.data.cache import locate, open_data
from trainable.data.sources import VOID, DataError, labels_of
from trainable.data.voc import PADDING, SIDE_PX, VOC_CLASSES
from trainable.finetune import finetune


def write_voc(
    folder: Path,
    sizes: Sequence[tuple[int, int]] = ((40, 40),) * 12,
    *,
    val: int = 4,
    test: int = 0,
) -> Path:
    """A folder of images with a rectangle of class 1 + i % 3 each, and a void edge around it."""
    lists = folder / "ImageSets" / "Segmentation"
    for part in (folder / "JPEGImages", folder / "SegmentationClass", lists):
        part.mkdir(parents=True)
    names = [f"2007_{i:06d}" for i in range(len(sizes))]
    for i, (name, (height, width)) in enumerate(zip(names, sizes, strict=True)):
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = VOID
        mask[height // 4 + 1 : height // 2 - 1, width // 4 + 1 : width // 2 - 1] = 1 + i % 3
        pixels = np.full((height, width, 3), 100, np.uint8)
        pixels[mask > 0] = (250, 10, 40 * (1 + i % 3))
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        paletted = Image.fromarray(mask).convert("P")
        paletted.putpalette([k * 7 % 256 for k in range(768)])
        paletted.putdata(mask.ravel().tolist())
        paletted.save(folder / "SegmentationClass" / f"{name}.png")
    parts = {"train": names[: -val - test], "val": names[len(names) - val - test :][:val]}
    parts |= {"test": names[-test:]} if test else {}
    for split, own in parts.items():
        (lists / f"{split}.txt").write_text("\n".join(own) + "\n")
    return folder


def opened(folder: Path) -> Any:
    return open_data("voc", folder, task="segmentation")


def test_palettes_are_classes_and_labels_the_largest_of_them(tmp_path: Path) -> None:
    data = opened(write_voc(tmp_path, test=2))
    assert (data.layout, data.task, data.classes) == (
        "voc_segmentation",
        "segmentation",
        VOC_CLASSES,
    )
    assert [len(s.labels_N) for s in (data.train, data.val, data.test)] == [6, 4, 2]
    assert data.train.labels_N.tolist() == [1, 2, 3, 1, 2, 3]
    masks = np.asarray(data.train.targets_N)
    assert masks.shape == (6, 40, 40)
    assert [np.unique(mask).tolist() for mask in masks[:2]] == [[0, 1, VOID], [0, 2, VOID]]
    assert (data.train.images_NHWC[0][masks[0] == 1].mean(0) > (200, -1, -1)).all()


@pytest.mark.parametrize("where", ["VOC2012", "VOCdevkit/VOC2012", "voc"])
def test_the_folder_may_be_inside_of_the_one_that_is_named(where: str, tmp_path: Path) -> None:
    write_voc(tmp_path / where)
    assert len(opened(tmp_path).train.labels_N) == 8


def test_images_of_different_sizes_are_made_small_and_padded(tmp_path: Path) -> None:
    """Nothing is cut off, and padding is void."""
    data = opened(write_voc(tmp_path, [(40, 80), (80, 40), *[(64, 64)] * 6]))
    images, masks = data.train.images_NHWC, np.asarray(data.train.targets_N)
    assert images.shape[1:3] == masks.shape[1:] == (SIDE_PX, SIDE_PX)
    half = SIDE_PX // 2
    assert (images[0, half:] == PADDING).all()
    assert (masks[0, half:] == VOID).all()
    assert (masks[1, :, half:] == VOID).all()
    assert set(np.unique(masks[0, :half])) == {0, 1, VOID}
    # Resized by 6: the rectangle of 8 x 18 px inside the void edge.
    assert (masks[0] == 1).sum() == 6 * 6 * 8 * 18
    assert (images[0][masks[0] == 1].mean(0) > (200, -1, -1)).all()
    source = locate("voc", tmp_path, task="segmentation")
    assert source is not None
    assert "padded to 480 px" in source.changes()[0]


def test_own_classes_are_in_a_file(tmp_path: Path) -> None:
    (write_voc(tmp_path) / "classes.txt").write_text("ground\nhouse\ntree\nroad\n")
    assert opened(tmp_path).classes == ("ground", "house", "tree", "road")
    (tmp_path / "classes.txt").write_text("ground\nhouse\ntree\n")
    with pytest.raises(
        DataError, match=r"has the class 3, but there are 3: write their names into"
    ):
        opened(tmp_path)


def test_masks_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    before = opened(write_voc(tmp_path)).fingerprint
    assert opened(tmp_path).fingerprint == before
    path = tmp_path / "SegmentationClass" / "2007_000000.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 5
    Image.fromarray(mask).save(path)
    assert opened(tmp_path).fingerprint != before


def test_the_largest_class_beside_the_background() -> None:
    masks = np.zeros((3, 4, 4), np.uint8)
    masks[0, 0] = 2
    masks[0, 1, :2] = 1
    masks[1] = VOID
    assert labels_of(masks).tolist() == [2, 0, 0]


def test_a_cache_without_its_masks_is_made_anew(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_voc(tmp_path / "data")

    def open_it() -> Any:
        return open_data("voc", tmp_path / "data", task="segmentation", cache_dir=cache)

    before = open_it()
    (path,) = cache.glob("*/val_targets.npy")
    for damage in (path.unlink, lambda: path.write_bytes(path.read_bytes()[:500])):
        damage()
        assert np.array_equal(open_it().val.targets_N, before.val.targets_N)


def missing_image(folder: Path) -> None:
    (folder / "JPEGImages" / "2007_000001.jpg").unlink()


def missing_mask(folder: Path) -> None:
    (folder / "SegmentationClass" / "2007_000001.png").unlink()


def coloured_mask(folder: Path) -> None:
    Image.new("RGB", (40, 40)).save(folder / "SegmentationClass" / "2007_000001.png")


def other_size(folder: Path) -> None:
    Image.new("L", (40, 41)).save(folder / "SegmentationClass" / "2007_000001.png")


def no_list(folder: Path) -> None:
    (folder / "ImageSets" / "Segmentation" / "val.txt").unlink()


def empty_list(folder: Path) -> None:
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")


def broken_mask(folder: Path) -> None:
    (folder / "SegmentationClass" / "2007_000001.png").write_bytes(b"PNG")


def two_years(folder: Path) -> None:
    for year in (2007, 2012):
        (folder / f"VOC{year}" / "JPEGImages").mkdir(parents=True)


def no_text(folder: Path) -> None:
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe\xff")


def one_class(folder: Path) -> None:
    (folder / "classes.txt").write_text("ground\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_image, "JPEGImages has no image 2007_000001, which ImageSets names"),
        (missing_mask, r"there is no .*2007_000001\.png"),
        (coloured_mask, r"2007_000001\.png has colours: a mask is a PNG of class numbers"),
        (other_size, r"2007_000001\.png is 41x40 px, but its image is 40x40 px"),
        (no_list, r"there is no .*val\.txt: write the names of its images, one a line"),
        (empty_list, r"val\.txt names no image"),
        (broken_mask, r"2007_000001\.png cannot be decoded"),
        (two_years, "has several years: pass one of them, such as"),
        (no_text, r"val\.txt is no text"),
        (one_class, r"classes\.txt must have 2 to 255 different names"),
    ],
)
def test_what_is_broken_is_refused_with_its_name(damage: Any, message: str, tmp_path: Path) -> None:
    damage(write_voc(tmp_path))
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_each_task_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data for task=segmentation in .*JPEGImages, Segment"):
        opened(tmp_path)
    write_voc(tmp_path)
    with pytest.raises(DataError, match="images in Pascal VOC's layout: take task=segmentation"):
        open_data("voc", tmp_path)
    with pytest.raises(DataError, match=r"split_by=slide: .*Pascal VOC's layout.* has no groups"):
        open_data("voc", tmp_path, task="segmentation", split_by="slide")


def test_a_trial_reads_the_folder(tmp_path: Path) -> None:
    config = TrialConfig(
        **{"dataset": "voc", "task": "segmentation", "model": "plain", "pretrained": "none"},
        **{"width": 4, "batch_size": 4, "epochs": 1, "precision": "fp32"},
    )
    (row,) = finetune(config, data=write_voc(tmp_path))
    assert 0 < row.val_miou < 1
