import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.nn.functional import cross_entropy

from trainable.metrics import Scores
from trainable.metrics import auroc_interval as interval_of_tensors
from trainable.metrics import score as score_tensors

RNG = np.random.default_rng(0)


def score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Scores:
    return score_tensors(torch.from_numpy(logits), torch.from_numpy(labels))


def auroc_interval(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    return interval_of_tensors(torch.from_numpy(logits), torch.from_numpy(labels))


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_scikit_learns_and_torchs(classes: int) -> None:
    labels = RNG.integers(0, classes, 300)
    logits = RNG.standard_normal((300, classes)).astype(np.float32)
    logits[np.arange(300), labels] += 1
    if classes == 2:
        logits[:40] = np.round(logits[:40])  # ties
    p = torch.from_numpy(logits).double().softmax(1).numpy()
    got = score(logits, labels)
    expected = (
        roc_auc_score(labels, p[:, 1])
        if classes == 2
        else roc_auc_score(labels, p, multi_class="ovr")
    )
    assert got.auroc == pytest.approx(expected, abs=1e-9)
    assert got.accuracy == (logits.argmax(1) == labels).mean()
    assert got.balanced_accuracy == balanced_accuracy_score(labels, logits.argmax(1))
    loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    assert got.loss == pytest.approx(loss, rel=1e-9)


def test_confident_logits_make_no_false_ties() -> None:
    margin = np.array([50.0, 60.0, 70.0, 80.0], np.float32)
    logits = np.stack([np.zeros(4, np.float32), margin], 1)
    assert score(logits, np.array([0, 0, 1, 1])).auroc == 1.0


def test_no_area_where_a_class_is_missing_or_a_logit_is_not_a_number() -> None:
    logits = RNG.standard_normal((10, 2)).astype(np.float32)
    one_class = score(logits, np.zeros(10, np.int64))
    assert math.isnan(one_class.auroc)
    assert math.isfinite(one_class.loss)
    logits[3, 1] = np.nan
    assert math.isnan(score(logits, np.arange(10) % 2).loss)


def test_delongs_interval_is_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.4).astype(np.int64)
    margin = (rng.standard_normal(400) + 1.2 * labels).astype(np.float32)
    logits = np.stack([np.zeros(400, np.float32), margin], 1)
    low, high = auroc_interval(logits, labels)
    assert low < score(logits, labels).auroc < high
    resampled = bootstrap(
        (np.arange(400),),
        lambda i: roc_auc_score(labels[i], margin[i]),
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx((resampled.low, resampled.high), abs=0.006)


def test_interval_for_several_classes_is_the_bootstraps() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 300)
    logits = rng.standard_normal((300, 4)).astype(np.float32)
    logits[np.arange(300), labels] += 1
    low, high = auroc_interval(logits, labels)
    areas = []
    for _ in range(600):
        i = rng.integers(0, 300, 300)
        areas.append(score(logits[i], labels[i]).auroc)
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=0.012)


def test_counts_and_calibration() -> None:
    logits = np.array([[2, 0], [0, 2], [0, 2], [2, 0], [0, 2]], np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    got = score(logits, labels)
    counts = got.true_positives, got.false_positives, got.true_negatives, got.false_negatives
    assert counts == (2, 1, 1, 1)
    # All five have confidence 0.8808 and three are right: |0.8808 - 0.6|.
    assert got.calibration_error == pytest.approx(0.2808, abs=1e-4)
