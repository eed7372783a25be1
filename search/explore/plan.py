"""What several explorers share: combinations of values, their trials, and what is new."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from search.study.domains import as_searched, as_values, draw
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key, with_seed

if TYPE_CHECKING:
    import numpy as np

MOST_REFUSED = 100  # configurations in a row that cannot work


def values_of(vary: Mapping[str, object]) -> dict[str, Any]:
    """What varies as the values of a grid."""
    return {name: as_values(name, domain) for name, domain in vary.items()}


def drawn_from(vary: Mapping[str, object]) -> dict[str, Any]:
    """What varies as domains to draw from."""
    return {name: as_searched(name, domain) for name, domain in vary.items()}


def combinations(vary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of a grid's values."""
    values = (vary[name]["grid_search"] for name in vary)
    return [dict(zip(vary, combination, strict=True)) for combination in itertools.product(*values)]


def working(
    vary: Mapping[str, Any], rng: "np.random.RandomState", *, num: int, base: TrialConfig
) -> list[TrialConfig]:
    """`num` configurations drawn from the domains, without those that cannot work.

    Raises:
        ValueError: `MOST_REFUSED` in a row cannot work; the message has the last one's reason.
    """
    configs: list[TrialConfig] = []
    refused = 0
    while len(configs) < num:
        changes: dict[str, Any] = draw(vary, rng)
        try:
            configs.append(replace(base, **changes))
            refused = 0
        except ValueError as error:
            refused += 1
            if refused == MOST_REFUSED:
                raise ValueError(
                    f"{MOST_REFUSED} configurations in a row cannot work; the last, {changes}: "
                    f"{error}"
                ) from error
    return configs


def trials_of(
    tables: Tables,
    configs: Sequence[TrialConfig],
    *,
    seeds: Sequence[int],
    step: str = "",
    variant: str = "",
    whole: bool = False,
) -> list[PlannedTrial]:
    """The configurations' trials, seed by seed, so that a whole surface is there early."""
    seeded = (with_seed(config, seed) for seed in seeds for config in configs)
    return [
        PlannedTrial(trial_key(config, tables.data_fingerprint), config, step, variant, whole)
        for config in seeded
    ]


def large_batches_first(configs: Sequence[TrialConfig]) -> list[TrialConfig]:
    """Large batches are few updates, so the screen fills soon."""
    return sorted(configs, key=lambda config: -config.batch_size)


def without_repeats(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """Each trial once for each step and variant that asks for it."""
    return list({(trial.key, trial.step, trial.variant): trial for trial in trials}.values())


@dataclass
class Asked:
    """The keys asked for so far, of the study's own seeds and of further ones (`Leaders`).

    `num_own` counts those that were asked for twice twice.
    """

    own: set[str] = field(default_factory=set)
    further: set[str] = field(default_factory=set)
    num_own: int = 0
    looked_at: int = 0


def asked(study: Study, tables: Tables) -> Asked:
    """What was asked for so far; kept, since looking through all at each question takes long."""
    known: Asked = tables.memory.setdefault(("asked", study.seeds), Asked())
    if known.looked_at > len(tables.asked):
        known = tables.memory["asked", study.seeds] = Asked()
    for trial in tables.asked[known.looked_at :]:
        is_own = trial.config.seed < study.seeds
        (known.own if is_own else known.further).add(trial.key)
        known.num_own += is_own
    known.looked_at = len(tables.asked)
    return known


def not_asked(study: Study, tables: Tables, trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """Those of the trials whose keys were not asked for before."""
    known = asked(study, tables)
    new = [t for t in trials if t.key not in known.own and t.key not in known.further]
    return without_repeats(new)


def num_asked(study: Study, tables: Tables) -> int:
    """How many trials were asked for, of the study's own seeds."""
    return len(asked(study, tables).own)
