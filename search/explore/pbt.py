"""Population based training: the generations of a Pbt study, from its tables alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from search.explore.declarations import Pbt
from search.explore.plan import PlannedTrial
from search.results.tables import Results
from search.study.domains import draw, perturbed
from search.study.study import Study
from trainable.config import SCORES, TrialConfig, trial_key
from trainable.host import storage

TRIES = 100  # at drawing a configuration that no other member has


def next_generation(
    study: Study, planned: Sequence[PlannedTrial], trials: pd.DataFrame, *, data_fingerprint: str
) -> list[PlannedTrial]:
    """The members' next trials once all of a generation have ended; none after the last one.

    A member without a score (diverged, failed) is replaced as the worst ones are. Each seed is a
    population of its own. The same tables give the same generation again.
    """
    explore = study.explore
    if not isinstance(explore, Pbt):
        raise TypeError("only a Pbt study has generations")
    sign = 1 if SCORES[study.metric] == "max" else -1
    rows = trials[trials["status"] == "stopped"]  # a generation but the last ends so
    scores = dict(zip(rows["trial_key"], sign * rows[study.metric], strict=True))
    scores = {key: score for key, score in scores.items() if math.isfinite(score)}
    new: list[PlannedTrial] = []
    for seed in sorted({trial.config.seed for trial in planned}):
        own = [trial for trial in planned if trial.config.seed == seed]
        generation = max(generation_of(trial.config, explore) for trial in own)
        if generation == explore.generations:
            continue
        members = [t for t in own if generation_of(t.config, explore) == generation]
        rng = np.random.RandomState([explore.sampling_seed, seed, generation])
        configs = _configs_of_next(study.vary, explore, members, scores, rng)
        share = (generation + 1) / explore.generations
        for config in configs:
            each = replace(config, until_share=share)
            new.append(PlannedTrial(trial_key(each, data_fingerprint), each))
    return new


def generation_of(config: TrialConfig, explore: Pbt) -> int:
    """Which generation a trial belongs to, from 1."""
    return round(config.until_share * explore.generations)


def _configs_of_next(
    vary: Mapping[str, Any],
    explore: Pbt,
    members: Sequence[PlannedTrial],
    scores: Mapping[str, float],
    rng: np.random.RandomState,
) -> list[TrialConfig]:
    """Each member's next config: its own, or for the worst a changed one of the best's."""
    ranked = sorted(members, key=lambda t: scores.get(t.key, -math.inf), reverse=True)
    some = max(1, int(explore.quantile * len(members)))
    best = [trial for trial in ranked[:some] if trial.key in scores]
    if not best:
        return []
    worst = {t.key for t in ranked[-some:]} | {t.key for t in members if t.key not in scores}
    configs = [replace(t.config, begins_from=t.key) for t in members if t.key not in worst]
    for _ in worst:
        donor = best[rng.randint(len(best))]
        values: dict[str, Any] = {
            name: perturbed(domain, getattr(donor.config, name), rng, resample=explore.resample)
            for name, domain in vary.items()
        }
        for _ in range(TRIES):
            changed = replace(donor.config, begins_from=donor.key, **values)
            if changed not in configs:
                configs.append(changed)
                break
            values = draw(vary, rng)
    return configs


def lineage(trials: pd.DataFrame, key: str) -> pd.DataFrame:
    """The rows of a trial and of those it went on from, the first generation first."""
    by_key = trials.set_index("trial_key", drop=False)
    keys = [key]
    while isinstance(before := by_key.loc[keys[-1], "begins_from"], str) and before in by_key.index:
        keys.append(before)
    return by_key.loc[keys[::-1]].reset_index(drop=True)


def delete_states(results: Results, planned: Sequence[PlannedTrial]) -> None:
    """Remove what later generations went on from, once there are none to come."""
    from trainable import checkpoint  # torch, which a command with nothing to run spares

    for trial in planned:
        if storage.names(folder := results / "checkpoints" / trial.key, ".pt"):
            checkpoint.delete(folder)
