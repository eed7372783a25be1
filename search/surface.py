"""The surface, a metric over (batch size, lr): cells, ridge, and what cannot be told from the best.

Pure functions over the `trials` table, or over any frame with batch_size, an lr, status and a
metric. A stopped trial is censored and a diverged one has no score: both are counted, not averaged.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special, stats

USABLE = ("completed",)
LEVEL = 0.95  # of all intervals
DRAWS = 2000  # of bootstraps
SEED = 0


def usable(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """The trials whose scores may be averaged: completed, finite, of one configuration throughout.

    A trial of a population (`begins_from`) was trained with several configurations.
    """
    rows = trials[trials["status"].isin(USABLE) & np.isfinite(trials[metric].astype(float))]
    return rows[rows["begins_from"].isna()] if "begins_from" in rows else rows


def surface(trials: pd.DataFrame, *, metric: str, lr: str = "base_lr") -> pd.DataFrame:
    """One row a cell: batch_size, lr, mean, std, n, low, high, trials, diverged, stopped, failed.

    `mean` and `std` are over the seeds of completed trials that have a score, NaN where there are
    none; `low` and `high` bound Student's 95 % interval of the mean, NaN below two seeds. The last
    four count the cell's trials: all, and those left out by how they ended.
    """
    by = ["batch_size", lr]
    scores = usable(trials, metric=metric).groupby(by)[metric].agg(["mean", "std", "count"])
    cells = pd.MultiIndex.from_frame(trials[by].drop_duplicates()).sort_values()
    table = scores.reindex(cells).rename(columns={"count": "n"})
    table["n"] = table["n"].fillna(0).astype(int)
    n = table["n"].where(table["n"] > 1)
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * table["std"] / np.sqrt(n)
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    table["trials"] = trials.groupby(by).size().reindex(cells)
    for status in ("diverged", "stopped", "failed"):
        counts = trials[trials["status"] == status].groupby(by).size()
        table[status] = counts.reindex(cells).fillna(0).astype(int)
    return table.reset_index().rename(columns={lr: "lr"})


def noise_of(cells: pd.DataFrame, *, mode: str) -> tuple[float, int]:
    """Standard deviation over seeds and its degrees of freedom, pooled; NaN and 0 without seeds.

    Pooled over the better half of the cells: scores near the edge of stability scatter far more,
    and their noise says nothing about the best cells'.
    """
    known = cells[(cells["n"] > 1) & cells["std"].notna()]
    if known.empty:
        return float("nan"), 0
    order = known.sort_values("mean", ascending=mode == "min")
    half = order.head(max(1, (len(order) + 1) // 2))
    freedom = int((half["n"] - 1).sum())
    return float(np.sqrt(((half["n"] - 1) * half["std"] ** 2).sum() / freedom)), freedom


def ridge(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The best lr of each batch size: batch_size, lr, mean, edge, vertex.

    `lr` is the best that has a score and `edge` is `low` or `high` where that is the smallest or
    largest lr tried, so that a better one may lie outside; else an empty text. Beside an lr whose
    trials diverged or were stopped for being worse the best is no edge. `vertex` is the peak of
    the parabola in log lr through the best and its two neighbours; the best itself where there are
    not two.
    """
    rows = []
    sign = 1.0 if mode == "max" else -1.0
    for batch_size, group in cells.groupby("batch_size"):
        group = group.sort_values("lr")
        scored = group.dropna(subset="mean").reset_index(drop=True)
        if scored.empty:
            continue
        at = int((sign * scored["mean"]).idxmax())
        best = scored.loc[at]
        tried = group.loc[group["trials"] > group["failed"], "lr"]
        edges = {tried.min(): "low", tried.max(): "high"} if len(tried) > 1 else {}
        edge = edges.get(best["lr"], "")
        vertex = best["lr"]
        if 0 < at < len(scored) - 1:
            vertex = float(np.exp(_vertex(np.log(scored["lr"]), sign * scored["mean"], at)))
        rows.append((batch_size, best["lr"], best["mean"], edge, vertex))
    return pd.DataFrame(rows, columns=["batch_size", "lr", "mean", "edge", "vertex"])


def _vertex(x: "pd.Series[float]", y: "pd.Series[float]", at: int) -> float:
    """Where the parabola through the points `at - 1`, `at` and `at + 1` is highest.

    By divided differences; within the neighbours, as `at` is the highest of the three.
    """
    x0, x1, x2 = (float(x.iloc[i]) for i in (at - 1, at, at + 1))
    y0, y1, y2 = (float(y.iloc[i]) for i in (at - 1, at, at + 1))
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    return (x0 + x1) / 2 - first / (2 * bend) if bend < 0 else x1


