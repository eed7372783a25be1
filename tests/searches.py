"""Searches without Ray, as several test files use them."""

from pathlib import Path
from typing import Any

from ray import tune

from search.explore import Optuna
from search.explore.journal import (
    Journal,
)
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import folder_at

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
VARY = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(num_configs: int = 4, **changes: Any) -> Study:
    given = {
        n: changes.pop(n) for n in ("points", "space", "objectives", "warm_start") if n in changes
    }
    explore = Optuna(num_configs=num_configs, sampler="random", **given)
    return Study(**({"name": "s", "base": BASE, "vary": VARY, "explore": explore} | changes))


def opened(declared: Study, folder: Path) -> Journal:
    explore: Any = declared.explore
    return Journal(declared, explore, folder_at(str(folder)), data_fingerprint="d")


def known(folder: Path, ended: dict[str, Any] | None = None) -> Tables:
    """What a command knows of a study when it begins."""
    return Tables(data_fingerprint="d", folder=folder_at(str(folder)), ended=ended or {})


def beside(folder: Path) -> Path:
    """A folder of another study."""
    (folder / "other").mkdir()
    return folder / "other"


def all_ended(trials: list[PlannedTrial], score: float = 0.5) -> dict[str, Any]:
    return {trial.key: {"status": "completed", "val_auroc": score} for trial in trials}


def drawn_once(trial: Any) -> dict[str, object]:
    return {"base_lr": trial.suggest_float("base_lr", 1e-3, 1.0)}
