import math

import numpy as np
import pandas as pd
import pytest

from search.analysis.costs.critical_batch import front
from search.analysis.costs.time_to_target import at_equal, common_target, to_target

SIZES = np.array([16, 32, 64, 128, 256, 512, 1024, 2048])


def needed(critical: float, rng: np.random.Generator | None = None) -> pd.DataFrame:
    """Updates to a target by (S / 500 - 1)(E / (500 critical) - 1) = 1, E = B S."""
    updates = 500 * (1 + critical / SIZES)
    noise = np.exp(rng.normal(0, 0.05, len(SIZES))) if rng else 1.0
    return pd.DataFrame({"batch_size": SIZES, "updates": updates * noise})


def test_a_known_hyperbola_gives_its_critical_batch_size() -> None:
    found = front(needed(200.0))
    assert found.critical_batch_size == pytest.approx(200, rel=1e-3)
    assert found.s_min == pytest.approx(500, rel=1e-3)
    assert found.e_min == pytest.approx(500 * 200, rel=1e-3)
    updates = needed(200.0)["updates"]
    left = (updates / found.s_min - 1) * (updates * SIZES / found.e_min - 1)
    assert left.to_numpy() == pytest.approx(np.ones(len(SIZES)), rel=0.01)
    assert not found.why


def test_the_interval_holds_the_critical_batch_size() -> None:
    rng = np.random.default_rng(0)
    found = [front(needed(200.0, rng)) for _ in range(200)]
    held = [each.low <= 200 <= each.high for each in found]
    assert 0.93 <= np.mean(held) < 1
    assert np.median([each.high / each.low for each in found]) < 2


@pytest.mark.parametrize("critical", [1e6, 0.01])
def test_outside_of_what_was_tried_there_is_a_bound(critical: float) -> None:
    """Not a claim that all scale perfectly, or none: the interval is open on that side."""
    found = front(needed(critical, np.random.default_rng(1)))
    assert found.why == ""
    bounds = (found.low, found.high)
    assert [math.isnan(bound) for bound in bounds] == ([False, True] if critical > 1 else [1, 0])
    assert found.low < critical if critical > 1 else critical < found.high


def test_three_batch_sizes_make_no_front() -> None:
    found = front(needed(200.0).head(3))
    assert found.why == "3 batch sizes reach the target; at least four batch sizes are needed"
    assert math.isnan(found.critical_batch_size)


def made() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two batch sizes, two lrs, two seeds; scores rise by 0.1 an epoch of 640 images, or 0.05."""
    trials, epochs = [], []
    for batch_size in (16, 64):
        for lr in (0.1, 0.2):
            for seed in (0, 1):
                key = f"{batch_size}-{lr}-{seed}"
                step = 0.1 if (batch_size == 16) == (lr == 0.1) else 0.05
                trials.append((key, batch_size, lr, seed, "completed", 0.5 + 4 * step))
                epochs += [
                    (key, n, 640 // batch_size * n, 640 * n, 0.5 + step * n, batch_size / 16)
                    for n in (1, 2, 3, 4)
                ]
    names = ["trial_key", "batch_size", "base_lr", "seed", "status", "val_auroc"]
    columns = ["trial_key", "epoch", "updates", "examples_seen", "val_auroc", "epoch_wall_s"]
    return (
        pd.DataFrame(trials, columns=names),
        pd.DataFrame(epochs, columns=columns).assign(lr=0.0),
    )


def test_a_target_is_read_off_between_evaluations_at_the_best_lr() -> None:
    trials, epochs = made()
    table = to_target(trials, epochs, metric="val_auroc", mode="max", target=0.75)
    assert table["batch_size"].tolist() == [16, 64]
    assert table["lr"].tolist() == [0.1, 0.2]
    assert table["examples_seen"].tolist() == pytest.approx([1600, 1600])  # 2.5 epochs
    assert table["updates"].tolist() == pytest.approx([100, 25])
    assert table["train_s"].tolist() == pytest.approx([2.5, 10])
    assert table["n"].tolist() == [2, 2]
    nothing = to_target(trials, epochs, metric="val_auroc", mode="max", target=0.95)
    assert nothing.empty


def test_of_less_is_better_a_target_is_reached_from_above() -> None:
    trials, epochs = (t.assign(val_auroc=1 - t["val_auroc"]) for t in made())
    table = to_target(trials, epochs, metric="val_auroc", mode="min", target=0.25)
    assert table["examples_seen"].tolist() == pytest.approx([1600, 1600])


def test_the_common_target_is_what_every_batch_size_reaches() -> None:
    trials, _ = made()
    trials.loc[trials["batch_size"] == 64, "val_auroc"] -= 0.2
    assert common_target(trials, metric="val_auroc", mode="max") == pytest.approx(0.7)
    assert common_target(trials, metric="val_auroc", mode="min") == pytest.approx(0.7)
    one = trials[trials["batch_size"] == 16]
    assert math.isnan(common_target(one, metric="val_auroc", mode="max"))


def test_equal_amounts_are_what_all_could_have() -> None:
    trials, epochs = made()
    found = at_equal(trials, epochs, metric="val_auroc", mode="max")
    assert {name: table["spent"].iloc[0] for name, table in found.items()} == {
        "examples_seen": 2560,
        "updates": 40,  # all of batch size 64's, an epoch of 16's
        "train_s": 4,  # all of 16's, an epoch of 64's
    }
    updates = found["updates"].set_index("batch_size")
    assert updates["mean"].to_dict() == pytest.approx({16: 0.6, 64: 0.9})
    seconds = found["train_s"].set_index("batch_size")
    assert seconds["mean"].to_dict() == pytest.approx({16: 0.9, 64: 0.6})
