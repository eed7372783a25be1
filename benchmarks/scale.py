"""What a large study costs its driver: replayed through the real driver, without training.

    uv run python -m benchmarks.scale [--trials 1000 3000 10000 --epochs 50 --slots 200]
    uv run python -m benchmarks.scale --ray 16 --trials 300

Trials report rows of a plausible shape and train nothing. Without `--ray` a stand-in for Ray's
controller hands their reports to the real queue, recorder and tables as fast as they take them,
for `--slots` trials side by side; then, for `--paced-s` seconds, at `--rate` reports a second: the
shares of that replay are those of a driver that is not hurried. With `--ray N` all is real but
the training: Ray Tune, and N worker processes that report every `--every-s` seconds.

For each number of trials: seconds a trial, CPU of the driver and of its event loop, memory, files,
and seconds from the last trial to the written report. `--checkpoints` trains one small network
instead, and counts what it saves. Last line: one JSON object.
"""

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from rich.console import Console
from rich.table import Table

import search.execution.runner
from benchmarks.search import ROOT, memory_mib
from cluster.connect import connect, disconnect
from search import session
from search.execution.progress import Progress
from search.execution.queue import Queue
from search.execution.recorder import Recorder, Setting
from search.execution.runner import run_trials
from search.explore import Grid, Optuna
from search.explore.ask import ask, total
from search.results import lock, tables
from search.results.tables import Results
from search.study.explorer import Tables
from search.study.study import Study
from trainable import checkpoint
from trainable.config import TrialConfig
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.record import EpochResult, TrialResult

TRAIN_IMAGES = 50_000
BATCH_SIZES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
SEEDS = 5
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def study_of(num_trials: int, explorer: str) -> Study:
    """So many trials: a grid of ten batch sizes with five seeds a cell, or a search."""
    base = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=50)
    if explorer == "optuna":
        vary: dict[str, Any] = {
            "batch_size": tune.choice(BATCH_SIZES),
            "base_lr": tune.loguniform(1e-3, 10.0),
        }
        return Study(name="scale", base=base, vary=vary, explore=Optuna(num_configs=num_trials))
    num_lrs = math.ceil(num_trials / len(BATCH_SIZES) / SEEDS)
    lrs = [float(f"{1e-3 * 10 ** (4 * i / num_lrs):.4g}") for i in range(num_lrs)]
    vary = {"batch_size": tune.grid_search(BATCH_SIZES), "base_lr": tune.grid_search(lrs)}
    return Study(name="scale", base=base, vary=vary, seeds=SEEDS, explore=Grid())


def evaluations(planned: dict[str, Any], num_epochs: int) -> Iterator[dict[str, Any]]:
    """What a worker reports of a trial: its evaluations, then its end."""
    config = json.loads(planned["task"])["trials"][0]["config"]
    rng = random.Random(planned["key"])
    best = 0.9 - 0.03 * math.log10(config["base_lr"] / (0.002 * config["batch_size"])) ** 2
    best += rng.gauss(0, 0.004)
    updates = TRAIN_IMAGES // config["batch_size"]
    row: dict[str, Any] = {}
    for epoch in range(1, num_epochs + 1):
        score = best - 0.2 * 0.9**epoch + rng.gauss(0, 0.001)
        row = dict.fromkeys(EpochResult.__dataclass_fields__, 1) | {
            "epoch": epoch,
            "updates": updates * epoch,
            "examples_seen": TRAIN_IMAGES * epoch,
            "lr": config["base_lr"],
            "val_auroc": score,
            **{name: rng.random() for name in ("epochs_seen", "train_loss", "train_accuracy")},
            **{name: rng.random() for name in ("val_accuracy", "val_balanced_accuracy")},
            **{name: rng.random() for name in ("val_loss", "val_calibration_error")},
            **{name: rng.random() for name in ("grad_norm", "noise_scale", "noise_trace")},
            **{name: rng.random() for name in ("epoch_wall_s", "images_per_s")},
            "noise_squared_gradient": rng.random(),
        }
        yield {"epoch_row": row, "score": score, "examples_seen": row["examples_seen"]}
    ended = dict.fromkeys(TrialResult.__dataclass_fields__, 1) | {
        **{"status": "completed", "reason": "", "device": "none", "fast_paths": ""},
        **{"epochs_completed": num_epochs, "best_epoch": num_epochs, "collapsed": False},
        **{name: row[name] for name in row if name in TrialResult.__dataclass_fields__},
        **{"peak_lr": config["base_lr"], "test_auroc": row["val_auroc"] - 0.01},
        **{"train_wall_s": 100.0, "peak_memory_gib": 1.0},
        **{"num_gpus": 0.0, "host": "node", "started_at": NOW, "ended_at": NOW},
    }
    yield {"trial_row": ended, "score": row["val_auroc"], "examples_seen": row["examples_seen"]}


