"""More seeds for the best configurations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from search.explore.plan import asked, not_asked, num_asked, trials_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_number
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Leaders:
    """More seeds for the best configurations only: `seeds` in all for the best `top`."""

    top: int = 5
    seeds: int = 5

    def __post_init__(self) -> None:
        """Check both counts."""
        check_number("top", self.top, whole=True, low=1)
        check_number("seeds", self.seeds, whole=True, low=2)

    def check(self, study: Study) -> None:
        """Raises ValueError where the study has as many seeds already."""
        if self.seeds <= study.seeds:
            raise ValueError(
                f"leaders: their seeds must be more than the study's ({study.seeds}), "
                f"got {self.seeds}"
            )

    def total(self, study: Study, tables: Tables) -> int:
        """What was asked for so far: which lead depends on results."""
        return len(asked(study, tables).further)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """The further seeds of those that lead, once the explorer's trials have all ended."""
        if num_asked(study, tables) < study.explore.total(study, tables):
            return []  # all so far may have ended where a search has no room to choose the next
        if any(trial.key not in tables.ended for trial in tables.asked):
            return []
        more = [
            again
            for trial in self._leading(study, tables)
            for again in trials_of(
                tables,
                [trial.config],
                seeds=range(study.seeds, self.seeds),
                step=trial.step,
                variant=trial.variant,
                whole=True,
            )
        ]
        more.sort(key=lambda trial: (trial.config.seed, -trial.config.batch_size))
        return not_asked(study, tables, more)

    def _leading(self, study: Study, tables: Tables) -> list[PlannedTrial]:
        """The best configurations by the mean of the study's own seeds, each by its first seed."""
        by_config: dict[TrialConfig, list[PlannedTrial]] = {}
        for trial in tables.asked:
            if trial.config.seed < study.seeds:
                by_config.setdefault(replace(trial.config, seed=0), []).append(trial)
        means: list[tuple[float, PlannedTrial]] = []
        for trials in by_config.values():
            endings: list[Mapping[str, Any]] = [tables.ended[trial.key] for trial in trials]
            if all(ending["status"] == "completed" for ending in endings):
                scores = [ending[study.metric] for ending in endings]
                means.append((sum(scores) / len(scores), trials[0]))
        means.sort(key=lambda pair: pair[0], reverse=study.mode == "max")
        return [trial for _, trial in means[: self.top]]
