"""What a draw means in each augmentation, by hand, at the ends of its range."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from trainable.config import AUGMENTATIONS
from trainable.data.augment import COLUMNS, DRAWS, augment, erase, move

GENERATOR = torch.Generator().manual_seed(0)
PATCHES = torch.randint(0, 256, (6, 12, 12, 3), dtype=torch.uint8, generator=GENERATOR)
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def draws(n: int, **columns: list[float]) -> torch.Tensor:
    values = torch.full((n, DRAWS), 0.5)
    for name, value in columns.items():
        values[:, COLUMNS[name]] = torch.tensor(value)
    return values


def test_draws_keep_their_columns() -> None:
    """A change here changes the numbers of every study on record: raise RECIPE_VERSION with it."""
    starts = {"hflip": 0, "vflip": 1, "rot180": 2, "shift": 3, "zoom": 5, "rotate": 6, "crop": 7}
    starts |= {"color": 11, "stain": 14, "erase": 20}
    assert {name: COLUMNS[name].start for name in AUGMENTATIONS} == starts
    assert DRAWS == 25


@pytest.mark.parametrize(("draw", "flipped"), [(0.0, True), (0.4999, True), (0.5, False)])
def test_half_of_the_draws_flip(draw: float, flipped: bool) -> None:
    out = augment(PATCHES, draws(6, hflip=[draw]), ("hflip",))
    assert torch.equal(out, PATCHES.flip(2) if flipped else PATCHES)


def test_two_half_turns_are_none() -> None:
    both = augment(PATCHES, draws(6, hflip=[0.1], vflip=[0.1], rot180=[0.1]), AUGMENTATIONS[:3])
    assert torch.equal(both, PATCHES)


@pytest.mark.parametrize(("draw", "step"), [(0.0, -4), (0.2, -3), (0.5, 0), (0.999, 4)])
def test_a_shift_is_of_four_pixels_at_most(draw: float, step: int) -> None:
    down = augment(PATCHES, draws(6, shift=[draw, 0.5]), ("shift",))
    right = augment(PATCHES, draws(6, shift=[0.5, draw]), ("shift",))
    inside, source = slice(4, 8), slice(4 - step, 8 - step)
    assert torch.equal(down[:, inside], PATCHES[:, source])
    assert torch.equal(right[:, :, inside], PATCHES[:, :, source])


def test_images_that_are_not_square_are_moved_along_their_own_sides() -> None:
    images = PATCHES[:, :5]
    steps = torch.tensor([[1, 2]]).expand(6, 2)
    off = torch.zeros(6, dtype=torch.bool)
    out = move(images, flip_rows_B=off, flip_columns_B=~off, steps_B2=steps)
    padded = np.pad(images.flip(2).numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    assert np.array_equal(out.numpy(), padded[:, 1:6, 0:12])


def ramp(size: int) -> torch.Tensor:
    """Pixels that say where they are: right in red, down in green."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], -1)[None].float()


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.9), (0.5, 1.0), (1.0, 1.1)])
def test_zoom_is_of_a_tenth_about_the_centre(draw: float, factor: float) -> None:
    out = augment(ramp(21), draws(1, zoom=[draw]), ("zoom",))[0]
    for at in (5, 10, 14):
        expected = 10 + (at - 10) / factor
        assert out[at, at, :2].tolist() == pytest.approx([expected, expected], abs=1e-3)


@pytest.mark.parametrize("turn", [0.125, 0.25, 0.5, 0.75])
def test_rotation_is_a_whole_turn_at_most(turn: float) -> None:
    out = augment(ramp(21), draws(1, rotate=[turn]), ("rotate",))[0]
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    for y, x in ((-4, 2), (3, 5), (0, 0)):  # from the centre
        expected = [10 + x * cos - y * sin, 10 + x * sin + y * cos]
        assert out[10 + y, 10 + x, :2].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("area_draw", "ratio_draw", "area", "ratio"),
    [
        (0.0, 0.0, 0.08, 3 / 4),
        (0.0, 1.0, 0.08, 4 / 3),
        (0.3, 0.5, 0.356, 1.0),
        (0.3, 0.0, 0.356, 0.75),
    ],
)
def test_a_crop_has_the_area_and_the_ratio_drawn(
    area_draw: float, ratio_draw: float, area: float, ratio: float
) -> None:
    width, height = 64 * (area * ratio) ** 0.5, 64 * (area / ratio) ** 0.5
    for right, down in ((0.0, 1.0), (0.25, 0.5)):
        values = draws(1, crop=[area_draw, ratio_draw, right, down])
        out = augment(ramp(64), values, ("crop",))[0]
        left, top = right * (64 - width), down * (64 - height)
        for at in (20, 40):
            x, y = left + (at + 0.5) / 64 * width - 0.5, top + (at + 0.5) / 64 * height - 0.5
            assert out[at, at, :2].tolist() == pytest.approx([x, y], abs=0.02)


