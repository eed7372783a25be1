"""Batches on the device: their order, random augmentations, normalization."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainable.config import DETECTION, TrialConfig, augmentations
from trainable.data.augment import DRAWS, augment, augment_masks, flip_boxes
from trainable.data.cache import Split
from trainable.data.sources import DataError, Images, Labels, Targets
from trainable.host.pulse import tick

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUBSET_SEED = 0  # all trials of a study use the same subset
LEAST_BOX_PX = 3  # of what a crop leaves of a box


@dataclass(frozen=True, kw_only=True)
class DeviceSplit:
    """A split on the device: uint8 images (N, H, W, 3) and labels (N,).

    Images that do not fit on the GPU stay in the memory-mapped file, and so do the masks (N, H, W)
    or boxes (N, M, 5) of tasks that learn these. `are_features` says that `images_NHWC` are the
    float outputs of a frozen part of the network, ready to use.
    """

    images_NHWC: Tensor
    labels_N: Tensor
    are_features: bool = False
    own_targets_N: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    @property
    def targets_N(self) -> Tensor:
        """What is learnt: the labels, or the split's masks or boxes."""
        return self.labels_N if self.own_targets_N is None else self.own_targets_N

    def images_at(self, index_B: Tensor) -> Tensor:
        """The images (B, H, W, 3) at `index_B` on the device; `index_B` may be on the host."""
        return _rows_at(self.images_NHWC, index_B, self.labels_N.device)

    def targets_at(self, index_B: Tensor) -> Tensor:
        """What is learnt of the images at `index_B`, on the device."""
        return _rows_at(self.targets_N, index_B, self.labels_N.device)

    def between(self, first: int, last: int) -> "DeviceSplit":
        """The images from `first` to `last` as a split: a view, not a copy."""
        return self._of(lambda rows: rows[first:last])

    def every(self, step: int) -> "DeviceSplit":
        """Each `step`-th image as a split: a view, not a copy."""
        return self._of(lambda rows: rows[::step])

    def part(self, index_B: Tensor) -> "DeviceSplit":
        """The images at `index_B` as a split on the device."""
        return self._of(lambda rows: _rows_at(rows, index_B, self.labels_N.device))

    def _of(self, rows_of: Callable[[Tensor], Tensor]) -> "DeviceSplit":
        own = self.own_targets_N
        return replace(
            self,
            images_NHWC=rows_of(self.images_NHWC),
            labels_N=rows_of(self.labels_N),
            own_targets_N=None if own is None else rows_of(own),
        )


def _rows_at(rows_N: Tensor, index_B: Tensor, device: torch.device) -> Tensor:
    """The rows at `index_B` on the device; both may be on the host."""
    chosen = rows_N[index_B.to(rows_N.device)]
    return chosen if rows_N.device == device else _sent(chosen, device)


