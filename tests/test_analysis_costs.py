"""What a target and an equal budget cost, of curves written down by hand."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from made_tables import table
from scipy import stats

from search.analysis.costs.noise_scale import noise_scales
from search.analysis.costs.time_to_target import (
    at_equal,
    common_target,
    curves,
    throughput,
    to_target,
)

IMAGES = 100  # of an epoch
# Each trial's scores, an epoch each: by batch size, lr, seed.
Curves = Mapping[tuple[int, float, int], Sequence[float]]


def made(
    scores: Curves, *, mode: str = "max", seconds: Mapping[int, float] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trials and their evaluations; an epoch takes a second, or those of its batch size."""
    sign = 1.0 if mode == "max" else -1.0
    trials, epochs = [], []
    for (b, lr, seed), curve in scores.items():
        key = f"{b}-{lr}-{seed}"
        trials.append((key, b, lr, seed, "completed", sign * max(curve)))
        wall = (seconds or {}).get(b, 1.0)
        epochs += [
            (key, n, n * IMAGES / b, n * IMAGES, sign * score, wall, 9.0)
            for n, score in enumerate(curve, 1)
        ]
    names = ["trial_key", "batch_size", "base_lr", "seed", "status", "val_auroc"]
    columns = [
        *("trial_key", "epoch", "updates", "examples_seen", "val_auroc", "epoch_wall_s", "lr"),
    ]
    return pd.DataFrame(trials, columns=names), pd.DataFrame(epochs, columns=columns)


def target_table(scores: Curves, target: float, *, mode: str = "max") -> pd.DataFrame:
    trials, epochs = made(scores, mode=mode)
    # The rows of a table may come in any order.
    epochs = epochs.sample(frac=1, random_state=0)
    sign = 1.0 if mode == "max" else -1.0
    return to_target(trials, epochs, metric="val_auroc", mode=mode, target=sign * target)


def test_seconds_add_up_and_the_trials_lr_is_taken() -> None:
    trials, epochs = made({(4, 0.1, 0): [0.1, 0.2, 0.3], (5, 0.2, 0): [0.5]}, seconds={4: 2.5})
    found = curves(trials.assign(other=7.0), epochs.iloc[::-1], lr="base_lr")
    assert found["trial_key"].tolist() == ["4-0.1-0"] * 3 + ["5-0.2-0"]
    assert found["epoch"].tolist() == [1, 2, 3, 1]
    assert found["train_s"].tolist() == [2.5, 5.0, 7.5, 1.0]
    assert found["lr"].tolist() == [0.1, 0.1, 0.1, 0.2]
    assert set(curves(trials.assign(other=7.0), epochs, lr="other")["lr"]) == {7.0}


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    ("reached", "seeds", "counts"),
    [(1, 1, True), (1, 2, True), (1, 3, False), (2, 3, True), (2, 4, True), (2, 5, False)],
)
def test_a_cell_counts_where_half_of_its_seeds_reach_the_target(
    mode: str, reached: int, seeds: int, counts: bool
) -> None:
    """One of three is not enough, however soon it was there."""
    scores = {(10, 0.1, s): [0.5, 0.9 if s < reached else 0.7] for s in range(seeds)}
    found = target_table(scores, 0.9, mode=mode)
    if counts:
        (row,) = found.to_dict("records")
        assert row["n"] == reached
        assert (row["examples_seen"], row["updates"], row["train_s"]) == (200, 20, 2)
    else:
        assert found.empty
    assert found.columns.tolist() == [
        *("batch_size", "lr", "examples_seen", "updates", "train_s", "n", "spread"),
        *("early", "unreached", "typical_updates"),
    ]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    ("curve", "epochs"),
    [
        ([0.9, 0.95], 1.0),  # before the first evaluation nothing is known
        ([0.8, 0.9], 2.0),
        ([0.5, 0.7, 1.0], 2 + 2 / 3),
        ([0.8, 0.7, 0.95, 0.5, 0.99], 2 + 0.2 / 0.25),  # the first time
        ([0.85, 1.0, 0.2], 1 + 1 / 3),
    ],
)
def test_a_cost_is_read_off_the_line_to_where_the_target_is_first_reached(
    mode: str, curve: Sequence[float], epochs: float
) -> None:
    (row,) = target_table({(10, 0.1, 0): curve}, 0.9, mode=mode).to_dict("records")
    assert row["examples_seen"] == pytest.approx(100 * epochs)
    assert row["updates"] == pytest.approx(10 * epochs)
    assert row["train_s"] == pytest.approx(epochs)
    assert math.isnan(row["spread"])


