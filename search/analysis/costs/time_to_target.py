"""The cost of reaching a target score at each batch size, and the scores at equal cost.

Costs are in updates, images and seconds. Pure functions of the `trials` and `epochs` tables.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from search.analysis.surface import usable

Array = NDArray[np.float64]

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


def common_target(trials: pd.DataFrame, *, metric: str, mode: str, lr: str = "base_lr") -> float:
    """The best score that every batch size reaches with all seeds of some lr.

    Of the mean, as many seeds would fall short as reach it. NaN with fewer than two batch sizes
    that have a score.
    """
    sign = 1.0 if mode == "max" else -1.0
    rows = usable(trials, metric=metric)
    worst = (sign * rows[metric]).groupby([rows["batch_size"], rows[lr]]).min()
    best = worst.groupby("batch_size").max()
    return sign * float(best.min()) if len(best) > 1 else float("nan")


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
    mean costs of the seeds that reach it in images, updates and seconds (`examples_seen`,
    `updates`, `train_s`); `n`, and `spread`, their relative standard error. The cost of a trial is
    interpolated linearly between the evaluations before and after it first reaches the target.
    `early` seeds reached it at or before their first evaluation, so their cost is at most that
    evaluation's; `unreached` seeds never did. `typical_updates`, by which the lr is chosen, is the
    geometric mean over all seeds with both as censored. A cell counts if at least half of its
    usable trials reach the target.
    """
    sign = 1.0 if mode == "max" else -1.0
    rows = curves(usable(trials, metric=metric), epochs, lr=lr)
    columns = ["batch_size", "lr", *COSTS, "n", "spread", "early", "unreached", "typical_updates"]
    arrays = {name: rows[name].to_numpy(dtype=float) for name in COSTS}
    score = sign * rows[metric].to_numpy(dtype=float)
    by_trial = rows.groupby(["trial_key", "batch_size", "lr"]).indices
    costs = [
        {"trial_key": key, "batch_size": batch_size, "lr": trial_lr}
        | _cost_of({name: a[at] for name, a in arrays.items()}, score[at], sign * target)
        for (key, batch_size, trial_lr), at in by_trial.items()
    ]
    if not costs:
        return pd.DataFrame(columns=columns)
    by_cell = pd.DataFrame(costs).groupby(["batch_size", "lr"])
    cells = by_cell[list(COSTS)].mean()
    cells["n"] = by_cell["updates"].count()
    cells["spread"] = (by_cell["updates"].sem() / cells["updates"]).astype(float)
    cells["early"] = by_cell["early"].sum().astype(int)
    cells["unreached"] = by_cell.size() - cells["n"]
    cells["typical_updates"] = _typical(by_cell)
    cells = cells[cells["n"] >= REACHED_SHARE * by_cell.size()].dropna(subset="updates")
    if cells.empty:
        return pd.DataFrame(columns=columns)
    ranked = cells.reset_index().sort_values(["typical_updates", "updates", "lr"])
    best = ranked.groupby("batch_size").head(1)
    return best.sort_values("batch_size").reset_index(drop=True)[columns]


def _cost_of(curve: Mapping[str, Array], score: Array, target: float) -> dict[str, Any]:
    """What a trial spent until its score first reached the target; NaN if it never did.

    `curve` has its costs at each evaluation.

    `early`: it was reached at the first evaluation; `last_updates`: those of the last evaluation.
    """
    hits = np.flatnonzero(score >= target)
    cost: dict[str, Any] = {"early": False, "last_updates": float(curve["updates"][-1])}
    if not len(hits):
        return cost | dict.fromkeys(COSTS, np.nan)
    i = int(hits[0])
    share = 1.0
    if i and score[i] > score[i - 1]:
        share = (target - score[i - 1]) / (score[i] - score[i - 1])
    for name in COSTS:
        values = curve[name]
        before = values[i - 1] if i else 0.0
        cost[name] = before + share * (values[i] - before) if i else values[0]
    return cost | {"early": i == 0}


def _typical(by_cell: "pd.api.typing.DataFrameGroupBy[Any, Any]") -> "pd.Series[float]":
    """The geometric mean of each cell's updates, by maximum likelihood under censoring.

    Updates are log-normal with one standard deviation, which is pooled over the known updates of
    all cells. It is NaN where seeds are censored and no cell says how much seeds differ.
    """
    columns = {name: by_cell.obj[name].to_numpy() for name in ("updates", "early", "last_updates")}
    logs = {
        cell: _logs(**{name: column[at] for name, column in columns.items()})
        for cell, at in by_cell.indices.items()
    }
    several = [exact for exact, _, _ in logs.values() if len(exact) > 1]
    freedom = sum(len(exact) - 1 for exact in several)
    squares = sum(float(((exact - exact.mean()) ** 2).sum()) for exact in several)
    std = np.sqrt(squares / freedom) if freedom > 0 else np.nan
    means = {cell: np.exp(_censored_mean(*values, std=std)) for cell, values in logs.items()}
    index = pd.MultiIndex.from_tuples(means, names=["batch_size", "lr"])
    return pd.Series(list(means.values()), index=index, dtype=float)


def _logs(updates: Array, early: NDArray[np.bool_], last_updates: Array) -> tuple[Array, ...]:
    """Log updates of a cell: known ones, upper bounds of early ones, lower ones of unreached."""
    known = ~np.isnan(updates)
    parts = (updates[known & ~early], updates[early], last_updates[~known])
    return tuple(np.log(part) for part in parts)


def _censored_mean(
    exact: Array,
    left: Array,
    right: Array,
    *,
    std: float,
) -> float:
    """The mean of a normal distribution; the bound itself if all are bounded on one side."""
    if not len(right) and not (len(exact) and len(left)):
        return float(np.mean(exact if len(exact) else left))
    if not len(exact) and not len(left):
        return float(np.mean(right))
    if not std > 0:
        return float("nan")
    censored = stats.CensoredData(uncensored=exact, left=left, right=right)
    mean, _ = stats.norm.fit(censored, loc=np.mean([*exact, *left, *right]), fscale=std)
    return float(mean)


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
