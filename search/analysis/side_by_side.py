"""Two surfaces of the same kind: where scores, best learning rates and best settings differ.

Differences are of the second minus the first, from the same seeds where both have them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from search.analysis.analysis import Analysis
from search.analysis.noise import noise_of
from search.analysis.scaling.exponent import Exponent
from search.analysis.surface import LEVEL

SETTING = ["batch_size", "grid_lr"]
COLUMNS = [*SETTING, "first", "second", "difference", "low", "high", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference or ratio with its 95 % interval; NaN where it is unknown."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def excludes(self, nothing: float) -> bool:
        """Whether the interval excludes this value, that of no difference."""
        return self.low > nothing or self.high < nothing


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What two analyses have in common and how they differ.

    `cells` are the settings that both have: `first` and `second` mean score, their `difference`
    with an interval, and `pairs`, the seeds in common (0: they are compared unpaired). The
    intervals of all cells hold together. `own_best` has the same for each batch size, each at its
    own best lr, and `mean` the mean of these differences. `ridge` has the best peak lr of both at
    each batch size and their `ratio`; `shift` is the ratio's geometric mean. `exponent` is the
    difference of the exponents. `both_best`, `first_best` and `second_best` are the settings in
    both best sets and in one.
    """

    metric: str
    mode: str
    lr_name: str
    cells: pd.DataFrame
    own_best: pd.DataFrame
    mean: Difference
    ridge: pd.DataFrame
    shift: Difference
    exponents: tuple[Exponent, Exponent]
    exponent: Difference
    both_best: Sequence[tuple[int, float]]
    first_best: Sequence[tuple[int, float]]
    second_best: Sequence[tuple[int, float]]


def compared_analyses(first: Analysis, second: Analysis) -> Compared:
    """Compare two surfaces by the first one's metric."""
    pairs = _common(first, second)
    best = _own_best(first, second)
    ridge = _ridges(first, second)
    sets = [{(int(b), float(lr)) for b, lr in a.best_set[SETTING].values} for a in (first, second)]
    return Compared(
        metric=first.metric,
        mode=first.mode,
        lr_name=first.lr_name,
        cells=_differences(pairs, first, second),
        own_best=_differences(best, first, second),
        mean=_mean(best),
        ridge=ridge,
        shift=_shift(ridge),
        exponents=(first.exponent, second.exponent),
        exponent=_exponent(first.exponent, second.exponent),
        both_best=sorted(sets[0] & sets[1]),
        first_best=sorted(sets[0] - sets[1]),
        second_best=sorted(sets[1] - sets[0]),
    )


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]  # the rows of two cells


def _common(first: Analysis, second: Analysis) -> list[Pair]:
    """The cells with scores that have the same batch size and learning rate in both."""
    rows = [
        {(row["batch_size"], row["grid_lr"]): row for row in _scored(analysis)}
        for analysis in (first, second)
    ]
    return [(rows[0][at], rows[1][at]) for at in sorted(rows[0].keys() & rows[1].keys())]


def _scored(analysis: Analysis) -> list[dict[str, Any]]:
    return list(analysis.cells.dropna(subset="mean").to_dict("records"))


def _own_best(first: Analysis, second: Analysis) -> list[Pair]:
    """The best cell of each batch size that both have."""
    best = []
    for analysis in (first, second):
        at = set(analysis.ridge[["batch_size", "lr"]].itertuples(index=False, name=None))
        rows = [row for row in _scored(analysis) if (row["batch_size"], row["lr"]) in at]
        best.append({row["batch_size"]: row for row in rows})
    return [(best[0][size], best[1][size]) for size in sorted(best[0].keys() & best[1].keys())]


def _by_seed(row: Mapping[str, Any]) -> dict[float, float]:
    """The score of each seed; empty where a seed has several, which cannot be told apart."""
    scores = dict(zip(row["seeds"], row["scores"], strict=True))
    return scores if len(scores) == len(row["seeds"]) else {}


def _paired(pair: Pair) -> list[float]:
    """Differences of the scores that have the same seed."""
    by_seed = [_by_seed(row) for row in pair]
    seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]  # an unknown one, NaN, is in none
    return [by_seed[1][seed] - by_seed[0][seed] for seed in seeds]


def _differences(pairs: Sequence[Pair], first: Analysis, second: Analysis) -> pd.DataFrame:
    """A row a pair with simultaneous intervals (Bonferroni).

    A pair with two seeds in common is compared by these, another by its means.
    """
    taken = [_paired(pair) for pair in pairs]
    level = 1 - (1 - LEVEL) / max(1, len(pairs)) / 2
    of_pairs = _with_factor(_pooled(pairs, taken, mode=first.mode), level)
    of_means = _with_factor(_unpaired(first, second), level)
    rows = []
    for (a, b), differences in zip(pairs, taken, strict=True):
        count = len(differences) if len(differences) > 1 else 0
        if count:
            value, half = _by_seeds(differences, *of_pairs)
        else:
            std, factor = of_means
            value = b["mean"] - a["mean"]
            half = factor * std * math.sqrt(1 / a["n"] + 1 / b["n"])
        numbers = (a["mean"], b["mean"], value, value - half, value + half)
        rows.append((a["batch_size"], a["grid_lr"], *numbers, count))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(lr_second=[b["grid_lr"] for _, b in pairs])


