"""Detection: boxes, scores, the network, and whole trials."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainable_data_voc import write_voc
from test_trainable_segmentation import CPU, numbers, whole
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data.augment import DRAWS, augment, flip_boxes
from trainable.data.batches import Place, generator_for, to_device
from trainable.data.cache import Dataset, Split, open_data
from trainable.data.sources import MOST_BOXES, DataError, labels_of
from trainable.data.synthetic import draw_with_nuclei
from trainable.data.voc import SIDE_PX
from trainable.feed import Feed
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.networks.models import blocks_of, build_model, check_model
from trainable.training.boxes import BoxScores, box_scores, no_boxes
from trainable.training.step import Step


@pytest.fixture(scope="module")
def boxed() -> Dataset:
    """64 synthetic patches with boxes, in memory."""

    def split(n: int, seed: int) -> Split:
        labels = np.arange(n, dtype=np.int64) % 2
        images, found = draw_with_nuclei(labels, np.random.default_rng(seed))
        return Split(images_NHWC=images, labels_N=labels, targets_N=found.boxes_NM5)

    return Dataset(
        name="tiny",
        layout="memory",
        classes=("background", "nucleus", "tumour nucleus"),
        fingerprint="tiny",
        mean=(0.9, 0.7, 0.9),
        std=(0.1, 0.15, 0.06),
        train=split(48, 0),
        val=split(8, 1),
        test=split(8, 2),
        task="detection",
    )


@pytest.fixture
def config(tiny_config: TrialConfig) -> TrialConfig:
    changes = {"augment": "hflip+vflip+color", "base_lr": 0.02, "lr_scaling": "constant"}
    return replace(tiny_config, task="detection", epochs=2, dropout=0.0, **changes)


def marked(boxes_M5: Tensor, side: int) -> Tensor:
    """How many boxes cover each pixel (side, side)."""
    counts = torch.zeros(side, side)
    for left, top, right, bottom, label in boxes_M5.round().int().tolist():
        counts[top:bottom, left:right] += label
    return counts


# --- boxes ----------------------------------------------------------------------------------------


def test_boxes_are_around_their_nuclei() -> None:
    _, nuclei = draw_with_nuclei(np.arange(8, dtype=np.int64) % 2, np.random.default_rng(3))
    for mask, boxes in zip(nuclei.masks_NHW, nuclei.boxes_NM5, strict=True):
        there = boxes[boxes[:, 4] > 0]
        assert 10 < len(there) < 40
        covered = marked(torch.from_numpy(there), 96) > 0
        assert covered[torch.from_numpy(mask > 0)].float().mean() > 0.98
        assert (there[:, 2:4] - there[:, :2]).max() < 26
        assert there[:, :4].min() >= 0
        assert there[:, :4].max() <= 96
        for left, top, right, bottom, label in there.astype(int):
            inside = mask[top:bottom, left:right]
            assert (inside == label).any() or (inside > 0).mean() > 0.3  # or a darker one is there


@pytest.mark.parametrize("names", [("hflip",), ("vflip",), ("rot180", "hflip"), ("color",)])
def test_boxes_are_flipped_as_their_images(names: tuple[str, ...]) -> None:
    _, nuclei = draw_with_nuclei(np.arange(12, dtype=np.int64) % 2, np.random.default_rng(4))
    boxes, draws = (
        torch.from_numpy(nuclei.boxes_NM5),
        torch.rand(12, DRAWS, generator=generator_for(1)),
    )
    images = torch.stack([marked(each, 96) for each in boxes])[..., None].expand(-1, -1, -1, 3)
    moved = flip_boxes(boxes, draws, names, height=96, width=96)
    geometric = tuple(name for name in names if name != "color")
    expected = augment(images, draws, geometric)[..., 0]
    assert torch.equal(torch.stack([marked(each, 96) for each in moved]), expected)


def test_a_crop_moves_boxes_and_drops_what_is_outside(config: TrialConfig, boxed: Dataset) -> None:
    whole_split = to_device(boxed.train, num_images=None, image_size=None, device=CPU)
    cropped = to_device(boxed.train, num_images=None, image_size=48, device=CPU)
    for before, after in zip(whole_split.targets_N, cropped.targets_N, strict=True):
        difference = marked(before, 96)[24:72, 24:72] - marked(after, 48)
        assert (difference >= 0).all()  # slivers of less than 3 px are gone
        assert (difference > 0).float().mean() < 0.08
    feed = Feed(config, boxed, CPU)
    images, targets = next(feed.batches(Place()))
    assert (images.shape, targets.shape) == ((16, 3, 48, 48), (16, MOST_BOXES, 5))


def test_the_label_of_an_image_is_the_class_with_the_largest_boxes() -> None:
    boxes = np.zeros((3, MOST_BOXES, 5), np.float32)
    boxes[0, :3] = [(0, 0, 2, 2, 1), (5, 5, 8, 8, 2), (1, 1, 3, 2, 1)]
    boxes[1, 0] = (0, 0, 4, 4, 1)
    assert labels_of(boxes).tolist() == [2, 1, 0]


XML = """<annotation><object><name>{}</name><difficult>{}</difficult><bndbox>
<xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def write_boxes(folder: Path, **about: Any) -> Path:
    """The layout with an annotation of each image: a dog, of every third a difficult one."""
    write_voc(folder, **about)
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Segmentation").rename(folder / "ImageSets" / "Main")
    for i, path in enumerate(sorted((folder / "JPEGImages").iterdir())):
        text = XML.format("dog", int(i % 3 == 2))
        (folder / "Annotations" / f"{path.stem}.xml").write_text(text)
    return folder


