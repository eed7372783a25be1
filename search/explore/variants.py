"""The same grid under several settings side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray.tune.search.sample import Domain

from search.explore.plan import combinations, num_asked, trials_of, values_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_field
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The same grid under several settings side by side, such as budgets.

    `each` maps what a variant is called to the fields that it changes:
    `{"equal epochs": {"epochs": 10}, "equal updates": {"epochs": None, "updates": 5000}}`. Of a
    field that varies, a variant may have values of its own, `tune.grid_search([...])`, such as the
    learning rates that suit its optimizer.
    """

    each: Mapping[str, Mapping[str, object]]

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Values to go through."""
        return values_of(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError where a variant changes a field that varies, or that none may."""
        for variant, more in self.each.items():
            for name in values_of(_own_values(more)):
                if name not in study.vary:
                    raise ValueError(
                        f"{name}: variant {variant!r} has values of its own, so let {name} vary in "
                        f"`vary` too"
                    )
        check_changes({variant: _fixed(more) for variant, more in self.each.items()}, study)

    def configs(self, study: Study) -> list[TrialConfig]:
        """Every combination of values in each variant."""
        return [config for variant in self.each for config in self._configs_of(study, variant)]

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """None: all that is known beforehand is planned."""
        return []

    def total(self, study: Study, tables: Tables) -> int:
        """All were asked for at once."""
        return num_asked(study, tables)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """All trials, seed by seed; within a seed large batches first."""
        if tables.asked:
            return []
        trials = [
            trial
            for variant in self.each
            for trial in trials_of(
                tables,
                self._configs_of(study, variant),
                seeds=range(study.seeds),
                variant=variant,
            )
        ]
        return sorted(trials, key=lambda trial: (trial.config.seed, -trial.config.batch_size))

    def _configs_of(self, study: Study, variant: str) -> list[TrialConfig]:
        changes: dict[str, Any] = _fixed(self.each[variant])
        vary = {**study.vary, **values_of(_own_values(self.each[variant]))}
        return [replace(study.base, **values, **changes) for values in combinations(vary)]


def _own_values(more: Mapping[str, object]) -> dict[str, object]:
    """The fields of which a variant has values of its own."""
    return {name: value for name, value in more.items() if isinstance(value, Mapping | Domain)}


def _fixed(more: Mapping[str, object]) -> dict[str, object]:
    own = _own_values(more)
    return {name: value for name, value in more.items() if name not in own}


def check_changes(changes: Mapping[str, Mapping[str, object]], study: Study) -> None:
    """Raises ValueError where a step changes a field that varies, or that none may change."""
    changed = {name for more in changes.values() for name in more}
    for name in changed:
        check_field(name)
    if both := changed & set(study.vary):
        raise ValueError(f"{', '.join(sorted(both))}: varies and is changed by a step: choose")
