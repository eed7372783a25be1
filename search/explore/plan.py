"""A Study -> its trials, their keys, and which are still missing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from search.analysis.ridge import ridge
from search.analysis.surface import USABLE, surface
from search.explore.declarations import Grid
from search.study.study import Study, configurations, grid_values
from trainable.config import TrialConfig, trial_key

DONE = ("completed", "stopped", "diverged", "failed")
RETRIES = {"failed": ("failed",), "diverged": ("diverged",), "all": ("failed", "diverged")}


@dataclass(frozen=True)
class PlannedTrial:
    """One trial that the study asks for; `step` is that of its ablation."""

    key: str
    config: TrialConfig
    step: str = ""


def plan_trials(study: Study, *, data_fingerprint: str) -> list[PlannedTrial]:
    """Every trial of the study, seed by seed, so that a whole surface is there early.

    Within a seed large batches come first: they are few updates, and the screen fills soon.
    """
    cells = sorted(configurations(study), key=lambda cell: -cell[1].batch_size)
    planned = [
        PlannedTrial(trial_key(config, data_fingerprint), config, step)
        for seed in range(study.seeds)
        for step, config in ((step, replace(cell, seed=seed)) for step, cell in cells)
    ]
    return list({(trial.key, trial.step): trial for trial in planned}.values())


def missing(
    planned: Iterable[PlannedTrial], trials: pd.DataFrame, *, retry: str | None = None
) -> list[PlannedTrial]:
    """The planned trials that the tables have no ending of; with `retry`, the failed ones too."""
    again = RETRIES.get(retry or "", ())
    done = {
        key
        for key, status in zip(trials["trial_key"], trials["status"], strict=True)
        if status in DONE and status not in again
    }
    return [trial for trial in planned if trial.key not in done]


def attempts(trials: pd.DataFrame) -> Mapping[str, int]:
    """How often each trial was tried, by key."""
    return dict(zip(trials["trial_key"], trials["attempt"].astype(int), strict=True))


def of_plan(planned: Iterable[PlannedTrial], table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the planned trials: a results folder may hold those of other plans too."""
    keys = {trial.key for trial in planned}
    return table[table["trial_key"].isin(keys)].reset_index(drop=True)


def next_round(
    study: Study, planned: Sequence[PlannedTrial], trials: pd.DataFrame, *, data_fingerprint: str
) -> list[PlannedTrial]:
    """What the trials so far call for: wider or finer lrs, then more seeds for the leaders.

    Depends on the tables alone, so the same command plans the same rounds again. Empty where
    nothing is asked for or a planned trial is still missing.
    """
    rows = of_plan(planned, trials)
    if missing(planned, rows):
        return []
    configs = set(_wider_and_finer(study, planned, rows))
    more = [replace(c, seed=seed) for c in configs for seed in range(study.seeds)]
    known = {trial.key for trial in planned}
    new = [PlannedTrial(trial_key(c, data_fingerprint), c) for c in more]
    new = [trial for trial in new if trial.key not in known]
    if not new and study.leaders:
        leading = _leading(study, planned, rows)
        seeds = range(study.seeds, study.leaders.seeds)
        again = [(p, replace(p.config, seed=seed)) for p in leading for seed in seeds]
        new = [PlannedTrial(trial_key(c, data_fingerprint), c, p.step) for p, c in again]
        new = [trial for trial in new if trial.key not in known]
    return sorted(new, key=lambda trial: (trial.config.seed, -trial.config.batch_size))


def _wider_and_finer(
    study: Study, planned: Sequence[PlannedTrial], rows: pd.DataFrame
) -> list[TrialConfig]:
    """Configurations beside the ridge, without seeds: see `Grid`."""
    explore = study.explore
    if not isinstance(explore, Grid) or "base_lr" not in study.vary:
        return []
    declared = sorted(float(str(lr)) for lr in grid_values("base_lr", study.vary["base_lr"]))
    if len(declared) < 2:
        return []
    others = [name for name in study.vary if name != "base_lr"]
    by_key = {trial.key: trial.config for trial in planned}
    new: list[TrialConfig] = []
    for _, group in rows.groupby(others, dropna=False) if others else [((), rows)]:
        some = by_key[group["trial_key"].iloc[0]]
        below, above = _beyond(declared, explore.widen)
        grid = [*below, *declared, *above]
        on_grid = group[group["base_lr"].isin(grid)]
        best = ridge(surface(on_grid, metric=study.metric), mode=study.mode)
        if best.empty:
            continue
        edge, lr = best["edge"].iloc[0], best["lr"].iloc[0]
        tried = sorted(set(on_grid["base_lr"]))
        at = grid.index(lr)
        lrs: list[float] = []
        if edge == "low" and at > 0:
            lrs.append(grid[at - 1])
        elif edge == "high" and at < len(grid) - 1:
            lrs.append(grid[at + 1])
        elif not edge and explore.refine:
            k = tried.index(lr)
            for low, high in ((tried[k - 1], lr), (lr, tried[k + 1])):
                steps = explore.refine + 1
                lrs += [low * (high / low) ** (i / steps) for i in range(1, steps)]
        new += [replace(some, base_lr=each, seed=0) for each in lrs]
    return new


def _beyond(declared: Sequence[float], n: int) -> tuple[list[float], list[float]]:
    """`n` values below and above a grid, at the ratio of its outermost pairs."""
    low, high = declared[0] / declared[1], declared[-1] / declared[-2]
    below = [float(f"{declared[0] * low**i:.6g}") for i in range(n, 0, -1)]
    return below, [float(f"{declared[-1] * high**i:.6g}") for i in range(1, n + 1)]


def _leading(
    study: Study, planned: Sequence[PlannedTrial], rows: pd.DataFrame
) -> list[PlannedTrial]:
    """The best configurations by the mean of the study's own seeds, each by its first seed."""
    if study.leaders is None:
        return []
    scores = dict(zip(rows["trial_key"], rows[study.metric], strict=True))
    ended = set(rows.loc[rows["status"].isin(USABLE), "trial_key"])
    by_config: dict[TrialConfig, list[PlannedTrial]] = {}
    for trial in planned:
        if trial.config.seed < study.seeds:
            by_config.setdefault(replace(trial.config, seed=0), []).append(trial)
    means: list[tuple[float, Any]] = [
        (sum(scores[t.key] for t in some) / len(some), some[0])
        for some in by_config.values()
        if all(t.key in ended for t in some)
    ]
    means.sort(key=lambda pair: pair[0], reverse=study.mode == "max")
    return [trial for _, trial in means[: study.leaders.top]]