def standard_errors(cells: pd.DataFrame, *, mode: str) -> tuple[NDArray[np.float64], int]:
    """Each cell mean's standard error, and the degrees of freedom: NaN and 0 without seeds.

    From the deviation of each cell where it has ten seeds or more, and else the pooled one or its
    own, whichever is larger.
    """
    pooled, freedom = noise_of(cells, mode=mode)
    own = (cells["n"] >= 10) & cells["std"].notna()
    std = np.where(own, cells["std"], np.fmax(cells["std"].fillna(pooled), pooled))
    return std / np.sqrt(cells["n"].clip(lower=1).to_numpy(dtype=float)), freedom


def redrawn(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> NDArray[np.float64] | None:
    """Cell means as they might have come out with other seeds, (draws, cells); None without seeds.

    A parametric bootstrap: each mean plus noise of its own standard error, by Student's t of the
    pooled deviation's degrees of freedom in place of the normal, as it is itself estimated.
    """
    error, freedom = standard_errors(cells, mode=mode)
    if not freedom:
        return None
    rng = np.random.default_rng(SEED)
    # One scale for all cells of a draw: the pooled deviation is off by the same factor everywhere.
    scale = np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
    noise = rng.standard_normal((draws, len(cells))) * scale
    means: NDArray[np.float64] = cells["mean"].to_numpy(dtype=float) + noise * error
    return means


def ridge_interval(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> pd.DataFrame:
    """`ridge` with lr_low and lr_high, the 95 % interval of each batch size's best lr.

    Percentiles of the vertex over redrawn surfaces; where the best then lies on an edge, the
    interval ends there. It is of the seeds' noise alone: where the curve falls off much faster on
    one side, the parabola's vertex is off by a part of a step between two lrs, which shows where
    the noise is small. NaN without seeds. `bracketed` says whether the best lies inside.
    """
    table = ridge(cells, mode=mode)
    table["bracketed"] = table["edge"] == ""
    vertices = ridge_draws(cells, mode=mode, draws=draws)
    tail = 50 * (1 - LEVEL)
    for name, q in (("lr_low", tail), ("lr_high", 100 - tail)):
        table[name] = (
            np.nan
            if vertices is None
            else [np.exp(np.percentile(vertices[b], q)) for b in table["batch_size"]]
        )
    return table


def ridge_draws(
    cells: pd.DataFrame, *, mode: str, draws: int = DRAWS
) -> dict[int, NDArray[np.float64]] | None:
    """Each batch size's log best lr (vertex) over redrawn surfaces, (draws,); None without seeds.

    Natural logarithms: a best on an edge of those with scores is exactly that edge's.
    """
    means = redrawn(cells, mode=mode, draws=draws)
    if means is None:
        return None
    sign = 1.0 if mode == "max" else -1.0
    found = {}
    for batch_size, group in cells.groupby("batch_size"):
        order = group.sort_values("lr")
        order = order[order["mean"].notna()]
        if order.empty:
            continue
        x = np.log(order["lr"].to_numpy())
        y = sign * means[:, cells.index.get_indexer(order.index)]
        found[batch_size] = _vertices(x, y)
    return found


def _vertices(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """`_vertex` of many curves at once: x (lrs,), y (draws, lrs) -> (draws,)."""
    at = y.argmax(axis=1)
    inner = (at > 0) & (at < len(x) - 1)
    i = np.clip(at, 1, max(len(x) - 2, 1))
    if len(x) < 3:
        return np.asarray(x[at])
    row = np.arange(len(y))
    x0, x1, x2 = x[i - 1], x[i], x[i + 1]
    y0, y1, y2 = y[row, i - 1], y[row, i], y[row, i + 1]
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    inner &= bend < 0
    vertex = (x0 + x1) / 2 - first / (2 * np.where(inner, bend, -1.0))
    found: NDArray[np.float64] = np.where(inner, vertex, x[at])
    return found


def best_set(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The cells that cannot be told from the best one: those of Hsu's comparison with the best.

    A cell stays unless its mean is behind the best of the others by more than d s sqrt(1/n + 1/m),
    with s the pooled noise and d Dunnett's one-sided critical value for as many comparisons as
    there are other cells (Hsu 1984, Annals of Statistics 12:1136). The true best is among them with
    95 % confidence. Empty without seeds: noise is then unknown.
    """
    noise, freedom = noise_of(cells, mode=mode)
    scored = cells[cells["mean"].notna()]
    if not freedom or len(scored) < 2:
        return scored.iloc[:0]
    sign = 1.0 if mode == "max" else -1.0
    d = dunnett_critical(len(scored) - 1, freedom)
    mean, n = sign * scored["mean"].to_numpy(), scored["n"].to_numpy()
    behind = mean[None, :] - mean[:, None]  # (cell, other)
    allowed = d * noise * np.sqrt(1 / n[:, None] + 1 / n[None, :])
    np.fill_diagonal(behind, -np.inf)
    stays = (behind <= allowed).all(axis=1)
    return scored[stays].sort_values("mean", ascending=mode == "min")


@functools.cache
def dunnett_critical(comparisons: int, freedom: int, *, level: float = LEVEL) -> float:
    """One-sided critical value of Dunnett's test with equal group sizes.

    The d with P(max_i (Z_i - Z_0) / sqrt(2) <= d S) = level, Z standard normal and S the square
    root of a chi-square over its degrees of freedom (Dunnett 1955), by quadrature.
    """
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    s = np.sqrt(stats.chi2.ppf((np.arange(400) + 0.5) / 400, freedom) / freedom)

    def excess(d: float) -> float:
        inside = special.ndtr(z[:, None] + d * s[None, :] * np.sqrt(2)) ** comparisons
        return float((weights[:, None] * inside).sum(axis=0).mean() - level)

    return float(optimize.brentq(excess, 0.0, 1000.0))


def optimism(cells: pd.DataFrame, *, mode: str) -> float:
    """By how much the best cell's mean is expected to flatter it, for having been picked as best.

    Mean over surfaces redrawn with normal noise (Student's has no mean at one degree of freedom)
    of what the winner's redrawn mean gained, with the sign that makes it positive. The noise is the
    better half's in every cell: a far cell of great noise would win rarely but by much. Observed
    means lie further apart than true ones, so those that cannot be told from the best are drawn
    together first, by the share of their spread that is noise (empirical Bayes). NaN without seeds.
    """
    noise, freedom = noise_of(cells, mode=mode)
    if not freedom:
        return float("nan")
    scored = cells[cells["mean"].notna()]
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

    The largest lr below the first at which half of the trials or more diverged; that one is
    `diverges_at`, NaN where none did: `stable_lr` is then a lower bound. NaN for `stable_lr` where
    the smallest lr diverged already.
    """
    rows = []
    for batch_size, group in cells.groupby("batch_size"):
        group = group.sort_values("lr")
        unstable = group.loc[2 * group["diverged"] >= group["trials"], "lr"]
        limit = unstable.min() if len(unstable) else np.inf
        below = group.loc[group["lr"] < limit, "lr"]
        largest = below.max() if len(below) else np.nan
        rows.append((batch_size, largest, limit if np.isfinite(limit) else np.nan))
    return pd.DataFrame(rows, columns=["batch_size", "stable_lr", "diverges_at"])


def leaderboard(
    trials: pd.DataFrame, *, by: Sequence[str], metric: str, mode: str, rows: int
) -> pd.DataFrame:
    """The best configurations: the fields `by`, then mean, std, n, low, high, mean test score.

    `low` and `high` bound Student's 95 % interval of the mean, NaN below two seeds.
    """
    used = trials[trials["status"].isin(USABLE)]
    test = metric.replace("val_", "test_")
    aggregates: dict[str, tuple[str, str | Callable[..., object]]] = {
        "mean": (metric, "mean"),
        "std": (metric, "std"),
        "n": (metric, "count"),
    }
    if test in used:
        aggregates[test] = (test, "mean")
    table = used.groupby(list(by), dropna=False).agg(**aggregates)
    half = stats.t.ppf(0.5 + LEVEL / 2, table["n"].where(table["n"] > 1) - 1)
    half = half * table["std"] / np.sqrt(table["n"])
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    return table.sort_values("mean", ascending=mode == "min").head(rows).reset_index()


def ablation(trials: pd.DataFrame, *, steps: Sequence[str], metric: str) -> pd.DataFrame:
    """One row a step: mean, std and n over seeds, and what changed from the step before.

    `change` and `change_std` are the mean and deviation of the differences between the two steps
    of one seed: the seeds are paired, so the noise that they share drops out. `pairs` counts them.
    """
    used = trials[trials["status"].isin(USABLE)]
    scores = used.pivot_table(index="seed", columns="step", values=metric).reindex(columns=steps)
    changes = scores.diff(axis=1)
    return pd.DataFrame(
        {
            "mean": scores.mean(),
            "std": scores.std(),
            "n": scores.count(),
            "change": changes.mean(),
            "change_std": changes.std(),
            "pairs": changes.count(),
            "test": used.groupby("step")[metric.replace("val_", "test_")].mean(),
        }
    ).reindex(steps)
