"""What a trial costs beside its training: Ray Tune as in its documentation, and ours.

    uv run python -m benchmarks.search [--trials 200 --torch-trials 200 --bare-trials 20]

First the seconds from a new command to its first result. Then one after the other on one cluster:
trials that do nothing, and trials that import torch and train for 0.2 s. Overhead is wall time x
parallel slots / trials, less the training. `noop_s_N` is the whole wall time of N trials that do
nothing, by trial; `noop_growth` compares the last quarter of many with the first, and
`memory_growth_mib` is the driver's over the last 3,000. Last line: one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from search.explore.ask import ask
from search.results import tables
from search.study.explorer import Tables
from search.study.study import Study
from trainable.config import TrialConfig

TRAIN_S = 0.2
ROOT = Path(__file__).parent.parent
# A study of two trials of about a second, and a plain script with a torch function as long.
FIRST_STUDY = """
from ray import tune
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="first",
    base=TrialConfig(
        dataset="synthetic", model="plain", pretrained="none", precision="fp32", epochs=1,
        train_images=512, eval_images=256,
    ),
    vary={"base_lr": tune.grid_search([0.1, 0.2])},
)
"""
FIRST_BARE = """
import os, time
import ray
from ray import tune

class First(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        print("first result", flush=True)

def train(config):
    import torch
    started = time.perf_counter()
    a = torch.ones(128, 128)
    while time.perf_counter() - started < 0.9:
        a = (a @ a).clamp(max=1)
    tune.report({"loss": config["lr"]})

ray.init("local")  # without an address Ray would join whatever cluster this machine has had
tune.Tuner(
    train,
    param_space={"lr": tune.grid_search([0.1, 0.2])},
    run_config=tune.RunConfig(storage_path=os.path.abspath("tune"), verbose=0, callbacks=[First()]),
).fit()
"""


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
    """Seconds for so many trials of a grid; when each row was committed, and the memory then."""

    def trainable(planned: dict[str, Any]) -> None:
        train()
        row = {"status": "completed", "reason": "", "examples_seen": 0}
        tune.report({"trial_row": row, "score": 0.0, "examples_seen": 0})

    base = TrialConfig(dataset="synthetic", model="plain", pretrained="none")
    study = Study(name="overhead", base=base, vary={}, seeds=trials)
    ended: list[float] = []
    held_mib: list[float] = []
    commit = tables.commit_trial

    def timed_commit(*arguments: Any) -> None:
        commit(*arguments)
        ended.append(time.perf_counter())
        held_mib.append(memory_mib())

    with tempfile.TemporaryDirectory() as folder:
        results = tables.open_results(folder, "overhead")
        known = Tables("benchmark", results.folder)
        setting = Setting(
            study=study,
            results=results,
            tables=known,
            data_folder=None,
            dataset="synthetic",
            split="given",
            data_fingerprint="benchmark",
            train_images=1,
            attempts={},
        )
        quiet = Console(quiet=True)
        progress = Progress(quiet, ["base_lr"], "val_auroc", total=trials, done_before=0)
        before = search.execution.runner.train_trial
        search.execution.runner.train_trial = trainable  # the one thing that is not ours here
        tables.commit_trial = timed_commit
        started = time.perf_counter()
        try:
            with progress:
                run_trials(setting, ask(study, known, room=1), cluster, progress)
        finally:
            search.execution.runner.train_trial, tables.commit_trial = before, commit
        seconds = time.perf_counter() - started
        assert tables.num_files(results) == trials  # noqa: S101
    return seconds, [started, *ended], held_mib


def memory_mib() -> float:
    """Resident memory of this process, the driver."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def first_result_s(command: list[str], mark: str) -> float:
    """Seconds until a command, started anew, prints `mark`.

    Raises:
        RuntimeError: it ended before.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        with subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,  # a file: what Ray leaves behind would keep a pipe open
            stderr=subprocess.STDOUT,
        ) as process:
            while True:
                has_ended = process.poll() is not None
                printed = os.pread(output.fileno(), 1_000_000, 0).decode()  # leaves the offset
                if mark in printed:
                    return time.perf_counter() - started
                if has_ended:
                    raise RuntimeError(f"{command} printed no {mark!r}: {printed[-2000:]}")
                time.sleep(0.02)


def first_results() -> tuple[float, float]:
    """Seconds to the first evaluation of a new command: ours, and a plain script's."""
    with tempfile.TemporaryDirectory() as folder:
        space, plain = Path(folder) / "first.py", Path(folder) / "plain.py"
        space.write_text(FIRST_STUDY)
        plain.write_text(FIRST_BARE)
        own_s = first_result_s([sys.executable, "-m", "search.run", str(space)], "[1/")
        bare_s = first_result_s([sys.executable, str(plain)], "first result")
    return own_s, bare_s


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--torch-trials", type=int, default=200)
    parser.add_argument("--bare-trials", type=int, default=20)  # each starts a process: seconds
    parser.add_argument("--many", type=int, default=5000)
    return parser.parse_args()


def main() -> None:
    """Run all four, then many trials that do nothing."""
    options = _options()
    own_first_s, bare_first_s = first_results()
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)  # as the bare one has it
    cluster = connect("local")
    slots = cluster.num_cpus
    walls: dict[tuple[str, str], float] = {}
    try:
        walls["bare", "nothing"] = bare(lambda: None, options.bare_trials)
        walls["bare", "torch"] = bare(train_with_torch, options.bare_trials)
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        walls["ours", "nothing"], _, _ = ours(lambda: None, options.trials, cluster)
        walls["ours", "torch"], _, _ = ours(train_with_torch, options.torch_trials, cluster)
        many_s, times, held_mib = ours(lambda: None, options.many, cluster)
    finally:
        disconnect()
    counts = {
        ("bare", "nothing"): options.bare_trials,
        ("bare", "torch"): options.bare_trials,
        ("ours", "nothing"): options.trials,
        ("ours", "torch"): options.torch_trials,
    }
    training = {"nothing": 0.0, "torch": TRAIN_S}
    overhead = {
        (who, what): wall * slots / counts[who, what] - training[what]
        for (who, what), wall in walls.items()
    }
    _print_table(overhead, slots)
    quarter = options.many // 4
    first = times[quarter] - times[1]  # from the first end: before it Ray starts workers
    last = times[-1] - times[-1 - quarter]
    figures = {
        "first_result_s": own_first_s,
        "bare_first_result_s": bare_first_s,
        "overhead_s": overhead["ours", "torch"],
        "bare_overhead_s": overhead["bare", "torch"],
        "overhead_ratio_torch": overhead["bare", "torch"] / overhead["ours", "torch"],
        "overhead_nothing_s": overhead["ours", "nothing"],
        "bare_overhead_nothing_s": overhead["bare", "nothing"],
        f"noop_s_{options.trials}": walls["ours", "nothing"] / options.trials,
        f"noop_s_{options.many}": many_s / options.many,
        "noop_growth": last / first,
        "memory_growth_mib": held_mib[-1] - held_mib[-1 - min(3000, options.many * 3 // 4)],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def _print_table(overhead: dict[tuple[str, str], float], slots: int) -> None:
    table = Table(title=f"overhead a trial, {slots} slots", box=None)
    for name in ("", "bare Ray Tune, s", "ours, s", "ratio"):
        table.add_column(name, justify="right")
    for what in ("nothing", "torch"):
        plain, own = overhead["bare", what], overhead["ours", what]
        table.add_row(what, f"{plain:.3f}", f"{own:.3f}", f"{plain / own:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