def test_of_a_batch_size_the_lr_that_needs_the_fewest_images_counts() -> None:
    scores = {
        **{(20, 0.1, s): [0.5, 0.9] for s in range(2)},
        **{(20, 0.2, s): [0.5, 0.9 - 0.4 * s, 1.0, 1.0] for s in range(2)},
        **{(10, 0.4, s): [0.5, 0.6, 0.7, 0.9] for s in range(3)},
        (10, 0.8, 0): [0.5, 0.6, 0.7, 0.8],
        (40, 0.8, 0): [0.5, 0.6, 0.7, 0.8],
    }
    found = target_table(scores, 0.9)
    assert found[["batch_size", "lr", "n"]].to_numpy().tolist() == [[10, 0.4, 3], [20, 0.1, 2]]
    assert found["examples_seen"].tolist() == [400, 200]
    assert found["spread"].tolist() == [0, 0]


def test_the_spread_is_the_relative_standard_error() -> None:
    scores = {(10, 0.1, s): [0.9 - 0.1 * k for k in range(s, -1, -1)] for s in range(3)}
    (row,) = target_table(scores, 0.9).to_dict("records")
    assert row["updates"] == pytest.approx(20)
    assert row["spread"] == pytest.approx(stats.sem([10, 20, 30]) / 20)


def test_stopped_trials_and_those_of_a_population_reach_nothing() -> None:
    trials, epochs = made({(10, 0.1, s): [0.5, 0.9] for s in range(2)})
    settings = {"metric": "val_auroc", "mode": "max"}
    stopped = trials.assign(status="stopped")
    assert to_target(stopped, epochs, target=0.9, **settings).empty  # type: ignore[arg-type]
    assert at_equal(stopped, epochs, **settings) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
