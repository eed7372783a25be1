"""What several explorers share: combinations of values, their trials, and what is new."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search.study.domains import as_searched, as_values, draw
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key

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
    seeded = (replace(config, seed=seed) for seed in seeds for config in configs)
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


def not_asked(tables: Tables, trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """Those of the trials whose keys were not asked for before."""
    known = {trial.key for trial in tables.asked}
    return without_repeats([trial for trial in trials if trial.key not in known])


def num_asked(study: Study, tables: Tables) -> int:
    """How many trials were asked for, of the study's own seeds."""
    return len({trial.key for trial in tables.asked if trial.config.seed < study.seeds})
