"""Every combination of values; wider where the best lies on the edge, finer around the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.explore.plan import (
    combinations,
    large_batches_first,
    not_asked,
    num_asked,
    trials_of,
    values_of,
    without_repeats,
)
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_number
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the values, once a seed.

    With `widen`, a batch size whose best lr lies on the edge of the grid gets the next value beyond
    it (by the grid's own ratio), until the best is interior or `widen` values were added.
    `refine` adds so many values on either side of each batch size's best, between it and its
    neighbours. Both begin as soon as the trials of that batch size have ended.
    """

    widen: int = 0
    refine: int = 0

    def __post_init__(self) -> None:
        """Check both counts."""
        check_number("widen", self.widen, whole=True, low=0)
        check_number("refine", self.refine, whole=True, low=0)

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Values to go through."""
        return values_of(vary)

    def check(self, study: Study) -> None:
        """Any study of values fits."""

    def configs(self, study: Study) -> list[TrialConfig]:
        """Every combination."""
        return [replace(study.base, **changes) for changes in combinations(study.vary)]

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """None: all that is known beforehand is planned."""
        return []

    def total(self, study: Study, tables: Tables) -> int:
        """What was asked for so far: further values depend on results."""
        return num_asked(study, tables)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """The whole grid, then what the ended trials call for, one group of settings at a time."""
        if not tables.asked:
            configs = large_batches_first(study.known_configs)
            return without_repeats(trials_of(tables, configs, seeds=range(study.seeds)))
        if not self.widen and not self.refine:
            return []
        new = [
            config
            for group in _ended_groups(study, tables)
            for config in self._beside_the_best(study, tables, group)
        ]
        seeds = range(study.seeds)
        trials = trials_of(tables, large_batches_first(new), seeds=seeds, whole=True)
        return not_asked(study, tables, trials)

    def _beside_the_best(
        self, study: Study, tables: Tables, group: Sequence[PlannedTrial]
    ) -> list[TrialConfig]:
        """New lrs for trials that differ in lr and seed only, without seeds."""
        import pandas as pd

        from search.analysis.scaling.ridge import ridge
        from search.analysis.surface import surface

        declared = sorted(map(float, study.vary["base_lr"]["grid_search"]))
        below, above = _beyond(declared, self.widen)
        lrs_on_grid = [*below, *declared, *above]
        rows = [
            {
                "batch_size": trial.config.batch_size,
                "base_lr": trial.config.base_lr,
                **tables.ended[trial.key],
            }
            for trial in group
            if trial.config.base_lr in lrs_on_grid
        ]
        best = ridge(surface(pd.DataFrame(rows), metric=study.metric), mode=study.mode)
        if best.empty:
            return []
        lr, edge = best["lr"].iloc[0], best["edge"].iloc[0]
        tried = sorted({row["base_lr"] for row in rows})
        index = lrs_on_grid.index(lr)
        lrs: list[float] = []
        if edge == "low" and index > 0:
            lrs = [lrs_on_grid[index - 1]]
        elif edge == "high" and index < len(lrs_on_grid) - 1:
            lrs = [lrs_on_grid[index + 1]]
        elif not edge:
            lrs = _between_neighbours(tried, lr, self.refine)
        return [replace(group[0].config, base_lr=lr, seed=0) for lr in lrs]


def _ended_groups(study: Study, tables: Tables) -> list[list[PlannedTrial]]:
    """The study's own seeds by all settings but the lr, where each trial of the group has ended.

    A group is returned once for each state that it ends in.
    """
    if len(study.vary.get("base_lr", {}).get("grid_search", ())) < 2:
        return []
    others = [name for name in study.vary if name != "base_lr"]
    groups: dict[tuple[object, ...], list[PlannedTrial]] = {}
    for trial in tables.asked:
        if trial.config.seed < study.seeds:
            setting = tuple(getattr(trial.config, name) for name in others)
            groups.setdefault(setting, []).append(trial)
    ended = []
    for setting, trials in groups.items():
        looked_at = tables.memory.get(setting, 0)
        if len(trials) > looked_at and all(trial.key in tables.ended for trial in trials):
            tables.memory[setting] = len(trials)
            ended.append(trials)
    return ended


def _between_neighbours(tried: Sequence[float], lr: float, num: int) -> list[float]:
    """`num` values on either side of an lr, evenly spaced in their logarithm."""
    index = tried.index(lr)
    return [
        low * (high / low) ** (i / (num + 1))
        for low, high in ((tried[index - 1], lr), (lr, tried[index + 1]))
        for i in range(1, num + 1)
    ]


def _beyond(declared: Sequence[float], num: int) -> tuple[list[float], list[float]]:
    """`num` values below and above a grid, at the ratio of its outermost pairs."""
    low, high = declared[0] / declared[1], declared[-1] / declared[-2]
    below = [float(f"{declared[0] * low**i:.6g}") for i in range(num, 0, -1)]
    return below, [float(f"{declared[-1] * high**i:.6g}") for i in range(1, num + 1)]
