"""Batches on the device: their order, what is drawn for each image, bytes to floats."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import timm
import torch
from torch import Tensor

from trainable.config import TrialConfig, augmentations
from trainable.data.augment import DRAWS, augment
from trainable.data.cache import Split
from trainable.data.sources import DataError, Images, Labels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUBSET_SEED = 0  # every trial of a study gets the same subset


@dataclass(frozen=True, kw_only=True)
class DeviceSplit:
    """A split on the device: uint8 images (N, H, W, 3) and labels (N,).

    Images that the GPU has no room for stay mapped on the host. `are_features` says that a frozen
    part of the network made `images_NHWC` of the images: floats, to be taken as they are.
    """

    images_NHWC: Tensor
    labels_N: Tensor
    are_features: bool = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    def images_at(self, index_B: Tensor) -> Tensor:
        """Images (B, H, W, 3) on the device, those that `index_B`, on either side, says."""
        images, device = self.images_NHWC, self.labels_N.device
        chosen = images[index_B.to(images.device)]
        return chosen if images.device == device else _sent(chosen, device)

    def part(self, index_B: Tensor) -> "DeviceSplit":
        """Some of the images, on the device."""
        labels_B = self.labels_N[index_B.to(self.labels_N.device)]
        return DeviceSplit(
            images_NHWC=self.images_at(index_B), labels_N=labels_B, are_features=self.are_features
        )


def _sent(images: Tensor, device: torch.device) -> Tensor:
    """Images on their way to a GPU, for which the host does not wait."""
    return images.contiguous().pin_memory().to(device, non_blocking=True)


def seed_for(*parts: int | str) -> int:
    """A seed of 63 bits for one purpose of one trial, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, whatever the device: draws are the same everywhere."""
    return torch.Generator().manual_seed(seed_for(*parts))


def to_device(
    split: Split,
    *,
    num_images: int | None,
    image_size: int | None,
    device: torch.device,
    room_bytes: int | None = None,
) -> DeviceSplit:
    """The split, or its central squares, or a part of its images, on the device.

    On the CPU the whole split is not copied: it stays the mapped file that all trials share. So
    do images for a GPU that would take more than `room_bytes` of it; each batch is then sent.

    Raises:
        DataError: fewer images, or smaller ones, than asked for.
    """
    images = split.images_NHWC
    height, width = images.shape[1:3]
    if image_size is not None:
        if image_size > min(height, width):
            raise DataError(
                f"image_size {image_size} is larger than the images ({height}x{width}): "
                f"give at most {min(height, width)}"
            )
        top, left = (height - image_size) // 2, (width - image_size) // 2
        images = images[:, top : top + image_size, left : left + image_size]
    labels = split.labels_N
    if num_images is not None and num_images < len(labels):
        index = stratified_subset(labels, num_images)
        images, labels = images[index], labels[index]
    tensor = _as_tensor(images)
    room = math.inf if room_bytes is None or device.type == "cpu" else room_bytes
    return DeviceSplit(
        images_NHWC=tensor if tensor.nbytes > room else tensor.to(device),
        labels_N=torch.from_numpy(np.array(labels)).to(device),
    )


def _as_tensor(images: Images) -> Tensor:
    with warnings.catch_warnings():
        # The mapped file is read-only and nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def stratified_subset(
    labels_N: Labels, num_images: int
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Indices of `num_images` images, each class with its share, in ascending order."""
    rng = np.random.default_rng(SUBSET_SEED)
    order = rng.permutation(len(labels_N))
    # Rank within the class, as a share of the class: the smallest shares are taken.
    share = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        members = order[labels_N[order] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(share, kind="stable")[:num_images])


