"""The inputs of a network: images on the device, batch after batch.

If its first blocks are frozen, the trained part gets their output (features) instead. Features are
computed for several updates together, and only once for images without random augmentation.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from trainable.config import CLASSIFICATION, TrialConfig, augmentations
from trainable.data.batches import (
    DeviceSplit,
    Place,
    evaluation_batches,
    generator_for,
    normalization,
    to_device,
    training_batches,
)
from trainable.data.cache import Dataset
from trainable.data.resident import Resident, forget, resident
from trainable.host.device import room_bytes
from trainable.host.ranks import ALONE, Ranks
from trainable.networks.prefix import Prefix, fingerprint, run_prefix
from trainable.training.losses import is_mixed
from trainable.training.schedule import growth, images_kept_together

# Batch size of a forward pass without gradients. On a CPU larger batches do not fit its caches: at
# 96x96 px batches of 256 are 1.1 (VGG16) to 4 times (MobileNet-V2) slower than batches of 32.
INFERENCE_BATCH = {"cpu": 32, "cuda": 1024}
INFERENCE_PIXELS = {"cpu": 2**21, "cuda": 2**24}


@dataclass(frozen=True)
class Batch:
    """The inputs (B, ...) and targets (B, ...) between two places in the data."""

    start: Place
    end: Place
    inputs: Tensor
    targets: Tensor
    version: int  # of the inputs: torch counts what changes them in place


def forget_others(config: TrialConfig, data: Dataset, device: torch.device) -> None:
    """Let go of the images and features of earlier trials that this one does not need.

    Features were kept where the activations of batches of their size left room for them on a GPU.
    """
    splits = (data.train, data.val, data.test)

    def is_needed(kept: Resident) -> bool:
        about = _features_of(config, device) if kept.split.are_features else config.image_size
        is_this_data = any(kept.source is split for split in splits)
        return is_this_data and kept.about == about

    forget(unless=is_needed)


def _features_of(config: TrialConfig, device: torch.device) -> Hashable:
    """What the features of a trial depend on, as far as its config says."""
    c = config
    room = c.batch_size if device.type == "cuda" else None
    return c.model, c.pretrained, c.train_blocks, c.image_size, c.precision, c.norm, room


class Feed:
    """The training and validation split of a trial, and their features once computed.

    Trials that differ in nothing that concerns their images may have one together.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: Dataset,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """Put both splits on the device.

        Raises:
            DataError: the config's `image_size` is larger than the images.
        """
        self.config, self.device, self.ranks = config, device, ranks
        self.sources = {"train": data.train, "val": data.val, "test": data.test}
        self.splits: dict[str, DeviceSplit] = {}
        self.train = self.on_device("train", config.train_images)
        self.val = self.on_device("val", config.eval_images)
        mean, std = normalization(config, data.mean, data.std)
        self.normalization = (tuple(map(float, mean)), tuple(map(float, std)))
        self.mean_C = torch.tensor(mean, device=device)
        self.std_C = torch.tensor(std, device=device)
        self.chunk_size = INFERENCE_BATCH.get(device.type, 32)
        if config.task != CLASSIFICATION:  # there the last maps are as large as the images
            pixels = math.prod(self.val.images_NHWC.shape[1:3])
            most = INFERENCE_PIXELS.get(device.type, 2**21) // pixels
            self.chunk_size = max(1, min(self.chunk_size, most))
        self.prefix: Prefix | None = None
        self.autocast: Callable[[], torch.autocast] | None = None
        self.keeps_features = True
        self._features: dict[str, DeviceSplit] = {}
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._place = Place()  # of `_batches`
        self._last: Batch | None = None
        self.is_shared = False  # by trials that train together
        self._random_number = 0  # of the evaluation that the next are for
        self._random_inputs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def on_device(self, name: str, num_images: int | None) -> DeviceSplit:
        """A split on the device, with the config's image size; it is kept for the next trials.

        Raises:
            KeyError: the data has no such split.
        """
        source, size = self.sources[name], self.config.image_size
        if source is None:
            raise KeyError(name)

        def make() -> DeviceSplit:
            return to_device(
                source,
                num_images=num_images,
                image_size=size,
                device=self.device,
                room_bytes=room_bytes(self.device),
            )

        self.splits[name] = resident(name, source, size, (num_images, self.device), make)
        return self.splits[name]

    def use_prefix(self, prefix: Prefix | None, autocast: Callable[[], torch.autocast]) -> None:
        """From now on yield features of this prefix, computed under `autocast`, not images."""
        self.prefix, self.autocast = prefix, autocast

    @property
    def paths(self) -> list[str]:
        """The fast paths of the data in use, for the results."""
        on_gpu = self.train.images_NHWC.device.type == "cuda"
        names = ["data_on_gpu" if on_gpu else "data_mapped"]
        fastest = self.device.type == "cuda" and not self.config.deterministic
        names += ["fastest_kernels"] if fastest else []
        names += ["frozen_prefix"] if self.prefix else []
        kept = [name for name, split in sorted(self._features.items()) if split.are_features]
        return [*names, *(f"{name}_features_kept" for name in kept)]

    def inputs(self, images_BCHW: Tensor) -> Tensor:
        """The network's inputs for normalized images: their features, or the images themselves."""
        if self.prefix is None or self.autocast is None:
            return images_BCHW
        with self.autocast():
            return run_prefix(
                self.prefix,
                images_BCHW,
                chunk_size=self.chunk_size,
                before_retry=self.take_fewer,
            )

    def take_fewer(self, chunk_size: int) -> None:
        """From now on at most so many images at once without gradients: memory has run out."""
        self.chunk_size = chunk_size

    def batch(self, place: Place) -> tuple[Tensor, Tensor]:
        """The training inputs (B, ...) and targets (B, ...) at `place`, which is advanced.

        The last batch is kept: trials that train together ask for it one after the other.
        """
        last = self._last
        if last is None or last.start != place or last.inputs._version != last.version:
            if self._batches is None or self._place != place:
                self._place = replace(place)
                self._batches = self.batches(self._place)
            inputs, targets = next(self._batches)
            start, end = replace(place), replace(self._place)
            last = self._last = Batch(start, end, inputs, targets, inputs._version)
        place.epoch, place.start = last.end.epoch, last.end.start
        return last.inputs, last.targets

    def batches(self, place: Place) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless training inputs (B, ...) and targets (B, ...) from `place`, which is advanced.

        Of several ranks each has its part of a batch.
        """
        while True:
            size, _ = growth(self.config, place.epoch, train_images=len(self.train))
            split = self.train
            if not augmentations(self.config.augment):
                split = self._kept("train", self.train)
            yield from training_batches(
                split,
                self.config,
                place,
                batch_size=size,
                mean_C=self.mean_C,
                std_C=self.std_C,
                transform=self.inputs if self.prefix and not split.are_features else None,
                prefetch_images=self.chunk_size,
                part=self._part(size),
            )
            place.epoch, place.start = place.epoch + 1, 0

    def _part(self, batch_size: int) -> list[int] | None:
        """The positions in a batch that this rank trains, None for all of them.

        Where images are mixed, the one before them comes first: the first is mixed with that.
        """
        if self.ranks.size == 1:
            return None
        part = self.ranks.part(batch_size, images_kept_together(self.config))
        return [*([(part[0] - 1) % batch_size] if is_mixed(self.config) else []), *part]

    def evaluation(self, split: DeviceSplit) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of all images once, in order; of several ranks, of this one's."""
        part = self.ranks.part(len(split))
        own = split.between(part.start, part.stop) if len(part) < len(split) else split
        names = [name for name, whole in self.splits.items() if whole is split]
        split = self._kept(names[0], own) if names else own
        for inputs, targets in self.plain(split, self.chunk_size):
            yield inputs if split.are_features else self.inputs(inputs), targets

    def plain(self, split: DeviceSplit, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (B, 3, H, W) and targets, in order and without augmentation."""
        yield from evaluation_batches(
            split, batch_size=batch_size, mean_C=self.mean_C, std_C=self.std_C
        )

    def random_part(self, purpose: str, number: int, num_images: int) -> DeviceSplit:
        """Random training images for a measurement."""
        generator = generator_for(self.config.seed, purpose, number)
        index = torch.randperm(len(self.train), generator=generator)[:num_images]
        return self.train.part(index)

    def random_inputs(
        self, split: DeviceSplit, number: int, first: int, last: int
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets between two positions of a random part; those of one number are kept.

        Trials that train together measure with the same images.
        """
        if number != self._random_number or not self.is_shared:
            self._random_number, self._random_inputs = number, {}
        if (first, last) not in self._random_inputs:
            part = split.part(torch.arange(first, last))
            images_BCHW, targets_B = next(self.plain(part, last - first))
            self._random_inputs[first, last] = self.inputs(images_BCHW), targets_B
        return self._random_inputs[first, last]

    def _kept(self, name: str, split: DeviceSplit) -> DeviceSplit:
        """The features of a whole split if there is a prefix and they fit, else the split."""
        source = self.sources[name]
        if self.prefix is None or source is None or not self.keeps_features:
            return split
        if name not in self._features:
            about, network = _features_of(self.config, self.device), fingerprint(self.prefix)
            images = len(self.splits[name]), len(split), self.ranks.rank, self.device
            key = network, self.normalization, self.chunk_size, images
            make = partial(self._compute_if_it_fits, split)
            made = resident(f"{name} features", source, about, key, make)
            self._features[name] = split if made is None else made
        return self._features[name]

    def _compute_if_it_fits(self, split: DeviceSplit) -> DeviceSplit | None:
        try:
            return self._compute(split)
        except torch.OutOfMemoryError:
            return None

    def _compute(self, split: DeviceSplit) -> DeviceSplit | None:
        """The features of a split; None if they do not fit or are not images."""
        features_NHWC: Tensor | None = None
        done = 0
        for images_BCHW, _ in self.plain(split, self.chunk_size):
            features = self.inputs(images_BCHW)
            if features_NHWC is None:
                needed_bytes = math.prod(features.shape[1:]) * features.element_size() * len(split)
                if features.ndim != 4 or needed_bytes > room_bytes(self.device):
                    return None
                _, c, h, w = features.shape
                features_NHWC = features.new_empty(len(split), h, w, c)
            features_NHWC[done : done + len(features)] = features.permute(0, 2, 3, 1)
            done += len(features)
        if features_NHWC is None:
            return None
        return replace(split, images_NHWC=features_NHWC, are_features=True)
