"""Scores of a split from logits: area under the ROC curve, accuracies, calibration, counts."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """`auroc` is NaN where a class is missing, all are where a logit is not finite.

    `calibration_error` is the expected one over 15 bins of confidence, in [0, 1]. The four counts
    are of class 1 among two, and -1 where there are more classes or nothing was scored.
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


def score(logits_NK: NDArray[np.float32], labels_N: Labels) -> Scores:
    """Scores from logits; loss is the mean cross-entropy.

    The area is Mann-Whitney's, ties counting half; above two classes the macro mean of
    one-against-rest.
    """
    logits = logits_NK.astype(np.float64)
    if not np.isfinite(logits).all():
        return Scores()
    log_p_NK = _log_softmax(logits)
    predicted = logits.argmax(1)
    right = predicted == labels_N
    classes = logits.shape[1]
    counts = {}
    if classes == 2:
        counts = {
            "true_positives": int((right & (labels_N == 1)).sum()),
            "false_positives": int((~right & (labels_N == 0)).sum()),
            "true_negatives": int((right & (labels_N == 0)).sum()),
            "false_negatives": int((~right & (labels_N == 1)).sum()),
        }
    calibration_error = multiclass_calibration_error(
        torch.from_numpy(np.exp(log_p_NK)),
        torch.from_numpy(labels_N),
        num_classes=classes,
        n_bins=CALIBRATION_BINS,
    )
    return Scores(
        auroc=_auroc(log_p_NK, labels_N),
        accuracy=float(right.mean()),
        balanced_accuracy=float(
            np.mean([right[labels_N == k].mean() for k in np.unique(labels_N)])
        ),
        loss=float(-log_p_NK[np.arange(len(labels_N)), labels_N].mean()),
        calibration_error=float(calibration_error),
        **counts,
    )


def _log_softmax(logits_NK: Floats) -> Floats:
    shifted = logits_NK - logits_NK.max(1, keepdims=True)
    log_p: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_p


def _auroc(log_p_NK: Floats, labels_N: Labels) -> float:
    classes = log_p_NK.shape[1]
    if len(np.unique(labels_N)) < classes:
        return math.nan
    if classes == 2:
        # The margin, not the probability: that rounds to 1 and makes ties of confident images.
        return float(roc_auc_score(labels_N, log_p_NK[:, 1] - log_p_NK[:, 0]))
    return float(roc_auc_score(labels_N, np.exp(log_p_NK), multi_class="ovr", average="macro"))


def auroc_interval(
    logits_NK: NDArray[np.float32], labels_N: Labels, *, level: float = 0.95
) -> tuple[float, float]:
    """An interval of the area that another draw of test images would give, NaN where none can.

    DeLong et al. 1988 (doi:10.2307/2531595) through its placements: an image's placement is the
    share of the other class it is ranked rightly against, and the area's variance is
    var(placements of positives) / m + var(of negatives) / n. Above two classes the placements
    of the macro mean are summed over the classes an image takes part in. Images of one slide
    are not independent: the true interval is wider.
    """
    if not np.isfinite(logits_NK).all():
        return math.nan, math.nan
    log_p_NK = _log_softmax(logits_NK.astype(np.float64))
    classes = log_p_NK.shape[1]
    if np.bincount(labels_N, minlength=classes).min() < 2:
        return math.nan, math.nan
    area = _auroc(log_p_NK, labels_N)
    ranked = [log_p_NK[:, 1] - log_p_NK[:, 0]] if classes == 2 else list(log_p_NK.T)
    influence_N = np.zeros(len(labels_N))
    for k, scores_N in enumerate(ranked):
        positive_N = labels_N == (1 if classes == 2 else k)
        influence_N += _influence(scores_N, positive_N) / len(ranked)
    half = float(norm.ppf((1 + level) / 2) * math.sqrt(np.square(influence_N).sum()))
    return max(area - half, 0.0), min(area + half, 1.0)


def _influence(scores_N: Floats, positive_N: NDArray[np.bool_]) -> Floats:
    """How far each image moves the area: its squares sum to DeLong's variance."""
    m, n = int(positive_N.sum()), int((~positive_N).sum())
    ranks = rankdata(scores_N)
    placement_N = np.empty(len(scores_N))
    placement_N[positive_N] = (ranks[positive_N] - rankdata(scores_N[positive_N])) / n
    placement_N[~positive_N] = 1 - (ranks[~positive_N] - rankdata(scores_N[~positive_N])) / m
    for group, size in ((positive_N, m), (~positive_N, n)):
        centred = placement_N[group] - placement_N[group].mean()
        placement_N[group] = centred / math.sqrt(size * (size - 1))
    return placement_N