def test_annotations_are_boxes_from_0(tmp_path: Path) -> None:
    data = open_data("voc", write_boxes(tmp_path), task="detection")
    boxes = np.asarray(data.train.targets_N)
    assert data.classes[12] == "dog"
    assert boxes[0, 0].tolist() == [10, 20, 30, 40, 12]
    assert (boxes[0, 1:] == 0).all()
    assert (boxes[2] == 0).all()  # it is difficult
    assert data.train.labels_N[:3].tolist() == [12, 12, 0]


def test_boxes_are_resized_with_their_images(tmp_path: Path) -> None:
    write_boxes(tmp_path, sizes=[(40, 80), *[(60, 40)] * 7])
    data = open_data("voc", tmp_path, task="detection")
    assert data.train.images_NHWC.shape[1:3] == (SIDE_PX, SIDE_PX)
    boxes = np.asarray(data.train.targets_N)
    assert boxes[0, 0].tolist() == [60, 120, 180, 240, 12]
    assert boxes[1, 0].tolist() == [80, 160, 240, 320, 12]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (XML.format("wombat", 0), r"000001\.xml cannot be read: .*'wombat'|not in tuple"),
        ("<annotation>", r"000001\.xml cannot be read"),
        (XML.format("dog", 0).replace("11", "x"), r"000001\.xml cannot be read"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", r"000001\.xml cannot be read: it defines"),
        (XML.format("dog", 0).replace("11", "nan"), "has a box without any area in its image"),
        (XML.format("dog", 0).replace("11", "31"), "has a box without any area in its image"),
        (
            f"<annotation>{XML.format('dog', 0)[12:-13] * 101}</annotation>",
            "has 101 boxes: at most",
        ),
    ],
)
def test_broken_annotations_are_refused(text: str, message: str, tmp_path: Path) -> None:
    write_boxes(tmp_path)
    (tmp_path / "Annotations" / "2007_000001.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_data("voc", tmp_path, task="detection")


# --- scores ---------------------------------------------------------------------------------------


def rows_of(boxes_NM5: Tensor, score: float = 0.9) -> Tensor:
    """What an evaluation would keep if exactly these boxes were found."""
    rows = torch.zeros(len(boxes_NM5), 1 + MOST_BOXES, 6)
    rows[:, 1:, :4], rows[:, 1:, 5] = boxes_NM5[..., :4], boxes_NM5[..., 4]
    rows[:, 1:, 4] = score * (boxes_NM5[..., 4] > 0)
    rows[:, 0, 0] = 0.5
    return rows


def test_scores_of_known_boxes() -> None:
    boxes = torch.zeros(2, MOST_BOXES, 5)
    boxes[0, :2] = torch.tensor([[0, 0, 10, 10, 1.0], [20, 20, 40, 40, 2.0]])
    boxes[1, 0] = torch.tensor([5, 5, 25, 25, 1.0])
    assert box_scores(rows_of(boxes), boxes) == BoxScores(map=1.0, map_50=1.0, loss=0.5)
    # An overlap of 2/3: right at 0.5, 0.55, 0.6 and 0.65 of ten thresholds.
    moved = boxes.clone()
    moved[..., 0] += 0.2 * (boxes[..., 2] - boxes[..., 0])
    moved[..., 2] += 0.2 * (boxes[..., 2] - boxes[..., 0])
    got = box_scores(rows_of(moved), boxes)
    assert (got.map, got.map_50) == pytest.approx((0.4, 1.0))
    nothing = box_scores(rows_of(torch.zeros_like(boxes)), boxes)
    assert (nothing.map, nothing.map_50) == (0.0, 0.0)
    assert repr(box_scores(rows_of(boxes) * math.nan, boxes)) == repr(BoxScores())
    assert repr(box_scores(no_boxes(3), boxes[:0])) == repr(BoxScores())


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "blocks"), [("fasterrcnn_resnet50", 6), ("timm/resnet18d", 6), ("plain", 4)]
)
def test_networks_can_be_built(model: str, blocks: int) -> None:
    config = TrialConfig(task="detection", model=model, pretrained="none")
    check_model(config, num_classes=21, image_size=96)
    with torch.device("meta"):
        assert len(blocks_of(build_model(config, num_classes=3))) == blocks


