"""Scores of a split from class probabilities: area under the ROC curve, accuracies, loss."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True, kw_only=True)
class Scores:
    """`auroc` is NaN where a class is missing or a probability is not finite."""

    auroc: float
    accuracy: float
    balanced_accuracy: float
    loss: float

    def of(self, name: str) -> float:
        """The score called `val_NAME` in the tables."""
        value: float = getattr(self, name.removeprefix("val_"))
        return value


def score(logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Scores:
    """Scores from logits; loss is the mean cross-entropy.

    The area is Mann-Whitney's, ties counting half; above two classes the macro mean of
    one-against-rest (Hand & Till's variants are not used).
    """
    logits = logits_NK.astype(np.float64)
    if not np.isfinite(logits).all():
        return Scores(auroc=math.nan, accuracy=math.nan, balanced_accuracy=math.nan, loss=math.nan)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    predicted = logits.argmax(1)
    right = predicted == labels_N
    return Scores(
        auroc=_auroc(log_p, labels_N),
        accuracy=float(right.mean()),
        balanced_accuracy=float(
            np.mean([right[labels_N == k].mean() for k in np.unique(labels_N)])
        ),
        loss=float(-log_p[np.arange(len(labels_N)), labels_N].mean()),
    )


def _auroc(log_p_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> float:
    classes = log_p_NK.shape[1]
    if len(np.unique(labels_N)) < classes:
        return math.nan
    if classes == 2:
        # The margin, not the probability: that rounds to 1 and makes ties of confident images.
        return float(roc_auc_score(labels_N, log_p_NK[:, 1] - log_p_NK[:, 0]))
    return float(roc_auc_score(labels_N, np.exp(log_p_NK), multi_class="ovr", average="macro"))
