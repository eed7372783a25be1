"""A Study -> its trials, their keys, and which are still missing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from search.study import Study, configurations
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
    return [
        PlannedTrial(trial_key(config, data_fingerprint), config, step)
        for seed in range(study.seeds)
        for step, config in ((step, replace(cell, seed=seed)) for step, cell in cells)
    ]


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
