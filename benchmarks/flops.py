"""Floating-point operations of a training step, and the trials whose operations are counted.

A multiplication and an addition are two operations.
"""

import copy
import time
from pathlib import Path

import numpy as np
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from trainable.config import TrialConfig
from trainable.data.cache import Dataset, Split

PCAM_IMAGES = 262_144  # of PatchCamelyon's training split
PCAM_PX = 96
MATMUL_SIDE, MATMUL_REPEATS = 8192, 50


def flop_per_image(model: nn.Module, *, size_px: int = PCAM_PX, batch_size: int = 2) -> float:
    """Forward and backward of a training step, divided by the batch; nothing is computed.

    Only what trained weights need: no gradient of a frozen block, none of the first trained layer's
    input.
    """
    model = copy.deepcopy(model).to("meta").train()
    images_BCHW = torch.empty(batch_size, 3, size_px, size_px, device="meta")
    labels_B = torch.empty(batch_size, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(images_BCHW), labels_B).backward()
    return float(counter.get_total_flops() / batch_size)


def matmul_peak_flop_per_s(device: torch.device) -> float:
    """What a large product of bf16 matrices reaches on the device."""
    side = MATMUL_SIDE
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(MATMUL_REPEATS):
        a @ b
    torch.cuda.synchronize(device)
    return 2 * side**3 * MATMUL_REPEATS / (time.perf_counter() - started)


def random_vgg16(folder: Path) -> Path:
    """A state_dict of torchvision's vgg16 with weights that are drawn."""
    torch.manual_seed(0)
    path = folder / "vgg16.pth"
    torch.save(zoo.vgg16(weights=None).state_dict(), path)
    return path


def vgg16_config(weights: Path, *, batch_size: int, augment: str) -> TrialConfig:
    """VGG16 with two trained blocks, at one learning rate throughout."""
    return TrialConfig(
        model="vgg16",
        pretrained=str(weights),
        train_blocks=2,
        batch_size=batch_size,
        augment=augment,
        base_lr=0.001,
        lr_scaling="constant",
        decay="constant",
        epochs=100,
    )


def random_bytes(num_images: int) -> Dataset:
    """Images of PCam's shape that hold noise, and labels by turns."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        shape = (n, PCAM_PX, PCAM_PX, 3)
        return Split(
            images_NHWC=rng.integers(0, 256, shape, dtype=np.uint8), labels_N=np.arange(n) % 2
        )

    return Dataset(
        name="pcam",
        layout="random bytes",
        classes=("0", "1"),
        fingerprint="benchmark",
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        train=split(num_images),
        val=split(256),
        test=None,
    )
