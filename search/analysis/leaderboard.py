"""The best configurations, the steps of an ablation, and the ancestors of a trial."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from search.analysis.groups import exploration_of, with_steps
from search.analysis.metric_name import bounds_of
from search.analysis.surface import USABLE, contenders, with_interval


def leaderboard(
    trials: pd.DataFrame, *, by: Sequence[str], metric: str, mode: str, rows: int
) -> pd.DataFrame:
    """The best configurations: the fields `by`, then mean, std, n, low, high, mean test score.

    `low` and `high` bound the 95 % interval of the mean; NaN with fewer than two seeds. What is no
    contender for the best follows those that are.
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
    table = with_interval(table, bounds=bounds_of(metric, used[metric]))
    table["ranked"] = table.index.isin(contenders(table).index)
    order = table.sort_values(["ranked", "mean"], ascending=[False, mode == "min"])
    return order.drop(columns="ranked").head(rows).reset_index()


def best_by_batch_size(ridges: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The best mean of each surface, a row each, at each batch size, each at its own best lr."""
    rows = {name: ridge.set_index("batch_size")["mean"] for name, ridge in ridges.items()}
    return pd.DataFrame(rows).T.sort_index(axis="columns")


def ablations(
    trials: pd.DataFrame, about: Mapping[str, Any], *, metric: str, mode: str
) -> dict[str, pd.DataFrame]:
    """Each setting's table of an ablation, by the setting in words; empty for other studies."""
    exploration = exploration_of(about)
    if exploration.kind != "Ablation":
        return {}
    named, steps = with_steps(trials, about), list(exploration.steps)
    vary = list(about.get("vary", {}))
    by = [name for name in vary if name in named and name != "base_lr"] if len(named) else []
    groups = named.groupby(by, dropna=False) if by else [((), named)]
    return {
        ", ".join(f"{n}={v}" for n, v in zip(by, values, strict=True)): ablation(
            group, steps=steps, metric=metric, mode=mode
        )
        for values, group in groups
    }


def ablation(
    trials: pd.DataFrame, *, steps: Sequence[str], metric: str, mode: str = "max"
) -> pd.DataFrame:
    """One row per step: mean, std and n over seeds, and the change from the previous step.

    Where several learning rates were tried, each step is taken at its own best one, `base_lr`.
    `change` and `change_std` are the mean and standard deviation of the differences between the two
    steps of the same seed: paired, so that the noise they share cancels. `pairs` counts them.
    """
    used = _at_best_lr(trials[trials["status"].isin(USABLE)], metric=metric, mode=mode)
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
            "base_lr": used.groupby("step")["base_lr"].first(),
        }
    ).reindex(steps)


def _at_best_lr(trials: pd.DataFrame, *, metric: str, mode: str) -> pd.DataFrame:
    """The trials of each step at the lr with its best mean; of lrs with the most seeds."""
    if "base_lr" not in trials:
        return trials.assign(base_lr=float("nan"))
    if trials["base_lr"].nunique() <= 1:
        return trials
    cells = trials.groupby(["step", "base_lr"])[metric].agg(["count", "mean"])
    ranked = cells.sort_values(["count", "mean"], ascending=[False, mode == "min"])
    best = ranked.groupby("step").head(1).index
    return trials[pd.MultiIndex.from_frame(trials[["step", "base_lr"]]).isin(best)]


def lineage(trials: pd.DataFrame, key: str) -> pd.DataFrame:
    """The rows of a trial and of its ancestors, oldest first."""
    by_key = trials.set_index("trial_key", drop=False)
    keys = [key]
    while isinstance(before := by_key.loc[keys[-1], "begins_from"], str) and before in by_key.index:
        keys.append(before)
    return by_key.loc[keys[::-1]].reset_index(drop=True)
