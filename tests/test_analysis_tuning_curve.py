"""Tuning curves against opda, by hand, and where there is no band."""

import itertools
import warnings
from typing import Any

import numpy as np
import opda.nonparametric
import pandas as pd
import pytest

from search.analysis.tuning_curve import (
    GRID,
    IN_ORDER,
    RANDOM,
    TuningCurve,
    all_within,
    cdf_band,
    tuning_curve,
)

FIELDS = ["batch_size", "base_lr"]
RANDOM_STUDY = {"explore": {"kind": "Random", "num_configs": 30, "points": []}}


def drawn(scores: Any, **more: Any) -> pd.DataFrame:
    """One completed trial a score, each with a setting of its own; NaN: it diverged."""
    frame = pd.DataFrame({"val_auroc": np.asarray(scores, dtype=float)})
    frame["status"] = np.where(frame["val_auroc"].notna(), "completed", "diverged")
    frame["batch_size"], frame["base_lr"] = 16, np.arange(1.0, len(frame) + 1)
    ended = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(frame)), "s")
    return frame.assign(seed=0, ended_at=ended, **more)


def curve(trials: pd.DataFrame, about: Any = RANDOM_STUDY, **more: Any) -> TuningCurve:
    how: dict[str, Any] = {"by": FIELDS, "metric": "val_auroc", "mode": "max"}
    found = tuning_curve(trials, about, **(how | more))
    assert found is not None
    return found


@pytest.mark.parametrize("n", [1, 2, 5, 20, 60])
def test_the_band_of_the_distribution_is_opdas(n: int) -> None:
    low, high = cdf_band(n)
    assert all_within(low, high) == pytest.approx(0.95, abs=1e-4)
    their_low, their_high = opda.nonparametric._ld_band_weights(
        n, 0.95, "equal_tailed", np.random.default_rng(0), n_jobs=1
    )
    # Theirs is simulated: 100,000 draws give the tails beyond the band to about 5 %.
    assert low == pytest.approx(their_low[1:], abs=0.003)
    assert high == pytest.approx(their_high[:-1], abs=0.003)


@pytest.mark.parametrize("n", [3, 12])
def test_the_band_holds_as_often_as_it_says(n: int) -> None:
    low, high = cdf_band(n)
    ordered = np.sort(np.random.default_rng(1).random((100_000, n)), axis=1)
    holds = ((low <= ordered) & (ordered <= high)).all(axis=1).mean()
    assert holds == pytest.approx(0.95, abs=0.003)  # four standard errors


def test_the_chance_of_staying_inside_by_hand() -> None:
    assert all_within(np.array([0.2]), np.array([0.9])) == pytest.approx(0.7)
    # Both below 0.5 is the one way out: 1/4. With 0.5 <= U_(1), 3/4 more are out.
    half, one, none = np.full(2, 0.5), np.ones(2), np.zeros(2)
    assert all_within(np.array([0.0, 0.5]), one) == pytest.approx(0.75)
    assert all_within(half, one) == pytest.approx(0.25)
    assert all_within(none, half) == pytest.approx(0.25)
    assert all_within(np.array([0.6, 0.6]), half) == 0


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_curve_of_random_draws_is_opdas(mode: str) -> None:
    scores = np.random.default_rng(0).normal(0.8, 0.05, 31)
    about = {"explore": {"kind": "Random", "num_configs": 31}}
    found = curve(drawn(scores), about, mode=mode)
    low, point, high = opda.nonparametric.EmpiricalDistribution.confidence_bands(
        scores, 0.95, generator=np.random.default_rng(0), method="ld_equal_tailed", n_jobs=1
    )
    numbers, rows = found.rows["trials"].to_numpy(), found.rows
    theirs = {
        name: band.quantile_tuning_curve(numbers, minimize=mode == "min")
        for name, band in {"low": high, "best": point, "high": low}.items()
    }
    assert (found.kind, found.num_trials, found.seed) == (RANDOM, 31, 0)
    assert rows["best"].to_list() == list(theirs["best"])
    ordered = np.sort(scores)
    for name in ("low", "high"):  # each is a score; their factor is simulated, so once the next one
        apart = np.searchsorted(ordered, rows[name]) - np.searchsorted(ordered, theirs[name])
        assert np.abs(apart).sum() <= 1
    assert (rows["low"] <= rows["best"]).all()
    assert (rows["best"] <= rows["high"]).all()


@pytest.mark.slow
def test_the_band_contains_the_true_curve_as_often_as_it_says() -> None:
    rng, holds, times = np.random.default_rng(0), 0, 2000
    for _ in range(times):
        rows = curve(drawn(rng.random(30))).rows
        true = 0.5 ** (1 / rows["trials"])
        holds += bool(((rows["low"] <= true) & (true <= rows["high"])).all())
    assert holds / times >= 0.94  # at whole numbers of trials alone it holds a little more often


def test_trials_without_a_score_are_the_worst() -> None:
    scores = np.random.default_rng(0).random(30)
    lost = np.where(scores < np.median(scores), np.nan, scores)
    for mode, worst in (("max", -np.inf), ("min", np.inf)):
        sign = 1 if mode == "max" else -1
        found = curve(drawn(sign * lost), mode=mode)
        assert found.without_score == 15
        assert found.rows["best"].iloc[0] == worst
        assert sign * found.rows["best"].iloc[-1] == scores.max()
    failed = drawn(scores).assign(status=["failed"] * 10 + ["completed"] * 20)
    assert curve(failed).without_score == 10


