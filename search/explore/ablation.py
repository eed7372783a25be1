"""Steps that are added one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from search.explore.plan import combinations, num_asked, trials_of, values_of, without_repeats
from search.explore.variants import check_changes
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Steps that are added one after the other, each on top of those before it.

    `steps` maps what a step is called to the fields that it changes; the first may change none.
    Where fields vary too, the steps are taken at every combination of their values.
    """

    steps: Mapping[str, Mapping[str, object]]

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Values to go through."""
        return values_of(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError where a step changes a field that varies, or that none may change."""
        check_changes(self.steps, study)

    def configs(self, study: Study) -> list[TrialConfig]:
        """Every combination of values at each step."""
        return [config for step in self._changes() for config in self._configs_at(study, step)]

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """None: all that is known beforehand is planned."""
        return []

    def total(self, study: Study, tables: Tables) -> int:
        """All were asked for at once."""
        return num_asked(study, tables)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """All trials, seed by seed, step by step. Two steps may ask for the same trial."""
        if tables.asked:
            return []
        return without_repeats(
            [
                trial
                for seed in range(study.seeds)
                for step in self._changes()
                for trial in trials_of(
                    tables, self._configs_at(study, step), seeds=[seed], step=step
                )
            ]
        )

    def _changes(self) -> dict[str, dict[str, Any]]:
        """What each step changes together with those before it."""
        changes: dict[str, Any] = {}
        return {step: (changes := changes | dict(more)) for step, more in self.steps.items()}

    def _configs_at(self, study: Study, step: str) -> list[TrialConfig]:
        more = self._changes()[step]
        return [replace(study.base, **values, **more) for values in combinations(study.vary)]