def _by_seeds(differences: Sequence[float], pooled: float, factor: float) -> tuple[float, float]:
    """The mean of paired differences and half of its interval.

    Their noise is that of their own seeds, or the pooled one where that is larger: few seeds may
    agree by chance.
    """
    std = max(float(np.std(differences, ddof=1)), pooled)
    return float(np.mean(differences)), factor * std / math.sqrt(len(differences))


def _with_factor(noise: tuple[float, int], level: float) -> tuple[float, float]:
    """A standard deviation, and Student's factor for its degrees of freedom."""
    std, freedom = noise
    return std, float(stats.t.ppf(level, freedom)) if freedom else math.nan


def _pooled(
    pairs: Sequence[Pair], taken: Sequence[Sequence[float]], *, mode: str
) -> tuple[float, int]:
    """Standard deviation of a paired difference, and its degrees of freedom.

    Over the pairs with the better half of the scores: near the edge of stability they vary more.
    """
    several = [k for k, differences in enumerate(taken) if len(differences) > 1]
    pairs, taken = [pairs[k] for k in several], [taken[k] for k in several]
    if not pairs:
        return math.nan, 0
    sign = -1.0 if mode == "max" else 1.0
    order = np.argsort([sign * (a["mean"] + b["mean"]) for a, b in pairs])
    better = [taken[i] for i in order[: (len(pairs) + 1) // 2]]
    freedom = sum(len(differences) - 1 for differences in better)
    squares = sum(float(np.var(differences)) * len(differences) for differences in better)
    return math.sqrt(squares / freedom), freedom


def _unpaired(first: Analysis, second: Analysis) -> tuple[float, int]:
    """The noise of one trial in both surfaces together, and its degrees of freedom."""
    noises = [noise_of(a.cells, mode=a.mode) for a in (first, second)]
    known = [noise for noise in noises if noise.freedom]
    freedom = sum(noise.freedom for noise in known)
    if not freedom:
        return math.nan, 0
    squares = sum(noise.freedom * (noise.std**2 + noise.seed_std**2) for noise in known)
    return math.sqrt(squares / freedom), freedom


def _mean(pairs: Sequence[Pair]) -> Difference:
    """The mean over batch sizes, with Student's interval over seeds that all of them have.

    What a seed does to all batch sizes alike is so part of the noise.
    """
    if not pairs:
        return Difference()
    by_seed = [[_by_seed(row) for row in pair] for pair in pairs]
    seeds = set.intersection(*(set(rows) for pair in by_seed for rows in pair))
    of_seeds = [
        float(np.mean([pair[1][seed] - pair[0][seed] for pair in by_seed])) for seed in seeds
    ]
    if not of_seeds:
        return Difference(value=float(np.mean([b["mean"] - a["mean"] for a, b in pairs])))
    value, n = float(np.mean(of_seeds)), len(of_seeds)
    if n < 2:
        return Difference(value=value)
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * float(np.std(of_seeds, ddof=1)) / math.sqrt(n)
    return Difference(value=value, low=value - half, high=value + half)


def _ridges(first: Analysis, second: Analysis) -> pd.DataFrame:
    """The best peak lr of each batch size that both have bracketed, and their ratio."""
    names = ["batch_size", "vertex", "lr_low", "lr_high"]
    one, two = (a.ridge.loc[a.ridge["bracketed"].astype(bool), names] for a in (first, second))
    both = one.merge(two, on="batch_size", suffixes=("_first", "_second"))
    rows = [
        _ratio([row[f"{name}_{which}"] for name in names[1:]] for which in ("first", "second"))
        for row in both.to_dict("records")
    ]
    return pd.DataFrame(
        {
            "batch_size": both["batch_size"].astype(int),
            "first": both["vertex_first"],
            "second": both["vertex_second"],
            "ratio": [row.value for row in rows],
            "low": [row.low for row in rows],
            "high": [row.high for row in rows],
        }
    )


def _ratio(rates: Any) -> Difference:
    """Of two rates with intervals: from theirs (Zou & Donner 2008, doi:10.1002/sim.3095)."""
    (a, a_low, a_high), (b, b_low, b_high) = (np.log(rate) for rate in rates)
    low = b - a - math.hypot(b - b_low, a_high - a)
    high = b - a + math.hypot(b_high - b, a - a_low)
    return Difference(value=float(np.exp(b - a)), low=float(np.exp(low)), high=float(np.exp(high)))


def _shift(ridge: pd.DataFrame) -> Difference:
    """The geometric mean of the ratios; batch sizes are taken for independent."""
    if ridge.empty:
        return Difference()
    value, low, high = (
        np.log(ridge[name].to_numpy(dtype=float)) for name in ("ratio", "low", "high")
    )
    middle, k = value.mean(), len(ridge)
    below, above = np.sqrt(((value - low) ** 2).sum()) / k, np.sqrt(((high - value) ** 2).sum()) / k
    return Difference(
        value=float(np.exp(middle)),
        low=float(np.exp(middle - below)),
        high=float(np.exp(middle + above)),
    )


def _exponent(first: Exponent, second: Exponent) -> Difference:
    """Second minus first, from both intervals."""
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    high = value + math.hypot(second.high - second.value, first.value - first.low)
    return Difference(value=value, low=low, high=high)
