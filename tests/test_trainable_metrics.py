import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.nn.functional import cross_entropy

from trainable.metrics import score

RNG = np.random.default_rng(0)


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
