"""The cost of reaching a target score at each batch size, and the critical batch size.

Costs are in updates, images and seconds. Pure functions of the `trials` and `epochs` tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from search.analysis.surface import LEVEL, usable

COSTS = ("examples_seen", "updates", "train_s")
REACHED_SHARE = 0.5  # at least this part of a cell's seeds must reach the target


def curves(trials: pd.DataFrame, epochs: pd.DataFrame, *, lr: str) -> pd.DataFrame:
    """The evaluations of these trials, with the columns batch_size, lr and `train_s`.

    `train_s` is the trial's wall time until the evaluation, including all evaluations.
    """
    known = trials[["trial_key", "batch_size", lr]].rename(columns={lr: "trial_lr"})
    rows = (
        epochs.drop(columns=["lr"]).merge(known, on="trial_key").rename(columns={"trial_lr": "lr"})
    )
    rows = rows.sort_values(["trial_key", "epoch"])
    rows["train_s"] = rows.groupby("trial_key")["epoch_wall_s"].cumsum()
    return rows


def common_target(cells: pd.DataFrame, *, mode: str) -> float:
    """The best mean score that every batch size reaches with its best lr.

    NaN with fewer than two batch sizes that have a score.
    """
    by_batch = cells.dropna(subset="mean").groupby("batch_size")["mean"]
    best = by_batch.max() if mode == "max" else by_batch.min()
    if len(best) < 2:
        return float("nan")
    return float(best.min() if mode == "max" else best.max())


def to_target(
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    *,
    metric: str,
    mode: str,
    target: float,
    lr: str = "base_lr",
) -> pd.DataFrame:
    """The cost of reaching the target at each batch size, with the lr that is best for it.

    One row per batch size that reaches it: batch_size; the `lr` that needs the fewest images; the
    mean costs of its seeds in images, updates and seconds (`examples_seen`, `updates`, `train_s`);
    `n`, and `spread`, the relative standard error over seeds. The cost of a trial is interpolated
    linearly between the evaluations before and after it first reaches the target (the first
    evaluation is not interpolated). A cell counts if at least half of its usable trials reach it.
    """
    sign = 1.0 if mode == "max" else -1.0
    rows = curves(usable(trials, metric=metric), epochs, lr=lr)
    columns = ["batch_size", "lr", *COSTS, "n", "spread"]
    costs = [
        {"trial_key": key, "batch_size": batch_size, "lr": trial_lr}
        | _cost_of(curve, sign * curve[metric].to_numpy(dtype=float), sign * target)
        for (key, batch_size, trial_lr), curve in rows.groupby(["trial_key", "batch_size", "lr"])
    ]
    if not costs:
        return pd.DataFrame(columns=columns)
    by_cell = pd.DataFrame(costs).groupby(["batch_size", "lr"])
    cells = by_cell[list(COSTS)].mean()
    cells["n"] = by_cell["updates"].count()
    cells["spread"] = (by_cell["updates"].sem() / cells["updates"]).astype(float)
    cells = cells[cells["n"] >= REACHED_SHARE * by_cell.size()].dropna(subset="updates")
    if cells.empty:
        return pd.DataFrame(columns=columns)
    best = cells.reset_index().sort_values("examples_seen").groupby("batch_size").head(1)
    return best.sort_values("batch_size").reset_index(drop=True)[columns]


def _cost_of(curve: pd.DataFrame, score: NDArray[np.float64], target: float) -> dict[str, float]:
    """What a trial spent until its score first reached the target; NaN if it never did."""
    hits = np.flatnonzero(score >= target)
    if not len(hits):
        return dict.fromkeys(COSTS, np.nan)
    i = int(hits[0])
    share = 1.0
    if i and score[i] > score[i - 1]:
        share = (target - score[i - 1]) / (score[i] - score[i - 1])
    cost = {}
    for name in COSTS:
        values = curve[name].to_numpy(dtype=float)
        before = values[i - 1] if i else 0.0
        cost[name] = before + share * (values[i] - before) if i else values[0]
    return cost


@dataclass(frozen=True, kw_only=True)
class Front:
    """(S / S_min - 1)(E / E_min - 1) = 1 (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11).

    The time-to-target curve: S updates and E = B S images at batch size B. `critical_batch_size` is
    E_min / S_min, with its 95 % interval; NaN if it cannot be estimated. `why` gives the reason.
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
    why="there are no evaluations during training",
)


