"""Configurations suggested by an Optuna sampler, which learns from those that ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.explore.plan import MOST_REFUSED, asked, drawn_from
from search.study.domains import is_log, step_of
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_number
from trainable.config import TrialConfig

SAMPLERS = ("auto", "tpe", "gp", "cmaes", "random", "nsga2")
OBJECTIVES = {"train_wall_s": "min", "peak_memory_gib": "min", "examples_seen": "min"}
JOURNAL = "optuna.journal"
EXAMPLES_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Optuna:
    """So many configurations suggested by an Optuna sampler, which learns from those that ended.

    `points` are tried first; `warm_start` is another study's results folder whose trials the
    sampler knows from the start. `auto` is `gp`, a Gaussian process, for up to 200 configurations
    of numbers that all run to their end, and else `tpe`. `space` is Optuna's define-by-run
    function, for spaces in which one choice decides which others there are: it takes an Optuna
    trial and returns fields; `vary` is then empty. With `objectives` beside the study's metric
    (`train_wall_s`, `peak_memory_gib`, `examples_seen`) the sampler seeks the trade-off, which
    `tpe` and `nsga2` can.
    """

    num_configs: int
    sampler: str = "auto"
    points: Sequence[Mapping[str, object]] = ()
    warm_start: str | None = None
    space: Callable[[Any], Mapping[str, object]] | None = None
    objectives: Sequence[str] = ()
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the names."""
        check_number("num_configs", self.num_configs, whole=True, low=1)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(
                    f"objectives must be of {', '.join(OBJECTIVES)}, beside the study's metric, "
                    f"got {name!r}"
                )

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Domains to draw from."""
        return drawn_from(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError where the space is given twice, or is not one that Optuna takes."""
        if (self.space is None) == (not study.vary):
            raise ValueError("Optuna takes its space from `vary` or from `space`: give one")
        if self.objectives and (study.stop or study.seeds > 1):
            raise ValueError("several objectives go with one seed and without a stopper")
        if self.space is not None and study.gpus_per_trial == "auto":
            raise ValueError(
                "gpus_per_trial='auto' cannot know what batch sizes `space` will choose: give a "
                "number, or shares by batch size such as {16: 0.25, 1024: 1.0}"
            )
        for name, domain in study.vary.items():
            if is_log(domain) and step_of(domain):
                raise ValueError(f"{name}: Optuna takes a range in steps or in its logarithm")
        for point in self.points:
            changes: dict[str, Any] = dict(point)
            replace(study.base, **changes)
            for name, value in point.items():
                values = getattr(study.vary.get(name), "categories", [value])
                if value not in values:
                    raise ValueError(
                        f"points: {name} must be one of {', '.join(map(str, values))}, "
                        f"got {value!r}"
                    )

    def configs(self, study: Study) -> list[TrialConfig]:
        """None: each depends on how the others ended."""
        return []

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """The points that were not tried yet, each as often as its part of `num`; then draws."""
        import optuna

        from search.explore.journal import distributions_of, params_of, values_of

        num_asked = len({replace(trial.config, seed=0) for trial in tables.asked})
        draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(EXAMPLES_SEED))
        num_of_each = num // max(1, self.num_configs - num_asked) or 1
        for point in self.points[num_asked:]:
            for _ in range(num_of_each):
                draws.enqueue_trial(params_of(study.vary, point))
        space = None if self.space else distributions_of(study.vary)
        configs: list[TrialConfig] = []
        reason = ""
        for _ in range(num + MOST_REFUSED):
            if len(configs) == num:
                break
            trial = draws.ask(space)
            changes: dict[str, Any] = (
                dict(self.space(trial)) if self.space else values_of(study.vary, trial.params)
            )
            try:
                configs.append(replace(study.base, **changes))
            except ValueError as error:  # a running search asks for another one too
                reason = f"the search may choose {changes}: {error}"
        if len(configs) < num:
            raise ValueError(reason)
        return configs

    def total(self, study: Study, tables: Tables) -> int:
        """Every configuration with its seeds; one that is chosen twice is trained once."""
        known = asked(study, tables)
        return len(known.own) + self.num_configs * study.seeds - known.num_own

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """What an earlier command asked for; then as many as there is room for."""
        from search.explore.journal import Journal

        if "journal" not in tables.memory:
            tables.memory["journal"] = Journal(
                study, self, tables.folder, data_fingerprint=tables.data_fingerprint
            )
        journal: Journal = tables.memory["journal"]
        return journal.next(tables, room)
