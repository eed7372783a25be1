"""The critical batch size, from the updates that each batch size needs to reach a target.

Pure functions of a table of `search.analysis.costs.time_to_target`.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special, stats

from search.analysis.surface import LEVEL

LEAST = 4  # batch sizes for a fit of two parameters
# Of a step between lrs, by which each end of an interval is moved outwards. Large batch sizes need
# the highest stable lr, so the cost at the grid's nearest is too high; which the errors do not say.
PADDING = 0.3


@dataclass(frozen=True, kw_only=True)
class Front:
    """(S / S_min - 1)(E / E_min - 1) = 1 (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11).

    The time-to-target curve: S updates and E = B S images at batch size B. `critical_batch_size` is
    E_min / S_min, with its 95 % interval: `low` or `high` is NaN where it is open on that side.
    All are NaN if it cannot be estimated, and `why` gives the reason; otherwise `why` is empty.
    """

    s_min: float
    e_min: float
    critical_batch_size: float
    low: float
    high: float
    why: str


NO_FRONT = Front(
    s_min=float("nan"),
    e_min=float("nan"),
    critical_batch_size=float("nan"),
    low=float("nan"),
    high=float("nan"),
    why="no evaluations during training are recorded with their number of updates",
)
DECAYS = (
    "the learning rate decays, so every batch size reaches the target late in its schedule. To "
    "know it, train the grid with several budgets (Variants) and compare the shortest one with "
    "which each batch size reaches the target, or train with decay=constant"
)
ANY = "the updates needed are so irregular that any critical batch size is possible"


def decays(trials: pd.DataFrame) -> bool:
    """Whether the lr of some of these trials decays; a batch that grows stands for that."""
    return "decay" in trials and bool((trials["decay"].dropna() != "constant").any())


def front(needed: pd.DataFrame, *, decaying: bool = False, step: float = 0.0) -> Front:
    """Fit the time-to-target curve S(B) = S_min (1 + B_crit / B) to the updates to the target.

    `needed` is a table of `to_target`, or one with only batch_size and updates. Least squares of
    log S, which assumes equal relative errors; a batch size whose seeds all reach the target by
    their first evaluation is an upper bound (left-censored, as in tobit regression). The errors
    are those between batch sizes, so they include what the choice of an lr from a grid adds; what
    it adds to all batch sizes alike is part of S_min. The interval is a profile interval: it ends
    where the deviance rises by what F(1, n - 2) allows, with n batch sizes that are no bounds, and
    at most a factor of a thousand beyond the batch sizes that were tried. Both ends are padded by a
    part of `step`, the step of the grid in log lr.
    """
    if "typical_updates" not in needed:
        needed = needed.assign(typical_updates=needed["updates"], early=0, unreached=0, n=1)
    if why := DECAYS if decaying else _too_few(needed):
        return replace(NO_FRONT, why=why)
    needed = needed.dropna(subset="typical_updates")
    b = needed["batch_size"].to_numpy(dtype=float)
    log_s = np.log(needed["typical_updates"].to_numpy(dtype=float))
    early = ((needed["early"] == needed["n"]) & (needed["unreached"] == 0)).to_numpy()
    grid = np.linspace(np.log(b.min()) - np.log(1000), np.log(b.max()) + np.log(1000), 400)
    freedom = int((~early).sum()) - 2
    exact = _Profile(b=b[~early], log_s=log_s[~early], early=early[~early], variance=1.0)
    variance = max(exact.deviance(exact.best(grid)) / freedom, 1e-12)
    profile = _Profile(b=b, log_s=log_s, early=early, variance=variance)
    best = profile.best(grid)
    allowed = profile.deviance(best) + float(stats.f.ppf(LEVEL, 1, freedom))
    low, high = (profile.crosses(allowed, best, end) for end in (grid[0], grid[-1]))
    if np.isnan(low) and np.isnan(high):
        return replace(NO_FRONT, why=ANY)
    critical, s_min = np.exp(best), np.exp(profile.log_s_min(best))
    return Front(
        s_min=float(s_min),
        e_min=float(s_min * critical),
        critical_batch_size=float(critical),
        low=float(low * np.exp(-PADDING * step)),
        high=float(high * np.exp(PADDING * step)),
        why="",
    )


def _too_few(needed: pd.DataFrame) -> str:
    """Why these batch sizes make no fit; empty if they do."""

    def of(count: int) -> str:
        return f"{count} batch size{' reaches' if count == 1 else 's reach'} the target"

    if len(needed) < LEAST:
        return f"{of(len(needed))}; at least four batch sizes are needed"
    later = needed[needed["early"] == 0]
    if len(later) < LEAST - 1:
        return (
            f"{of(len(later))} with all seeds after the first evaluation; at least four batch "
            f"sizes are needed, so evaluate more often (eval_updates)"
        )
    if later["typical_updates"].notna().sum() < LEAST - 1:
        return "seeds that do not reach the target leave fewer than four batch sizes"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """The fit for each critical batch size, with the smallest number of updates chosen for it."""

    b: NDArray[np.float64]
    log_s: NDArray[np.float64]
    early: NDArray[np.bool_]
    variance: float

    def _left(self, log_critical: float) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.log_s - np.log1p(np.exp(log_critical) / self.b)
        return values

    def log_s_min(self, log_critical: float) -> float:
        """The best log S_min; Newton's method, on a convex function, where there are bounds."""
        left = self._left(log_critical)
        exact, std = left[~self.early], np.sqrt(self.variance)
        log_s_min = float(exact.mean())
        for _ in range(50 if self.early.any() else 0):
            z = (left[self.early] - log_s_min) / std
            mills = np.sqrt(2 / np.pi) / special.erfcx(-z / np.sqrt(2))
            slope = -(exact - log_s_min).sum() / std + mills.sum()
            step = slope / (len(exact) + (mills * (z + mills)).sum()) * std
            log_s_min -= float(step)
            if abs(step) < 1e-9 * std:
                break
        return log_s_min

    def deviance(self, log_critical: float) -> float:
        """Minus twice the log likelihood, but for a constant."""
        left = self._left(log_critical) - self.log_s_min(log_critical)
        squares = float((left[~self.early] ** 2).sum()) / self.variance
        bounds = special.log_ndtr(left[self.early] / np.sqrt(self.variance)).sum()
        return squares - 2 * float(bounds)

    def best(self, grid: NDArray[np.float64]) -> float:
        """The log critical batch size with the least deviance."""
        index = int(np.argmin([self.deviance(x) for x in grid]))
        ends = (grid[max(index - 1, 0)], grid[min(index + 1, len(grid) - 1)])
        return float(optimize.minimize_scalar(self.deviance, bounds=ends, method="bounded").x)

    def crosses(self, allowed: float, best: float, end: float) -> float:
        """The critical batch size between `best` and `end` with this deviance, NaN if open."""
        if self.deviance(end) <= allowed:
            return float("nan")
        root = optimize.brentq(lambda x: self.deviance(x) - allowed, end, best)
        return float(np.exp(root))