def test_the_target_in_common_is_what_all_seeds_of_a_rate_reach(mode: str, sign: float) -> None:
    """Of each batch size the best of its rates' worst seeds, and the worst of those."""
    scores = {
        (16, 0.1): [0.9, 0.8],  # 0.8
        (16, 0.2): [0.99, 0.7],
        (32, 0.1): [0.79, 0.78, 0.95],  # 0.78, although its mean is 0.84
        (32, 0.2): [0.75],
        (64, 0.1): [0.85, 0.85],
    }
    cells = {cell: [sign * score for score in values] for cell, values in scores.items()}
    rows = table(cells | {(128, 0.1): ["diverged"], (64, 0.2): ["stopped"]})
    settings = {"metric": "val_auroc", "mode": mode}
    assert common_target(rows, **settings) == sign * 0.78  # type: ignore[arg-type]
    two = rows[rows["batch_size"] != 32]
    assert common_target(two, **settings) == sign * 0.8  # type: ignore[arg-type]
    one = rows[rows["batch_size"] >= 64]
    assert math.isnan(common_target(one, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_equal_costs_compare_the_running_best_within_what_all_spent(mode: str) -> None:
    """Batch size 10 was trained for four epochs, 20 for two, at half the seconds an epoch.

    So all have 200 images, and 10 updates or a second, which are an epoch of the small batch.
    """
    scores = {
        # The best so far at two epochs is that of the first; the end is better still.
        (10, 0.1, 0): [0.6, 0.5, 0.8, 0.95],
        (10, 0.1, 1): [0.4, 0.5, 0.8, 0.95],
        (10, 0.2, 0): [0.1, 0.5, 0.99, 0.99],
        (20, 0.4, 0): [0.3, 0.4],
        (20, 0.4, 1): [0.3, 0.5],
        (20, 0.8, 0): [0.35, 0.36],
    }
    trials, epochs = made(scores, mode=mode, seconds={20: 0.5})
    found = at_equal(trials, epochs.sample(frac=1, random_state=0), metric="val_auroc", mode=mode)
    sign = 1.0 if mode == "max" else -1.0
    assert list(found) == ["examples_seen", "updates", "train_s"]
    names = ["batch_size", "lr", "mean", "n", "spent"]
    wanted = {
        "examples_seen": [[10, 0.1, sign * 0.55, 2, 200], [20, 0.4, sign * 0.45, 2, 200]],
        "updates": [[10, 0.1, sign * 0.5, 2, 10], [20, 0.4, sign * 0.45, 2, 10]],
        "train_s": [[10, 0.1, sign * 0.5, 2, 1], [20, 0.4, sign * 0.45, 2, 1]],
    }
    for name, rows in wanted.items():
        got = found[name][names].to_numpy().tolist()
        assert got == [pytest.approx(row) for row in rows], name


def test_what_is_spent_is_the_median_trials_of_the_batch_size_that_spent_least() -> None:
    """Two of four seeds went on for three epochs; one broke off after its first, one went on."""
    scores = {
        **{(10, 0.1, s): [0.1, 0.2, 0.3] for s in range(2)},
        (10, 0.1, 2): [0.6],
        (10, 0.1, 3): [0.1, 0.2, 0.4, 0.5, 0.5],
        **{(20, 0.1, s): [0.1, 0.2, 0.3, 0.4, 0.5] for s in range(3)},
    }
    found = at_equal(*made(scores), metric="val_auroc", mode="max")["examples_seen"]
    assert found["spent"].tolist() == [300, 300]
    assert found["mean"].tolist() == pytest.approx([(0.3 + 0.3 + 0.6 + 0.4) / 4, 0.3])
    assert found["n"].tolist() == [4, 3]


def test_an_evaluation_of_one_image_more_still_counts() -> None:
    """Epochs of 1,000 images end on a whole batch: a thousandth beyond is the same budget."""
    trials, epochs = made({(10, 0.1, 0): [0.1], (20, 0.1, 0): [0.2]})
    for images, counts in ((1000.9, True), (1002.0, False)):
        epochs["examples_seen"] = np.where(epochs["trial_key"] == "20-0.1-0", images, 1000.0)
        found = at_equal(trials, epochs, metric="val_auroc", mode="max")["examples_seen"]
        assert (20 in found["batch_size"].tolist()) == counts


def test_speed_and_noise_are_medians_of_completed_trials() -> None:
    trials = pd.DataFrame(
        {
            "trial_key": list("abcdef"),
            "batch_size": [16, 16, 16, 16, 32, 32],
            "status": ["completed"] * 3 + ["failed"] + ["completed"] * 2,
            "val_auroc": [0.5, 0.6, 0.7, 0.8, 0.9, math.nan],
            "noise_scale": [10.0, 40.0, math.inf, 70.0, math.nan, 5.0],
            "images_per_s": [1.0, 2.0, 9.0, 50.0, 7.0, 1.0],
            "train_wall_s": [5.0, 6.0, 10.0, 50.0, 8.0, 1.0],
            "peak_memory_gib": [1.0, 3.0, 2.0, 50.0, 4.0, 9.0],
        }
    )
    speed = throughput(trials, metric="val_auroc").to_dict("list")
    assert speed == {
        "batch_size": [16, 32],
        "images_per_s": [2.0, 7.0],
        "train_wall_s": [6.0, 8.0],
        "peak_memory_gib": [3.0, 4.0],
        "n": [3, 1],
    }
    scales = noise_scales(trials, metric="val_auroc").to_dict("list")
    assert scales == {
        "batch_size": [16], "noise_scale": [25.0], "least": [10.0], "most": [40.0], "n": [2]
    }  # fmt: skip