def test_ties_and_one_value() -> None:
    rows = curve(drawn(np.full(30, 0.7))).rows
    assert (rows["best"] == 0.7).all()
    assert set(rows["low"]) <= {0.7, -np.inf}


def test_of_several_seeds_the_first_one_counts() -> None:
    scores = np.random.default_rng(0).random(30)
    first = drawn(scores)
    both = pd.concat([first.assign(seed=1, val_auroc=0.99), first])
    pd.testing.assert_frame_equal(curve(both).rows, curve(first).rows)


def test_points_that_were_given_are_no_draws() -> None:
    about = {
        "explore": {
            "kind": "Random",
            "num_configs": 30,
            "points": [{"batch_size": 16, "base_lr": 1.0}],
        }
    }
    trials = drawn([1.5, *np.random.default_rng(0).random(29)])
    found = curve(trials, about)
    assert (found.num_trials, found.left_out) == (29, 1)
    assert found.rows["best"].max() < 1


@pytest.mark.parametrize(
    ("about", "lost", "why"),
    [
        (RANDOM_STUDY, 1, "29 of 30 different draws have ended"),
        ({"explore": "Random(num_configs=30)"}, 0, "30 of 30 different draws have ended"),
        ({"explore": {"kind": "Optuna", "num_configs": 30}}, 0, "scores of others"),
        ({"explore": {"kind": "Ridge"}}, 0, "scores of others"),
    ],
)
def test_without_independent_draws_there_is_no_band(about: Any, lost: int, why: str) -> None:
    scores = np.random.default_rng(0).random(30)
    found = curve(drawn(scores).iloc[lost:], about)
    assert found.kind == IN_ORDER
    assert why in found.why
    assert list(found.rows) == ["trials", "best"]
    best = np.maximum.accumulate(scores[lost:])
    assert found.rows["best"].to_list() == list(best[found.rows["trials"] - 1])
    assert set(np.flatnonzero(np.diff(best)) + 2) <= set(found.rows["trials"])


@pytest.mark.parametrize("kind", ["Random", "Grid"])
def test_stopped_trials_end_bands_and_do_not_count(kind: str) -> None:
    trials = drawn([0.5, 0.9, 0.6, 0.7, 0.8])
    trials.loc[1, "status"] = "stopped"
    found = curve(trials, {"explore": {"kind": kind, "num_configs": 5}})
    assert found.kind == IN_ORDER
    assert found.rows["best"].to_list() == [0.5, 0.5, 0.6, 0.7, 0.8]


def test_of_a_grid_settings_are_drawn_with_one_of_their_seeds() -> None:
    scores = {1.0: [0.1, 0.2, 0.3], 2.0: [0.6], 3.0: [0.4, 0.5], 4.0: [0.15], 5.0: [0.7]}
    rows = [(lr, score) for lr, each in scores.items() for score in each]
    trials = drawn([score for _, score in rows])
    trials["base_lr"] = [lr for lr, _ in rows]
    found = curve(trials, {"explore": {"kind": "Grid"}})
    assert (found.kind, found.num_settings, found.num_trials) == (GRID, 5, 8)
    assert list(found.rows) == ["trials", "best"]
    for k in (1, 2, 3):
        # All searches of k draws; a setting of one seed weighs as much as that of three.
        each = [[(s, 1 / len(v)) for s in v] for v in scores.values()]
        one = [(s, w / 5) for group in each for s, w in group]
        bests: dict[float, float] = {}
        for search in itertools.product(one, repeat=k):
            best = max(s for s, _ in search)
            bests[best] = bests.get(best, 0) + float(np.prod([w for _, w in search]))
        ordered = sorted(bests)
        reached = np.cumsum([bests[score] for score in ordered])
        median = ordered[int(np.searchsorted(reached, 0.5 - 1e-9))]
        assert found.rows.set_index("trials").loc[k, "best"] == median


@pytest.mark.parametrize(
    ("about", "more"),
    [
        ({"explore": {"kind": "Ablation", "steps": {}}}, {}),
        ({"explore": {"kind": "Pbt"}}, {}),
        ({"explore": {"kind": "Branch"}}, {}),
        (RANDOM_STUDY, {"metric": "test_auroc"}),
    ],
)
def test_what_is_no_search_has_no_curve(about: Any, more: Any) -> None:
    trials = drawn(np.random.default_rng(0).random(30)).assign(test_auroc=0.8)
    how: dict[str, Any] = {"by": FIELDS, "metric": "val_auroc", "mode": "max"}
    assert tuning_curve(trials, about, **(how | more)) is None
    for kind in ("Random", "Grid", "Optuna"):
        few = {"explore": {"kind": kind, "num_configs": 4}}
        assert tuning_curve(trials.iloc[:4], few, **how) is None


def test_a_table_is_random_only_by_assumption() -> None:
    trials = drawn(np.random.default_rng(0).random(30)).drop(columns="ended_at")
    about = {"table": "t.csv"}
    assumed = curve(trials, about, is_drawn=True)
    assert (assumed.kind, assumed.is_assumed, assumed.seed) == (RANDOM, True, None)
    assert curve(trials, about).kind == GRID
    trials.loc[0, "status"] = "stopped"
    how: dict[str, Any] = {"by": FIELDS, "metric": "val_auroc", "mode": "max", "is_drawn": True}
    assert tuning_curve(trials, about, **how) is None


def test_thousands_of_draws_take_a_second() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = cdf_band(2000)
    assert all_within(low, high) == pytest.approx(0.95, abs=1e-4)
    assert (np.diff(low) > 0).all()
    assert (low < high).all()
