"""What a target score costs at each batch size: updates, images, seconds; the critical batch size.

Pure functions over the `trials` and `epochs` tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import optimize, stats

from search.analysis.surface import LEVEL, usable

COSTS = ("examples_seen", "updates", "train_s")
REACHED_SHARE = 0.5  # of a cell's seeds that must reach the target


def curves(trials: pd.DataFrame, epochs: pd.DataFrame, *, lr: str) -> pd.DataFrame:
    """The evaluations of usable trials with batch_size and lr beside them, and `train_s`.

    `train_s` is the trial's wall time up to the evaluation, evaluations included.
    """
    known = trials[["trial_key", "batch_size", lr]].rename(columns={lr: "trial_lr"})
    rows = (
        epochs.drop(columns=["lr"]).merge(known, on="trial_key").rename(columns={"trial_lr": "lr"})
    )
    rows = rows.sort_values(["trial_key", "epoch"])
    rows["train_s"] = rows.groupby("trial_key")["epoch_wall_s"].cumsum()
    return rows


def common_target(cells: pd.DataFrame, *, mode: str) -> float:
    """The best score that every batch size reaches with its best lr: the ridge's worst mean.

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
    """The least that each batch size needs to reach the target, its lr tuned for it.

    One row a batch size that reaches it: batch_size, and for each cost in images, updates and
    seconds its mean over the seeds of the lr that needs the fewest images (`examples_seen`,
    `updates`, `train_s`), with `lr`, `n` and `spread`, the relative standard error over seeds. A
    trial's cost is read off the straight line between the evaluations before and after it first
    reaches the target (from the first evaluation on: nothing is known before it). A cell counts
    where half of its usable trials or more reach the target.
    """
    sign = 1.0 if mode == "max" else -1.0
    rows = curves(usable(trials, metric=metric), epochs, lr=lr)
    reached = []
    for (key, batch_size, at_lr), one in rows.groupby(["trial_key", "batch_size", "lr"]):
        score = sign * one[metric].to_numpy(dtype=float)
        hits = np.flatnonzero(score >= sign * target)
        cost = dict.fromkeys(COSTS, np.nan)
        if len(hits):
            i = int(hits[0])
            share = 1.0
            if i and score[i] > score[i - 1]:
                share = (sign * target - score[i - 1]) / (score[i] - score[i - 1])
            for name in COSTS:
                values = one[name].to_numpy(dtype=float)
                before = values[i - 1] if i else 0.0
                cost[name] = before + share * (values[i] - before) if i else values[0]
        reached.append({"trial_key": key, "batch_size": batch_size, "lr": at_lr, **cost})
    columns = ["batch_size", "lr", *COSTS, "n", "spread"]
    if not reached:
        return pd.DataFrame(columns=columns)
    each = pd.DataFrame(reached)
    by_cell = each.groupby(["batch_size", "lr"])
    cells = by_cell[list(COSTS)].mean()
    cells["n"] = by_cell["updates"].count()
    cells["spread"] = (by_cell["updates"].sem() / cells["updates"]).astype(float)
    cells = cells[cells["n"] >= REACHED_SHARE * by_cell.size()].dropna(subset="updates")
    if cells.empty:
        return pd.DataFrame(columns=columns)
    best = cells.reset_index().sort_values("examples_seen").groupby("batch_size").head(1)
    return best.sort_values("batch_size").reset_index(drop=True)[columns]


@dataclass(frozen=True, kw_only=True)
class Front:
    """(S / S_min - 1)(E / E_min - 1) = 1 (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11).

    S updates and E = B S images at batch size B; `critical_batch_size` = E_min / S_min, with its
    95 % interval, NaN where it cannot be had. `why` says what cannot be said.
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
    why="it takes evaluations along each training, and there are none",
)


def front(needed: pd.DataFrame) -> Front:
    """Fit the front to updates-to-target: S(B) = S_min (1 + B_crit / B), in the logarithm.

    Least squares of log S with relative errors of equal size; the interval is the profile's: the
    B_crit at which the sum of squares rises by what F(1, n - 2) allows, at most a factor of a
    thousand beyond the batch sizes tried.
    """
    nan = float("nan")
    if len(needed) < 4:
        count = f"{len(needed)} batch size{' reaches' if len(needed) == 1 else 's reach'}"
        return replace(NO_FRONT, why=f"{count} the target; a front takes four")
    b = needed["batch_size"].to_numpy(dtype=float)
    log_s = np.log(needed["updates"].to_numpy(dtype=float))

    def rss(log_critical: float) -> float:
        left = log_s - np.log1p(np.exp(log_critical) / b)
        return float(((left - left.mean()) ** 2).sum())

    bounds = (np.log(b.min()) - np.log(1000), np.log(b.max()) + np.log(1000))
    grid = np.linspace(*bounds, 400)
    values = np.array([rss(each) for each in grid])
    at = int(values.argmin())
    around = (grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)])
    best = float(optimize.minimize_scalar(rss, bounds=around, method="bounded").x)
    critical = float(np.exp(best))
    s_min = float(np.exp((log_s - np.log1p(critical / b)).mean()))
    freedom = len(b) - 2
    allowed = rss(best) * (1 + stats.f.ppf(LEVEL, 1, freedom) / freedom) + 1e-12
    open_low, open_high = values[0] <= allowed, values[-1] <= allowed

    def end(outermost: float) -> float:
        return float(np.exp(optimize.brentq(lambda x: rss(x) - allowed, outermost, best)))

    why = ""
    if open_high:
        why = "still on perfect scaling: the critical batch size is above those tried"
    elif open_low:
        why = "beyond perfect scaling throughout: the critical batch size is below those tried"
    return Front(
        s_min=s_min,
        e_min=s_min * critical,
        critical_batch_size=critical,
        low=nan if open_low else end(grid[0]),
        high=nan if open_high else end(grid[-1]),
        why=why,
    )


def noise_scales(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """Median measured gradient noise scale of each batch size's usable trials: noise_scale, n."""
    rows = usable(trials, metric=metric)
    rows = rows[np.isfinite(rows["noise_scale"].astype(float))]
    found = rows.groupby("batch_size")["noise_scale"].agg(["median", "count"]).reset_index()
    return found.rename(columns={"median": "noise_scale", "count": "n"})


def at_equal(
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    *,
    metric: str,
    mode: str,
    lr: str = "base_lr",
) -> dict[str, pd.DataFrame]:
    """Each batch size's best mean score after as many epochs, updates or seconds as all can have.

    A frame for each of `examples_seen`, `updates` and `train_s`: batch_size, lr, mean, n, spent.
    The common amount is the least that the batch sizes' trials spent; the score is the running best
    up to it. Where a schedule goes on beyond it, the rate had not decayed yet: then it is a lower
    bound of what a schedule of that length gives (`Variants` trains with such schedules).
    """
    sign = 1.0 if mode == "max" else -1.0
    rows = curves(usable(trials, metric=metric), epochs, lr=lr)
    found: dict[str, pd.DataFrame] = {}
    if rows.empty:
        return found
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
        found[name] = best.rename(columns={"count": "n"}).assign(spent=spent)
    return found


def throughput(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """Each batch size's median speed and cost: images_per_s, train_wall_s, peak_memory_gib, n."""
    columns: Mapping[str, str] = {
        "images_per_s": "median",
        "train_wall_s": "median",
        "peak_memory_gib": "max",
        "trial_key": "count",
    }
    table = usable(trials, metric=metric).groupby("batch_size").agg(columns).reset_index()
    return table.rename(columns={"trial_key": "n"})
