"""Whether each space's preview has the trials that its expectations need."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import ROOT
from helpers import batches_of, no_tables

from search.analysis.expected import NOT_MEASURED, verdicts
from search.analysis.groups import branches
from search.execution.provenance import (
    _step_trials,
    domain_as_json,
    expectations_as_json,
    part_as_json,
)
from search.report.sentences.expected import told
from search.study.preview import as_preview
from search.study.space_file import load_study
from trainable.config import SCORES

SPACES = sorted(p for p in (ROOT / "spaces").glob("*.py") if "expect=" in p.read_text())


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "preview", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["preview", "whole"]
)
def test_what_a_space_expects_can_be_measured(
    space: Path, preview: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = load_study(space)
    study = as_preview(declared, dataset="synthetic") if preview else declared
    study = replace(study, seeds=2)
    known = no_tables(tmp_path)
    rng = np.random.default_rng(0)
    batches_of(study, lambda config: 0.7 + 0.1 * rng.random(), tables=known, room=10_000)
    rows = [
        {**asdict(trial.config), "trial_key": trial.key, "status": known.ended[trial.key]["status"]}
        for trial in known.asked
    ]
    trials = branches(pd.DataFrame(rows).drop_duplicates("trial_key"))
    for name in [*SCORES, *(score.replace("val_", "test_") for score in SCORES)]:
        trials[name] = 0.7 + 0.1 * rng.random(len(trials))
    about: dict[str, Any] = {
        "base": asdict(study.base),
        "vary": {name: domain_as_json(domain) for name, domain in study.vary.items()},
        "explore": part_as_json(study.explore),
        "step_trials": _step_trials(known),
        "expect": expectations_as_json(study),
    }
    monkeypatch.setattr("search.analysis.effects.PERMUTATIONS", 99)
    found = verdicts(trials, about, [], metric=study.metric, mode=study.mode)
    for verdict in found:
        # Of noise there is no exponent, and a preview has other networks.
        if verdict.kind != "Exponent" and not (preview and "no trial has model=" in verdict.why):
            assert verdict.outcome != NOT_MEASURED, told(verdict)
