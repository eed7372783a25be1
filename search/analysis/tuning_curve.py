"""The tuning curve: the best score of a search against the number of its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special

from search.analysis.groups import exploration_of
from search.analysis.surface import LEVEL

RANDOM, GRID, IN_ORDER = "random", "grid", "in order"
NO_SEARCH = ("Ablation", "Branch", "Pbt")  # their trials build on each other
ENDED = ("completed", "stopped", "diverged", "failed")
ADAPTIVE = "which trials were started or stopped depended on the scores of others"
LEAST_TRIALS = 5  # with fewer the curve says nothing
MOST_ROWS = 60  # of a curve's table
NEGLIGIBLE = 1e-18  # probability

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TuningCurve:
    """The best score after each number of trials.

    `kind` says of what. RANDOM: independent random draws; `rows` has `trials`, the median `best` of
    so many, and `low` to `high`, which contain the whole true curve with 95 % confidence. GRID: the
    same median for settings drawn at random from a grid, without a band. IN_ORDER: the best so far
    in the order in which the trials ended. An infinite number means that there is no bound, or no
    score: a trial without one counts as worse than any other.

    `num_trials` were used, `without_score` of them diverged or failed; all had the one `seed` if it
    is given. `why` says why there is no band. `is_assumed`: the draws are independent as far as is
    known, but nothing says so. `left_out` trials were given, not drawn.
    """

    kind: str
    rows: pd.DataFrame = field(repr=False)
    num_trials: int
    num_settings: int
    without_score: int
    why: str = ""
    seed: int | None = None
    is_assumed: bool = False
    left_out: int = 0


def tuning_curve(
    trials: pd.DataFrame,
    about: Mapping[str, Any],
    *,
    by: Sequence[str],
    metric: str,
    mode: str,
    is_drawn: bool = False,
) -> TuningCurve | None:
    """The curve of a study or, if `about` has no explorer, of a table; None where there is none.

    `by` are the fields that make a setting. `is_drawn`: a table's values look like random draws.
    A test score has no curve: choosing by it is no search.
    """
    kind = exploration_of(about).kind
    if metric.startswith("test_") or kind in NO_SEARCH:
        return None
    ended = trials[trials["status"].isin(ENDED)]
    if len(ended) < LEAST_TRIALS:
        return None
    is_stopped = bool((ended["status"] == "stopped").any())
    how: dict[str, Any] = {"metric": metric, "mode": mode}
    if not about.get("explore"):
        if is_stopped:  # the order of a table's rows is no order of time
            return None
        return _random(ended, is_assumed=True, **how) if is_drawn else _grid(ended, by, **how)
    if kind == "Random":
        draws, left_out, why = _draws(ended, about, is_stopped=is_stopped)
        if not why:
            return _random(draws, left_out=left_out, **how)
        return _in_order(ended, by, why=why, **how)
    if is_stopped or kind not in ("Grid", "Variants"):
        return _in_order(ended, by, why=ADAPTIVE, **how)
    return _grid(ended, by, **how)


def _draws(
    ended: pd.DataFrame, about: Mapping[str, Any], *, is_stopped: bool
) -> tuple[pd.DataFrame, int, str]:
    """A trial of each configuration that was drawn, how many were given, and why they are not iid.

    With several seeds those of the first one: a configuration is one draw.
    """
    explore = about["explore"] if isinstance(about["explore"], dict) else {}
    given = [dict(point) for point in explore.get("points") or ()]
    rows = ended[ended["seed"] == ended["seed"].min()]
    is_given = pd.Series(False, index=rows.index)
    for point in given:
        alike = [rows[n] == value for n, value in point.items() if n in rows]
        is_given |= np.logical_and.reduce(alike) if alike else False
    wanted = int(explore.get("num_configs") or 0) - len(given)
    draws = rows[~is_given]
    if is_stopped:
        return draws, 0, "trials were stopped because of the scores of others"
    if wanted < 1 or len(draws) < max(wanted, LEAST_TRIALS):
        return (
            draws,
            0,
            (
                f"{len(draws)} of {max(wanted, len(draws))} different draws have ended, and which "
                f"ones is no random choice"
            ),
        )
    return draws, len(rows) - len(draws), ""


def _random(
    draws: pd.DataFrame, *, metric: str, mode: str, left_out: int = 0, is_assumed: bool = False
) -> TuningCurve:
    """The median best of k independent draws with its simultaneous band."""
    sign, scores = _signed(draws, metric=metric, mode=mode)
    ordered, n = np.sort(scores), len(scores)
    low, high = cdf_band(n)
    numbers = _numbers(n)
    shares = 0.5 ** (1.0 / numbers)  # the quantile that is the median of the best of k
    below, above = np.r_[-np.inf, ordered], np.r_[ordered, np.inf]
    rows = pd.DataFrame(
        {
            "trials": numbers,
            "best": sign * _quantiles(ordered, np.full(n, 1 / n), shares),
            "low": sign * below[np.searchsorted(np.r_[high, 1.0], shares)],
            "high": sign * above[np.searchsorted(low, shares)],
        }
    )
    if sign < 0:
        rows = rows.rename(columns={"low": "high", "high": "low"})
    seeds = draws["seed"].dropna().unique() if "seed" in draws and not is_assumed else []
    return TuningCurve(
        kind=RANDOM,
        rows=rows[["trials", "best", "low", "high"]],
        num_trials=n,
        num_settings=n,
        without_score=int(np.isinf(scores).sum()),
        seed=int(seeds[0]) if len(seeds) == 1 else None,
        is_assumed=is_assumed,
        left_out=left_out,
    )


def _grid(ended: pd.DataFrame, by: Sequence[str], *, metric: str, mode: str) -> TuningCurve | None:
    """The median best of k settings, each drawn at random from the grid, with one of its seeds.

    Settings weigh the same, whatever their number of seeds (Dodge et al. 2019, arXiv:1909.03004,
    with the median for the mean).
    """
    sign, scores = _signed(ended, metric=metric, mode=mode)
    setting = ended.groupby(list(by), dropna=False).ngroup().to_numpy()
    counts = np.bincount(setting)
    if len(counts) < LEAST_TRIALS:
        return None
    weights = 1.0 / counts[setting] / len(counts)
    order = np.argsort(scores, kind="stable")
    numbers = _numbers(len(counts))
    best = _quantiles(scores[order], weights[order], 0.5 ** (1.0 / numbers))
    return TuningCurve(
        kind=GRID,
        rows=pd.DataFrame({"trials": numbers, "best": sign * best}),
        num_trials=len(ended),
        num_settings=len(counts),
        without_score=int(np.isinf(scores).sum()),
        why="the settings of a grid are no random draws",
    )


def _in_order(
    ended: pd.DataFrame, by: Sequence[str], *, metric: str, mode: str, why: str
) -> TuningCurve | None:
    """The best so far; the last scores of stopped trials do not count."""
    if "ended_at" not in ended:
        return None
    rows = ended.sort_values("ended_at", kind="stable")
    sign, scores = _signed(rows, metric=metric, mode=mode)
    best = np.maximum.accumulate(scores)
    improved = np.flatnonzero(np.r_[True, best[1:] > best[:-1]]) + 1
    numbers = np.union1d(_numbers(len(rows)), improved)
    return TuningCurve(
        kind=IN_ORDER,
        rows=pd.DataFrame({"trials": numbers, "best": sign * best[numbers - 1]}),
        num_trials=len(rows),
        num_settings=int(rows.groupby(list(by), dropna=False).ngroups),
        without_score=int((np.isinf(scores) & (rows["status"] != "stopped").to_numpy()).sum()),
        why=why,
    )


def _signed(rows: pd.DataFrame, *, metric: str, mode: str) -> tuple[float, Floats]:
    """The sign that makes more better, and the scores with it; -inf for trials without one."""
    sign = 1.0 if mode == "max" else -1.0
    scores = sign * rows[metric].astype(float).to_numpy()
    known = (rows["status"] == "completed").to_numpy() & np.isfinite(scores)
    return sign, np.where(known, scores, -np.inf)


def _numbers(most: int) -> NDArray[np.int64]:
    """Numbers of trials up to the most: all powers of two, and others evenly between them."""
    spaced = np.geomspace(1, most, MOST_ROWS).round().astype(int)
    return np.unique([*spaced, *(2 ** np.arange(int(np.log2(most)) + 1))])


def _quantiles(ordered: Floats, weights: Floats, shares: Floats) -> Floats:
    """The smallest value at which the weighted distribution reaches each share."""
    reached = np.searchsorted(np.cumsum(weights), shares - 1e-12)
    scores: Floats = ordered[np.minimum(reached, len(ordered) - 1)]
    return scores


@cache
def cdf_band(n: int, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Bounds of the distribution function at n ordered scores: `low` from each on, `high` up to it.

    All of them hold at once with probability `level`, whatever the continuous distribution, and
    with ties at least so: the equal-tailed intervals of the uniform order statistics, widened until
    they are simultaneous (Learned-Miller & DeStefano 2008, A Probabilistic Upper Bound on
    Differential Entropy; for tuning curves Lourie et al. 2024, arXiv:2311.09480). The factor is
    exact, not simulated.
    """

    def ends(log_tails: float) -> tuple[Floats, Floats]:
        i, half = np.arange(1, n + 1), np.exp(log_tails) / 2
        low = special.betaincinv(i, n + 1 - i, half)
        high = special.betainccinv(i, n + 1 - i, half)
        return low, high

    def excess(log_tails: float) -> float:
        return all_within(*ends(log_tails)) - level

    most = np.log(1 - level)  # of one order statistic; by Bonferroni at most n times too wide
    if n == 1:
        return ends(most)
    return ends(optimize.brentq(excess, most - np.log(n) - 1e-9, most, xtol=1e-4))


