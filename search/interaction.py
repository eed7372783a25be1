"""Statistics of the surface, the metric over (batch size, lr): pure functions over tables."""

from collections.abc import Sequence

import pandas as pd

USABLE = ("completed",)  # a stopped trial is censored, a diverged one has no score to average


def surface(trials: pd.DataFrame, *, metric: str, lr: str = "base_lr") -> pd.DataFrame:
    """One row a cell: batch_size, lr, mean, std (over seeds), n, diverged.

    `mean` is over completed trials that have a score, NaN where there is none; `std` is NaN for
    one seed; `diverged` counts the trials of the cell that diverged.
    """
    used = trials[trials["status"].isin(USABLE)]
    scores = used.groupby(["batch_size", lr])[metric].agg(["mean", "std", "count"])
    diverged = trials[trials["status"] == "diverged"].groupby(["batch_size", lr]).size()
    cells = pd.MultiIndex.from_frame(trials[["batch_size", lr]].drop_duplicates()).sort_values()
    table = scores.reindex(cells).rename(columns={"count": "n"})
    table["n"] = table["n"].fillna(0).astype(int)
    table["diverged"] = diverged.reindex(cells).fillna(0).astype(int)
    return table.reset_index().rename(columns={lr: "lr"})


def ridge(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The best lr of each batch size: batch_size, lr, mean, edge.

    `edge` is `low` or `high` where the best is the smallest or largest lr tried, so that a
    better one may lie outside; else an empty text.
    """
    rows = []
    for batch_size, group in cells.groupby("batch_size"):
        scored = group.dropna(subset="mean")
        if scored.empty:
            continue
        best = scored.loc[scored["mean"].idxmax() if mode == "max" else scored["mean"].idxmin()]
        tried = group["lr"]
        edge = "low" if best["lr"] == tried.min() else "high" if best["lr"] == tried.max() else ""
        rows.append((batch_size, best["lr"], best["mean"], edge if len(tried) > 1 else ""))
    return pd.DataFrame(rows, columns=["batch_size", "lr", "mean", "edge"])


def leaderboard(
    trials: pd.DataFrame, *, by: Sequence[str], metric: str, mode: str, rows: int
) -> pd.DataFrame:
    """The best configurations: the fields `by`, then mean, std, n and the mean test score."""
    used = trials[trials["status"].isin(USABLE)]
    test = metric.replace("val_", "test_")
    table = used.groupby(list(by), dropna=False).agg(
        mean=(metric, "mean"), std=(metric, "std"), n=(metric, "count"), test=(test, "mean")
    )
    table = table.sort_values("mean", ascending=mode == "min").head(rows).reset_index()
    return table.rename(columns={"test": test})


def ablation(trials: pd.DataFrame, *, steps: Sequence[str], metric: str) -> pd.DataFrame:
    """One row a step: mean, std and n over seeds, and what changed from the step before.

    `change` and `change_std` are the mean and deviation of the differences between the two steps
    of one seed: the seeds are paired, so the noise that they share drops out.
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
            "test": used.groupby("step")[metric.replace("val_", "test_")].mean(),
        }
    ).reindex(steps)
