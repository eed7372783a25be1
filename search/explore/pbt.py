"""Population based training: a schedule is searched, generation by generation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from search.explore.plan import drawn_from, trials_of, working
from search.study.domains import draw, perturbed
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study, check_number
from trainable.config import TrialConfig

if TYPE_CHECKING:
    import numpy as np

TRIES = 100  # at drawing a configuration that works and that no other member has
# What may change between generations: none of it changes the network's shape.
CHANGED_ON_THE_WAY = (
    *("batch_size", "base_lr", "lr_scaling", "weight_decay", "momentum", "label_smoothing"),
    *("mixup_alpha", "cutmix_alpha", "augment", "clip_grad_norm"),
)


@dataclass(frozen=True, kw_only=True)
class Pbt:
    """Population based training (Jaderberg 2017, arXiv:1711.09846): a schedule is searched.

    `size` configurations drawn from the domains train side by side, an equal part of the budget a
    generation. After each, the worst `quantile` of them go on from the state of one of the best
    `quantile`, with its values changed: a number times 0.8 or 1.2, a choice to its neighbour, or,
    with probability `resample`, drawn anew. A member's generations are trials of their own, so that
    each row says what it was trained with and from which trial it went on (`begins_from`).
    """

    size: int = 8
    generations: int = 5
    quantile: float = 0.25
    resample: float = 0.25
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts and the shares."""
        check_number("size", self.size, whole=True, low=2)
        check_number("generations", self.generations, whole=True, low=2)
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"quantile must be above 0 and at most 0.5, got {self.quantile!r}")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"resample must be from 0 to 1, got {self.resample!r}")

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        """Domains to draw from."""
        return drawn_from(vary)

    def check(self, study: Study) -> None:
        """Raises ValueError for what cannot change while a trial trains."""
        if others := sorted(set(study.vary) - set(CHANGED_ON_THE_WAY)):
            raise ValueError(
                f"{', '.join(others)}: cannot change while a trial trains; Pbt can vary "
                f"{', '.join(CHANGED_ON_THE_WAY)}"
            )
        if not study.vary:
            raise ValueError("Pbt needs domains in `vary` to draw its members from")
        if study.stop or study.leaders:
            raise ValueError("Pbt goes without stop and leaders: it replaces the worse itself")
        if study.base.seconds is not None:
            raise ValueError(
                "Pbt counts training images: give a budget in epochs, updates or examples, "
                "not in seconds"
            )

    def configs(self, study: Study) -> list[TrialConfig]:
        """The members of the first generation."""
        import numpy as np

        rng = np.random.RandomState(self.sampling_seed)
        base = replace(study.base, until_share=1 / self.generations)
        return working(study.vary, rng, num=self.size, base=base)

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        """Members of a first generation: each generation trains as long."""
        configs = self.configs(study)
        return [configs[i % len(configs)] for i in range(num)]

    def total(self, study: Study, tables: Tables) -> int:
        """Every member in every generation; less where a population came to its end before."""
        has_ended = tables.asked and all(trial.key in tables.ended for trial in tables.asked)
        if has_ended and not self.next(study, tables, room=0):
            return len({trial.key for trial in tables.asked})
        return self.size * self.generations * study.seeds

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        """The first generation; then the next one of each population whose members have ended.

        A member without a score (diverged, failed) is replaced as the worst ones are. Each seed is
        a population of its own.
        """
        if not tables.asked:
            return trials_of(tables, self.configs(study), seeds=range(study.seeds))
        return [
            trial
            for seed in range(study.seeds)
            for trial in self._next_generation(study, tables, seed)
        ]

    def _next_generation(self, study: Study, tables: Tables, seed: int) -> list[PlannedTrial]:
        """None where a member has not ended, or where this was the last generation."""
        import numpy as np

        trials = [trial for trial in tables.asked if trial.config.seed == seed]
        generation = max(generation_of(trial.config, self) for trial in trials)
        members = [t for t in trials if generation_of(t.config, self) == generation]
        if generation == self.generations or any(t.key not in tables.ended for t in members):
            return []
        sign = 1 if study.mode == "max" else -1
        endings = {trial.key: tables.ended[trial.key] for trial in members}
        scores = {  # a generation but the last ends as stopped
            key: sign * float(ending[study.metric])
            for key, ending in endings.items()
            if ending["status"] == "stopped" and ending[study.metric] is not None
        }
        scores = {key: score for key, score in scores.items() if math.isfinite(score)}
        rng = np.random.RandomState([self.sampling_seed, seed, generation])
        configs = _configs_of_next(study.vary, self, members, scores, rng)
        share = (generation + 1) / self.generations
        return trials_of(
            tables, [replace(config, until_share=share) for config in configs], seeds=[seed]
        )


def generation_of(config: TrialConfig, explore: Pbt) -> int:
    """Which generation a trial belongs to, from 1."""
    return round(config.until_share * explore.generations)


def _configs_of_next(
    vary: Mapping[str, Any],
    explore: Pbt,
    members: Sequence[PlannedTrial],
    scores: Mapping[str, float],
    rng: "np.random.RandomState",
) -> list[TrialConfig]:
    """Each member's next config: its own, or for the worst a changed one of the best's."""
    ranked = sorted(members, key=lambda t: scores.get(t.key, -math.inf), reverse=True)
    num_replaced = max(1, int(explore.quantile * len(members)))
    best = [trial for trial in ranked[:num_replaced] if trial.key in scores]
    if not best:
        return []
    worst = {t.key for t in ranked[-num_replaced:]} | {
        t.key for t in members if t.key not in scores
    }
    configs = [replace(t.config, begins_from=t.key) for t in members if t.key not in worst]
    for _ in worst:
        donor = best[rng.randint(len(best))]
        values: dict[str, Any] = {
            name: perturbed(domain, getattr(donor.config, name), rng, resample=explore.resample)
            for name, domain in vary.items()
        }
        for _ in range(TRIES):
            changed = _changed(donor, values)
            if changed is not None and changed not in configs:
                configs.append(changed)
                break
            values = draw(vary, rng)
    return configs


def _changed(donor: PlannedTrial, values: Mapping[str, Any]) -> TrialConfig | None:
    """The donor with other values; None where they cannot work together."""
    try:
        return replace(donor.config, begins_from=donor.key, **values)
    except ValueError:
        return None