def test_the_whole_area_is_the_whole_image() -> None:
    out = augment(PATCHES, draws(6, crop=[1.0, 0.5, 0.3, 0.9]), ("crop",))
    torch.testing.assert_close(out, PATCHES.float(), atol=0.01, rtol=0)
    wide = augment(ramp(64), draws(1, crop=[1.0, 1.0, 0.0, 0.5]), ("crop",))[0]
    height = 64 * (3 / 4) ** 0.5  # as wide as it is, and no wider
    part = interpolate(ramp(64).permute(0, 3, 1, 2), size=(64, 64)).permute(0, 2, 3, 1)[0]
    torch.testing.assert_close(wide[:, :, 0], part[:, :, 0], atol=0.01, rtol=0)
    top = (64 - height) / 2
    assert float(wide[32, 5, 1]) == pytest.approx(top + 32.5 / 64 * height - 0.5, abs=0.02)
    high = augment(ramp(64), draws(1, crop=[1.0, 0.0, 0.5, 0.0]), ("crop",))[0]
    torch.testing.assert_close(high[:, :, 1], part[:, :, 1], atol=0.01, rtol=0)


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.6), (0.5, 1.0), (1.0, 1.4)])
def test_colour_factors_are_from_06_to_14(draw: float, factor: float) -> None:
    x = PATCHES.double().numpy()
    luma = np.array([0.2989, 0.587, 0.114])
    grey = (x @ luma)[..., None]
    mean = (x @ luma).mean((1, 2))[:, None, None, None]
    expected = (x * factor, mean + (x - mean) * factor, grey + (x - grey) * factor)
    for at, target in enumerate(expected):
        values = [0.5, 0.5, 0.5]
        values[at] = draw
        out = augment(PATCHES, draws(6, color=values), ("color",)).numpy()
        np.testing.assert_allclose(out, np.clip(target, 0, 255), atol=0.3)


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_stains_change_by_a_fifth_and_a_fiftieth(column: int, draw: float) -> None:
    values = [0.5] * 6
    values[column] = draw
    change = 0.2 * (2 * draw - 1)
    stains = np.linalg.solve(HED.T, -np.log((PATCHES.numpy().reshape(-1, 3) + 1.0) / 256).T).T
    if column < 3:
        stains[:, column] *= 1 + change
    else:
        stains[:, column - 3] += 0.1 * change
    expected = np.clip(256 * np.exp(-(stains @ HED)) - 1, 0, 255)
    out = augment(PATCHES, draws(6, stain=values), ("stain",)).numpy().reshape(-1, 3)
    np.testing.assert_allclose(out, expected, atol=0.2)


@pytest.mark.parametrize(
    ("taken", "area", "ratio", "down", "right", "box"),
    [
        # Height and width of 20x30 px: sqrt(area ratio) 20, sqrt(area / ratio) 30.
        (0.0, 1.0, 0.5, 0.0, 0.0, (0, 0, 11, 17)),  # 0.33: 0.574 of each, 1:0.995
        (0.4999, 0.0, 0.0, 0.999, 0.999, (18, 22, 2, 8)),  # 0.02 at 0.3: 1.55 and 7.75
        (0.1, 0.0, 1.0, 0.5, 0.5, (8, 14, 5, 2)),  # 0.02 at 3.3: 5.14 and 2.34
        (0.1, 1.0, 1.0, 0.0, 0.5, (0, 11, 20, 9)),  # 0.33 at 3.3: 20.9, cut to 20, and 9.5
        (0.5, 1.0, 0.5, 0.0, 0.0, (0, 0, 0, 0)),
    ],
)
def test_what_is_erased_is_the_rectangle_drawn(
    taken: float,
    area: float,
    ratio: float,
    down: float,
    right: float,
    box: tuple[int, int, int, int],
) -> None:
    images = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8, generator=GENERATOR)
    out = erase(images, torch.tensor([[taken, area, ratio, down, right]]).expand(2, 5))
    expected = images.clone()
    top, left, height, width = box
    mean = images.float().mean((1, 2)).to(torch.uint8)
    expected[:, top : top + height, left : left + width] = mean[:, None, None]
    assert out.dtype == torch.uint8
    assert torch.equal(out, expected)
