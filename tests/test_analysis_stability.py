"""The rate that is called stable is stable: in simulations whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, table
from sklearn.linear_model import LogisticRegression

from search.analysis.scaling.stability import FEW, C, stable_lr
from search.analysis.surface import surface

HALF_DECADE = math.log(10) / 2
BATCH_SIZES = (16, 32, 64, 128, 256)
GRIDS = {"half decades": 1e-3 * 10 ** (0.5 * np.arange(7)), "octaves": 0.01 * 2.0 ** np.arange(9)}


def drawn(
    rng: np.random.Generator, *, grid: str, seeds: int, steepness: float
) -> tuple[pd.DataFrame, dict[tuple[int, float], float]]:
    """Trials of which some diverge, and the chance to diverge of each cell.

    The chance rises by `steepness` in its logit each half decade; where it is a half grows as the
    root of the batch size, roughly.
    """
    lrs = GRIDS[grid]
    step = math.log(lrs[1] / lrs[0])
    middle = np.log(lrs[[0, -1]]).mean() + rng.uniform(0.5, 1.5) * step
    chance = {}
    for batch_size in BATCH_SIZES:
        half = middle + 0.5 * math.log(batch_size / 64) + 0.2 * rng.standard_normal()
        for lr in lrs:
            z = steepness / HALF_DECADE * (math.log(lr) - half)
            chance[batch_size, float(lr)] = 1 / (1 + math.exp(-z))
    rows = [(b, lr, seed, p) for (b, lr), p in chance.items() for seed in range(seeds)]
    trials = pd.DataFrame(rows, columns=["batch_size", "base_lr", "seed", "chance"])
    is_lost = rng.random(len(trials)) < trials["chance"]
    trials["status"] = np.where(is_lost, "diverged", "completed")
    return trials.assign(val_auroc=np.where(is_lost, np.nan, 0.8)), chance


@pytest.mark.parametrize("repetitions", [10, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("steepness", [2, 4, 10])
@pytest.mark.parametrize("seeds", [1, 3, 10])
@pytest.mark.parametrize("grid", GRIDS)
def test_at_the_rate_called_stable_fewer_than_a_tenth_diverge(
    grid: str, seeds: int, steepness: float, repetitions: int
) -> None:
    rng = np.random.default_rng(0)
    at_stable, below = [], []
    for _ in range(repetitions):
        trials, chance = drawn(rng, grid=grid, seeds=seeds, steepness=steepness)
        found = stable_lr(surface(trials, metric="val_auroc"))
        lrs = GRIDS[grid]
        for batch_size, stable in zip(found["batch_size"], found["stable_lr"], strict=True):
            at_stable.append(chance[batch_size, stable])
            could_be = sum(chance[batch_size, float(lr)] < FEW for lr in lrs)
            below.append(could_be - 1 - int(np.argmin(np.abs(lrs - stable))))
    print(
        f"\n{grid}, {seeds} seeds: {np.mean(at_stable):.3f} diverge, {np.mean(below):.2f} steps low"
    )
    assert np.mean(at_stable) < (0.1 if repetitions > 20 else 0.13)
    assert np.mean(below) < 1  # a rate that is far too low would be stable as well


def test_the_chance_is_scikit_learns() -> None:
    """Of two batch sizes and three lrs, by a formula written out."""
    trials, _ = drawn(np.random.default_rng(3), grid="half decades", seeds=3, steepness=3)
    cells = surface(trials, metric="val_auroc")
    step, x = HALF_DECADE, []
    for b, lr in zip(trials["batch_size"], trials["base_lr"], strict=True):
        own = [0.5 * (b == each) for each in BATCH_SIZES]
        x.append([(math.log(lr) - np.log(cells["lr"]).mean()) / step, math.log2(b / 64) / 2, *own])
    fit = LogisticRegression(C=C, max_iter=1000).fit(x, trials["status"] == "diverged")
    chance = fit.predict_proba(x)[:, 1]
    wanted = trials[chance < FEW].groupby("batch_size")["base_lr"].max()
    assert stable_lr(cells).set_index("batch_size")["stable_lr"].to_dict() == wanted.to_dict()


def whole(lost: dict[tuple[int, float], list[str]]) -> Cells:
    """Five batch sizes, seven lrs, three seeds: all diverge above 0.1, or as `lost` says."""
    ends: Cells = {
        (b, float(lr)): ["diverged"] * 3 if lr > 0.11 else [0.8] * 3
        for b in BATCH_SIZES
        for lr in GRIDS["half decades"]
    }
    return {**ends, **lost}


def test_where_one_rate_parts_them_it_is_the_limit() -> None:
    found = stable_lr(surface(table(whole({})), metric="val_auroc"))
    assert found["stable_lr"].tolist() == pytest.approx([0.1] * 5)
    assert found["diverges_at"].tolist() == pytest.approx([0.1 * 10**0.5] * 5)


def test_a_lone_divergence_at_the_lowest_rate_does_not_drop_a_batch_size() -> None:
    lone = {(64, 1e-3): ["diverged", 0.8, 0.8]}
    found = stable_lr(surface(table(whole(lone)), metric="val_auroc")).set_index("batch_size")
    assert found["stable_lr"].notna().all()
    assert found.loc[64, "stable_lr"] >= 0.1 / 10**0.5 - 1e-9


def test_stopped_and_failed_trials_tell_nothing_of_stability() -> None:
    ends = {(64, 0.1): ["stopped", "failed", 0.8], (32, 1.0): ["stopped", "failed", "diverged"]}
    found = stable_lr(surface(table(whole(ends)), metric="val_auroc"))
    same = {(64, 0.1): [0.8], (32, 1.0): ["diverged"]}
    wanted = stable_lr(surface(table(whole(same)), metric="val_auroc"))
    pd.testing.assert_frame_equal(found, wanted)


def test_without_divergence_the_largest_rate_is_a_lower_bound() -> None:
    cells: Cells = {(16, 0.1): [0.8], (16, 0.2): [0.8], (32, 0.1): [0.7], (64, 0.2): ["stopped"]}
    found = stable_lr(surface(table(cells), metric="val_auroc"))
    assert found["batch_size"].tolist() == [16, 32, 64]
    assert found["stable_lr"].tolist() == pytest.approx([0.2, 0.1, math.nan], nan_ok=True)
    assert found["diverges_at"].isna().all()


def test_where_all_diverged_nothing_is_stable() -> None:
    cells: Cells = {(16, 0.1): ["diverged"], (16, 0.2): ["diverged"], (32, 0.1): ["diverged"]}
    found = stable_lr(surface(table(cells), metric="val_auroc"))
    assert found["stable_lr"].isna().all()
    assert found["diverges_at"].tolist() == [0.1, 0.1]
