"""The loops beside which benchmarks.gpu measures: as users of torchvision and timm write them.

The images are in the host's memory, where a user's would be in files. There are as many workers as
cores, up to eight. PyTorch's settings are its defaults, and with timm those of its train.py: TF32
in products of matrices, and the fastest kernels of cuDNN.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.plain_training import Batches, timm_loader
from trainable.config import TrialConfig
from trainable.data.augment import MAX_SHIFT_PX
from trainable.data.batches import normalization, seed_for
from trainable.data.cache import Dataset as OurDataset
from trainable.data.cache import Split
from trainable.networks.models import build_model

MOST_WORKERS = 8


class Patches(Dataset[tuple[Any, int]]):
    """The images of a split as PIL images, as torchvision's data sets give them."""

    def __init__(self, split: Split, transform: Any = None) -> None:
        """Of the training split."""
        self.images_NHWC, self.labels_N = split.images_NHWC, split.labels_N
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, transformed, and its class."""
        image = Image.fromarray(np.asarray(self.images_NHWC[index]))
        transformed = self.transform(image) if self.transform else image
        return transformed, int(self.labels_N[index])


def loader_of(
    side: str, config: TrialConfig, data: OurDataset, device: torch.device, workers: int
) -> Batches:
    """Training batches: on the host for torchvision, on the device for timm."""
    mean, std = normalization(config, data.mean, data.std)
    size_px = data.train.images_NHWC.shape[1]
    if side == "timm":
        return timm_loader(
            Patches(data.train),
            mean=mean,
            std=std,
            batch_size=config.batch_size,
            workers=workers,
            size_px=size_px,
            device=device,
        )
    steps = [
        v2.ToImage(),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomCrop(size_px, padding=MAX_SHIFT_PX, padding_mode="reflect"),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
    ]
    return DataLoader(
        Patches(data.train, v2.Compose(steps)),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def set_as_users_do(side: str, device: torch.device) -> None:
    """Undo what our trials set in this process, and do what timm's train.py does."""
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = side == "timm"
    torch.backends.cuda.matmul.allow_tf32 = side == "timm"


def images_per_s(
    side: str,
    config: TrialConfig,
    data: OurDataset,
    device: torch.device,
    workers: int | None = None,
) -> float:
    """Images a second in the second epoch; in fp32, or with autocast and channels_last."""
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    set_as_users_do(side, device)
    torch.manual_seed(seed_for(config.seed, "weights"))
    model = build_model(config, num_classes=len(data.classes)).to(device)
    is_fp32 = config.precision == "fp32"
    if not is_fp32:
        model = model.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=config.base_lr, momentum=config.momentum)
    batches = loader_of(side, config, data, device, workers)
    speed = 0.0
    for _ in range(2):
        _wait(device)
        started = time.perf_counter()
        num_images = train_epoch(model, _moved(batches, device, is_fp32), optimizer, is_fp32)
        _wait(device)
        speed = num_images / (time.perf_counter() - started)
    return speed


def _moved(
    batches: Batches, device: torch.device, is_fp32: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device, in our memory format if not in fp32."""
    memory_format = torch.contiguous_format if is_fp32 else torch.channels_last
    for images_BCHW, labels_B in batches:
        images_BCHW = images_BCHW.to(device, non_blocking=True, memory_format=memory_format)
        yield images_BCHW, labels_B.to(device, non_blocking=True)


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    is_fp32: bool,
) -> int:
    """One epoch, with the loss read now and then for the progress bar; the number of images."""
    model.train()
    num_images = 0
    for number, (images_BCHW, labels_B) in enumerate(batches):
        optimizer.zero_grad()
        device = images_BCHW.device.type
        with nullcontext() if is_fp32 else torch.autocast(device, torch.bfloat16):
            loss = cross_entropy(model(images_BCHW), labels_B)
        loss.backward()
        optimizer.step()
        num_images += len(labels_B)
        if number % 50 == 0:
            loss.item()
    return num_images


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
