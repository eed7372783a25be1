"""Semantic segmentation: masks, loss, scores, networks, and whole trials."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index
from torchvision.models.segmentation import fcn_resnet50

from trainable.config import TrialConfig, trial_key
from trainable.data.augment import DRAWS, augment, augment_masks, resample
from trainable.data.batches import Place, generator_for, to_device
from trainable.data.cache import Dataset, Split, open_data
from trainable.data.sources import VOID, DataError
from trainable.data.synthetic import draw_patches, draw_with_nuclei
from trainable.feed import Feed
from trainable.finetune import finetune, follow
from trainable.host.followers import Followers
from trainable.host.storage import Folder
from trainable.networks.models import available_weights, blocks_of, build_model, check_model
from trainable.networks.segmentation import enlarged
from trainable.networks.teacher import KEPT, kept_network, load_teacher
from trainable.record import EpochResult, TrialResult
from trainable.training.pixels import (
    PixelScores,
    no_counts,
    pixel_counts,
    pixel_loss,
    pixel_scores,
    share_correct,
)
from trainable.training.step import Step

CPU = torch.device("cpu")
CLOCKS = ("epoch_wall_s", "images_per_s", "train_wall_s", "peak_memory_gib")


@pytest.fixture(scope="module")
def nuclei() -> Dataset:
    """160 synthetic patches with masks, in memory; a corner of each is void."""

    def split(n: int, seed: int) -> Split:
        labels = np.arange(n, dtype=np.int64) % 2
        images, found = draw_with_nuclei(labels, np.random.default_rng(seed))
        masks = found.masks_NHW.copy()
        masks[:, :40, :40] = VOID
        return Split(images_NHWC=images, labels_N=labels, targets_N=masks)

    return Dataset(
        name="tiny",
        layout="memory",
        classes=("background", "nucleus", "tumour nucleus"),
        fingerprint="tiny",
        mean=(0.9, 0.7, 0.9),
        std=(0.1, 0.15, 0.06),
        train=split(96, 0),
        val=split(32, 1),
        test=split(32, 2),
        task="segmentation",
    )


@pytest.fixture
def config(tiny_config: TrialConfig) -> TrialConfig:
    return replace(tiny_config, task="segmentation", epochs=2, augment="hflip+shift+rotate")


def whole(trial: Any) -> tuple[list[EpochResult], TrialResult]:
    results = []
    while True:
        try:
            results.append(next(trial))
        except StopIteration as end:
            return results, end.value


def numbers(row: EpochResult | TrialResult) -> str:
    return repr({name: value for name, value in asdict(row).items() if name not in CLOCKS})


def masks_of(n: int, side: int = 24, seed: int = 0) -> Tensor:
    """Random masks (N, side, side) of three classes with some void pixels."""
    masks = torch.randint(0, 3, (n, side, side), generator=generator_for(seed), dtype=torch.uint8)
    masks[:, :5, 3:9] = VOID
    return masks


def logits_of(n: int, side: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, side, side, generator=generator_for(seed))


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("hflip",), ("vflip", "shift"), ("hflip", "rot180", "shift")])
def test_masks_move_as_their_images(names: tuple[str, ...]) -> None:
    masks, draws = masks_of(40), torch.rand(40, DRAWS, generator=generator_for(2))
    images = masks[..., None].expand(-1, -1, -1, 3)  # whose pixels say where they were
    moved = augment_masks(masks, draws, names)
    assert torch.equal(moved, augment(images, draws, names)[..., 0])
    assert moved.dtype == torch.uint8
    assert not torch.equal(moved, masks)


def test_masks_turn_as_their_images_and_have_no_new_classes() -> None:
    """A pixel far from any edge of its image has its class, so smooth images keep theirs."""
    halves = torch.zeros(20, 32, 32, dtype=torch.uint8)
    halves[:, :, 16:] = 2
    halves[:, 20:] = VOID
    draws = torch.rand(20, DRAWS, generator=generator_for(3))
    names = ("rotate", "zoom", "crop")
    masks = augment_masks(halves, draws, names)
    assert set(masks.unique().tolist()) == {0, 2, VOID}
    images = augment(halves[..., None].expand(-1, -1, -1, 3), draws, names)[..., 0]
    is_sure = (images - images.round()).abs() < 1e-3
    is_sure &= torch.stack([images.round() == value for value in (0, 2, VOID)]).any(0)
    assert is_sure.float().mean() > 0.7
    assert torch.equal(masks[is_sure].float(), images[is_sure].round())


def test_colours_leave_masks_alone() -> None:
    masks, draws = masks_of(4), torch.rand(4, DRAWS, generator=generator_for(4))
    assert torch.equal(augment_masks(masks, draws, ("color", "stain")), masks)


def test_nearest_is_not_between() -> None:
    half_a_pixel = torch.tensor([[[1.0, 0, 0.5 / 4], [0, 1.0, 0]]])
    images = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 4, 4, 3)
    between = resample(images, half_a_pixel)
    assert not torch.equal(between, between.round())
    nearest = resample(images, half_a_pixel, mode="nearest")
    assert torch.equal(nearest, nearest.round())


def test_batches_hold_the_masks_of_their_images(config: TrialConfig, nuclei: Dataset) -> None:
    """In training and in evaluation, of a subset and of a crop; the mask is in the image here."""
    masks = np.asarray(nuclei.train.targets_N)
    marked = np.repeat(masks[..., None], 3, -1)
    train = replace(nuclei.train, images_NHWC=marked)
    data = replace(nuclei, train=train, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    for augmentation in ("hflip+vflip+shift", "none"):
        changed = replace(config, augment=augmentation, train_images=70, image_size=40)
        feed = Feed(changed, data, CPU)
        place = Place()
        batches = feed.batches(place)
        while place.epoch < 3:
            images, targets = next(batches)
            assert images.shape == (16, 3, 40, 40)
            assert torch.equal(images[:, 0].round().to(torch.uint8), targets)
        for images, targets in feed.plain(feed.train, 32):
            assert torch.equal(images[:, 0].round().to(torch.uint8), targets)
        part = feed.random_part("precise", 0, 8)
        assert torch.equal(part.images_NHWC[..., 0], part.targets_N)
        assert torch.equal(part.every(3).targets_N, part.between(0, 8).targets_N[::3])


def test_synthetic_images_are_the_same_for_every_task() -> None:
    labels = np.arange(6, dtype=np.int64) % 2
    images, nuclei = draw_with_nuclei(labels, np.random.default_rng(5))
    assert np.array_equal(images, draw_patches(labels, np.random.default_rng(5)))
    assert nuclei.masks_NHW.shape == (6, 96, 96)
    assert set(np.unique(nuclei.masks_NHW)) == {0, 1, 2}
    # Nuclei are dark, and those of a tumour darker.
    means = [images[nuclei.masks_NHW == k].mean() for k in range(3)]
    assert means[0] > means[1] + 40 > means[2] + 50
    # The centre has a tumour nucleus where the label says so.
    centre = (nuclei.masks_NHW[:, 32:64, 32:64] == 2).any((1, 2))
    assert centre[labels == 1].all()


# --- loss and scores ------------------------------------------------------------------------------


def test_without_void_and_in_one_image_the_loss_is_torchs() -> None:
    logits, masks = logits_of(1), masks_of(1)
    for smoothing in (0.0, 0.2):
        expected = cross_entropy(logits, masks.long(), ignore_index=VOID, label_smoothing=smoothing)
        torch.testing.assert_close(pixel_loss(logits, masks, smoothing=smoothing), expected)


def test_the_loss_of_a_batch_is_the_mean_of_any_parts_of_it() -> None:
    """However much void each image has."""
    logits, masks = logits_of(8), masks_of(8)
    masks[0, 2:] = VOID
    masks[5] = VOID
    parts = [pixel_loss(a, b) for a, b in zip(logits.split(2), masks.split(2), strict=True)]
    torch.testing.assert_close(pixel_loss(logits, masks), torch.stack(parts).mean())
    assert pixel_loss(logits[5:6], masks[5:6]) == 0


def test_scores_are_torchmetrics_and_void_counts_nowhere() -> None:
    logits, masks = logits_of(10), masks_of(10)
    logits[:, 0] += 1.5
    rows = torch.cat(
        [pixel_counts(a, b) for a, b in zip(logits.split(4), masks.split(4), strict=True)]
    )
    assert len(rows) == 3
    got = pixel_scores(rows, masks)
    about: dict[str, Any] = {"num_classes": 3, "ignore_index": VOID}
    accuracy = multiclass_accuracy(logits, masks.long(), average="micro", **about)
    assert got.pixel_accuracy == pytest.approx(accuracy.item(), rel=1e-6)
    miou = multiclass_jaccard_index(logits, masks.long(), **about)
    assert got.miou == pytest.approx(miou.item(), rel=1e-6)
    assert got.loss == pytest.approx(pixel_loss(logits, masks).item(), rel=1e-6)
    changed = logits.clone()
    changed[:, :, :5, 3:9] = 100 * torch.randn(10, 3, 5, 6, generator=generator_for(9))
    assert pixel_scores(pixel_counts(changed, masks), masks).miou == pytest.approx(got.miou)
    right = share_correct(logits, masks) / 10  # each image has as much void
    assert right.item() == pytest.approx(got.pixel_accuracy, rel=1e-6)


def test_a_class_that_is_neither_there_nor_predicted_does_not_count() -> None:
    masks = masks_of(4).clamp(max=1)
    logits = torch.stack([masks != 1, masks == 1, torch.zeros_like(masks)], 1).float()
    assert pixel_scores(pixel_counts(logits, masks), masks).miou == 1.0


def test_of_no_number_and_of_no_image_there_are_no_scores() -> None:
    nothing = repr(PixelScores())
    broken = logits_of(2) * math.nan
    assert repr(pixel_scores(pixel_counts(broken, masks_of(2)), masks_of(2))) == nothing
    assert repr(pixel_scores(no_counts(3), masks_of(0))) == nothing


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("few", "many"), [((6, 6), (48, 48)), ((5, 7), (33, 20)), ((1, 3), (9, 3))]
)
def test_outputs_are_enlarged_as_torch_does(few: tuple[int, int], many: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *few, generator=generator_for(6), requires_grad=True)
    expected = interpolate(maps, size=many, mode="bilinear", align_corners=False)
    got = enlarged(maps, torch.Size(many))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((each * weights).sum(), maps)[0] for each in (got, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["plain", "residual"])
@pytest.mark.parametrize("size", [48, 50])
def test_our_networks_look_at_a_quarter_of_the_size(model: str, size: int) -> None:
    config = TrialConfig(task="segmentation", model=model, pretrained="none", width=4, depth=6)
    check_model(config, num_classes=5, image_size=size)
    network: Any = build_model(config, num_classes=5)
    images = torch.randn(2, 3, size, size)
    assert network.backbone(images).shape[2:] == (-(-size // 4), -(-size // 4))
    assert network(images).shape == (2, 5, size, size)


def test_fcn_is_torchvisions() -> None:
    config = TrialConfig(task="segmentation", model="fcn_resnet50", pretrained="none")
    network: Any = build_model(config, num_classes=4)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=False)
    theirs.load_state_dict(network.state_dict())
    network.eval()
    theirs.eval()
    images = torch.randn(1, 3, 64, 64, generator=generator_for(7))
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images)["out"], rtol=1e-4, atol=1e-4)
    assert len(blocks_of(network)) == 6
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.0]


@pytest.mark.parametrize(
    ("model", "blocks"),
    [("deeplabv3_mobilenet_v3_large", 17), ("timm/resnet18d", 6), ("fcn_resnet101", 6)],
)
def test_known_networks_can_be_built(model: str, blocks: int) -> None:
    config = TrialConfig(task="segmentation", model=model, pretrained="none")
    check_model(config, num_classes=21, image_size=96)
    with torch.device("meta"):
        assert len(blocks_of(build_model(config, num_classes=3))) == blocks


def test_weights_of_a_classifier_are_its_backbones(tmp_path: Path) -> None:
    name = "mobilenet_v3_large"
    classifier = build_model(TrialConfig(model=name, pretrained="none"), num_classes=1000)
    from torchvision.models import mobilenet_v3_large

    classifier = mobilenet_v3_large(weights=None)
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    known = available_weights(f"fcn_{name}", str(path))
    config = TrialConfig(task="segmentation", model=f"fcn_{name}", pretrained=known)
    for trained, frozen in ((None, 0), (2, 15)):
        network: Any = build_model(replace(config, train_blocks=trained), num_classes=3)
        for ours, theirs in zip(
            network.backbone.state_dict().values(),
            classifier.features.state_dict().values(),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
        of_blocks = [
            any(p.requires_grad for module in block for p in module.parameters())
            for block in blocks_of(network)
        ]
        assert of_blocks.count(False) == frozen
        assert all(p.requires_grad for p in network.classifier.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vgg16", "of task=segmentation there are plain, residual, fcn_resnet50"),
        ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large, and timm's"),
        ("timm/vit_tiny_patch16_224", "gives no maps of features to segment"),
    ],
)
def test_networks_without_maps_are_refused(model: str, message: str) -> None:
    config = TrialConfig(task="segmentation", model=model, pretrained="none")
    with pytest.raises(ValueError, match=message):
        check_model(config, num_classes=3, image_size=224)


# --- what a trial refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup_alpha": 0.2}, "mixup_alpha is only for task=classification"),
        ({"cutmix_alpha": 0.2}, "cutmix_alpha is only for task=classification"),
        ({"distill_from": "x.pt"}, "distill_from is only for task=classification"),
        ({"augment": "hflip+erase"}, "augment=erase hides what task=segmentation is to find"),
        ({"select_by": "val_auroc"}, "select_by=val_auroc is no score of task=segmentation: take "),
    ],
)
def test_what_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, config: TrialConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_a_score_of_pixels_is_none_of_classification(tiny_config: TrialConfig) -> None:
    with pytest.raises(ValueError, match="select_by=val_miou is no score of task=classification"):
        replace(tiny_config, select_by="val_miou")


def test_a_field_at_its_default_changes_no_key(tiny_config: TrialConfig) -> None:
    assert trial_key(tiny_config, "x") == trial_key(
        replace(tiny_config, task="classification"), "x"
    )
    assert trial_key(tiny_config, "x") != trial_key(replace(tiny_config, task="segmentation"), "x")


def test_data_of_another_task_is_refused(
    tiny_config: TrialConfig, config: TrialConfig, tiny_data: Dataset, nuclei: Dataset
) -> None:
    with pytest.raises(DataError, match="opened for task=classification, and the trial has task=s"):
        next(finetune(config, data=tiny_data))
    with pytest.raises(DataError, match="opened for task=segmentation, and the trial has task=c"):
        next(finetune(tiny_config, data=nuclei))
    with pytest.raises(DataError, match="digits has classes alone: take dataset=synthetic"):
        open_data("digits", task="segmentation")


def test_a_segmenter_teaches_no_classifier(
    config: TrialConfig, nuclei: Dataset, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    whole(finetune(config, data=nuclei, checkpoint_folder=folder, keep_weights=True))
    with pytest.raises(ValueError, match="was trained for task=segmentation"):
        load_teacher(str(tmp_path / KEPT), num_classes=3)


# --- whole trials ---------------------------------------------------------------------------------


def test_a_trial_learns_to_find_nuclei(
    config: TrialConfig, nuclei: Dataset, tmp_path: Path
) -> None:
    config = replace(config, epochs=8, width=8, dropout=0.0, base_lr=2.0, augment="hflip+vflip")
    folder = Folder(str(tmp_path))
    rows, end = whole(finetune(config, data=nuclei, checkpoint_folder=folder, keep_weights=True))
    assert end.status == "completed"
    assert end.val_miou > 0.4
    assert end.val_pixel_accuracy > 0.85
    assert (end.val_miou, end.best_epoch) == max((r.val_miou, r.epoch) for r in rows)
    assert all(math.isfinite(r.noise_scale) or r.epoch == 1 for r in rows)
    assert end.test_miou == pytest.approx(end.val_miou, abs=0.1)
    assert 0.5 < rows[-1].train_accuracy < 1
    for name in ("val_auroc", "val_accuracy", "test_auroc", "test_auroc_low", "test_accuracy"):
        assert math.isnan(getattr(end, name)), name
    assert (end.test_true_positives, rows[0].val_true_negatives) == (-1, -1)
    assert not end.collapsed
    # The kept weights are those of the test scores.
    network, num_classes = kept_network(tmp_path / KEPT)
    assert num_classes == 3
    assert nuclei.test is not None
    test = to_device(nuclei.test, num_images=None, image_size=48, device=CPU)
    feed = Feed(config, nuclei, CPU)
    network.eval()
    with torch.no_grad():
        counts = [pixel_counts(network(x), masks) for x, masks in feed.plain(test, 8)]
    again = pixel_scores(torch.cat(counts), test.targets_N)
    assert again.miou == pytest.approx(end.test_miou, abs=1e-3)


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "all at once": {
        "ema_decay": 0.9,
        "label_smoothing": 0.1,
        "microbatch_size": 8,
        "norm": "ghost",
        "ghost_batch_size": 4,
        "clip_grad_norm": 0.5,
        "optimizer": "adamw",
        "base_lr": 0.02,
        "layer_decay": 0.7,
        "augment": "vflip+crop+color+stain",
        "precision": "bf16",
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(
    variant: str, config: TrialConfig, nuclei: Dataset, tmp_path: Path
) -> None:
    config = replace(config, **VARIANTS[variant])
    expected, expected_end = whole(finetune(config, data=nuclei))
    stopped = finetune(config, data=nuclei, checkpoint_folder=Folder(str(tmp_path)))
    next(stopped)
    stopped.close()
    torch.rand(7)
    resumed, end = whole(finetune(config, data=nuclei, checkpoint_folder=Folder(str(tmp_path))))
    assert [numbers(r) for r in resumed] == [numbers(r) for r in expected]
    assert numbers(end) == numbers(expected_end)


def test_microbatches_and_memory_that_runs_out_change_nothing(
    config: TrialConfig, nuclei: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, norm="none", dropout=0.0, epochs=1)
    expected, _ = whole(finetune(config, data=nuclei))
    parted, _ = whole(finetune(replace(config, microbatch_size=4), data=nuclei))
    loss = Step.loss

    def too_many(step: Step, images: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        if len(images) > 4:
            raise torch.OutOfMemoryError
        return loss(step, images, *more)

    monkeypatch.setattr(Step, "loss", too_many)
    halved, end = whole(finetune(config, data=nuclei))
    assert (end.oom_retries, end.microbatch_size, end.accumulation_steps) == (2, 4, 4)
    for one in (*parted, *halved):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_miou", "val_pixel_accuracy"):
            expected_value = getattr(expected[0], name)
            assert getattr(one, name) == pytest.approx(expected_value, rel=1e-4), name


@pytest.fixture(scope="module")
def pair() -> Iterator[Followers]:
    followers = Followers(2)
    yield followers
    followers.close()


def test_a_trial_of_two_ranks_is_that_of_one(
    pair: Followers, config: TrialConfig, nuclei: Dataset
) -> None:
    config = replace(config, norm="sync", dropout=0.0, eval_images=31)
    one = whole(finetune(config, data=nuclei))
    with pair.training(follow, config, nuclei, 1) as ranks:
        two = whole(finetune(config, data=nuclei, ranks=ranks))
    for first, second in zip([*one[0], one[1]], [*two[0], two[1]], strict=True):
        for name, value in asdict(first).items():
            if name.startswith(("val_", "test_", "train_l", "train_a", "grad")):
                wanted = pytest.approx(value, rel=1e-3, abs=1e-3, nan_ok=True)
                assert getattr(second, name) == wanted, name
