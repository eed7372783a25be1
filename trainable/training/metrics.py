"""Scores of a split from logits: area under the ROC curve, accuracies, calibration, counts.

Everything is computed on the device of the logits; only the final numbers are copied from a GPU.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one split.

    `auroc` is NaN if a class is missing; all scores are NaN if a logit is not finite.
    `calibration_error` is the expected calibration error over 15 bins, in [0, 1]. The four counts
    take class 1 of two as positive; they are -1 with more classes, or if nothing was scored.
    """

    auroc: float = math.nan
    accuracy: float = math.nan
    balanced_accuracy: float = math.nan
    loss: float = math.nan
    calibration_error: float = math.nan
    true_positives: int = -1
    false_positives: int = -1
    true_negatives: int = -1
    false_negatives: int = -1


def score(logits_NK: Tensor, labels_N: Tensor) -> Scores:
    """Scores from logits; loss is the mean cross-entropy.

    The area is the Mann-Whitney statistic, in which ties count half; with more than two classes it
    is the macro average of one-vs-rest.
    """
    if not logits_NK.isfinite().all():
        return Scores()
    log_p_NK = logits_NK.double().log_softmax(1)
    predicted_N = logits_NK.argmax(1)
    correct_N = predicted_N == labels_N
    classes = logits_NK.shape[1]
    counts = {}
    if classes == 2:
        pairs = torch.bincount(2 * labels_N + predicted_N, minlength=4).tolist()
        names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
        counts = dict(zip(names, pairs, strict=True))
    of_class_K = torch.bincount(labels_N, minlength=classes)
    correct_K = torch.bincount(labels_N[correct_N], minlength=classes)
    present_K = of_class_K > 0
    return Scores(
        auroc=_auroc(log_p_NK, labels_N),
        accuracy=correct_N.double().mean().item(),
        balanced_accuracy=(correct_K[present_K] / of_class_K[present_K].double()).mean().item(),
        loss=-log_p_NK.gather(1, labels_N[:, None]).mean().item(),
        calibration_error=calibration_error(log_p_NK.exp(), labels_N),
        **counts,
    )


def calibration_error(p_NK: Tensor, labels_N: Tensor) -> float:
    """Expected calibration error of probabilities, in [0, 1] (Guo et al. 2017).

    The mean over images of |accuracy - mean confidence| of their bin of confidence; the bins have
    equal widths. To the bit torchmetrics' number, whose import takes longer than a short trial.
    """
    confidence_N, predicted_N = p_NK.max(1)
    confidence_N = confidence_N.float()
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, device=p_NK.device)
    bin_N = torch.bucketize(confidence_N, edges, right=True) - 1

    def sum_by_bin(values_N: Tensor) -> Tensor:
        return torch.zeros_like(edges).scatter_add_(0, bin_N, values_N)

    count = sum_by_bin(torch.ones_like(confidence_N))
    confidence = torch.nan_to_num(sum_by_bin(confidence_N) / count)
    accuracy = torch.nan_to_num(sum_by_bin((predicted_N == labels_N).float()) / count)
    return ((accuracy - confidence).abs() * (count / count.sum())).sum().item()


def _ranked(log_p_NK: Tensor) -> list[Tensor]:
    """The scores (N,) that rank the images for each class against the rest; one for two classes."""
    if log_p_NK.shape[1] == 2:
        # Not the probability: it rounds to 1 and would make ties of confident images.
        return [log_p_NK[:, 1] - log_p_NK[:, 0]]
    return list(log_p_NK.exp().T)


def _ranks(values_N: Tensor) -> Tensor:
    """Ranks from 1; equal values get the mean of their ranks."""
    _, inverse_N, counts = values_N.unique(return_inverse=True, return_counts=True)
    ranks_N: Tensor = (counts.cumsum(0) - (counts.double() - 1) / 2)[inverse_N]
    return ranks_N


def _positives(labels_N: Tensor, classes: int) -> list[Tensor]:
    return [labels_N == k for k in ((1,) if classes == 2 else range(classes))]


def _auroc(log_p_NK: Tensor, labels_N: Tensor) -> float:
    classes = log_p_NK.shape[1]
    if len(labels_N.unique()) < classes:
        return math.nan
    areas = []
    for values_N, positive_N in zip(_ranked(log_p_NK), _positives(labels_N, classes), strict=True):
        m = int(positive_N.sum())
        rank_sum = _ranks(values_N)[positive_N].sum().item()
        areas.append((rank_sum - m * (m + 1) / 2) / (m * (len(labels_N) - m)))
    return sum(areas) / len(areas)


def auroc_interval(
    logits_NK: Tensor, labels_N: Tensor, *, level: float = 0.95
) -> tuple[float, float]:
    """A confidence interval of the area over random test sets; NaN if it cannot be computed.

    DeLong et al. 1988 (doi:10.2307/2531595), computed from placements: the placement of an image is
    the share of the other class that it is ranked correctly against, and the variance of the area
    is var(placements of positives) / m + var(placements of negatives) / n. With more than two
    classes, each image's placements are summed over the classes. Images of the same slide are not
    independent, so the true interval is wider.
    """
    if not logits_NK.isfinite().all():
        return math.nan, math.nan
    log_p_NK = logits_NK.double().log_softmax(1)
    classes = log_p_NK.shape[1]
    if torch.bincount(labels_N, minlength=classes).min() < 2:
        return math.nan, math.nan
    area = _auroc(log_p_NK, labels_N)
    ranked = _ranked(log_p_NK)
    influence_N = torch.zeros(len(labels_N), dtype=torch.float64, device=labels_N.device)
    for values_N, positive_N in zip(ranked, _positives(labels_N, classes), strict=True):
        influence_N += _influence(values_N, positive_N) / len(ranked)
    deviation = influence_N.square().sum().sqrt().item()
    half = NormalDist().inv_cdf((1 + level) / 2) * deviation
    return max(area - half, 0.0), min(area + half, 1.0)


def _influence(values_N: Tensor, positive_N: Tensor) -> Tensor:
    """How far each image moves the area; the squares sum to DeLong's variance."""
    m = int(positive_N.sum())
    n = len(positive_N) - m
    ranks_N = _ranks(values_N)
    moved_N = torch.empty_like(ranks_N)
    for group_N, size, others in ((positive_N, m, n), (~positive_N, n, m)):
        placement = (ranks_N[group_N] - _ranks(values_N[group_N])) / others
        if group_N is not positive_N:
            placement = 1 - placement
        moved_N[group_N] = (placement - placement.mean()) / math.sqrt(size * (size - 1))
    return moved_N