@dataclass
class Cost:
    """What one replay took; CPU in seconds, of the whole process and of its event loop."""

    trials: int
    reports: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    loop_cpu_s: float = 0.0
    loop_busy_s: float = 0.0
    peak_mib: float = 0.0
    files: int = 0
    report_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """By name, as the table's columns and the JSON object have them."""
        wall = max(self.wall_s, 1e-9)
        return {
            "trial_ms": 1000 * wall / self.trials,
            "report_cpu_ms": 1000 * self.cpu_s / max(1, self.reports),
            "report_loop_ms": 1000 * self.loop_busy_s / max(1, self.reports),
            "reports_per_s": self.reports / wall,
            "cpu_share": self.cpu_s / wall,
            "loop_cpu_share": self.loop_cpu_s / wall,
            "loop_busy_share": self.loop_busy_s / wall,
            "peak_mib": self.peak_mib,
            "files": self.files,
            "report_s": self.report_s,
        }


class Meter:
    """Measures the driver from when it is entered until it is left."""

    def __init__(self, cost: Cost) -> None:
        """Of this replay."""
        self.cost = cost

    def __enter__(self) -> "Meter":
        """Begin."""
        self.began = time.perf_counter(), time.process_time(), time.thread_time()
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        wall, cpu, loop = self.began
        self.cost.wall_s = time.perf_counter() - wall
        self.cost.cpu_s = time.process_time() - cpu
        self.cost.loop_cpu_s = time.thread_time() - loop
        self.look()

    def look(self) -> None:
        """Note the memory of now."""
        self.cost.peak_mib = max(self.cost.peak_mib, memory_mib())


def setting_of(study: Study, results: Results) -> Setting:
    """As the session makes it."""
    return Setting(
        study=study,
        results=results,
        tables=Tables("benchmark", results.folder),
        data_folder=None,
        dataset="synthetic",
        split="given",
        data_fingerprint="benchmark",
        train_images=TRAIN_IMAGES,
        attempts={},
    )


def progress_of(num_trials: int) -> Progress:
    """A screen that is not shown."""
    return Progress(Console(quiet=True), ["base_lr"], "val_auroc", total=num_trials, done_before=0)