@pytest.mark.parametrize(
    ("model", "message"),
    [("vgg16", "of task=detection there are plain, residual, fas"), ("timm/vgg11", "is no ResNet")],
)
def test_other_networks_are_refused(model: str, message: str) -> None:
    config = TrialConfig(task="detection", model=model, pretrained="none")
    with pytest.raises(ValueError, match=message):
        check_model(config, num_classes=3, image_size=96)


def test_a_pyramid_finds_and_learns_at_any_level() -> None:
    config = TrialConfig(task="detection", model="fasterrcnn_resnet18", pretrained="none")
    torch.manual_seed(0)
    network = build_model(config, num_classes=3)
    images = torch.randn(2, 3, 64, 64)
    boxes = torch.zeros(2, MOST_BOXES, 5)
    boxes[0, 0] = torch.tensor([8.0, 8, 40, 56, 2])  # the second image has none
    loss = network(images, boxes)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(p.grad is not None for p in network.get_submodule("backbone").parameters())
    network.eval()
    found = network(images)
    assert found.shape == (2, MOST_BOXES, 6)
    assert math.isfinite(network(images, boxes).item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "hflip+shift"}, "augment=shift does not keep boxes: with task=detection take"),
        ({"augment": "erase"}, "augment=erase hides what task=detection is to find"),
        ({"label_smoothing": 0.1}, "label_smoothing is not for task=detection"),
        ({"mixup_alpha": 0.1}, "mixup_alpha is only for task=classification"),
        ({"select_by": "val_miou"}, "select_by=val_miou is no score of task=detection"),
    ],
)
def test_what_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, config: TrialConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


# --- whole trials ---------------------------------------------------------------------------------


def test_a_trial_learns_to_find_nuclei(config: TrialConfig, boxed: Dataset) -> None:
    config = replace(config, model="residual", width=8, epochs=6, ema_decay=0.5, augment="hflip")
    rows, end = whole(finetune(config, data=boxed))
    assert end.status == "completed"
    assert end.val_map_50 > 0.1
    assert rows[-1].val_loss < rows[0].val_loss
    assert rows[-1].train_loss < rows[0].train_loss
    assert end.test_map_50 > 0.05
    assert 0 < end.test_map < end.test_map_50
    assert any(math.isfinite(row.noise_scale) for row in rows)
    for name in ("val_auroc", "val_miou", "test_auroc", "test_accuracy", "test_pixel_accuracy"):
        assert math.isnan(getattr(end, name)), name
    assert math.isnan(rows[0].train_accuracy)


@pytest.mark.parametrize("changes", [{}, {"microbatch_size": 8, "precision": "bf16"}])
def test_resumed_equals_uninterrupted_bit_for_bit(
    changes: dict[str, Any], config: TrialConfig, boxed: Dataset, tmp_path: Path
) -> None:
    config = replace(config, **changes)
    expected, expected_end = whole(finetune(config, data=boxed))
    stopped = finetune(config, data=boxed, checkpoint_folder=Folder(str(tmp_path)))
    next(stopped)
    stopped.close()
    torch.rand(7)
    resumed, end = whole(finetune(config, data=boxed, checkpoint_folder=Folder(str(tmp_path))))
    assert [numbers(r) for r in resumed] == [numbers(r) for r in expected]
    assert numbers(end) == numbers(expected_end)


def test_memory_that_runs_out_halves_the_microbatch(
    config: TrialConfig, boxed: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Step.loss

    def too_many(step: Step, images: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        if len(images) > 8:
            raise torch.OutOfMemoryError
        return loss(step, images, *more)

    monkeypatch.setattr(Step, "loss", too_many)
    rows, end = whole(finetune(replace(config, epochs=1), data=boxed))
    assert (end.oom_retries, end.microbatch_size, end.status) == (1, 8, "completed")
    assert math.isfinite(rows[0].train_loss)
    assert set(asdict(end)) >= {"val_map", "test_map_50"}
