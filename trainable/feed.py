"""What a network is fed: its images on the device, batch after batch.

Where its first blocks are frozen, what is trained gets their features instead: computed for many
coming updates at once, and once for all images that nothing random is done to.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from trainable.config import TrialConfig, augmentations
from trainable.data.batches import (
    DeviceSplit,
    Place,
    evaluation_batches,
    generator_for,
    normalization,
    to_device,
    training_batches,
)
from trainable.data.cache import Dataset, Split
from trainable.host.device import room_bytes
from trainable.networks.prefix import Prefix, run_prefix
from trainable.training.schedule import growth

# Images that go through a network at once where no gradient is wanted. On a CPU more of them leave
# its caches: at 96x96 batches of 256 are 1.1 (VGG16) to 4 times (MobileNet-V2) slower than of 32.
IMAGES_AT_ONCE = {"cpu": 32, "cuda": 1024}


class Feed:
    """The training and validation split of a trial, and the features kept of them."""

    def __init__(self, config: TrialConfig, data: Dataset, device: torch.device) -> None:
        """Put both on the device.

        Raises:
            DataError: fewer images, or smaller ones, than the config asks for.
        """
        self.config, self.device = config, device
        self.train = self.on_device(data.train, config.train_images)
        self.val = self.on_device(data.val, config.eval_images)
        mean, std = normalization(config, data.mean, data.std)
        self.mean_C = torch.tensor(mean, device=device)
        self.std_C = torch.tensor(std, device=device)
        self.at_once = IMAGES_AT_ONCE.get(device.type, 32)
        self.prefix: Prefix | None = None
        self.autocast: Callable[[], torch.autocast] | None = None
        self.keeps_features = True
        self._features: dict[str, DeviceSplit] = {}

    def on_device(self, split: Split, num_images: int | None) -> DeviceSplit:
        """A split as the config wants it: so many images, of its size."""
        return to_device(
            split,
            num_images=num_images,
            image_size=self.config.image_size,
            device=self.device,
            room_bytes=room_bytes(self.device),
        )

    def through(self, prefix: Prefix | None, autocast: Callable[[], torch.autocast]) -> None:
        """From now on give features of this prefix, in this arithmetic, instead of images."""
        self.prefix, self.autocast = prefix, autocast

    @property
    def paths(self) -> list[str]:
        """How the data reaches the network, for the record."""
        on_gpu = self.train.images_NHWC.device.type == "cuda"
        where = "data_on_gpu" if on_gpu else "data_mapped"
        prefix = ["frozen_prefix"] if self.prefix else []
        kept = [
            f"{n}_features_kept" for n, each in sorted(self._features.items()) if each.are_features
        ]
        return [where, *prefix, *kept]

    def inputs(self, images_BCHW: Tensor) -> Tensor:
        """What the network takes for normalised images: features, or the images themselves."""
        if self.prefix is None or self.autocast is None:
            return images_BCHW
        with self.autocast():
            return run_prefix(self.prefix, images_BCHW, at_once=self.at_once)

    def batches(self, place: Place) -> Iterator[tuple[Tensor, Tensor]]:
        """Training inputs (B, ...) and labels (B,) from `place` on, without end; it moves along."""
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
                through=self.inputs if self.prefix and not split.are_features else None,
                ahead=self.at_once,
            )
            place.epoch, place.start = place.epoch + 1, 0

    def evaluation(self, split: DeviceSplit) -> Iterator[Tensor]:
        """Inputs of all images once, in order."""
        if split is self.val:
            split = self._kept("val", split)
        for inputs, _ in self.plain(split, self.at_once):
            yield inputs if split.are_features else self.inputs(inputs)

    def plain(self, split: DeviceSplit, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (B, 3, H, W) and labels (B,) in order, as they are."""
        yield from evaluation_batches(
            split, batch_size=batch_size, mean_C=self.mean_C, std_C=self.std_C
        )

    def some(self, purpose: str, number: int, num_images: int) -> DeviceSplit:
        """Training images drawn for a measurement, in a random order."""
        generator = generator_for(self.config.seed, purpose, number)
        index = torch.randperm(len(self.train), generator=generator)[:num_images]
        return self.train.part(index)

    def _kept(self, name: str, split: DeviceSplit) -> DeviceSplit:
        """Features of a whole split where there is a prefix and room for them, else the split."""
        if self.prefix is None or not self.keeps_features:
            return split
        if name not in self._features:
            self._features[name] = self._compute(split) or split
        return self._features[name]

    def _compute(self, split: DeviceSplit) -> DeviceSplit | None:
        kept: Tensor | None = None
        done = 0
        for images_BCHW, _ in self.plain(split, self.at_once):
            features = self.inputs(images_BCHW)
            if kept is None:
                wanted = math.prod(features.shape[1:]) * features.element_size() * len(split)
                if features.ndim != 4 or wanted > room_bytes(self.device):
                    return None
                _, c, h, w = features.shape
                kept = features.new_empty(len(split), h, w, c)
            kept[done : done + len(features)] = features.permute(0, 2, 3, 1)
            done += len(features)
        return None if kept is None else replace(split, images_NHWC=kept, are_features=True)
