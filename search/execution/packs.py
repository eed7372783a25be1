"""Packs: trials that train together in one of Ray's, which then stands for all of them."""

from collections.abc import Hashable, Mapping
from typing import Any

from ray.tune.schedulers import TrialScheduler

from search.study.explorer import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.packing import pack_key, shares_work
from trainable.ray_adaptor import stop_member

AUTO_SIZE = 8


def pack_size(study: Study, config: TrialConfig) -> int:
    """How many trials of this kind train together at most; under `auto` where that is faster."""
    if study.pack == "auto":
        return AUTO_SIZE if shares_work(config) else 1
    return int(study.pack)


def kind_of(study: Study, trial: PlannedTrial) -> Hashable:
    """What the trials of a pack have in common; of a trial that trains alone, its own key."""
    common = pack_key(trial.config)
    if common is None or pack_size(study, trial.config) == 1:
        return trial.key
    return common, trial.whole


def keys_of(trial: Any) -> list[str]:
    """The keys of the trials that one of Ray's stands for."""
    return trial.config.get("pack") or [trial.config["key"]]


def key_of(trial: Any, result: Mapping[str, Any]) -> str:
    """The key of the trial that reports."""
    key: str = result.get("key") or trial.config["key"]
    return key


def stop(trial: Any, key: str) -> str:
    """Stop a trial: what to answer Ray, which goes on with the others of a pack."""
    if trial.config.get("pack") is None:
        return TrialScheduler.STOP
    stop_member(key)
    return TrialScheduler.CONTINUE
