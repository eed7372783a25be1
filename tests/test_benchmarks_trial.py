from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.datasets import PCAM
from torchvision.transforms import v2

from benchmarks import plain_training
from benchmarks.flops import PCAM_PX, flop_per_image
from benchmarks.side import Side, Work, measure_of
from trainable.config import TrialConfig
from trainable.data.augment import MAX_SHIFT_PX
from trainable.data.batches import Place, evaluation_batches, to_device, training_batches
from trainable.data.cache import Dataset, open_data
from trainable.networks.models import bare_network, freeze_all_but, replace_head

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("train_blocks", "gflop"),
    # Computed from the layers' sizes: the last two blocks with the prefix's forward, all, none.
    [(2, 9.714), (5, 16.88), (0, 5.638)],
)
def test_flop_of_a_step_of_vgg16(train_blocks: int, gflop: float) -> None:
    with torch.device("meta"):
        model = bare_network("vgg16")
        replace_head(model, num_classes=2, dropout=0.0)
    freeze_all_but(model, train_blocks)
    assert flop_per_image(model, size_px=PCAM_PX) / 1e9 == pytest.approx(gflop, rel=5e-4)


@pytest.fixture(scope="module")
def patches(tiny_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for torchvision: 40 training patches, and more for validation than there are."""
    root = tmp_path_factory.mktemp("patches")
    plain_training.write_patches(tiny_data, root, train_images=40, val_images=48)
    return root


def test_both_sides_read_the_same_bytes(patches: Path) -> None:
    data = open_data("pcam", patches)
    for split, name, num_images in ((data.train, "train", 40), (data.val, "val", 48)):
        torchvisions = PCAM(patches, name)
        assert len(torchvisions) == len(split.labels_N) == num_images
        for (image, label), ours, our_label in zip(
            torchvisions, split.images_NHWC, split.labels_N, strict=True
        ):
            np.testing.assert_array_equal(np.asarray(image), ours)
            assert label == our_label


def test_batches_without_augmentation_are_torchvisions(patches: Path) -> None:
    data = open_data("pcam", patches)
    config = TrialConfig(model="plain", pretrained="none", augment="none", batch_size=20)
    mean_C, std_C = torch.tensor(data.mean), torch.tensor(data.std)
    split = to_device(data.train, num_images=None, image_size=None, device=CPU)
    plain = plain_training.transform_of("none", data.mean, data.std)
    # torchvision's own two steps on the same bytes.
    steps = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
    wanted_NCHW = steps(split.images_NHWC.permute(0, 3, 1, 2))

    def in_order(batches: plain_training.Batches) -> torch.Tensor:
        """The order of training is each side's own: images are sorted by what they hold."""
        images = torch.cat([images for images, _ in batches])
        assert images.shape == (40, 3, PCAM_PX, PCAM_PX)
        assert images.dtype == torch.float32
        return images[images.sum((1, 2, 3), dtype=torch.float64).argsort()]

    ours = training_batches(split, config, Place(), batch_size=20, mean_C=mean_C, std_C=std_C)
    theirs = plain_training.loader(patches, "train", plain, batch_size=20, workers=0)
    wanted = in_order([(wanted_NCHW, split.labels_N)])
    torch.testing.assert_close(in_order(ours), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(in_order(theirs), wanted, rtol=0, atol=1e-5)

    val = to_device(data.val, num_images=None, image_size=None, device=CPU)
    theirs = plain_training.loader(patches, "val", plain, batch_size=20, workers=0)
    ours = evaluation_batches(val, batch_size=20, mean_C=mean_C, std_C=std_C)
    for (image, label), (our_image, our_label) in zip(theirs, ours, strict=True):
        torch.testing.assert_close(our_image, image, rtol=0, atol=1e-5)
        torch.testing.assert_close(our_label, label)


def test_timms_batches_are_flips_of_the_same_floats(patches: Path) -> None:
    data = open_data("pcam", patches)
    plain = plain_training.transform_of("none", data.mean, data.std)
    as_is = torch.stack([image for image, _ in PCAM(patches, "train", plain)])
    flipped = [as_is, as_is.flip(2), as_is.flip(3), as_is.flip(2, 3)]
    known = torch.cat(flipped)
    batches = plain_training.timm_loader(
        PCAM(patches, "train"), mean=data.mean, std=data.std, batch_size=20, workers=0
    )
    for images, _ in batches:
        for image in images:
            assert (known - image).abs().amax((1, 2, 3)).min() < 1e-5


@pytest.mark.parametrize("augment", ["hflip+vflip+shift", "hflip+vflip+shift+rotate+zoom"])
def test_the_references_augmentation_keeps_shape_and_centre(patches: Path, augment: str) -> None:
    torch.manual_seed(0)
    images = [image for image, _ in PCAM(patches, "train")]
    transform = plain_training.transform_of(augment, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    drawn = torch.stack([transform(images[0]) for _ in range(32)])
    assert drawn.shape == (32, 3, PCAM_PX, PCAM_PX)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() <= 1
    assert len(drawn.unique(dim=0)) > 16
    if augment == "hflip+vflip+shift":
        # Whole pixels: what is moved is some window of the image or of one of its flips.
        centre = drawn[:, :, 40:56, 40:56]
        whole = v2.functional.to_dtype(v2.functional.to_image(images[0]), torch.float32, scale=True)
        near = slice(40 - MAX_SHIFT_PX, 56 + MAX_SHIFT_PX)
        for some in centre:
            windows = [
                flipped[:, near, near].unfold(1, 16, 1).unfold(2, 16, 1)
                for flipped in (whole, whole.flip(1), whole.flip(2), whole.flip(1, 2))
            ]
            distance = [(w - some[:, None, None]).abs().amax((0, 3, 4)).min() for w in windows]
            assert min(distance) < 1e-6


@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_a_side_trains_at_the_precision_that_it_names(
    kind: str, patches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: list[torch.dtype] = []
    config = {"model": "plain", "pretrained": "none", "width": 4, "batch_size": 20, "epochs": 2}
    work = Work(name="epoch", measure="epoch", root=str(patches), config=config)
    plain = nn.Conv2d.forward

    def noted(self: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        out = plain(self, images)
        dtypes.append(out.dtype)
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dtypes.clear()
        side = Side(name=kind, kind=kind, threads=1, precision=precision)
        assert measure_of(side, work)(0)["train_images_per_s"] > 0
        assert set(dtypes) == {dtype}
