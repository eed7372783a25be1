"""Effects with intervals and tests, seeds as blocks: paired differences, rank correlations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from search.analysis.interaction import whole_grid
from search.analysis.surface import LEVEL, SEED

PERMUTATIONS = 4999

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A mean difference with its 95 % interval, over so many seeds; NaN where it is unknown.

    `by_setting` has the mean over seeds at each setting that all of these seeds have.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    seeds: int = 0
    by_setting: "pd.Series[float]"


def paired(differences: "pd.Series[float]") -> Effect:
    """The mean of differences, by setting and seed, over settings and seeds.

    Each seed's mean over the settings is one observation (Student's t): what a seed does to a value
    at all settings is noise too.
    """
    grid = whole_grid(differences.unstack("seed"))
    effect = Effect(by_setting=grid.mean(axis=1))
    if not grid.size:
        return effect
    by_seed = grid.mean(axis=0).to_numpy(dtype=float)
    n, mean = len(by_seed), float(by_seed.mean())
    effect = replace(effect, value=mean, seeds=n)
    if n < 2:
        return effect
    error = float(by_seed.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return replace(effect, low=mean - half, high=mean + half, p_value=p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p values; those that are unknown stay so, and count as tests."""
    from statsmodels.stats.multitest import multipletests

    known = np.isfinite(p_values)
    corrected = multipletests(np.where(known, p_values, 1.0), method="holm")[1]
    return [float(p) for p in np.where(known, corrected, math.nan)]


def rank_test(x: Sequence[float], blocks: Array) -> tuple[float, float]:
    """The mean rank correlation of x (K,) and each block (N, K), and its p value.

    The p value is of permutations within each block: of how often, in either direction, an order
    that says nothing of x gives as much.
    """
    ranks = _standardized(stats.rankdata(np.asarray(x, dtype=float))[None])[0]
    scores = _standardized(stats.rankdata(blocks, axis=1))
    rng = np.random.default_rng(SEED)
    permuted = rng.permuted(np.tile(scores, (PERMUTATIONS, 1, 1)), axis=2)
    observed = float((scores @ ranks).mean() / len(ranks))
    others = (permuted @ ranks).mean(axis=1) / len(ranks)
    as_strong = (np.abs(others) >= abs(observed) - 1e-9).sum()
    return observed, float((1 + as_strong) / (1 + PERMUTATIONS))


def _standardized(ranks: Array) -> Array:
    """Ranks with mean zero and variance one; zeros where all are alike."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    standardized: Array = centred / np.where(spread > 0, spread, 1.0)
    return standardized