def _sent(rows_B: Tensor, device: torch.device) -> Tensor:
    """Start copying rows to the GPU; the host does not wait for it."""
    return rows_B.contiguous().pin_memory().to(device, non_blocking=True)


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed for one purpose of one trial, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, so that random numbers do not depend on the device."""
    return torch.Generator().manual_seed(seed_for(*parts))


def to_device(
    split: Split,
    *,
    num_images: int | None,
    image_size: int | None,
    device: torch.device,
    room_bytes: int | None = None,
) -> DeviceSplit:
    """The split on the device: all of it, `num_images` of it, or its central squares.

    On a CPU the whole split is not copied: it stays the memory-mapped file that all trials share.
    Images that need more than `room_bytes` of a GPU stay there too, and each batch is copied.

    Raises:
        DataError: `image_size` is larger than the images.
    """
    images, targets = split.images_NHWC, split.targets_N
    height, width = images.shape[1:3]
    if image_size is not None:
        if image_size > min(height, width):
            raise DataError(
                f"image_size {image_size} is larger than the images ({height}x{width} px): "
                f"set at most {min(height, width)}"
            )
        top, left = (height - image_size) // 2, (width - image_size) // 2
        images = images[:, top : top + image_size, left : left + image_size]
        if targets is not None:
            targets = _cropped(targets, top, left, image_size)
    labels = split.labels_N
    if num_images is not None and num_images < len(labels):
        index = stratified_subset(labels, num_images)
        images, labels = images[index], labels[index]
        targets = None if targets is None else targets[index]
    tensor = _as_tensor(images)
    own = None if targets is None else _as_tensor(targets)
    room = math.inf if room_bytes is None or device.type == "cpu" else room_bytes
    fits = tensor.nbytes + (0 if own is None else own.nbytes) <= room
    return DeviceSplit(
        images_NHWC=tensor.to(device) if fits else tensor,
        labels_N=torch.from_numpy(np.array(labels)).to(device),
        own_targets_N=own if own is None or not fits else own.to(device),
    )


def _cropped(targets: Targets, top: int, left: int, side: int) -> Targets:
    """Masks, or boxes, in the square of this side; what is outside of it is gone."""
    if targets.dtype == np.uint8:
        return targets[:, top : top + side, left : left + side]
    boxes = np.array(targets, np.float32)
    boxes[..., :4] = (boxes[..., :4] - [left, top, left, top]).clip(0, side)
    boxes[(boxes[..., 2:4] - boxes[..., :2]).min(-1) < LEAST_BOX_PX] = 0
    return boxes


def _as_tensor(images: Images | Targets) -> Tensor:
    with warnings.catch_warnings():
        # The memory-mapped file is read-only, and nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def stratified_subset(
    labels_N: Labels, num_images: int
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Indices of `num_images` images in ascending order; each class keeps its share."""
    rng = np.random.default_rng(SUBSET_SEED)
    order = rng.permutation(len(labels_N))
    # Rank within the class, as a share of the class. Take the smallest shares.
    share = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        members = order[labels_N[order] == label]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(share, kind="stable")[:num_images])


