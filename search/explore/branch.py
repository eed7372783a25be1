"""Trials that branch off from one checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from search.explore.pbt import CHANGED_ON_THE_WAY
from search.explore.plan import combinations, trials_of, values_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Every combination of the values, all from one checkpoint (Merrill 2025, arXiv:2505.23971).

    The study's base, with what `trunk` changes of it, trains until the share `at` of its budget,
    once a seed. From its state a trial goes on with each combination, to the end of the budget. The
    trunk is no cell of the surface; give its own values in `vary` too, to compare with.
    """

    at: float = 0.5
    trunk: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.at < 1:
            raise ValueError(f"at must be above 0 and below 1, got {self.at!r}")

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Values to go through."""
        return values_of(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError for what cannot change while a trial trains."""
        if others := sorted({*study.vary, *self.trunk} - set(CHANGED_ON_THE_WAY)):
            raise ValueError(
                f"{', '.join(others)}: cannot change while a trial trains; Branch can change "
                f"{', '.join(CHANGED_ON_THE_WAY)}"
            )
        if study.stop or study.leaders:
            raise ValueError("Branch goes without stop and leaders: its trials are compared whole")
        if study.base.seconds is not None:
            raise ValueError(
                "Branch counts training images: give a budget in epochs, updates or examples, "
                "not in seconds"
            )

    def configs(self, study: Study) -> list[TrialConfig]:
        """The trunk: what goes on from it is known when it has a key."""
        changes: dict[str, Any] = dict(self.trunk)
        return [replace(study.base, **changes, until_share=self.at)]

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """Branches, which train the rest of the budget."""
        branches = [replace(config, until_share=1 - self.at) for config in self._branches(study)]
        return [branches[i % len(branches)] for i in range(num)]

    def total(self, study: Study, tables: Tables) -> int:
        """The trunks and their branches; a trunk that has no end has none."""
        trunks = [trial for trial in tables.asked if trial.config.begins_from is None]
        ends = [tables.ended[trunk.key]["status"] for trunk in trunks if trunk.key in tables.ended]
        num_lost: int = sum(status != "stopped" for status in ends)
        return study.seeds + (study.seeds - num_lost) * len(combinations(study.vary))

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """The trunks; then the branches of each that has come to its share of the budget."""
        if not tables.asked:
            return trials_of(tables, self.configs(study), seeds=range(study.seeds))
        branched = {trial.config.begins_from for trial in tables.asked}
        return [
            branch
            for trunk in list(tables.asked)
            if trunk.config.begins_from is None
            and trunk.key not in branched
            and tables.ended.get(trunk.key, {}).get("status") == "stopped"
            for branch in trials_of(
                tables,
                [replace(config, begins_from=trunk.key) for config in self._branches(study)],
                seeds=[trunk.config.seed],
            )
        ]

    def _branches(self, study: Study) -> list[TrialConfig]:
        return [replace(study.base, **values) for values in combinations(study.vary)]
