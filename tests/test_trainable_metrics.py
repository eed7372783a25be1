import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from trainable.training.metrics import CALIBRATION_BINS, Scores, calibration_error
from trainable.training.metrics import auroc_interval as interval_of_tensors
from trainable.training.metrics import score as score_tensors


def score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Scores:
    return score_tensors(torch.from_numpy(logits), torch.from_numpy(labels))


def auroc_interval(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    return interval_of_tensors(torch.from_numpy(logits), torch.from_numpy(labels))


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_scikit_learns_and_torchs(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 300)
    logits = rng.standard_normal((300, classes)).astype(np.float32)
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
    logits = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
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


def placements(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """By counting pairs: the share of the other class that each image is ranked rightly against."""
    pairs = np.sign(values[positive][:, None] - values[~positive][None]) / 2 + 0.5
    placed = np.empty(len(values))
    placed[positive], placed[~positive] = pairs.mean(1), pairs.mean(0)
    return placed


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_interval_is_delongs_formula_by_counting_pairs(classes: int, level: float) -> None:
    rng = np.random.default_rng(classes)
    labels = np.array([0] * 9 + [1] * 14 + [2] * 11)[: 23 if classes == 2 else 34]
    logits = rng.standard_normal((len(labels), classes))
    logits[np.arange(len(labels)), labels] += 0.2
    if classes == 2:
        logits = np.stack([np.zeros(len(labels)), (2 * logits[:, 1]).round() / 2], 1)  # with ties
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    areas, moved = [], np.zeros(len(labels))
    for k in [1] if classes == 2 else range(classes):
        positive = labels == k
        values = logits[:, 1] if classes == 2 else p[:, k]
        placed = placements(values, positive)
        areas.append(placed[positive].mean())
        for group in (positive, ~positive):
            share = (placed[group] - placed[group].mean()) / (1 if classes == 2 else classes)
            moved[group] += share / np.sqrt(group.sum() * (group.sum() - 1))
    half = {0.95: 1.959964, 0.5: 0.67449}[level] * np.sqrt((moved**2).sum())
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    got = interval_of_tensors(*tensors, level=level)
    assert got == pytest.approx((np.mean(areas) - half, np.mean(areas) + half), abs=2e-6)
    assert score_tensors(*tensors).auroc == pytest.approx(np.mean(areas), abs=1e-9)


def test_an_interval_needs_two_images_of_each_class_and_stays_within_0_and_1() -> None:
    logits = np.array([[2, 0], [0, 1], [0, 2], [0.5, 0.2]], np.float32)
    assert np.isnan(auroc_interval(logits, np.array([0, 1, 1, 1]))).all()
    assert np.isnan(auroc_interval(logits[:3], np.array([0, 0, 1]))).all()
    assert auroc_interval(logits, np.array([0, 1, 1, 0])) == (1.0, 1.0)
    low, high = auroc_interval(logits, np.array([0, 1, 0, 1]))
    assert 0.0 <= low < high == 1.0
    low, high = auroc_interval(-logits, np.array([0, 1, 0, 1]))
    assert 0.0 == low < high <= 1.0
    logits[0, 0] = np.inf
    assert np.isnan(auroc_interval(logits, np.array([0, 1, 1, 0]))).all()


def test_a_class_that_is_missing_does_not_count_in_balanced_accuracy() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2]] * 3
    got = score(logits, np.array([0, 0, 0, 1, 1]))
    assert got.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got.accuracy == pytest.approx(3 / 5)
    assert math.isnan(got.auroc)
    counts = got.true_positives, got.false_positives, got.true_negatives, got.false_negatives
    assert counts == (-1, -1, -1, -1)


def test_calibration_is_over_fifteen_bins_of_confidence() -> None:
    # Guo et al. 2017, equation 3, by hand. Bins of a fifteenth: 0.61 and 0.65 are in one, 0.68 is
    # in the next, 0.93 in another.
    confidence = np.array([0.61, 0.65, 0.68, 0.93, 0.93])
    right = np.array([True, False, True, True, False])
    logits = np.stack([np.log(confidence), np.log(1 - confidence)], 1).astype(np.float32)
    error = (abs(1.26 - 1) + abs(0.68 - 1) + abs(1.86 - 1)) / 5
    assert score(logits, (~right).astype(np.int64)).calibration_error == pytest.approx(
        error, abs=1e-5
    )
    assert (CALIBRATION_BINS, Scores().true_positives) == (15, -1)


def test_nothing_is_scored_where_a_logit_is_infinite() -> None:
    logits = np.array([[0.0, np.inf], [1.0, 0.0]], np.float32)
    got = score(logits, np.array([1, 0]))
    assert math.isnan(got.accuracy)
    assert math.isnan(got.calibration_error)
    assert got.true_positives == -1


@pytest.mark.parametrize("classes", [2, 5])
def test_calibration_error_is_that_of_torchmetrics_to_the_bit(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    for num_images in (1, 7, 300, 5000):
        logits_NK = 3 * torch.randn(num_images, classes, generator=generator)
        p_NK = logits_NK.double().softmax(1)
        labels_N = torch.randint(classes, (num_images,), generator=generator)
        expected = multiclass_calibration_error(
            p_NK, labels_N, num_classes=classes, n_bins=CALIBRATION_BINS
        )
        assert calibration_error(p_NK, labels_N) == expected.item()