class Played:
    """Stands for Ray's controller: `slots` trials side by side, which report in turn."""

    def __init__(self, setting: Setting, slots: int, num_epochs: int) -> None:
        """A queue and a recorder as the runner makes them."""
        self.num_epochs, self.slots = num_epochs, slots
        self.record = Recorder(setting, progress_of(0), None)
        task_of = search.execution.runner.task_of
        here: Any = SimpleNamespace(num_cpus=slots, num_gpus=0, address="local")

        def send(trials: Any) -> dict[str, Any]:
            self.record.expect(trials[0])
            self.record.progress.total = total(setting.study, setting.tables)
            return task_of(trials, setting, here)

        more = {"settle": self.record.settle} if hasattr(self.record, "settle") else {}
        self.queue = Queue(
            setting.study,
            setting.tables,
            ask(setting.study, setting.tables, room=1),
            send=send,
            slots=lambda: slots,
            **more,
        )
        self.under_way: deque[tuple[Any, Iterator[dict[str, Any]]]] = deque()
        self.trials: list[Any] = []
        self.number = itertools.count()
        self.busy_s = 0.0

    def fill(self) -> None:
        """Start trials while there are free slots."""
        while len(self.under_way) < self.slots and not self.queue.finished:
            trial_id = str(next(self.number))
            planned = self.queue.suggest(trial_id)
            if not isinstance(planned, dict):
                return
            trial = SimpleNamespace(
                trial_id=trial_id,
                config=planned,
                status="RUNNING",
                is_finished=lambda: False,
                storage=None,
                run_metadata=SimpleNamespace(metric_analysis={}, metric_n_steps={}),
            )
            self.trials.append(trial)
            self.record.on_trial_start(0, self.trials, trial)
            self.under_way.append((trial, evaluations(planned, self.num_epochs)))

    def step(self) -> bool:
        """The next report; whether there was one."""
        began = time.perf_counter()
        self.fill()
        self.busy_s += time.perf_counter() - began
        if not self.under_way:
            return False
        trial, reports = self.under_way.popleft()
        report = next(reports)  # the worker's work, not the driver's
        began = time.perf_counter()
        self.record.on_trial_result(0, self.trials, trial, report)
        if "trial_row" in report:
            self.record.on_trial_complete(0, self.trials, trial)
            self.queue.on_trial_complete(trial.trial_id, report)
            self.trials.remove(trial)
        else:
            self.under_way.append((trial, reports))
        self.record.on_step_end(0, self.trials)
        self.busy_s += time.perf_counter() - began
        return True


def play(setting: Setting, cost: Cost, options: argparse.Namespace) -> None:
    """Replay the whole study without Ray, as fast as the driver takes it."""
    with Meter(cost) as meter:
        played = Played(setting, options.slots, options.epochs)
        while played.step():
            cost.reports += 1
            if not cost.reports % 1000:
                meter.look()
        played.record.commit_interrupted()
    cost.loop_busy_s = played.busy_s


def paced(setting: Setting, cost: Cost, options: argparse.Namespace) -> None:
    """The first `paced_s` seconds of the study at `rate` reports a second."""
    with Meter(cost) as meter:
        played = Played(setting, options.slots, options.epochs)
        for number in range(int(options.paced_s * options.rate)):
            due = meter.began[0] + number / options.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            if not played.step():
                break
            cost.reports += 1
        played.record.commit_interrupted()
    cost.loop_busy_s = played.busy_s


def on_ray(setting: Setting, cost: Cost, options: argparse.Namespace) -> None:
    """Run the study on Ray with workers that only report."""
    num_epochs, every_s = options.epochs, options.every_s

    def trainable(planned: dict[str, Any]) -> None:
        for report in evaluations(planned, num_epochs):
            time.sleep(every_s)
            tune.report(report)

    cluster = connect("local")
    before = search.execution.runner.train_trial
    search.execution.runner.train_trial = trainable  # the one thing that is not ours here
    try:
        progress = progress_of(cost.trials)
        with Meter(cost), progress:
            run_trials(setting, ask(setting.study, setting.tables, room=1), cluster, progress)
    finally:
        search.execution.runner.train_trial = before
        disconnect()
    cost.reports = cost.trials * (num_epochs + 1)
    cost.loop_busy_s = cost.loop_cpu_s


def end(results: Results, study: Study, known: Tables, cost: Cost) -> None:
    """What follows the last trial: packing, and the report in a process of its own."""
    began = time.perf_counter()
    cost.files = tables.num_files(results)
    if cost.files > session.COMPACT_FROM:
        tables.pack_ended(results, known.ended)
    about = {
        "name": study.name,
        "metric": study.metric,
        "base": asdict(study.base),
        "vary": {name: values for name, values in study.vary.items() if isinstance(values, dict)},
        "explore": {"kind": type(study.explore).__name__},
        "seeds": study.seeds,
        "planned": [trial.key for trial in known.asked],
    }
    tables.commit_study(results, about)
    command = [sys.executable, "-m", "search.report", results.folder.uri]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    cost.report_s = time.perf_counter() - began


