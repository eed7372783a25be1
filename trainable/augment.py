"""Augmentation of a whole batch on its device, each image with its own draw.

Bytes (B, H, W, 3) in, bytes or floats on the same scale out. Flips, the half turn and shifts only
move pixels; zoom resamples. The label of a PatchCamelyon patch is that of its central 32x32
pixels, so shifts are at most 4 px (as in the data set's own example) and zoom is at most 10 %.
"""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

MAX_SHIFT_PX = 4
MAX_ZOOM = 0.10
DRAWS = 6  # uniform numbers in [0, 1) for each image and epoch: one column a choice


def augment(images_BHWC: Tensor, draws_BK: Tensor, names: tuple[str, ...]) -> Tensor:
    """The batch with the named augmentations, decided by `draws_BK` (B, DRAWS)."""
    x = images_BHWC
    if "hflip" in names:
        x = torch.where(_mask(draws_BK[:, 0] < 0.5), x.flip(2), x)
    if "vflip" in names:
        x = torch.where(_mask(draws_BK[:, 1] < 0.5), x.flip(1), x)
    if "rot180" in names:
        x = torch.where(_mask(draws_BK[:, 2] < 0.5), x.flip(1, 2), x)
    if "shift" in names:
        steps_B2 = (draws_BK[:, 3:5] * (2 * MAX_SHIFT_PX + 1)).long() - MAX_SHIFT_PX
        x = shift(x, steps_B2)
    if "zoom" in names:
        x = zoom(x, 1.0 + MAX_ZOOM * (2.0 * draws_BK[:, 5] - 1.0))
    return x


def _mask(flags_B: Tensor) -> Tensor:
    return flags_B[:, None, None, None]


def shift(images_BHWC: Tensor, steps_B2: Tensor) -> Tensor:
    """Each image moved by whole pixels (down, right); the edge is mirrored into the gap."""
    b, height, width, _ = images_BHWC.shape
    rows = _mirrored(torch.arange(height, device=steps_B2.device) - steps_B2[:, :1], height)
    columns = _mirrored(torch.arange(width, device=steps_B2.device) - steps_B2[:, 1:], width)
    batch = torch.arange(b, device=steps_B2.device)[:, None, None]
    return images_BHWC[batch, rows[:, :, None], columns[:, None, :]]


def _mirrored(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()


def zoom(images_BHWC: Tensor, factor_B: Tensor) -> Tensor:
    """Each image enlarged about its centre (factor > 1) or shrunk, bilinear, edge mirrored."""
    zeros = torch.zeros_like(factor_B)
    theta = torch.stack([1 / factor_B, zeros, zeros, zeros, 1 / factor_B, zeros], 1).view(-1, 2, 3)
    x = images_BHWC.permute(0, 3, 1, 2).float()
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    moved = grid_sample(x, grid, "bilinear", "reflection", align_corners=False)
    return moved.permute(0, 2, 3, 1)
