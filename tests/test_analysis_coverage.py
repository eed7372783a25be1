"""Do intervals of a batch size's best lr hold the true one? On humps, cliffs and parabolas.

The numbers of docs/statistics.md are those of the full count:

    uv run pytest -m slow -n0 -s tests/test_analysis_coverage.py
"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from search.analysis.scaling.ridge import ridge_interval
from search.analysis.surface import surface

HALF_DECADE = math.log(10) / 2
BATCH_SIZES = (16, 32, 64, 128, 256)
# A hump that falls 0.022 in a half decade to the right of its top and 0.010 to the left.
BEND = optimize.brentq(lambda c: (math.exp(c) - c - 1) / (math.exp(-c) + c - 1) - 2.2, 0.1, 5)
HEIGHT = 0.022 / (math.exp(BEND) - BEND - 1)
SHAPES = {
    "hump": lambda x: -HEIGHT * (np.exp(BEND * x) - BEND * x - 1),
    "parabola": lambda x: -0.015 * x**2,
    "cliff": lambda x: np.where(x < 0, -0.01 * x**2, np.where(x < 0.6, -0.004 * x**2, -0.35)),
}
GRIDS = {"half decades": 1e-3 * 10 ** (0.5 * np.arange(7)), "octaves": 0.01 * 2.0 ** np.arange(9)}


def drawn(
    rng: np.random.Generator, *, shape: str, grid: str, seeds: int, std: float
) -> tuple[pd.DataFrame, dict[int, float]]:
    """A study's trials, and the true best lr of each batch size, anywhere between two lrs."""
    lrs = GRIDS[grid]
    middle = np.log(lrs[[0, -1]]).mean() + rng.uniform(-0.5, 0.5) * math.log(lrs[1] / lrs[0])
    best = {b: math.exp(middle + 0.7 * math.log(b / 64)) for b in BATCH_SIZES}
    rows = [(b, lr, seed) for b in BATCH_SIZES for lr in lrs for seed in range(seeds)]
    trials = pd.DataFrame(rows, columns=["batch_size", "base_lr", "seed"])
    beside = np.log(trials["base_lr"] / trials["batch_size"].map(best)) / HALF_DECADE
    score = 0.85 + SHAPES[shape](beside.to_numpy()) + std * rng.standard_normal(len(trials))
    return trials.assign(val_auroc=score, status="completed"), best


@pytest.mark.parametrize("repetitions", [8, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("seeds", "std"), [(2, 0.004), (3, 0.001), (3, 0.012), (10, 0.004)])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_best_lrs_hold_them_on_any_hump(
    shape: str, grid: str, seeds: int, std: float, repetitions: int
) -> None:
    rng = np.random.default_rng(0)
    held, widths = [], []
    for _ in range(repetitions):
        trials, best = drawn(rng, shape=shape, grid=grid, seeds=seeds, std=std)
        rows = ridge_interval(surface(trials, metric="val_auroc"), mode="max")
        for row in rows[rows["bracketed"]].to_dict("records"):
            held.append(row["lr_low"] <= best[int(row["batch_size"])] <= row["lr_high"])
            step = math.log(GRIDS[grid][1] / GRIDS[grid][0])
            widths.append(math.log(row["lr_high"] / row["lr_low"]) / step)
    print(f"\n{shape}, {grid}, {seeds} seeds, std {std}: {np.mean(held):.2f} of {len(held)} held")
    print(f"mean width {np.mean(widths):.2f} steps")
    assert np.mean(held) >= (0.92 if repetitions > 20 else 0.85)
    # An interval that always holds everything would be as wide as the grid.
    assert np.mean(widths) < 4