def all_within(low: Floats, high: Floats) -> float:
    """P(low_i <= U_(i) <= high_i for all i) of the ordered U of n uniform draws; both rise.

    Their number below t is a Poisson process, given that n are below 1. Its distribution is carried
    from bound to bound; at each, the numbers that break it are left out (Moscovich & Nadler 2017,
    arXiv:1503.04363).
    """
    n = len(low)
    bounds: list[tuple[float, bool, int]] = [(1.0, True, n + 1)]
    for rank, ends in enumerate(zip(low.tolist(), high.tolist(), strict=True), 1):
        bounds += [(ends[0], True, rank), (ends[1], False, rank)]
    chances, fewest, now = np.ones(1), 0, 0.0  # chances[k]: that fewest + k are below `now`
    for at, is_low, rank in sorted(bounds):
        chances = np.convolve(chances, _poisson(n * (at - now)))[: n + 1 - fewest]
        now = at
        if is_low:  # fewer than `rank` so far
            chances = chances[: max(rank - fewest, 0)]
        else:  # at least `rank` so far
            chances, fewest = chances[max(rank - fewest, 0) :], max(rank, fewest)
        if not len(chances):
            return 0.0
    is_n = n - fewest
    log_n = n * np.log(n) - n - special.gammaln(n + 1)
    return float(chances[is_n] / np.exp(log_n)) if is_n < len(chances) else 0.0


def _poisson(mean: float) -> Floats:
    """Probabilities of 0, 1, 2, ... as far as they are not negligible."""
    if mean <= 0:
        return np.ones(1)
    most = int(mean + 10 * np.sqrt(mean) + 12)
    counts = np.arange(most + 1)
    chances = np.exp(counts * np.log(mean) - mean - special.gammaln(counts + 1))
    told: Floats = chances[: np.flatnonzero(chances > NEGLIGIBLE)[-1] + 1]
    return told
