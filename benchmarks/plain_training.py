"""The reference: a training loop as a user of torchvision, or of timm's loader, would write it.

fp32, the default memory format, one image after the other through `torchvision.transforms.v2`, and
the loss read after each step for a running mean. Or in bf16 by autocast, in channels_last.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from timm.data import create_loader
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import PCAM
from torchvision.transforms import InterpolationMode, v2

from trainable.data.augment import MAX_SHIFT_PX, MAX_ZOOM
from trainable.data.batches import stratified_subset
from trainable.data.cache import Dataset

Floats3 = tuple[float, ...]
CPU = torch.device("cpu")
Patches = torch.utils.data.Dataset[tuple[Any, int]]
Batches = Iterable[tuple[Tensor, Tensor]]


def write_patches(data: Dataset, root: Path, *, train_images: int, val_images: int) -> None:
    """Some images of `data` as the files of torchvision.datasets.PCAM(root).

    Where more are wanted than there are, they are repeated.
    """
    (root / "pcam").mkdir(parents=True)
    wanted = (("train", data.train, train_images), ("valid", data.val, val_images))
    for name, split, num_images in wanted:
        index = stratified_subset(split.labels_N, num_images)
        index = np.resize(index, num_images)
        stem = root / "pcam" / f"camelyonpatch_level_2_split_{name}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            images = file.create_dataset("x", (num_images, *split.images_NHWC.shape[1:]), np.uint8)
            for start in range(0, num_images, 1024):
                part = index[start : start + 1024]
                images[start : start + len(part)] = split.images_NHWC[part]
        with h5py.File(f"{stem}_y.h5", "w") as file:
            labels = split.labels_N[index].astype(np.uint8)
            file.create_dataset("y", data=labels.reshape(-1, 1, 1, 1))


def transform_of(augment: str, mean: Floats3, std: Floats3, *, size_px: int = 96) -> v2.Compose:
    """Our augmentations in torchvision's words: PIL image in, normalised floats (3, H, W) out.

    A shift alone is the usual padded crop, which moves whole pixels and mirrors the edge as ours
    does; with rotation and zoom it is part of one bilinear RandomAffine. Each is done where it was
    found faster: the crop on tensors (v2.ToImage first), the affine map on PIL images.
    """
    names = augment.split("+")
    resampled = bool({"rotate", "zoom"} & set(names))
    steps: list[Any] = [] if resampled else [v2.ToImage()]
    if "hflip" in names:
        steps.append(v2.RandomHorizontalFlip())
    if "vflip" in names:
        steps.append(v2.RandomVerticalFlip())
    if resampled:
        share = MAX_SHIFT_PX / size_px
        steps.append(
            v2.RandomAffine(
                degrees=180 if "rotate" in names else 0,
                translate=(share, share) if "shift" in names else None,
                scale=(1 - MAX_ZOOM, 1 + MAX_ZOOM) if "zoom" in names else None,
                interpolation=InterpolationMode.BILINEAR,
            )
        )
    elif "shift" in names:
        steps.append(v2.RandomCrop(size_px, padding=MAX_SHIFT_PX, padding_mode="reflect"))
    if resampled:
        steps.append(v2.ToImage())
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*steps, *floats])


def loader(
    root: Path, split: str, transform: v2.Compose, *, batch_size: int, workers: int
) -> Batches:
    """Batches of PCAM's `train` split in a new order each time, or of its `val` split in order."""
    return DataLoader(
        PCAM(root, split, transform),
        batch_size=batch_size,
        shuffle=split == "train",
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def timm_loader(
    dataset: Patches,
    *,
    mean: Floats3,
    std: Floats3,
    batch_size: int,
    workers: int,
    size_px: int = 96,
    device: torch.device = CPU,
) -> Batches:
    """Timm's own pipeline for training: both flips; its crop is fixed to the whole image.

    It has no small shift, and rotation only inside its automatic policies.
    """
    made: Batches = create_loader(
        dataset,
        input_size=(3, size_px, size_px),
        batch_size=batch_size,
        is_training=True,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        vflip=0.5,
        color_jitter=None,
        mean=mean,
        std=std,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=device,
    )
    return made


def train_epoch(
    model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, *, in_bf16: bool = False
) -> float:
    """One epoch; the mean of the losses."""
    model.train()
    running, steps = 0.0, 0
    for images_BCHW, labels_B in batches:
        optimizer.zero_grad()
        with _autocast(in_bf16):
            loss = cross_entropy(model(_laid_out(images_BCHW, in_bf16)), labels_B)
        loss.backward()
        optimizer.step()
        running += loss.item()
        steps += 1
    return running / steps


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, *, in_bf16: bool = False) -> float:
    """Area under the ROC curve."""
    model.eval()
    with _autocast(in_bf16):
        scored = [
            (model(_laid_out(images, in_bf16)).float().softmax(1)[:, 1], labels)
            for images, labels in batches
        ]
    scores, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
    return float(roc_auc_score(labels.numpy(), scores.numpy()))


def _autocast(in_bf16: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=in_bf16)


def _laid_out(images_BCHW: Tensor, in_bf16: bool) -> Tensor:
    return images_BCHW.to(memory_format=torch.channels_last) if in_bf16 else images_BCHW


def counted(batches: Batches) -> Iterator[int]:
    """Take all batches, and say how many images each has."""
    for images, _ in batches:
        yield len(images)