def front(needed: pd.DataFrame) -> Front:
    """Fit the time-to-target curve S(B) = S_min (1 + B_crit / B) to the updates to the target.

    Least squares of log S, which assumes equal relative errors. The interval is a profile interval:
    it ends where the sum of squares rises by what F(1, n - 2) allows, and at most a factor of a
    thousand beyond the batch sizes that were tried.
    """
    nan = float("nan")
    if len(needed) < 4:
        count = f"{len(needed)} batch size{' reaches' if len(needed) == 1 else 's reach'}"
        return replace(NO_FRONT, why=f"{count} the target; at least four batch sizes are needed")
    b = needed["batch_size"].to_numpy(dtype=float)
    log_s = np.log(needed["updates"].to_numpy(dtype=float))

    def rss(log_critical: float) -> float:
        residuals = log_s - np.log1p(np.exp(log_critical) / b)
        return float(((residuals - residuals.mean()) ** 2).sum())

    bounds = (np.log(b.min()) - np.log(1000), np.log(b.max()) + np.log(1000))
    grid = np.linspace(*bounds, 400)
    values = np.array([rss(log_critical) for log_critical in grid])
    index = int(values.argmin())
    neighbours = (grid[max(index - 1, 0)], grid[min(index + 1, len(grid) - 1)])
    best = float(optimize.minimize_scalar(rss, bounds=neighbours, method="bounded").x)
    critical = float(np.exp(best))
    s_min = float(np.exp((log_s - np.log1p(critical / b)).mean()))
    freedom = len(b) - 2
    allowed = rss(best) * (1 + stats.f.ppf(LEVEL, 1, freedom) / freedom) + 1e-12
    open_low, open_high = values[0] <= allowed, values[-1] <= allowed

    def end(outermost: float) -> float:
        return float(np.exp(optimize.brentq(lambda x: rss(x) - allowed, outermost, best)))

    why = ""
    if open_high:
        why = "all batch sizes scale perfectly: the critical batch size is above those tried"
    elif open_low:
        why = "no batch size scales perfectly: the critical batch size is below those tried"
    return Front(
        s_min=s_min,
        e_min=s_min * critical,
        critical_batch_size=critical,
        low=nan if open_low else end(grid[0]),
        high=nan if open_high else end(grid[-1]),
        why=why,
    )


def at_equal(
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    *,
    metric: str,
    mode: str,
    lr: str = "base_lr",
) -> dict[str, pd.DataFrame]:
    """Each batch size's best mean score after equal numbers of images, updates or seconds.

    A frame for each of `examples_seen`, `updates` and `train_s`: batch_size, lr, mean, n, spent.
    `spent` is the smallest amount that a batch size's trials spent; the score is the running best
    up to it. A schedule that continues after that point had not decayed yet, so its score is a
    lower bound of what a schedule of that length gives (`Variants` trains with such schedules).
    """
    sign = 1.0 if mode == "max" else -1.0
    rows = curves(usable(trials, metric=metric), epochs, lr=lr)
    tables: dict[str, pd.DataFrame] = {}
    if rows.empty:
        return tables
    rows["best"] = (sign * rows[metric]).groupby(rows["trial_key"]).cummax()
    for name in COSTS:
        ends = rows.groupby(["batch_size", "trial_key"])[name].max().groupby("batch_size").median()
        spent = float(ends.min())
        upto = rows[rows[name] <= spent * 1.001]
        last = upto.groupby(["batch_size", "lr", "trial_key"])["best"].last()
        cells = last.groupby(["batch_size", "lr"]).agg(["mean", "count"]).reset_index()
        if cells.empty:
            continue
        best = cells.loc[cells.groupby("batch_size")["mean"].idxmax()].reset_index(drop=True)
        best["mean"] *= sign
        tables[name] = best.rename(columns={"count": "n"}).assign(spent=spent)
    return tables


def throughput(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """Median speed, median time and peak memory of each batch size's usable trials."""
    columns: Mapping[str, str] = {
        "images_per_s": "median",
        "train_wall_s": "median",
        "peak_memory_gib": "max",
        "trial_key": "count",
    }
    table = usable(trials, metric=metric).groupby("batch_size").agg(columns).reset_index()
    return table.rename(columns={"trial_key": "n"})