def normalization(
    config: TrialConfig, data_mean: tuple[float, ...], data_std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels: the pretrained weights', or the data's."""
    if config.pretrained == "none":
        return data_mean, data_std
    if config.model.startswith("timm/"):
        import timm  # seconds that other networks need not wait

        pretrained = timm.models.get_pretrained_cfg(config.model.removeprefix("timm/"))
        if pretrained is not None:
            return pretrained.mean, pretrained.std
    return IMAGENET_MEAN, IMAGENET_STD


def to_floats(images_BHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """(B, 3, H, W) in channels_last, normalised, from bytes (B, H, W, 3)."""
    b, height, width, channels = images_BHWC.shape
    # One row of pixels at a time: three channels are too few for the CPU's vector units.
    scale = (1.0 / (255.0 * std_C)).repeat(width)
    offset = (-mean_C / std_C).repeat(width)
    lines = images_BHWC.reshape(b, height, width * channels).to(scale.dtype)
    floats = torch.addcmul(offset, lines, scale).view(images_BHWC.shape)
    return floats.permute(0, 3, 1, 2)  # channels_last means NHWC in memory


def training_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """The order of images in an epoch; it depends only on seed and epoch."""
    return torch.randperm(num_images, generator=generator_for(seed, "order", epoch))


@dataclass
class Place:
    """A trial's position in its data: the epoch, from 1, and the index of the next image."""

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
    transform: Callable[[Tensor], Tensor] | None = None,
    prefetch_images: int = 1,
    part: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented, normalized batches (B, 3, H, W) and targets (B, ...) to the end of the epoch.

    `place` is advanced before each batch is yielded. Every batch has `batch_size` images: those
    left over at the end wait for the order of the next epoch. The augmentation of an image depends
    on seed, epoch and image, not on its batch: trials of different batch sizes see the same images.

    `transform` is applied to the images of several updates together, at least `prefetch_images`.
    A trial that continues from `place` forms the same groups. With `part`, only the images at these
    positions of each batch are made.
    """
    order_N = training_order(len(split), seed=config.seed, epoch=place.epoch)
    offset = place.start % batch_size  # another trial may have reached `place` in other steps
    num_batches = (len(split) - offset) // batch_size
    order_N = _in_batches(order_N[offset:], num_batches, batch_size, part)
    own_size = batch_size if part is None else len(part)
    images, targets = _augmented(split, config, place.epoch, order_N, mean_C=mean_C, std_C=std_C)
    chunk_size = own_size
    if transform is not None:
        chunk_size *= max(1, math.ceil(prefetch_images / own_size))

    def chunk(first: int, last: int) -> Tensor:
        return images(first, last) if transform is None else transform(images(first, last))

    inputs: Tensor | None = None
    for number in range(place.start // batch_size, num_batches):
        start = number * own_size
        index = start % chunk_size  # of this batch in its chunk
        if inputs is None or index == 0:
            try:
                inputs = chunk(start - index, min(start - index + chunk_size, len(order_N)))
            except torch.OutOfMemoryError:
                if chunk_size == own_size:
                    raise
                index, chunk_size = 0, own_size  # no prefetching from now on
                inputs = chunk(start, start + own_size)
        place.start = offset + (number + 1) * batch_size
        yield inputs[index : index + own_size], targets(start, start + own_size)


def _in_batches(
    order_N: Tensor, num_batches: int, batch_size: int, part: Sequence[int] | None
) -> Tensor:
    """The images of whole batches in order; of each batch, those at the positions `part`."""
    order_N = order_N[: num_batches * batch_size]
    if part is None:
        return order_N
    return order_N.view(num_batches, batch_size)[:, list(part)].flatten()


Between = Callable[[int, int], Tensor]  # of the rows between two positions in an epoch's order


def _augmented(
    split: DeviceSplit,
    config: TrialConfig,
    epoch: int,
    order_N: Tensor,
    *,
    mean_C: Tensor,
    std_C: Tensor,
) -> tuple[Between, Between]:
    """The images between two positions in the order, ready for the network, and their targets."""
    device = split.labels_N.device
    names = augmentations(config.augment)
    if names:
        generator = generator_for(config.seed, "augment", epoch)
        draws_NK = torch.rand(len(split), DRAWS, generator=generator).to(device)
        draws_order_N = order_N.to(device)  # the images may be on the host
    order_N = order_N.to(split.images_NHWC.device)

    def images(first: int, last: int) -> Tensor:
        images_BHWC = split.images_at(order_N[first:last])
        if split.are_features:
            return images_BHWC.permute(0, 3, 1, 2)
        if names:
            images_BHWC = augment(images_BHWC, draws_NK[draws_order_N[first:last]], names)
        return to_floats(images_BHWC, mean_C, std_C)

    def targets(first: int, last: int) -> Tensor:
        targets_B = split.targets_at(order_N[first:last])
        if not names:
            return targets_B
        draws_BK = draws_NK[draws_order_N[first:last]]
        if config.task == DETECTION:
            height, width = split.images_NHWC.shape[1:3]
            return flip_boxes(targets_B, draws_BK, names, height=height, width=width)
        return augment_masks(targets_B, draws_BK, names)

    if split.own_targets_N is None:
        labels_N = split.labels_N[order_N.to(device)]  # of the whole epoch at once
        return images, lambda first, last: labels_N[first:last]
    return images, targets


def evaluation_batches(
    split: DeviceSplit, *, batch_size: int, mean_C: Tensor, std_C: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in order, without augmentation, and their targets.

    Features stay as they are.
    """
    device = split.labels_N.device
    for start in range(0, len(split), batch_size):
        tick()
        images_BHWC = split.images_NHWC[start : start + batch_size]
        targets_B = split.targets_N[start : start + batch_size]
        if targets_B.device != device:
            targets_B = _sent(targets_B, device)
        if split.are_features:
            yield images_BHWC.permute(0, 3, 1, 2), targets_B
            continue
        if images_BHWC.device != device:
            images_BHWC = _sent(images_BHWC, device)
        yield to_floats(images_BHWC, mean_C, std_C), targets_B
