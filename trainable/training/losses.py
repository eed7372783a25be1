"""Losses: label smoothing, mixup and CutMix, distillation."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot

from trainable.config import TrialConfig


def smoothing_of(config: TrialConfig, *, num_classes: int) -> float:
    """The `label_smoothing` argument of PyTorch's losses.

    PyTorch spreads eps over all K classes, the paper over the K - 1 wrong ones (He et al. 2019,
    equation 4). So an eps of the paper is K/(K-1) eps in PyTorch: twice as much for two classes.
    """
    eps = config.label_smoothing
    return eps if config.smoothing_convention == "torch" else eps * num_classes / (num_classes - 1)


def is_mixed(config: TrialConfig) -> bool:
    """Whether images are mixed with others of their batch."""
    return bool(config.mixup_alpha or config.cutmix_alpha)


def mix(
    config: TrialConfig, images_BCHW: Tensor, labels_B: Tensor, *, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The batch after mixup or CutMix with labels (B, K); unchanged if neither is set.

    Each image is mixed with the next one in the (random) order, with one lambda per batch from
    Beta(alpha, alpha), as torchvision does it. Uses PyTorch's global generator.
    """
    if not is_mixed(config):
        return images_BCHW, labels_B
    transforms = _mixers(config.mixup_alpha, config.cutmix_alpha, num_classes)
    index = int(torch.randint(len(transforms), ())) if len(transforms) > 1 else 0
    return transforms[index](images_BCHW, labels_B)


@lru_cache(maxsize=1)  # each builds a distribution: once, not in every update
def _mixers(
    mixup_alpha: float, cutmix_alpha: float, num_classes: int
) -> list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    from torchvision.transforms import v2  # a second that other trials need not wait

    transforms: list[Any] = []
    if mixup_alpha:
        transforms.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
    if cutmix_alpha:
        transforms.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))
    return transforms


def training_loss(
    logits_BK: Tensor,
    targets: Tensor,
    *,
    smoothing: float,
    config: TrialConfig,
    teacher_logits_BK: Tensor | None = None,
) -> Tensor:
    """Mean loss of a microbatch for targets that are classes (B,) or class probabilities (B, K).

    With a teacher, T^2 KL(teacher/T || student/T) is added (Hinton et al. 2015, arXiv:1503.02531;
    He et al. 2019, equation 6, whose cross-entropy differs by a constant).
    """
    loss = cross_entropy(logits_BK, targets, label_smoothing=smoothing)
    if teacher_logits_BK is None:
        return loss
    t = config.distill_temperature
    student = log_softmax(logits_BK / t, 1)
    teacher = log_softmax(teacher_logits_BK / t, 1)
    divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss + config.distill_weight * t * t * divergence


def num_correct(logits_BK: Tensor, targets: Tensor) -> Tensor:
    """Number of correct predictions; a mixed label counts by its share."""
    predicted_B = logits_BK.argmax(1)
    if targets.ndim == 1:
        return (predicted_B == targets).sum()
    return (one_hot(predicted_B, targets.shape[1]) * targets).sum()