def measured(num_trials: int, options: argparse.Namespace, *, is_paced: bool = False) -> Cost:
    """One replay in a folder of its own, checked at its end."""
    cost = Cost(trials=num_trials)
    study = study_of(num_trials, options.explore)
    with ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory(dir=options.out))
        results = tables.open_results(out, "scale")
        stack.enter_context(lock.held(results.folder))
        setting = setting_of(study, results)
        how = paced if is_paced else on_ray if options.ray else play
        how(setting, cost, options)
        if is_paced:
            return cost
        if not options.no_report:
            end(results, study, setting.tables, cost)
        rows, ended = tables.epochs(results), tables.trials(results)
        assert len(ended) == num_trials, len(ended)  # noqa: S101
        assert len(rows) == num_trials * options.epochs, len(rows)  # noqa: S101
        assert not rows.duplicated(["trial_key", "epoch"]).any()  # noqa: S101
    return cost


def checkpoints(num_epochs: int) -> dict[str, float]:
    """States that a trial of short evaluations saves, after each and on a clock of 30 s."""
    import torch  # a replay has no use for it

    torch.set_num_threads(1)  # two on a busy machine wait for each other
    figures: dict[str, float] = {}
    config = TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        precision="fp32",
        optimizer="adam",
        epochs=num_epochs,
        image_size=32,
        train_images=128,
        eval_images=64,
    )
    save = checkpoint.save
    for name, every_s in {"each": 0.0, "clock": 30.0}.items():
        sizes: list[int] = []

        def counted(state: Any, folder: Any, *, token: str, sizes: list[int] = sizes) -> None:
            save(state, folder, token=token)
            path = Path(folder.uri)
            sizes.append(max(file.stat().st_size for file in path.iterdir()))

        checkpoint.save = counted
        with tempfile.TemporaryDirectory() as out:
            began = time.process_time()
            folder = Folder(out)
            for _ in finetune(config, checkpoint_folder=folder, checkpoint_every_s=every_s):
                pass
            figures[f"saves_{name}"] = len(sizes)
            figures[f"saved_mb_{name}"] = sum(sizes) / 1e6
            figures[f"trial_cpu_s_{name}"] = time.process_time() - began
    checkpoint.save = save
    return figures


def in_own_process(num_trials: int, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one replay, in a fresh process: memory is that of this study alone."""
    words = [*sys.argv[1:], "--trials", str(num_trials), "--one"]
    command = [sys.executable, "-m", "benchmarks.scale", *words]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def parsed() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--explore", choices=("grid", "optuna"), default="grid")
    parser.add_argument("--ray", type=int, default=0, help="worker processes; 0: no Ray")
    parser.add_argument("--every-s", type=float, default=0.1, help="between a worker's reports")
    parser.add_argument("--rate", type=float, default=100.0, help="reports a second when paced")
    parser.add_argument("--paced-s", type=float, default=60.0, help="0: no paced replay")
    parser.add_argument("--no-report", action="store_true")
    parser.add_argument("--checkpoints", action="store_true", help="only the states of a trial")
    parser.add_argument("--out", type=Path, help="folder to write in; default: a temporary one")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Replay each number of trials in a process of its own, then one paced."""
    options = parsed()
    if options.ray:
        os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": options.ray})
    if options.checkpoints:
        print(json.dumps({n: round(v, 3) for n, v in checkpoints(options.epochs).items()}))
        return
    if options.one:
        is_paced = options.trials == [0]
        num_trials = 10_000 if is_paced else options.trials[0]
        cost = measured(num_trials, options, is_paced=is_paced)
        print(json.dumps(cost.figures()))
        return
    rows = {str(number): in_own_process(number, options) for number in options.trials}
    if options.paced_s and not options.ray:
        rows[f"{options.rate:g}/s"] = in_own_process(0, options)
    table = Table(title=f"{options.epochs} evaluations a trial", box=None)
    for name in ("trials", *next(iter(rows.values()))):
        table.add_column(name, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *(f"{value:.3g}" for value in figures.values()))
    Console(width=160).print(table)
    flat = {
        f"{name}_{number}": round(value, 4)
        for number, figures in rows.items()
        for name, value in figures.items()
    }
    print(json.dumps(flat))


if __name__ == "__main__":
    main()
