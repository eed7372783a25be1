"""The best cells: which cannot be told from the best, which are near it, how far it flatters."""

import functools
import math

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from search.analysis.metric_name import bounds_of
from search.analysis.noise import noise_of
from search.analysis.surface import DRAWS, LEVEL, SEED, contenders

LEAST_FREEDOM = 5
MARGIN = 0.01  # of what a bounded score can differ by


def default_margin(cells: pd.DataFrame, *, metric: str) -> float:
    """A hundredth of the metric's range; NaN if its name does not tell one (losses)."""
    bounds = bounds_of(metric, cells["mean"])
    return MARGIN * (bounds[1] - bounds[0]) if bounds and math.isfinite(bounds[1]) else math.nan


def compared(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The contenders with `in_best_set` and `behind`, by Hsu's multiple comparisons with the best.

    A cell can be the best unless its mean is worse than that of another one by more than d times
    the standard error of their difference, where d is Dunnett's one-sided critical value for
    comparisons with all other cells. `behind`: how far its true mean is behind that of the best
    cell, at most. All these statements hold together with 95 % confidence (Hsu 1984, Annals of
    Statistics 12:1136). Empty without replicates.
    """
    scored = contenders(cells)
    noise = noise_of(scored, mode=mode)
    if not noise.freedom or len(scored) < 2:
        return scored.iloc[:0].assign(in_best_set=[], behind=[])
    sign = 1.0 if mode == "max" else -1.0
    d = dunnett_critical(len(scored) - 1, noise.freedom)
    mean = sign * scored["mean"].to_numpy()
    deficit = mean[None, :] - mean[:, None]  # (cell, other)
    allowed = d * noise.of_difference()
    np.fill_diagonal(deficit, -np.inf)
    can_be_best = (deficit <= allowed).all(axis=1)
    behind = np.maximum((deficit + allowed)[:, can_be_best].max(axis=1), 0.0)
    table = scored.assign(in_best_set=can_be_best, behind=behind)
    return table.sort_values("mean", ascending=mode == "min")


def seeds_for(margin: float, cells: pd.DataFrame, *, mode: str) -> int:
    """How many seeds of each cell tell cells apart that differ by the margin: 2 (d s / margin)^2.

    0 if it is unknown: with few degrees of freedom the noise is known to a factor only.
    """
    scored = contenders(cells)
    noise = noise_of(scored, mode=mode)
    if noise.freedom < LEAST_FREEDOM or len(scored) < 2 or not margin > 0:
        return 0
    d = dunnett_critical(len(scored) - 1, noise.freedom)
    return max(2, math.ceil(2 * (d * noise.std / margin) ** 2))


@functools.cache
def dunnett_critical(comparisons: int, freedom: int, *, level: float = LEVEL) -> float:
    """One-sided critical value of Dunnett's test with equal group sizes.

    It is the d with P(max_i (Z_i - Z_0) / sqrt(2) <= d S) = level, where Z is standard normal and S
    the root of a chi-square over its degrees of freedom (Dunnett 1955). Computed by quadrature.
    """
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    s = np.sqrt(stats.chi2.ppf((np.arange(400) + 0.5) / 400, freedom) / freedom)

    def excess(d: float) -> float:
        inside = special.ndtr(z[:, None] + d * s[None, :] * np.sqrt(2)) ** comparisons
        return float((weights[:, None] * inside).sum(axis=0).mean() - level)

    return float(optimize.brentq(excess, 0.0, 1000.0))


def optimism(cells: pd.DataFrame, *, mode: str) -> float:
    """How much better than its true mean the best cell looks because it was selected as best.

    The mean, over surfaces redrawn with normal noise (Student's t has no mean at one degree of
    freedom), of the winner's gain; always positive. All cells get the noise of the better half: a
    distant cell with high noise would win rarely, but by much. Observed means differ more than true
    means, so the means of the cells that cannot be told from the best are first drawn together, to
    the variance that they have without noise (Louis 1984). Where some cells have more seeds than
    others, the redrawn ones that are best with the fewest get the others (`Leaders`). NaN without
    replicates.
    """
    noise = noise_of(cells, mode=mode)
    if not noise.freedom:
        return float("nan")
    scored = cells[cells["mean"].notna()]
    counts = scored["n"].to_numpy(dtype=float)
    better = scored["mean"].to_numpy(dtype=float) * (1.0 if mode == "max" else -1.0)
    table = compared(cells, mode=mode)
    near = scored.index.isin(table.index[table["in_best_set"].astype(bool)])
    if near.sum() > 1 and (spread := better[near].var(ddof=1)) > 0:
        kept = math.sqrt(max(0.0, 1 - float((noise.std**2 / counts[near]).mean()) / spread))
        better[near] = better[near].mean() + kept * (better[near] - better[near].mean())
    rng = np.random.default_rng(SEED)
    fewest = counts.min()
    gains = noise.std / np.sqrt(fewest) * rng.standard_normal((DRAWS, len(scored)))
    more = np.sort(counts)[::-1] - fewest  # seeds that the best, second best ... get later
    order = (-(better + gains)).argsort(axis=1)
    later = np.empty_like(gains)
    np.put_along_axis(later, order, np.broadcast_to(more, gains.shape), axis=1)
    of_later = noise.std * np.sqrt(later) * rng.standard_normal(gains.shape)
    gains = (fewest * gains + of_later) / (fewest + later)
    is_contender = fewest + later > 1 if (counts > 1).sum() > 1 else np.ones_like(later, dtype=bool)
    winner = np.where(is_contender, better + gains, -np.inf).argmax(axis=1)
    return float(gains[np.arange(DRAWS), winner].mean())