def normalization(
    config: TrialConfig, data_mean: tuple[float, ...], data_std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels: those of the weights' training, else the data's own."""
    if config.pretrained == "none":
        return data_mean, data_std
    if config.model.startswith("timm/"):
        known = timm.models.get_pretrained_cfg(config.model.removeprefix("timm/"))
        return (known.mean, known.std) if known is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return IMAGENET_MEAN, IMAGENET_STD


def to_floats(images_BHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """(B, 3, H, W) in channels_last, normalised, from bytes (B, H, W, 3)."""
    b, height, width, channels = images_BHWC.shape
    # A row of pixels at a time: three channels alone are too few for the CPU's vector units.
    scale = (1.0 / (255.0 * std_C)).repeat(width)
    offset = (-mean_C / std_C).repeat(width)
    lines = images_BHWC.reshape(b, height, width * channels).to(scale.dtype)
    floats = torch.addcmul(offset, lines, scale).view(images_BHWC.shape)
    return floats.permute(0, 3, 1, 2)  # NHWC in memory is what channels_last means


def training_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """The order of images in an epoch; depends on nothing but seed and epoch."""
    return torch.randperm(num_images, generator=generator_for(seed, "order", epoch))


@dataclass
class Place:
    """Where a trial is in its data: the epoch, from 1, and the image of its order that is next."""

    epoch: int = 1
    start: int = 0


def training_batches(
    split: DeviceSplit,
    config: TrialConfig,
    place: Place,
    *,
    batch_size: int,
    mean_C: Tensor,
    std_C: Tensor,
    through: Callable[[Tensor], Tensor] | None = None,
    ahead: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented, normalised batches (B, 3, H, W) and labels (B,) to the end of the epoch.

    `place` moves on before each batch is handed out.

    Every batch has `batch_size` images: those left over at the end wait for the next epoch's new
    order. What is drawn for an image depends on seed, epoch and image, not on its batch, so that
    trials of different batch sizes see the same images.

    With `through` the batches are what it makes of the images, those of several updates at once:
    at least `ahead` images. A trial that goes on from `place` has the same ones together.
    """
    epoch = place.epoch
    order_N = training_order(len(split), seed=config.seed, epoch=epoch)
    order_N = order_N.to(split.images_NHWC.device)
    places_N = order_N.to(split.labels_N.device)  # the same numbers where the labels are
    names = augmentations(config.augment)
    if names:
        draws = generator_for(config.seed, "augment", epoch)
        draws_NK = torch.rand(len(split), DRAWS, generator=draws).to(places_N.device)

    def images(first: int, last: int) -> Tensor:
        images_BHWC = split.images_at(order_N[first:last])
        if split.are_features:
            return images_BHWC.permute(0, 3, 1, 2)
        if names:
            images_BHWC = augment(images_BHWC, draws_NK[places_N[first:last]], names)
        floats = to_floats(images_BHWC, mean_C, std_C)
        return through(floats) if through is not None else floats

    offset = place.start % batch_size  # another trial may have come to `place` in other steps
    end = offset + (len(split) - offset) // batch_size * batch_size
    at_once = batch_size * max(1, math.ceil(ahead / batch_size)) if through else batch_size
    group: Tensor | None = None
    for start in range(place.start, end, batch_size):
        at = (start - offset) % at_once
        if group is None or at == 0:
            try:
                group = images(start - at, min(start - at + at_once, end))
            except torch.OutOfMemoryError:
                if at_once == batch_size:
                    raise
                at, at_once = 0, batch_size  # no more of them ahead
                group = images(start, start + batch_size)
        place.start = start + batch_size
        yield group[at : at + batch_size], split.labels_N[places_N[start : start + batch_size]]


def evaluation_batches(
    split: DeviceSplit, *, batch_size: int, mean_C: Tensor, std_C: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in order, as they are; of features, the features."""
    device = split.labels_N.device
    for start in range(0, len(split), batch_size):
        images_BHWC = split.images_NHWC[start : start + batch_size]
        labels_B = split.labels_N[start : start + batch_size]
        if split.are_features:
            yield images_BHWC.permute(0, 3, 1, 2), labels_B
            continue
        if images_BHWC.device != device:
            images_BHWC = _sent(images_BHWC, device)
        yield to_floats(images_BHWC, mean_C, std_C), labels_B
