"""Losses and what they are taken against: smoothed labels, mixed images, a teacher's opinion."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot
from torchvision.transforms import v2

from trainable.config import TrialConfig


def smoothing_of(config: TrialConfig, *, num_classes: int) -> float:
    """The epsilon that torch's losses take.

    Torch spreads eps over all K classes, the paper over the K - 1 wrong ones (He et al. 2019,
    equation 4): the paper's eps is torch's eps K/(K-1). At two classes that is twice as much.
    """
    eps = config.label_smoothing
    return eps if config.smoothing_convention == "torch" else eps * num_classes / (num_classes - 1)


def mix(
    config: TrialConfig, images_BCHW: Tensor, labels_B: Tensor, *, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The batch after mixup or CutMix, with labels (B, K); as it was where neither is asked for.

    Each image is mixed with its neighbour in the (random) order, one lambda a batch from
    Beta(alpha, alpha), as torchvision does it. Draws from torch's global generator.
    """
    ways: list[v2.Transform] = []
    if config.mixup_alpha:
        ways.append(v2.MixUp(alpha=config.mixup_alpha, num_classes=num_classes))
    if config.cutmix_alpha:
        ways.append(v2.CutMix(alpha=config.cutmix_alpha, num_classes=num_classes))
    if not ways:
        return images_BCHW, labels_B
    way = ways[int(torch.randint(len(ways), ()))] if len(ways) > 1 else ways[0]
    mixed: tuple[Tensor, Tensor] = way(images_BCHW, labels_B)
    return mixed


def training_loss(
    logits_BK: Tensor,
    targets: Tensor,
    *,
    smoothing: float,
    config: TrialConfig,
    teacher_logits_BK: Tensor | None = None,
) -> Tensor:
    """Mean loss of a microbatch against classes (B,) or shares of classes (B, K).

    With a teacher T^2 KL(teacher/T || student/T) is added (Hinton et al. 2015, arXiv:1503.02531;
    He et al. 2019, equation 6, whose cross-entropy differs by a constant).
    """
    loss = cross_entropy(logits_BK, targets, label_smoothing=smoothing)
    if teacher_logits_BK is None:
        return loss
    t = config.distill_temperature
    student = log_softmax(logits_BK / t, 1)
    teacher = log_softmax(teacher_logits_BK / t, 1)
    opinion = kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss + config.distill_weight * t * t * opinion


def right_answers(logits_BK: Tensor, targets: Tensor) -> Tensor:
    """How many predictions agree, mixed labels counting by their share."""
    predicted_B = logits_BK.argmax(1)
    if targets.ndim == 1:
        return (predicted_B == targets).sum()
    return (one_hot(predicted_B, targets.shape[1]) * targets).sum()
