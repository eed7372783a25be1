"""A study of 100,000 planned trials, half of them done: planned, shown and gone on with."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from search.explore.ask import ask
from search.results import files, tables
from search.results.tables import EPOCHS, TRIALS, Results
from search.study.explorer import PlannedTrial, Tables
from search.study.space_file import load_study
from trainable.data.cache import open_data

SPACE = """
from ray import tune
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="many",
    base=TrialConfig(
        dataset="synthetic", model="plain", pretrained="none", precision="fp32", epochs=50,
        train_images=512, eval_images=256,
    ),
    vary={{
        "batch_size": tune.grid_search([16, 32, 64, 128, 256]),
        "base_lr": tune.grid_search([float(f"{{1e-3 * 1.2 ** i:.6g}}") for i in range(40)]),
        "momentum": tune.grid_search([0.0, 0.5, 0.8, 0.9, 0.95]),
        "weight_decay": tune.grid_search([i / 1e4 for i in range({num_decays})]),
    }},
    seeds=5,
)
"""
# Runs a command and prints its seconds and its peak memory.
MEASURED = """
import resource, sys, time
from search.execution import runner
from search.run import main

def no_training(*of):
    print("would train", len(of[1]), flush=True)
    return True

began = time.monotonic()
if "--dry-run" not in sys.argv:
    import search.execution.runner as runner
    runner.run_trials = no_training
status = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"MEASURED {time.monotonic() - began:.1f} {peak:.0f} {status}")
"""
NUM_EPOCHS = 50
A_PACK = 1000  # trials


def filled(schema: pa.Schema, known: dict[str, object], num: int) -> pa.Table:
    """A table with these columns and a number in every other one."""
    rng = np.random.default_rng(0)
    columns = []
    for column in schema:
        values = known.get(column.name)
        if values is None and column.type == pa.float64():
            values = rng.random(num)
        elif values is None and column.type == pa.int64():
            values = np.ones(num, dtype=int)
        if values is None:
            columns.append(pa.nulls(num, column.type))
        else:
            columns.append(pa.array(values, column.type))
    return pa.table(columns, schema=schema)


def write_ended(results: Results, trials: Sequence[PlannedTrial]) -> None:
    """Packed files of trials that ended, as the driver packs them."""
    for begin in range(0, len(trials), A_PACK):
        pack = trials[begin : begin + A_PACK]
        keys = np.array([trial.key for trial in pack])
        fields = [asdict(trial.config) for trial in pack]
        known: dict[str, object] = {n: [row[n] for row in fields] for n in fields[0]}
        known |= {"study": ["many"] * len(pack), "trial_key": keys, "reason": [""] * len(pack)}
        known |= {"status": ["completed"] * len(pack)}
        known |= {"epochs_completed": [NUM_EPOCHS] * len(pack)}
        rows = filled(TRIALS, known, len(pack))
        files._write_table(results / "trials", f"packed-{begin:06d}.parquet", rows)
        known = {"trial_key": np.repeat(keys, NUM_EPOCHS)}
        known |= {"study": ["many"] * len(pack) * NUM_EPOCHS}
        known |= {"epoch": np.tile(np.arange(1, NUM_EPOCHS + 1), len(pack))}
        rows = filled(EPOCHS, known, len(pack) * NUM_EPOCHS)
        files._write_table(results / "epochs", f"packed-{begin:06d}.parquet", rows)


def make(folder: Path, num_decays: int) -> tuple[Path, int]:
    """A space file, and its results with every second trial ended."""
    space = folder / "many.py"
    space.write_text(SPACE.format(num_decays=num_decays))
    results = tables.open_results(str(folder), "many")
    fingerprint = open_data("synthetic", None).fingerprint
    planned = ask(load_study(space), Tables(fingerprint, results.folder), room=0)
    write_ended(results, planned[: len(planned) // 2])
    return space, len(planned)


def measured(*words: str) -> tuple[float, float, int, str]:
    """Seconds, MiB and exit status of a command in a process of its own, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert lines[-1].startswith("MEASURED"), done.stdout[-3000:] + done.stderr[-3000:]
    seconds, mib, status = lines[-1].split()[1:]
    return float(seconds), float(mib), int(status), done.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("num_decays", [20])
def test_a_hundred_thousand_planned_trials(tmp_path: Path, num_decays: int) -> None:
    space, num = make(tmp_path, num_decays)
    began = time.monotonic()
    load_study(space)
    figures = {"load_s": time.monotonic() - began}
    for name, words in {"dry_run": ["--dry-run"], "go_on": []}.items():
        seconds, mib, status, printed = measured(str(space), "--out", str(tmp_path), *words)
        figures |= {f"{name}_s": seconds, f"{name}_mib": mib}
        print(printed[-1500:])
    print(json.dumps(figures))
    assert f"would train {num // 2}" in printed
    assert status == 75  # nothing was trained
    assert figures["dry_run_s"] < 60
    assert figures["dry_run_mib"] < 2048
    assert figures["go_on_s"] < 60
    assert figures["go_on_mib"] < 2048
