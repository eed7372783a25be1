from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from trainable.augment import DRAWS, MAX_SHIFT_PX, augment, shift, zoom
from trainable.config import TrialConfig
from trainable.data.batches import (
    DeviceSplit,
    evaluation_batches,
    stratified_subset,
    to_device,
    to_floats,
    training_batches,
    training_order,
)
from trainable.data.cache import Dataset
from trainable.data.sources import DataError

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
PATCHES = torch.randint(
    0, 256, (6, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def split_of(n: int) -> DeviceSplit:
    """Images whose every pixel says which image it is."""
    number = torch.arange(n, dtype=torch.uint8)
    images = number[:, None, None, None].expand(n, 8, 8, 3).contiguous()
    return DeviceSplit(images_NHWC=images, labels_N=number.long() % 2)


def epoch_of(config: TrialConfig, n: int, epoch: int = 1) -> list[tuple[torch.Tensor, ...]]:
    return list(training_batches(split_of(n), config, epoch=epoch, mean_C=MEAN, std_C=STD))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = training_order(50, seed=1, epoch=2)
    torch.manual_seed(99)
    assert torch.equal(first, training_order(50, seed=1, epoch=2))
    assert not torch.equal(first, training_order(50, seed=2, epoch=2))
    assert not torch.equal(first, training_order(50, seed=1, epoch=3))
    assert sorted(first.tolist()) == list(range(50))


def test_an_image_is_augmented_alike_whatever_the_batch_size(tiny_data: Dataset) -> None:
    split = to_device(tiny_data.train, num_images=None, image_size=48, device=CPU)
    base = TrialConfig(augment="hflip+vflip+rot180+shift+zoom", seed=4)

    def epoch(batch_size: int) -> torch.Tensor:
        config = replace(base, batch_size=batch_size)
        batches = training_batches(split, config, epoch=3, mean_C=MEAN, std_C=STD)
        return torch.cat([images for images, _ in batches])

    whole = epoch(16)
    assert torch.allclose(whole, epoch(48), atol=1e-5)
    plain = to_floats(split.images_NHWC[training_order(96, seed=4, epoch=3)], MEAN, STD)
    assert not torch.allclose(whole, plain, atol=0.1)


def test_every_batch_is_full_and_no_image_comes_twice() -> None:
    config = TrialConfig(batch_size=16, augment="none")
    batches = epoch_of(config, 50)
    assert [len(labels) for _, labels in batches] == [16, 16, 16]
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in batches])
    assert len(seen.unique()) == 48


def test_evaluation_takes_every_image_once_in_order() -> None:
    batches = list(evaluation_batches(split_of(50), batch_size=16, mean_C=MEAN, std_C=STD))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [i % 2 for i in range(50)]


def test_floats_are_torchvisions_and_channels_last() -> None:
    ours = to_floats(PATCHES, MEAN, STD)
    theirs = tv.normalize(
        tv.to_dtype(PATCHES.permute(0, 3, 1, 2), torch.float32, scale=True),
        MEAN.tolist(),
        STD.tolist(),
    )
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def draws(**columns: float) -> torch.Tensor:
    """Draws that leave an image as it is, but for the named columns."""
    names = ("hflip", "vflip", "rot180", "down", "right", "zoom")
    values = torch.full((len(PATCHES), DRAWS), 0.999)
    values[:, 3:] = 0.5  # no step, factor 1
    for name, value in columns.items():
        values[:, names.index(name)] = value
    return values


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("hflip", tv.horizontal_flip),
        ("vflip", tv.vertical_flip),
        ("rot180", lambda x: tv.rotate(x, 180)),
    ],
)
def test_flips_are_torchvisions_to_the_bit(name: str, theirs) -> None:  # type: ignore[no-untyped-def]
    expected = theirs(PATCHES.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(augment(PATCHES, draws(**{name: 0.1}), (name,)), expected)
    assert torch.equal(augment(PATCHES, draws(), (name,)), PATCHES)


def test_each_image_has_its_own_draw() -> None:
    values = draws()
    values[::2, 0] = 0.1
    out = augment(PATCHES, values, ("hflip",))
    assert torch.equal(out[::2], PATCHES[::2].flip(2))
    assert torch.equal(out[1::2], PATCHES[1::2])


def test_shift_is_a_crop_of_the_mirrored_image() -> None:
    steps = torch.tensor([[2, -3], [0, 0], [-4, 4], [1, 1], [4, -4], [-1, 0]])
    out = shift(PATCHES, steps)
    padded = np.pad(PATCHES.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    for i, (down, right) in enumerate(steps.tolist()):
        expected = padded[i, 4 - down : 16 - down, 4 - right : 16 - right]
        assert np.array_equal(out[i].numpy(), expected)


def test_shift_draws_every_step_equally_often() -> None:
    n = 9000
    values = torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(20, dtype=torch.uint8)[None, :, None, None].expand(n, 20, 20, 3)
    moved = augment(ramp, values, ("shift",))
    steps = 10 - moved[:, 10, 0, 0].long()
    counts = torch.bincount(steps + MAX_SHIFT_PX)
    assert len(counts) == 2 * MAX_SHIFT_PX + 1
    assert counts.min() > 850


def test_zoom_is_torchvisions_affine() -> None:
    # A smooth image: where the two treat the edge differently nothing is compared.
    y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 2, 32), indexing="ij")
    image = (100 + 50 * torch.sin(x + y))[None, :, :, None].expand(1, 32, 32, 3)
    for factor in (0.9, 1.1):
        ours = zoom(image, torch.tensor([factor])).permute(0, 3, 1, 2)
        theirs = tv.affine(
            image.permute(0, 3, 1, 2),
            angle=0.0,
            translate=[0.0, 0.0],
            scale=factor,
            shear=[0.0, 0.0],
            interpolation=tv.InterpolationMode.BILINEAR,
        )
        assert torch.allclose(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], atol=0.02)
    assert torch.allclose(zoom(image, torch.ones(1)), image, atol=1e-3)


def test_subset_has_the_classes_shares_and_grows_by_adding() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    small, large = stratified_subset(labels, 100), stratified_subset(labels, 200)
    assert np.bincount(labels[small]).tolist() == [60, 30, 10]
    assert set(small) <= set(large)
    assert len(set(large)) == 200


def test_images_smaller_than_the_crop_are_refused(tiny_data: Dataset) -> None:
    with pytest.raises(DataError, match=r"image_size 128 is larger than the images \(96x96\)"):
        to_device(tiny_data.train, num_images=None, image_size=128, device=CPU)


def test_crop_is_central(tiny_data: Dataset) -> None:
    split = to_device(tiny_data.val, num_images=None, image_size=48, device=CPU)
    assert np.array_equal(split.images_NHWC.numpy(), tiny_data.val.images_NHWC[:, 24:72, 24:72])
