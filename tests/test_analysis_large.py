"""Surfaces of many cells: what is computed in sparse or closed form equals the dense form."""

import time
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import linalg

from search.analysis import interaction as of_interaction
from search.analysis import noise as of_noise
from search.analysis.best_set import compared, optimism
from search.analysis.interaction import interaction
from search.analysis.noise import noise_of
from search.analysis.surface import surface


def trials_of(
    num_b: int, num_lr: int, num_seeds: int, *, drawn_from: int = 0, lost: float = 0.0
) -> pd.DataFrame:
    """A grid; its seeds are the same everywhere, or drawn from so many for each trial."""
    rng = np.random.default_rng(1)
    b, lr, seed = (
        column.ravel() for column in np.meshgrid(range(num_b), range(num_lr), range(num_seeds))
    )
    seeds = rng.integers(0, drawn_from, len(seed)) if drawn_from else seed
    of_seeds = rng.normal(0, 0.003, max(num_seeds, drawn_from))
    score = 0.9 - 0.01 * (b - lr / num_lr * num_b) ** 2 / num_b + of_seeds[seeds]
    table = pd.DataFrame(
        {
            "batch_size": 2 ** (4 + b),
            "base_lr": 1e-3 * 1.1**lr,
            "seed": seeds,
            "status": "completed",
            "val_auroc": score + rng.normal(0, 0.004, len(score)),
        }
    )
    return table[rng.random(len(table)) >= lost].reset_index(drop=True)


SURFACES = {
    "shared seeds": {},
    "lost trials": {"lost": 0.3},
    "drawn seeds": {"drawn_from": 60},
    "few links": {"drawn_from": 150},
    "one seed": {"drawn_from": 1},
}


def dense_fit(scores: pd.DataFrame) -> tuple["pd.Series[float]", float, int]:
    """What `_fit` computes, by the singular values of all columns."""
    by_cell = scores.groupby("cell")["score"]
    centred = (scores["score"] - by_cell.transform("mean")).to_numpy()
    freedom = len(scores) - by_cell.ngroups
    shared = scores.groupby("seed")["cell"].nunique()
    seeds = shared.index[shared > 1]
    columns = (scores["seed"].to_numpy()[:, None] == seeds.to_numpy()).astype(float)
    columns -= pd.DataFrame(columns).groupby(scores["cell"].to_numpy()).transform("mean").to_numpy()
    effects, _, rank, _ = np.linalg.lstsq(columns, centred, rcond=None)
    squares = ((centred - columns @ effects) ** 2).sum()
    return pd.Series(effects, index=seeds), float(np.sqrt(squares / (freedom - rank))), rank


@pytest.mark.parametrize("kind", SURFACES)
def test_the_effects_of_seeds_equal_those_of_the_dense_form(kind: str) -> None:
    cells = surface(trials_of(4, 8, 4, **SURFACES[kind]), metric="val_auroc")
    replicated = of_noise._scores(cells[cells["n"] > 1])
    for scores in (replicated, replicated.sample(frac=0.6, random_state=0)):
        known = scores[scores.groupby("cell")["seed"].transform("size") > 1]
        effects, std, rank = dense_fit(known)
        got, got_std, freedom, total = of_noise._fit(known)
        left = len(known) - known["cell"].nunique()
        if not rank or rank >= left:
            assert (len(got), freedom, got_std) == (0, left, total)
            continue
        assert freedom == left - rank
        assert got_std == pytest.approx(std, rel=1e-9)
        pd.testing.assert_series_equal(got, effects, check_names=False, atol=1e-10, rtol=1e-7)


def dense_projection(trials: pd.DataFrame, layout: of_interaction._Layout) -> np.ndarray:
    """(N, N): onto cells and common seeds, by the singular values of all columns."""
    in_cell = np.eye(len(layout.counts))[layout.cell]
    left, sizes, _ = linalg.svd(np.hstack([in_cell, layout.seeds]), full_matrices=False)
    full = left[:, sizes > 1e-9 * sizes.max()]
    projection: np.ndarray = full @ full.T
    return projection


@pytest.mark.parametrize("kind", SURFACES)
def test_the_full_model_of_cells_and_seeds_equals_the_dense_form(kind: str) -> None:
    trials = trials_of(4, 8, 4, **SURFACES[kind])
    layout = of_interaction._layout(trials, "base_lr")
    scores = np.random.default_rng(0).normal(size=(len(trials), 3))
    projection = dense_projection(trials, layout)
    residuals = scores - projection @ scores
    np.testing.assert_allclose(of_interaction._residuals(layout, scores), residuals, atol=1e-12)
    at_lr = layout.at_lr.toarray()
    np.testing.assert_allclose(layout.freedom, at_lr @ (1 - np.diag(projection)), atol=1e-9)
    # What is left without the effects of seeds is the same in each cell, but for the residuals.
    clean = of_interaction._without_seeds(layout, scores) - residuals
    means = (layout.averages @ clean)[layout.cell]
    np.testing.assert_allclose(clean, means, atol=1e-12)


@pytest.mark.parametrize("kind", SURFACES)
def test_the_noise_of_a_surface_is_computed_once(kind: str) -> None:
    cells = surface(trials_of(4, 8, 4, **SURFACES[kind]), metric="val_auroc")
    first = noise_of(cells, mode="max")
    assert noise_of(cells.copy(), mode="max") is first
    assert noise_of(cells, mode="min") is not first
    other = surface(trials_of(4, 8, 3, **SURFACES[kind]), metric="val_auroc")
    assert noise_of(other, mode="max") is not first


def test_many_cells_of_drawn_seeds_take_seconds() -> None:
    trials = trials_of(10, 120, 5, drawn_from=2000)
    cells = surface(trials, metric="val_auroc")
    began = time.process_time()
    assert optimism(cells, mode="max") > 0
    assert compared(cells, mode="max")["in_best_set"].any()
    found = asdict(interaction(trials, metric="val_auroc"))
    assert found["p_value"] < 0.05
    assert time.process_time() - began < 40
