"""How fast a large study is read, and what writing it costs.

    uv run python -m benchmarks.results [--trials 10000 --epochs 50 --out DIR]

Every trial is committed as the driver does it; then both tables are read into memory as they are
and after `search.results compact`, by this project's reader, pandas, DuckDB and Polars.
`write_share` is what committing a trial's rows after each of its epochs takes of epochs of 3 s (the
tables alone: a checkpoint is as large as its network). Last line: one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
from rich.console import Console
from rich.table import Table

from search.results import tables
from search.results.tables import Results
from trainable.config import TrialConfig

EPOCH_S = 3.0
TIMED_TRIALS = 5  # whose every epoch is committed, for the share of writing
REPEATS = 3


def trial_rows(number: int, num_epochs: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a trial and those of its epochs, with a number in every column."""
    rng = np.random.default_rng(number)
    identity = {"study": "large", "trial_key": f"{number:016x}", "seed": number, "attempt": 1}
    now = datetime.now(UTC)

    def fill(schema: Any) -> dict[str, Any]:
        values = rng.random(len(schema)).tolist()
        kinds = {"int64": lambda x: int(x * 1e6), "double": float, "bool": lambda x: x > 0.5}
        return {
            column.name: kinds[str(column.type)](value)
            for column, value in zip(schema, values, strict=True)
            if str(column.type) in kinds
        }

    config = TrialConfig(batch_size=32, base_lr=float(rng.random()), seed=number)
    ended = {"status": "completed", "reason": "", "epochs_completed": num_epochs}
    origin = {"started_at": now, "ended_at": now, "host": "node", "data_fingerprint": "ab" * 32}
    trial = fill(tables.TRIALS) | asdict(config) | ended | origin | identity
    rows = [fill(tables.EPOCHS) | {"epoch": e} | identity for e in range(1, num_epochs + 1)]
    return trial, rows


def write(opened: Results, num_trials: int, num_epochs: int) -> float:
    """Commit every trial once, whole; returns the seconds a trial."""
    spent = 0.0
    for number in range(num_trials):
        trial, rows = trial_rows(number, num_epochs)
        started = time.perf_counter()
        tables.commit_epochs(opened, trial["trial_key"], rows)
        tables.commit_trial(opened, trial)
        spent += time.perf_counter() - started
    return spent / num_trials


def write_share(opened: Results, num_epochs: int) -> float:
    """What committing takes of a trial that is committed after each epoch of 3 s."""
    shares = []
    for number in range(TIMED_TRIALS):
        trial, rows = trial_rows(number, num_epochs)
        started = time.perf_counter()
        for epoch in range(1, num_epochs + 1):
            tables.commit_epochs(opened, trial["trial_key"], rows[:epoch])
        tables.commit_trial(opened, trial)
        shares.append((time.perf_counter() - started) / (num_epochs * EPOCH_S))
    return statistics.median(shares)


def readers(opened: Results) -> dict[str, Callable[[str], Any]]:
    """Each reads a table whole into memory."""
    own = {"trials": tables.trials, "epochs": tables.epochs}
    folder = opened.folder.uri
    return {
        "search.results": lambda table: own[table](opened),
        "pandas": lambda table: pd.read_parquet(f"{folder}/{table}"),
        "DuckDB": lambda table: duckdb.sql(f"from '{folder}/{table}/*.parquet'").to_arrow_table(),
        "Polars": lambda table: pl.read_parquet(f"{folder}/{table}/*.parquet"),
    }


def read_s(opened: Results, num_trials: int, num_epochs: int, repeats: int) -> dict[str, float]:
    """Seconds to read both tables, by reader: the median of some times."""
    medians = {}
    for name, read in readers(opened).items():
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            trials, epochs = read("trials"), read("epochs")
            times.append(time.perf_counter() - started)
        shape = len(trials), len(epochs)
        assert shape == (num_trials, num_trials * num_epochs), (name, shape)  # noqa: S101
        medians[name] = statistics.median(times)
    return medians


def main() -> None:
    """Write, read, compact, read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", help="a folder on the disk to measure; a temporary one otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        share = write_share(tables.open_results(folder, "one"), arguments.epochs)
        opened = tables.open_results(folder, "large")
        trial_s = write(opened, arguments.trials, arguments.epochs)
        parts = read_s(opened, arguments.trials, arguments.epochs, 1)
        started = time.perf_counter()
        tables.compact(opened)
        compact_s = time.perf_counter() - started
        packed = read_s(opened, arguments.trials, arguments.epochs, REPEATS)
    table = Table(
        title=f"{arguments.trials:,} trials x {arguments.epochs} epochs, both tables", box=None
    )
    for name in ("", f"{2 * arguments.trials:,} files, s", "compacted, s"):
        table.add_column(name, justify="right")
    for name in parts:
        table.add_row(name, f"{parts[name]:.2f}", f"{packed[name]:.2f}")
    Console().print(table)
    print(f"compact took {compact_s:.1f} s; a trial's two files were committed in {trial_s:.4f} s")
    figures = {
        "write_share": share,
        "read_compacted_s": packed["search.results"],
        "read_parts_s": parts["search.results"],
        "read_compacted_pandas_s": packed["pandas"],
        "read_parts_pandas_s": parts["pandas"],
        "compact_s": compact_s,
        "commit_trial_s": trial_s,
    }
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
