"""What a metric's name tells: which of its values are best, and between which bounds they lie."""

import re

import numpy as np
from numpy.typing import ArrayLike

LOWER_IS_BETTER = (
    *("loss", "error", "err", "mae", "mse", "rmse", "mape", "nll", "perplexity", "ppl"),
    *("entropy", "crossentropy", "brier", "ece", "wer", "cer", "fid", "regret"),
)
# Scores between 0 and 1, or in percent.
SHARES = (
    *("acc", "accuracy", "auc", "auroc", "auprc", "roc", "f1", "precision", "recall"),
    *("sensitivity", "specificity", "dice", "iou", "miou", "map", "top1", "top3", "top5"),
)
HIGHER_IS_BETTER = (*SHARES, "score", "r2", "kappa", "mcc", "psnr", "ssim", "bleu", "reward")
NEGATED = ("neg", "negative", "minus")
NOT_ROC = ("pr", "prc", "prauc", "precision", "1")  # beside `auc` in a name
OUR_LOSSES = ("val_loss", "test_loss", "train_loss")  # cross-entropies
WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")

Bounds = tuple[float, float]


def _words(metric: str) -> set[str]:
    return {word.lower() for word in WORD.findall(metric)}


def mode_by_name(metric: str) -> str | None:
    """`min` for names such as val_loss, `max` for such as val_acc; None if the name does not tell.

    `neg_log_loss` of scikit-learn tells nothing: its sign was changed.
    """
    words = _words(metric)
    is_loss, is_score = bool(words & {*LOWER_IS_BETTER}), bool(words & {*HIGHER_IS_BETTER})
    if is_loss == is_score or words & {*NEGATED}:
        return None
    return "min" if is_loss else "max"


def bounds_of(metric: str, scores: ArrayLike) -> Bounds | None:
    """What the metric's values cannot leave, as far as its name tells and `scores` agree.

    0 and 1 of an accuracy, 0 and 100 of one in percent, 0 and infinity of our losses.
    """
    known = np.asarray(scores, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known) or known.min() < 0:
        return None
    if metric in OUR_LOSSES:
        return 0.0, float("inf")
    words = _words(metric)
    if not words & {*SHARES} or words & {*LOWER_IS_BETTER, *NEGATED} or known.max() > 100:
        return None
    return 0.0, 1.0 if known.max() <= 1 else 100.0


def is_auroc(metric: str) -> bool:
    """Whether it is an area under the ROC curve, of which 0.5 is chance.

    `pr_auc` is one under another curve; `1-auc` and `neg_auroc` are not the area itself.
    """
    words = _words(metric)
    return bool(words & {"auroc", "auc"}) and not words & {*NOT_ROC, *NEGATED, *LOWER_IS_BETTER}
