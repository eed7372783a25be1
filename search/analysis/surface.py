"""The surface: a metric over (batch size, lr) as cells, and which of them can be best.

A cell is one combination of batch size and lr. These are pure functions of the `trials` table, or
of any frame with batch_size, an lr, status and a metric. Stopped trials are censored and diverged
trials have no score: both are counted, but not averaged.
"""

import numpy as np
import pandas as pd
from scipy import special, stats

from search.analysis.chance import collapsed
from search.analysis.metric_name import Bounds, bounds_of

USABLE = ("completed",)
LEVEL = 0.95  # of all intervals
SIGNIFICANT = 0.05  # of all tests
DRAWS = 2000  # of bootstraps
SEED = 0
LOG_RATIO = 30.0  # if largest / smallest value is at least this, the axis is logarithmic


def usable(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """The trials whose scores may be averaged: completed, with a finite score and one config.

    The trials of a population (`begins_from`) were trained with several configs in turn.
    """
    rows = trials[trials["status"].isin(USABLE) & np.isfinite(trials[metric].astype(float))]
    return rows[rows["begins_from"].isna()] if "begins_from" in rows else rows


def surface(trials: pd.DataFrame, *, metric: str, lr: str = "base_lr") -> pd.DataFrame:
    """One row per cell: batch_size, lr, mean, std, n, low, high, counts of trials, seeds, scores.

    `mean` and `std` are over the seeds of completed trials with a score; NaN if there are none.
    `low` and `high` are those of `with_interval`; NaN with fewer than two seeds. `trials`
    counts all of the cell's trials, `diverged`, `stopped` and `failed` those that are left out, and
    `collapsed` those in the mean that predict the same for every image. `scores` and `seeds` are
    tuples of those in the mean; a seed that is unknown is NaN.
    """
    by = ["batch_size", lr]
    used = usable(trials, metric=metric)
    scores = used.groupby(by)[metric].agg(["mean", "std", "count"])
    cells = pd.MultiIndex.from_frame(trials[by].drop_duplicates()).sort_values()
    table = scores.reindex(cells).rename(columns={"count": "n"})
    table["n"] = table["n"].fillna(0).astype(int)
    table = with_interval(table, bounds=bounds_of(metric, trials[metric]))
    table["trials"] = trials.groupby(by).size().reindex(cells)
    ends = {name: trials["status"] == name for name in ("diverged", "stopped", "failed")}
    for name, rows in (ends | {"collapsed": collapsed(trials)}).items():
        counts = trials[rows].groupby(by).size()
        table[name] = counts.reindex(cells).fillna(0).astype(int)
    known = used if "seed" in used else used.assign(seed=np.nan)
    for name, column in {"seeds": "seed", "scores": metric}.items():
        members = known.groupby(by)[column].agg(tuple).reindex(cells)
        table[name] = [() if isinstance(member, float) else member for member in members]
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


def lr_step(rows: pd.DataFrame, *, lr: str = "lr") -> float:
    """The usual step in log lr between the lrs of a batch size; 0 with one lr each.

    Not that between all lrs: where a rule scales them, each batch size has its own grid.
    """
    logs = [np.log(np.unique(lrs)) for _, lrs in rows[rows[lr] > 0].groupby("batch_size")[lr]]
    steps = np.concatenate([[], *map(np.diff, logs)])
    return float(np.median(steps)) if len(steps) else 0.0


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
