"""The surface: a metric over (batch size, lr) as cells, and the cells that are tied for best.

A cell is one combination of batch size and lr. These are pure functions of the `trials` table, or
of any frame with batch_size, an lr, status and a metric. Stopped trials are censored and diverged
trials have no score: both are counted, but not averaged.
"""

import functools

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special, stats

from search.analysis.chance import collapsed
from search.analysis.metric_name import Bounds, bounds_of

USABLE = ("completed",)
LEVEL = 0.95  # of all intervals
DRAWS = 2000  # of bootstraps
SEED = 0


def usable(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """The trials whose scores may be averaged: completed, with a finite score and one config.

    The trials of a population (`begins_from`) were trained with several configs in turn.
    """
    rows = trials[trials["status"].isin(USABLE) & np.isfinite(trials[metric].astype(float))]
    return rows[rows["begins_from"].isna()] if "begins_from" in rows else rows


def surface(trials: pd.DataFrame, *, metric: str, lr: str = "base_lr") -> pd.DataFrame:
    """One row per cell: batch_size, lr, mean, std, n, low, high and counts of its trials.

    `mean` and `std` are over the seeds of completed trials with a score; NaN if there are none.
    `low` and `high` are those of `with_interval`; NaN with fewer than two seeds. `trials`
    counts all of the cell's trials, `diverged`, `stopped` and `failed` those that are left out, and
    `collapsed` those in the mean that predict the same for every image.
    """
    by = ["batch_size", lr]
    scores = usable(trials, metric=metric).groupby(by)[metric].agg(["mean", "std", "count"])
    cells = pd.MultiIndex.from_frame(trials[by].drop_duplicates()).sort_values()
    table = scores.reindex(cells).rename(columns={"count": "n"})
    table["n"] = table["n"].fillna(0).astype(int)
    table = with_interval(table, bounds=bounds_of(metric, trials[metric]))
    table["trials"] = trials.groupby(by).size().reindex(cells)
    ends = {name: trials["status"] == name for name in ("diverged", "stopped", "failed")}
    for name, rows in (ends | {"collapsed": collapsed(trials)}).items():
        counts = trials[rows].groupby(by).size()
        table[name] = counts.reindex(cells).fillna(0).astype(int)
    return table.reset_index().rename(columns={lr: "lr"})


def with_interval(table: pd.DataFrame, *, bounds: Bounds | None) -> pd.DataFrame:
    """The table of mean, std and n with low and high: the 95 % interval of the mean, within bounds.

    Student's. Of a bounded score it is taken on the scale of the logit (of the logarithm where only
    0 bounds it), with the standard error by the delta method. So it never leaves the bounds, and
    near them it contains the true mean more often than Student's own.
    """
    mean, n = table["mean"].astype(float), table["n"].where(table["n"] > 1)
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * table["std"] / np.sqrt(n)
    if bounds is None:
        return table.assign(low=mean - half, high=mean + half)
    least, most = bounds
    if np.isinf(most):
        low, high = (mean * np.exp(end / mean) for end in (-half, half))
    else:
        width = most - least
        share = (mean - least) / width
        half = half / width / (share * (1 - share))
        low, high = (
            least + width * special.expit(special.logit(share) + end) for end in (-half, half)
        )
    all_extreme = mean.isin(bounds) & n.notna()  # every seed: no spread, and no finite logit
    return table.assign(low=low.mask(all_extreme, mean), high=high.mask(all_extreme, mean))


def noise_of(cells: pd.DataFrame, *, mode: str) -> tuple[float, int]:
    """Pooled standard deviation over seeds, degrees of freedom; NaN and 0 without replicates.

    Pooled over the better half of the cells: scores near the edge of stability vary much more, and
    say nothing about the noise of the best cells.
    """
    known = cells[(cells["n"] > 1) & cells["std"].notna()]
    if known.empty:
        return float("nan"), 0
    order = known.sort_values("mean", ascending=mode == "min")
    half = order.head(max(1, (len(order) + 1) // 2))
    freedom = int((half["n"] - 1).sum())
    return float(np.sqrt(((half["n"] - 1) * half["std"] ** 2).sum() / freedom)), freedom


def standard_errors(cells: pd.DataFrame, *, mode: str) -> tuple[NDArray[np.float64], int]:
    """Each cell mean's standard error, and degrees of freedom; NaN and 0 without replicates.

    From the cell's own standard deviation if it has ten seeds or more; else from the pooled one or
    its own, whichever is larger.
    """
    pooled, freedom = noise_of(cells, mode=mode)
    own = (cells["n"] >= 10) & cells["std"].notna()
    std = np.where(own, cells["std"], np.fmax(cells["std"].fillna(pooled), pooled))
    return std / np.sqrt(cells["n"].clip(lower=1).to_numpy(dtype=float)), freedom


def redrawn(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> NDArray[np.float64] | None:
    """Cell means as other seeds could have given them, (draws, cells); None without replicates.

    A parametric bootstrap: each mean plus noise of its own standard error. The noise has Student's
    t distribution, because the standard deviation is itself an estimate.
    """
    error, freedom = standard_errors(cells, mode=mode)
    if not freedom:
        return None
    rng = np.random.default_rng(SEED)
    # One scale for all cells of a draw: the pooled estimate is off by the same factor everywhere.
    scale = np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
    noise = rng.standard_normal((draws, len(cells))) * scale
    means: NDArray[np.float64] = cells["mean"].to_numpy(dtype=float) + noise * error
    return means


def contenders(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that can be best: all with a score, or those with two seeds where two cells have.

    A cell of one seed has no spread of its own. Beside replicated cells it would win by luck, or
    tie for best with a worse mean than that of a replicated cell which does not.
    """
    scored = cells[cells["mean"].notna()]
    replicated = scored[scored["n"] > 1]
    return replicated if len(replicated) > 1 else scored


def best_cell(cells: pd.DataFrame, *, mode: str) -> "pd.Series[float]":
    """The contender with the best mean: what every sentence, mark and order calls best."""
    means = contenders(cells)["mean"]
    best: pd.Series[float] = cells.loc[means.idxmax() if mode == "max" else means.idxmin()]
    return best


def best_set(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The contenders that are statistically tied for best, by Hsu's comparison with the best.

    A cell stays unless its mean is worse than the best of the others by more than
    d s sqrt(1/n + 1/m), where s is the pooled standard deviation and d Dunnett's one-sided critical
    value for comparisons with all other cells (Hsu 1984, Annals of Statistics 12:1136). The set
    contains the true best with 95 % confidence. Empty without replicates: noise is then unknown.
    """
    noise, freedom = noise_of(cells, mode=mode)
    scored = contenders(cells)
    if not freedom or len(scored) < 2:
        return scored.iloc[:0]
    sign = 1.0 if mode == "max" else -1.0
    d = dunnett_critical(len(scored) - 1, freedom)
    mean, n = sign * scored["mean"].to_numpy(), scored["n"].to_numpy()
    deficit = mean[None, :] - mean[:, None]  # (cell, other)
    allowed = d * noise * np.sqrt(1 / n[:, None] + 1 / n[None, :])
    np.fill_diagonal(deficit, -np.inf)
    stays = (deficit <= allowed).all(axis=1)
    return scored[stays].sort_values("mean", ascending=mode == "min")


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
    means, so the means of the cells tied for best are first shrunk towards each other, by the share
    of their variance that is noise (empirical Bayes). NaN without replicates.
    """
    noise, freedom = noise_of(cells, mode=mode)
    if not freedom:
        return float("nan")
    scored = contenders(cells)
    error = noise / np.sqrt(scored["n"].to_numpy(dtype=float))
    better = scored["mean"].to_numpy(dtype=float) * (1.0 if mode == "max" else -1.0)
    near = scored.index.isin(best_set(cells, mode=mode).index)
    if near.sum() > 1 and (spread := better[near].var(ddof=1)) > 0:
        kept = max(0.0, 1 - float((error[near] ** 2).mean()) / spread)
        better[near] = better[near].mean() + kept * (better[near] - better[near].mean())
    gains = error * np.random.default_rng(SEED).standard_normal((DRAWS, len(scored)))
    winner = (better + gains).argmax(axis=1)
    return float(gains[np.arange(DRAWS), winner].mean())


def stable_lr(cells: pd.DataFrame) -> pd.DataFrame:
    """The largest stable lr of each batch size: batch_size, stable_lr, diverges_at.

    `diverges_at` is the smallest lr at which at least half of the trials diverged or collapsed, and
    `stable_lr` the largest lr below it. If none did, `diverges_at` is NaN and `stable_lr` is a
    lower bound. If already those of the smallest lr did, `stable_lr` is NaN.
    """
    rows = []
    for batch_size, group in cells.groupby("batch_size"):
        group = group.sort_values("lr")
        lost = group["diverged"] + group["collapsed"]
        unstable = group.loc[2 * lost >= group["trials"], "lr"]
        limit = unstable.min() if len(unstable) else np.inf
        below = group.loc[group["lr"] < limit, "lr"]
        largest = below.max() if len(below) else np.nan
        rows.append((batch_size, largest, limit if np.isfinite(limit) else np.nan))
    return pd.DataFrame(rows, columns=["batch_size", "stable_lr", "diverges_at"])
