"""Configurations drawn at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.explore.plan import (
    drawn_from,
    large_batches_first,
    num_asked,
    trials_of,
    without_repeats,
    working,
)
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_number
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Random:
    """So many configurations drawn from the domains, the same ones in every run.

    `points` are tried first; each gives all fields that vary.
    """

    num_configs: int
    points: Sequence[Mapping[str, object]] = ()
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the count."""
        check_number("num_configs", self.num_configs, whole=True, low=1)

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Domains to draw from."""
        return drawn_from(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError where a point does not give exactly what varies."""
        for point in self.points:
            if set(point) != set(study.vary):
                raise ValueError(
                    f"points: each gives all that varies ({', '.join(study.vary)}), got {point}"
                )
            changes: dict[str, Any] = dict(point)
            replace(study.base, **changes)

    def configs(self, study: Study) -> list[TrialConfig]:
        """The points, then draws."""
        import numpy as np

        rng = np.random.RandomState(self.sampling_seed)
        points: list[dict[str, Any]] = [dict(point) for point in self.points[: self.num_configs]]
        num_draws = self.num_configs - len(points)
        return [
            *(replace(study.base, **point) for point in points),
            *working(study.vary, rng, num=num_draws, base=study.base),
        ]

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """None: all are planned."""
        return []

    def total(self, study: Study, tables: Tables) -> int:
        """All were asked for at once."""
        return num_asked(study, tables)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """All trials, seed by seed; within a seed large batches first."""
        if tables.asked:
            return []
        configs = large_batches_first(study.known_configs)
        return without_repeats(trials_of(tables, configs, seeds=range(study.seeds)))
