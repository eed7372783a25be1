"""Augmentation of a whole batch on its device, with different random numbers for each image.

Takes bytes (B, H, W, 3); returns bytes, or floats on the same scale. Flips, the 180-degree rotation
and shifts only move pixels; rotation, zoom and crop share one resampling. The label of a
PatchCamelyon patch is that of its central 32x32 pixels. All augmentations but `crop` and `erase`
keep these near the image's centre: shifts are at most 4 px (as in the data set's own example) and
zoom is at most 10 %.

    python -m trainable.data DIR --augment hflip+vflip+stain --out augmented.png
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

MAX_SHIFT_PX = 4
MAX_ZOOM = 0.10
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # He et al. 2019, section 2.1
JITTER = (0.6, 1.4)  # brightness, contrast, saturation: He et al. 2019, section 2.1
STAIN_JITTER = 0.2  # Tellez et al. 2018, arXiv:1808.05896: 0.05 is light, 0.2 is strong
ERASE_SHARE, ERASE_AREA, ERASE_RATIO = 0.5, (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing
LUMA = (0.2989, 0.587, 0.114)

# Which columns of the random numbers each augmentation reads. They do not depend on the other
# augmentations in use.
COLUMNS = {
    "hflip": slice(0, 1),
    "vflip": slice(1, 2),
    "rot180": slice(2, 3),
    "shift": slice(3, 5),
    "zoom": slice(5, 6),
    "rotate": slice(6, 7),
    "crop": slice(7, 11),
    "color": slice(11, 14),
    "stain": slice(14, 20),
    "erase": slice(20, 25),
}
DRAWS = 25
MOVES, RESAMPLES = {"hflip", "vflip", "rot180", "shift"}, {"rotate", "zoom", "crop"}

# Hematoxylin, eosin, residual: optical density in R, G, B (Ruifrok & Johnston 2001), as in
# scikit-image's rgb_from_hed.
HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def augment(images_BHWC: Tensor, draws_BK: Tensor, names: tuple[str, ...]) -> Tensor:
    """The batch with the named augmentations; `draws_BK` (B, DRAWS) is uniform in [0, 1)."""
    x = images_BHWC
    if MOVES & set(names):
        x = move(x, **_moves(draws_BK, names))
    if RESAMPLES & set(names):
        x = resample(x, _affine(_resamples(draws_BK, names)))
    if "color" in names:
        x = color(x, _between(JITTER, draws_BK[:, COLUMNS["color"]]))
    if "stain" in names:
        x = stain(x, 1 + STAIN_JITTER * (2 * draws_BK[:, COLUMNS["stain"]] - 1))
    if "erase" in names:
        x = erase(x, draws_BK[:, COLUMNS["erase"]])
    return x


def augment_masks(masks_BHW: Tensor, draws_BK: Tensor, names: tuple[str, ...]) -> Tensor:
    """Masks moved as `augment` moves their images; what is resampled takes the nearest pixel."""
    x = masks_BHW[..., None]
    if MOVES & set(names):
        x = move(x, **_moves(draws_BK, names))
    if RESAMPLES & set(names):
        theta_B23 = _affine(_resamples(draws_BK, names))
        x = resample(x, theta_B23, mode="nearest").to(masks_BHW.dtype)
    return x[..., 0]


def flip_boxes(
    boxes_BM5: Tensor, draws_BK: Tensor, names: tuple[str, ...], *, height: int, width: int
) -> Tensor:
    """Boxes (left, top, right, bottom, class) flipped as `augment` flips their images."""
    if not MOVES & set(names):
        return boxes_BM5
    flips = _moves(draws_BK, names)
    left, top, right, bottom, classes = boxes_BM5.unbind(-1)
    columns, rows = flips["flip_columns_B"][:, None], flips["flip_rows_B"][:, None]
    left, right = (
        torch.where(columns, width - right, left),
        torch.where(columns, width - left, right),
    )
    top, bottom = torch.where(rows, height - bottom, top), torch.where(rows, height - top, bottom)
    return torch.stack([left, top, right, bottom, classes], -1)


def _moves(draws_BK: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Which images are flipped, and how far each is shifted: the arguments of `move`."""

    def below_half(name: str) -> Tensor:
        return draws_BK[:, COLUMNS[name]][:, 0] < (0.5 if name in names else 0.0)

    steps = (draws_BK[:, COLUMNS["shift"]] * (2 * MAX_SHIFT_PX + 1)).long() - MAX_SHIFT_PX
    return {
        "flip_rows_B": below_half("vflip") ^ below_half("rot180"),
        "flip_columns_B": below_half("hflip") ^ below_half("rot180"),
        "steps_B2": steps if "shift" in names else torch.zeros_like(steps),
    }


