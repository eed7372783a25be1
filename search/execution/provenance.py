"""How results were made, for study.json."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray.tune.search.sample import Categorical, Integer

from search.execution.preflight import Ready
from search.study.domains import ends_of, is_log, step_of
from search.study.explorer import Tables
from search.study.space_file import space_sha256
from search.study.study import Study

PACKAGES = ("ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "scikit-learn")


def provenance(
    ready: Ready, known: Tables, *, space_file: Path | None, settings: Sequence[str], preview: bool
) -> dict[str, object]:
    """The study as data, its space file's digest, versions, commit and hardware."""
    study = ready.study
    return {
        "name": study.name,
        "base": asdict(study.base),
        "vary": {name: domain_as_json(domain) for name, domain in study.vary.items()},
        "explore": part_as_json(study.explore),
        "stop": part_as_json(study.stop),
        "leaders": part_as_json(study.leaders),
        "expect": expectations_as_json(study),
        "seeds": study.seeds,
        "metric": study.metric,
        "gpus_per_trial": study.gpus_per_trial,
        "space_file": str(space_file) if space_file else None,
        "space_sha256": space_sha256(space_file) if space_file else None,
        "settings": list(settings),
        "preview": preview or study.base.dataset == "synthetic",
        "data_folder": str(ready.data_folder) if ready.data_folder else None,
        "data_fingerprint": ready.data_fingerprint,
        "planned": list(dict.fromkeys(trial.key for trial in known.asked)),
        "step_trials": _step_trials(known),
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _step_trials(known: Tables) -> dict[str, list[str]]:
    """The keys of the trials that each step of an ablation, or each variant, asked for."""
    keys: dict[str, list[str]] = {}
    for trial in known.asked:
        if name := trial.step or trial.variant:
            keys.setdefault(name, []).append(trial.key)
    return keys


def domain_as_json(domain: Any) -> dict[str, Any]:
    """A grid, a choice of values, or a range with both ends (see search.analysis.declared)."""
    if isinstance(domain, dict):
        return domain
    if isinstance(domain, Categorical):
        return {"choice": list(domain.categories)}
    declared: dict[str, Any] = {
        "range": list(ends_of(domain)),
        "scale": "log" if is_log(domain) else "linear",
    }
    declared |= {"step": step} if (step := step_of(domain)) else {}
    return declared | ({"whole": True} if isinstance(domain, Integer) else {})


def part_as_json(part: object) -> dict[str, Any] | None:
    """A study's explorer, stopper or leaders: its kind, then its fields."""
    if part is None or not is_dataclass(part):
        return None
    values = {declared.name: getattr(part, declared.name) for declared in fields(part)}
    # A define-by-run function goes by its name.
    plain = {name: getattr(value, "__name__", value) for name, value in values.items()}
    return {"kind": type(part).__name__, **plain}


def expectations_as_json(study: Study) -> list[dict[str, Any]]:
    """What the study's source reports, as study.json has it."""
    parts = [part_as_json(expectation) for expectation in study.expect]
    as_read: list[dict[str, Any]] = json.loads(json.dumps(parts))
    return as_read


def commit() -> str | None:
    """The commit of this code, or None outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
