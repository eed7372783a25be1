"""How fast a report is written, and how large its page is.

    uv run python -m benchmarks.report [--seeds 10 --epochs 50]

Made-up studies of ten batch sizes by twenty learning rates: a score is a hump in log lr, and each
trial has its epochs. The command `python -m search.report` is timed as a whole, in a process of its
own (median of five), and by its parts in this one, one after the other. Beside it: the time to
import what it needs.
Last line: one JSON object.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from search.results.tables import EPOCHS, TRIALS, Results, commit_study, open_results
from trainable.config import TrialConfig

BATCH_SIZES = tuple(2**k for k in range(4, 14))
LRS = tuple(float(f"{lr:.3g}") for lr in np.geomspace(0.001, 10, 20))
IMPORTS = "import search.report.__main__"


def make(out: str, *, seeds: int, epochs: int) -> Results:
    """A study's folder, packed: a trial for each setting and seed."""
    rng, trials, evaluations = np.random.default_rng(0), [], []
    for at, (batch_size, lr, seed) in enumerate(itertools.product(BATCH_SIZES, LRS, range(seeds))):
        config = TrialConfig(batch_size=batch_size, base_lr=lr, seed=seed, epochs=epochs)
        behind = 0.02 * np.log(lr / (0.0002 * batch_size)) ** 2
        scores = 0.9 - behind - 0.2 * 0.9 ** np.arange(epochs) + rng.normal(0, 0.004, epochs)
        scores = np.clip(scores, 0.3, 1.0)
        identity = {"study": "made", "trial_key": f"{at:016x}", "seed": seed, "attempt": 1}
        best = {"val_auroc": float(scores.max()), "val_loss": float(1 - scores.max())}
        ended = {"status": "completed", "epochs_completed": epochs, "train_wall_s": 2.0 * epochs}
        cost = {"images_per_s": 900.0, "num_gpus": 0.0, "device": "cpu", "noise_scale": 90.0}
        trials.append(asdict(config) | identity | best | ended | cost)
        evaluations += [
            identity
            | {"epoch": epoch, "updates": 100 * epoch, "examples_seen": 100 * epoch * batch_size}
            | {"val_auroc": float(score), "val_loss": float(1 - score), "epoch_wall_s": 2.0}
            for epoch, score in enumerate(scores, 1)
        ]
    results = open_results(out, "made")
    vary = {"batch_size": {"grid_search": BATCH_SIZES}, "base_lr": {"grid_search": LRS}}
    commit_study(results, {"name": "made", "metric": "val_auroc", "vary": vary})
    for name, schema, rows in (("trials", TRIALS, trials), ("epochs", EPOCHS, evaluations)):
        folder = Path(out, "made", name)
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "all.parquet")
    return results


def command_s(*words: str) -> float:
    """Seconds of a command of this Python."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - began


@contextmanager
def timed(name: str, into: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of the block."""
    began = time.perf_counter()
    yield
    into[name] = time.perf_counter() - began


def parts_s(results: Results) -> dict[str, float]:
    """Seconds of the parts of a report, in this process."""
    from search.report.drawing import files_of
    from search.report.findings import of_study
    from search.report.page import bundle, render
    from search.report.report import other_pictures, pictures_of

    parts: dict[str, float] = {}
    bundle()
    with timed("statistics", parts):
        findings = of_study(results)
    with timed("charts", parts):
        pictures, others = pictures_of(findings), other_pictures(findings)
    with timed("page", parts):
        render(findings, pictures, others)
    for name, picture in pictures.items():
        with timed(f"drawing {name}", parts):
            files_of(picture.spec)
    return parts


def main() -> None:
    """Make a study, report it, print the times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = make(folder, seeds=arguments.seeds, epochs=arguments.epochs)
        where = results.folder.uri
        whole_s = statistics.median(command_s("-m", "search.report", where) for _ in range(5))
        page_mb = Path(where, "report.html").stat().st_size / 1e6
        figures: dict[str, Any] = {"report_s": whole_s, "import_s": command_s("-c", IMPORTS)}
        parts = parts_s(results)
    num_trials = len(BATCH_SIZES) * len(LRS) * arguments.seeds
    table = Table(title=f"a report of {num_trials:,} trials x {arguments.epochs} epochs", box=None)
    table.add_column("")
    table.add_column("s", justify="right")
    for name, seconds in {**figures, **parts}.items():
        table.add_row(name, f"{seconds:.2f}")
    Console().print(table)
    print(f"report.html: {page_mb:.2f} MB")
    print(json.dumps({n: round(v, 3) for n, v in {**figures, "page_mb": page_mb}.items()}))


if __name__ == "__main__":
    main()