def _resamples(draws_BK: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {n: draws_BK[:, COLUMNS[n]] for n in ("rotate", "zoom", "crop") if n in names}


def _between(bounds: tuple[float, float], uniform: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def move(
    images_BHWC: Tensor, *, flip_rows_B: Tensor, flip_columns_B: Tensor, steps_B2: Tensor
) -> Tensor:
    """Flip the images that are marked, then shift each by whole pixels (down, right).

    The gap is filled with the mirrored edge. Rows are copied first, then bytes within the rows:
    two passes over memory for any combination.
    """
    b, height, width, channels = images_BHWC.shape
    device = images_BHWC.device
    rows = _mirrored(torch.arange(height, device=device) - steps_B2[:, :1], height)
    columns = _mirrored(torch.arange(width, device=device) - steps_B2[:, 1:], width)
    rows = torch.where(flip_rows_B[:, None], height - 1 - rows, rows)
    columns = torch.where(flip_columns_B[:, None], width - 1 - columns, columns)
    rows = rows + height * torch.arange(b, device=device)[:, None]
    lines = images_BHWC.reshape(b * height, width * channels).index_select(0, rows.flatten())
    index = channels * columns[:, :, None] + torch.arange(channels, device=device)
    index = index.view(b, 1, -1).expand(b, height, -1)
    return lines.view(b, height, -1).gather(2, index).view(images_BHWC.shape)


def _mirrored(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _affine(draws: dict[str, Tensor]) -> Tensor:
    """Output-to-input maps (B, 2, 3) in grid_sample's coordinates, -1..1 from edge to edge."""
    first = next(iter(draws.values()))
    zeros, ones = torch.zeros_like(first[:, 0]), torch.ones_like(first[:, 0])
    angle = 2 * math.pi * draws["rotate"][:, 0] if "rotate" in draws else zeros
    factor = 1 + MAX_ZOOM * (2 * draws["zoom"][:, 0] - 1) if "zoom" in draws else ones
    height, width, down, right = ones, ones, zeros, zeros
    if "crop" in draws:
        u = draws["crop"]
        area = _between(CROP_AREA, u[:, 0])
        ratio = torch.exp(_between((math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])), u[:, 1]))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        right, down = (2 * u[:, 2] - 1) * (1 - width), (2 * u[:, 3] - 1) * (1 - height)
    cos, sin = angle.cos() / factor, angle.sin() / factor
    rows = [width * cos, -width * sin, right, height * sin, height * cos, down]
    return torch.stack(rows, 1).view(-1, 2, 3)


def resample(images_BHWC: Tensor, theta_B23: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Apply an affine map to each image, with interpolation and mirrored edges."""
    x = (
        images_BHWC.permute(0, 3, 1, 2).contiguous().float()
    )  # grid_sample is slower on channels_last
    _, _, height, width = x.shape
    # The same points as torch's affine_grid, which needs a matrix product for each.
    down = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    right = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    theta = theta_B23[:, :, :, None, None]
    points = theta[:, :, 0] * right + (theta[:, :, 1] * down[:, None] + theta[:, :, 2])
    grid = points.permute(0, 2, 3, 1)
    moved = grid_sample(x, grid, mode, "reflection", align_corners=False)
    return moved.permute(0, 2, 3, 1)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """LUMA, HED and its inverse on the device; cached, because copying them waits for a GPU."""
    density_of_stain = torch.tensor(HED)
    constants = torch.tensor(LUMA), density_of_stain, torch.linalg.inv(density_of_stain)
    luma_C, density_of_stain, stain_of_density = (tensor.to(device) for tensor in constants)
    return luma_C, density_of_stain, stain_of_density


def color(images_BHWC: Tensor, factors_B3: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation by their factors, in this order."""
    brightness, contrast, saturation = factors_B3[:, :, None, None, None].unbind(1)
    luma_C, _, _ = _constants(images_BHWC.device)
    x = (images_BHWC.float() * brightness).clamp(0, 255)
    grey = (x @ luma_C).mean((1, 2))[:, None, None, None]
    x = torch.lerp(grey, x, contrast).clamp(0, 255)
    return torch.lerp((x @ luma_C)[..., None], x, saturation).clamp(0, 255)


def stain(images_BHWC: Tensor, changes_B6: Tensor) -> Tensor:
    """Change the amounts of hematoxylin, eosin and residual by three factors and three offsets.

    As in Tellez et al. 2018 (arXiv:1808.05896): a' = factor a + offset on each stain's density. The
    offsets are `changes - 1`, on a scale of densities where white is 0.
    """
    _, density_of_stain, stain_of_density = _constants(images_BHWC.device)
    density_BHWC = -torch.log((images_BHWC.float() + 1) / 256)
    stains = density_BHWC @ stain_of_density
    factors, offsets = changes_B6[:, None, None, :3], changes_B6[:, None, None, 3:] - 1
    # A tenth of the offsets: a full one would give white glass the density of tissue.
    density = (stains * factors + 0.1 * offsets) @ density_of_stain
    return (256 * torch.exp(-density) - 1).clamp(0, 255)


def erase(images_BHWC: Tensor, draws_B5: Tensor) -> Tensor:
    """Fill a rectangle in half of the images with their mean (Zhong 2017, arXiv:1708.04896)."""
    _, height, width, _ = images_BHWC.shape
    area = _between(ERASE_AREA, draws_B5[:, 1])
    ratio = torch.exp(
        _between((math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])), draws_B5[:, 2])
    )
    h = ((area * ratio).sqrt() * height).round().clamp(1, height)
    w = ((area / ratio).sqrt() * width).round().clamp(1, width)
    top, left = (
        (draws_B5[:, 3] * (height - h + 1)).floor(),
        (draws_B5[:, 4] * (width - w + 1)).floor(),
    )
    rows, columns = (torch.arange(n, device=h.device) for n in (height, width))
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    erased = (
        in_rows[:, :, None] & in_columns[:, None, :] & (draws_B5[:, 0] < ERASE_SHARE)[:, None, None]
    )
    mean = images_BHWC.float().mean((1, 2), keepdim=True).to(images_BHWC.dtype)
    return torch.where(erased[..., None], mean, images_BHWC)
