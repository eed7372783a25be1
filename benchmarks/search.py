"""What a trial costs beside its training: Ray Tune as in its documentation, and ours.

    uv run python -m benchmarks.search [--trials 200 --torch-trials 40 --many 2000]

One after the other on one cluster: trials that do nothing, and trials that import torch and train
for 0.2 s. Overhead is wall time x parallel slots / trials, less the training. Growth, of seconds a
trial and of the driver's memory, is over the last three quarters of many trials that do nothing.
Last line: one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from rich.table import Table

import search.execution.runner
from cluster.connect import Cluster, connect, disconnect
from search.execution.progress import Progress
from search.execution.recorder import Setting
from search.execution.runner import run_trials
from search.explore.plan import PlannedTrial
from search.results import tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key

TRAIN_S = 0.2


def train_with_torch() -> None:
    """Stands for a trial: torch's import, and matrix products for 0.2 s."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    a = torch.ones(128, 128)
    while time.perf_counter() - started < TRAIN_S:
        a = (a @ a).clamp(max=1)


def bare(train: Callable[[], None], trials: int) -> float:
    """Seconds for so many trials of a plain function trainable with Ray's defaults."""

    def trainable(config: dict[str, Any]) -> None:
        train()
        tune.report({"score": config["x"]})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            trainable,
            param_space={"x": tune.grid_search(list(range(trials)))},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        started = time.perf_counter()
        tuner.fit()
        return time.perf_counter() - started


def ours(
    train: Callable[[], None], trials: int, cluster: Cluster
) -> tuple[float, list[float], list[float]]:
    """Seconds for so many trials through our runner; when each row was committed, and memory."""

    def trainable(planned: dict[str, Any]) -> None:
        train()
        row = {"status": "completed", "reason": "", "examples_seen": 0}
        tune.report({"trial_row": row, "score": 0.0, "examples_seen": 0})

    base = TrialConfig(dataset="synthetic", model="plain", pretrained="none")
    configs = [replace(base, seed=seed) for seed in range(trials)]
    planned = [PlannedTrial(trial_key(config, "benchmark"), config) for config in configs]
    ended: list[float] = []
    held_mib: list[float] = []
    commit = tables.commit_trial

    def timed_commit(*arguments: Any) -> None:
        commit(*arguments)
        ended.append(time.perf_counter())
        held_mib.append(memory_mib())

    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            study=Study(name="overhead", base=base, vary={}),
            results=tables.open_results(folder, "overhead"),
            data_folder=None,
            data_fingerprint="benchmark",
            train_images=1,
            attempts={},
        )
        quiet = Console(quiet=True)
        progress = Progress(quiet, ["base_lr"], "val_auroc", {}, total=trials, done_before=0)
        before = search.execution.runner.train_trial
        search.execution.runner.train_trial = trainable  # the one thing that is not ours here
        tables.commit_trial = timed_commit
        started = time.perf_counter()
        try:
            with progress:
                run_trials(setting, planned, cluster, progress)
        finally:
            search.execution.runner.train_trial, tables.commit_trial = before, commit
        seconds = time.perf_counter() - started
        assert len(tables.trials(setting.results)) == trials  # noqa: S101
    return seconds, [started, *ended], held_mib


def memory_mib() -> float:
    """Resident memory of this process, the driver."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run all four, then many trials that do nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--torch-trials", type=int, default=40)
    parser.add_argument("--many", type=int, default=2000)
    given = parser.parse_args()
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)  # as the bare one has it
    cluster = connect("local")
    slots = cluster.num_cpus
    try:
        walls: dict[tuple[str, str], float] = {}
        walls["bare", "nothing"] = bare(lambda: None, given.trials)
        walls["bare", "torch"] = bare(train_with_torch, given.torch_trials)
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        walls["ours", "nothing"], _, _ = ours(lambda: None, given.trials, cluster)
        walls["ours", "torch"], _, _ = ours(train_with_torch, given.torch_trials, cluster)
        _, times, held_mib = ours(lambda: None, given.many, cluster)
    finally:
        disconnect()
    counts = {"nothing": given.trials, "torch": given.torch_trials}
    training = {"nothing": 0.0, "torch": TRAIN_S}
    overhead = {
        (who, what): wall * slots / counts[what] - training[what]
        for (who, what), wall in walls.items()
    }
    quarter = given.many // 4
    first = times[quarter] - times[1]  # from the first end: before it Ray starts workers
    last = times[-1] - times[-1 - quarter]
    table = Table(title=f"overhead a trial, {slots} slots", box=None)
    for name in ("", "bare Ray Tune, s", "ours, s", "ratio"):
        table.add_column(name, justify="right")
    for what in counts:
        b, o = overhead["bare", what], overhead["ours", what]
        table.add_row(f"{counts[what]} trials, {what}", f"{b:.3f}", f"{o:.3f}", f"{b / o:.1f}")
    Console().print(table)
    figures = {
        "overhead_s": overhead["ours", "torch"],
        "bare_overhead_s": overhead["bare", "torch"],
        "overhead_ratio_torch": overhead["bare", "torch"] / overhead["ours", "torch"],
        "overhead_nothing_s": overhead["ours", "nothing"],
        "bare_overhead_nothing_s": overhead["bare", "nothing"],
        "noop_growth": last / first,
        "memory_growth_mib": held_mib[-1] - held_mib[quarter],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
