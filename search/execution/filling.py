"""The surface of a study while it fills: each setting's scores so far."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study

MOST_LRS = 10  # columns that fit beside each other on 80 columns
MOST_SIZES = 16  # rows that leave room for the trials
AXES = {"batch_size", "base_lr"}
WORDS = {"diverged": "div.", "stopped": "stop.", "failed": "fail."}


def is_one_surface(study: Study, trials: Iterable[PlannedTrial]) -> bool:
    """Whether nothing but batch size and base lr differs, so that a setting is these two."""
    return set(study.vary) == AXES and not any(trial.step or trial.variant for trial in trials)


@dataclass
class Setting:
    """The scores of a setting's trials that ended, how many run, and how others ended."""

    scores: list[float] = field(default_factory=list)
    running: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean of the scores; NaN without any."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan


@dataclass
class Filling:
    """The settings by batch size and base lr. `mode` tells which scores are best."""

    metric: str
    mode: str
    settings: dict[tuple[float, float], Setting] = field(default_factory=dict)

    def planned(self, trial: PlannedTrial) -> None:
        """A trial is to come."""
        self._of(trial)

    def started(self, trial: PlannedTrial) -> None:
        """A worker began with a trial."""
        self._of(trial).running += 1

    def ended(self, trial: PlannedTrial, row: Mapping[str, Any]) -> None:
        """A trial ended, now or in an earlier command."""
        setting, score = self._of(trial), row.get(self.metric)
        setting.running = max(0, setting.running - 1)
        if row.get("status") == "completed" and score is not None and math.isfinite(score):
            setting.scores.append(float(score))
        else:
            setting.others.append(WORDS.get(str(row.get("status")), "-"))

    def _of(self, trial: PlannedTrial) -> Setting:
        at = (trial.config.batch_size, trial.config.base_lr)
        return self.settings.setdefault(at, Setting())

    @property
    def best(self) -> float:
        """The best mean so far; NaN without any."""
        means = [setting.mean for setting in self.settings.values() if setting.scores]
        if not means:
            return math.nan
        return max(means) if self.mode == "max" else min(means)

    def as_json(self) -> dict[str, Any]:
        """Batch sizes, lrs, and each known setting: its place, text, and distance to the best."""
        sizes, lrs = (sorted({at[axis] for at in self.settings}) for axis in (0, 1))
        cells = [
            {
                "batch_size": size,
                "base_lr": lr,
                "text": text_of(setting),
                "behind": abs(setting.mean - self.best) if setting.scores else None,
                "running": setting.running,
            }
            for (size, lr), setting in list(self.settings.items())
        ]
        return {"batch_sizes": sizes, "lrs": lrs, "cells": cells}

    def table(self) -> Table | None:
        """The surface for a terminal; None where it does not fit beside the trials."""
        sizes, lrs = (sorted({at[axis] for at in self.settings}) for axis in (0, 1))
        if not (1 < len(lrs) <= MOST_LRS and 0 < len(sizes) <= MOST_SIZES):
            return None
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("batch", justify="right")
        for lr in lrs:
            table.add_column(f"{lr:.3g}", justify="right", no_wrap=True)
        for size in sizes:
            settings = [self.settings.get((size, lr)) for lr in lrs]
            table.add_row(f"{size:g}", *(self._cell(setting) for setting in settings))
        return table

    def _cell(self, setting: Setting | None) -> Text:
        if setting is None:
            return Text("·", "dim")
        style = "bold green" if setting.scores and setting.mean == self.best else ""
        return Text(text_of(setting), style or ("" if setting.scores else "dim"))


def filled(known: Tables, filling: Filling) -> Filling:
    """With the trials that were asked for so far, and their scores."""
    for trial in known.asked:
        filling.planned(trial)
        if trial.key in known.ended:
            filling.ended(trial, known.ended[trial.key])
    return filling


def text_of(setting: Setting) -> str:
    """`0.851` the mean, `…` under way, `div.` how it ended without a score."""
    if setting.scores:
        return f"{setting.mean:.3f}" if abs(setting.mean) >= 0.01 else f"{setting.mean:.0e}"
    if setting.running:
        return "…"
    return setting.others[-1] if setting.others else "·"
