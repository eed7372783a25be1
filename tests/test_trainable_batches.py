import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from trainable.config import AUGMENTATIONS, TrialConfig
from trainable.data.augment import COLUMNS, DRAWS, MAX_SHIFT_PX, augment, color, move, stain
from trainable.data.batches import (
    DeviceSplit,
    Place,
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
    return batches_of(split_of(n), config, epoch)


def batches_of(split: DeviceSplit, config: TrialConfig, epoch: int) -> list[Any]:
    size = config.batch_size
    place = Place(epoch=epoch)
    return list(training_batches(split, config, place, batch_size=size, mean_C=MEAN, std_C=STD))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = training_order(50, seed=1, epoch=2)
    torch.manual_seed(99)
    assert torch.equal(first, training_order(50, seed=1, epoch=2))
    assert not torch.equal(first, training_order(50, seed=2, epoch=2))
    assert not torch.equal(first, training_order(50, seed=1, epoch=3))
    assert sorted(first.tolist()) == list(range(50))


def test_an_image_is_augmented_alike_whatever_the_batch_size(tiny_data: Dataset) -> None:
    split = to_device(tiny_data.train, num_images=None, image_size=48, device=CPU)
    base = TrialConfig(augment="+".join(AUGMENTATIONS), seed=4)

    def epoch(batch_size: int) -> torch.Tensor:
        config = replace(base, batch_size=batch_size)
        return torch.cat([images for images, _ in batches_of(split, config, 3)])

    whole = epoch(16)
    assert torch.allclose(whole, epoch(48), atol=1e-5)
    plain = to_floats(split.images_NHWC[training_order(96, seed=4, epoch=3)], MEAN, STD)
    assert not torch.allclose(whole, plain, atol=0.1)


def drawn_by_hand(seed: int, purpose: str, epoch: int) -> torch.Generator:
    """A change here changes the numbers of every study on record: raise RECIPE_VERSION with it."""
    digest = hashlib.sha256(repr((seed, purpose, epoch)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def test_an_image_is_augmented_anew_in_each_epoch() -> None:
    n = 64
    ramp = torch.arange(8, dtype=torch.uint8)[None, None, :, None].expand(n, 8, 8, 3).contiguous()
    split = DeviceSplit(images_NHWC=ramp, labels_N=torch.arange(n))  # the label is the image

    def flipped(seed: int, epoch: int) -> list[int]:
        config = TrialConfig(augment="hflip", batch_size=16, seed=seed)
        return sorted(
            label
            for images, labels in batches_of(split, config, epoch)
            for label, image in zip(labels.tolist(), images, strict=True)
            if image[0, 0, 0] > image[0, 0, 7]
        )

    for seed, epoch in ((0, 1), (0, 2), (3, 1)):
        draws_NK = torch.rand(n, 25, generator=drawn_by_hand(seed, "augment", epoch))
        assert flipped(seed, epoch) == torch.where(draws_NK[:, 0] < 0.5)[0].tolist()
    assert flipped(0, 1) != flipped(0, 2)
    assert flipped(0, 1) != flipped(3, 1)


def test_the_order_is_drawn_from_its_seed_its_name_and_the_epoch() -> None:
    for seed, epoch in ((0, 1), (0, 2), (3, 1)):
        expected = torch.randperm(50, generator=drawn_by_hand(seed, "order", epoch))
        assert torch.equal(training_order(50, seed=seed, epoch=epoch), expected)


@pytest.mark.parametrize(("start", "left"), [(0, 5), (5, 3), (6, 3), (8, 3), (17, 0), (20, 0)])
def test_from_any_place_every_batch_is_full(start: int, left: int) -> None:
    """As of a trial that another began from, whose batches were of another size."""
    config = TrialConfig(augment="none", batch_size=4)
    split = DeviceSplit(images_NHWC=split_of(20).images_NHWC, labels_N=torch.arange(20))
    place = Place(epoch=2, start=start)
    batches = training_batches(split, config, place, batch_size=4, mean_C=MEAN, std_C=STD)
    order = training_order(20, seed=0, epoch=2).tolist()
    number = 0
    for number, (images, labels) in enumerate(batches, 1):
        assert place.start == start + 4 * number
        assert labels.tolist() == order[place.start - 4 : place.start]
        assert images.shape == (4, 3, 8, 8)
        shown = (images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
        assert shown.round().long().tolist() == labels.tolist()
    assert number == left


@pytest.mark.parametrize(
    ("start", "prefetch_images", "taken"),
    [
        (0, 8, [8, 8, 4]),  # five batches of four, two at once
        (0, 7, [8, 8, 4]),  # at least so many
        (0, 9, [12, 8]),
        (0, 1, [4] * 5),
        (4, 8, [8, 8, 4]),  # the second of the first group: the whole group, as before the stop
        (8, 8, [8, 4]),
        (6, 8, [8, 8]),  # from 2 on there are four: of the first group its second
    ],
)
def test_groups_ahead_are_those_of_a_trial_that_was_not_stopped(
    start: int, prefetch_images: int, taken: list[int]
) -> None:
    config = TrialConfig(augment="none", batch_size=4)
    split = DeviceSplit(images_NHWC=split_of(20).images_NHWC, labels_N=torch.arange(20))
    sizes: list[int] = []

    def transform(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return 2 * images

    about: dict[str, Any] = {"batch_size": 4, "mean_C": MEAN, "std_C": STD}
    plain = list(training_batches(split, config, Place(1, start), **about))
    place = Place(1, start)
    grouped = list(
        training_batches(
            split, config, place, transform=transform, prefetch_images=prefetch_images, **about
        )
    )
    assert sizes == taken
    for (images, labels), (features, same) in zip(plain, grouped, strict=True):
        assert torch.equal(2 * images, features)
        assert torch.equal(labels, same)


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


def draws(**columns: list[float]) -> torch.Tensor:
    """Draws that leave an image as it is, but for the named augmentations."""
    values = torch.full((len(PATCHES), DRAWS), 0.999)
    values[:, COLUMNS["shift"]] = 0.5
    for name, value in columns.items():
        values[:, COLUMNS[name]] = torch.tensor(value)
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
    assert torch.equal(augment(PATCHES, draws(**{name: [0.1]}), (name,)), expected)
    assert torch.equal(augment(PATCHES, draws(), (name,)), PATCHES)


def test_each_image_has_its_own_draw() -> None:
    values = draws()
    values[::2, 0] = 0.1
    out = augment(PATCHES, values, ("hflip",))
    assert torch.equal(out[::2], PATCHES[::2].flip(2))
    assert torch.equal(out[1::2], PATCHES[1::2])


def test_shift_is_a_crop_of_the_mirrored_image() -> None:
    steps = torch.tensor([[2, -3], [0, 0], [-4, 4], [1, 1], [4, -4], [-1, 0]])
    flips = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0, 1], [1, 0]], dtype=torch.bool)
    out = move(PATCHES, flip_rows_B=flips[:, 0], flip_columns_B=flips[:, 1], steps_B2=steps)
    for i, (down, right) in enumerate(steps.tolist()):
        turned = np.flip(PATCHES[i].numpy(), [axis for axis in (0, 1) if flips[i, axis]])
        padded = np.pad(turned, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        expected = padded[4 - down : 16 - down, 4 - right : 16 - right]
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


def smooth_image() -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 2, 64), indexing="ij")
    image = 100 + 50 * torch.sin(x + 2 * y)
    return image[None, :, :, None].expand(len(PATCHES), 64, 64, 3)


@pytest.mark.parametrize("turn", [0.0, 0.1, 0.25, 0.7])
@pytest.mark.parametrize("enlarge", [0.0, 0.5, 1.0])
def test_rotation_and_zoom_are_torchvisions_affine(turn: float, enlarge: float) -> None:
    # A smooth image; near the edge, which the two treat differently, nothing is compared.
    ours = augment(smooth_image(), draws(rotate=[turn], zoom=[enlarge]), ("rotate", "zoom"))
    theirs = tv.affine(
        smooth_image().permute(0, 3, 1, 2),
        angle=-360 * turn,
        translate=[0.0, 0.0],
        scale=1 + 0.1 * (2 * enlarge - 1),
        shear=[0.0, 0.0],
        interpolation=tv.InterpolationMode.BILINEAR,
    ).permute(0, 2, 3, 1)
    assert torch.allclose(ours[:, 20:-20, 20:-20], theirs[:, 20:-20, 20:-20], atol=0.1)


def test_crop_is_a_resized_part() -> None:
    # The lower right quarter: area 1/4, ratio 1, as far right and down as it goes.
    quarter = (0.25 - 0.08) / 0.92
    ours = augment(smooth_image(), draws(crop=[quarter, 0.5, 1.0, 1.0]), ("crop",))
    part = smooth_image()[:, 32:, 32:].permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(part, size=(64, 64), mode="bilinear")
    assert torch.allclose(ours[:, 4:-4, 4:-4], theirs.permute(0, 2, 3, 1)[:, 4:-4, 4:-4], atol=0.5)


@pytest.mark.parametrize(
    "factors", [(0.6, 1.0, 1.0), (1.0, 1.3, 1.0), (1.0, 1.0, 0.7), (1.2, 0.8, 1.4)]
)
def test_color_is_torchvisions(factors: tuple[float, float, float]) -> None:
    ours = color(PATCHES, torch.tensor([factors]).expand(len(PATCHES), 3)) / 255
    theirs = PATCHES.permute(0, 3, 1, 2).float() / 255
    for change, factor in zip(
        (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), factors, strict=True
    ):
        theirs = change(theirs, factor)
    assert torch.allclose(ours.permute(0, 3, 1, 2), theirs, atol=2e-3)


def test_stain_jitter_moves_along_the_stains_alone() -> None:
    as_it_was = stain(PATCHES, torch.ones(len(PATCHES), 6))
    assert torch.allclose(as_it_was, PATCHES.float(), atol=0.05)
    more = torch.ones(len(PATCHES), 6)
    more[:, 0] = 1.2  # hematoxylin
    # By hand, pixel by pixel, with numpy: densities, stains, back.
    hed = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    density = -np.log((PATCHES.numpy().reshape(-1, 3) + 1.0) / 256)
    stains = np.linalg.solve(hed.T, density.T).T
    stains[:, 0] *= 1.2
    expected = np.clip(256 * np.exp(-(stains @ hed)) - 1, 0, 255)
    assert np.allclose(stain(PATCHES, more).numpy().reshape(-1, 3), expected, atol=0.1)


def test_erase_takes_a_rectangle_of_half_of_the_images() -> None:
    n = 2000
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    erased = augment(images, torch.rand(n, DRAWS, generator=generator), ("erase",))
    share = (erased != images).any(-1).float().mean((1, 2))
    assert 0.46 < (share > 0).float().mean() < 0.54
    assert share.max() < 0.40
    assert 0.1 < share[share > 0].mean() < 0.25


def test_subset_has_the_classes_shares_and_grows_by_adding() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    small, large = stratified_subset(labels, 100), stratified_subset(labels, 200)
    assert np.bincount(labels[small]).tolist() == [60, 30, 10]
    assert set(small) <= set(large)
    assert len(set(large)) == 200


def test_images_smaller_than_the_crop_are_refused(tiny_data: Dataset) -> None:
    with pytest.raises(DataError, match=r"image_size 128 is larger than the images \(96x96 px\)"):
        to_device(tiny_data.train, num_images=None, image_size=128, device=CPU)


def test_crop_is_central(tiny_data: Dataset) -> None:
    split = to_device(tiny_data.val, num_images=None, image_size=48, device=CPU)
    assert np.array_equal(split.images_NHWC.numpy(), tiny_data.val.images_NHWC[:, 24:72, 24:72])
