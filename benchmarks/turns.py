"""Sides of benchmarks.trial measured in turns, each in processes of its own."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.data_memory import answer
from benchmarks.side import Side, Work

POLL_S = 0.5  # between two looks at the memory

Row = dict[str, Any]


class Child:
    """The processes of one side while they are asked."""

    def __init__(self, side: Side, work: Work) -> None:
        """Start them; they get ready by themselves, all sides at the same time."""
        request = json.dumps({"side": asdict(side), "work": asdict(work)})
        # PyTorch's default number of threads, whatever the caller's environment says.
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        env = {name: value for name, value in os.environ.items() if name not in variables}
        self.side, self.work, self.peak_gib = side, work, 0.0
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.side", request],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=env,
            )
            for _ in range(side.processes)
        ]
        self.threads = 0

    def wait(self) -> None:
        """Until they are ready to measure; what they say then is how many threads they have."""
        for process in self.processes:
            self.threads = json.loads(answer(process))["threads"]

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.communicate("")

    def measure(self, number: int) -> dict[str, float]:
        """Measure once, in all processes at the same time: the sum of what they did."""
        for process in self.processes:
            pipe(process.stdin).write(f"{number}\n")
            pipe(process.stdin).flush()
        waiting = list(self.processes)
        total: dict[str, float] = {}
        while waiting:
            ready, _, _ = select.select([pipe(p.stdout) for p in waiting], [], [], POLL_S)
            self.peak_gib = max(self.peak_gib, held_gib([p.pid for p in self.processes]))
            for process in [p for p in waiting if p.stdout in ready]:
                for name, value in json.loads(answer(process)).items():
                    total[name] = total.get(name, 0.0) + value
                waiting.remove(process)
        return total


def pipe(end: IO[str] | None) -> IO[str]:
    """The pipe that was asked for when the process was started."""
    assert end is not None  # noqa: S101
    return end


def held_gib(pids: Sequence[int]) -> float:
    """Memory of some processes and of all below them, each page once.

    The first counts whole; the others, its workers among them, with what they share with nobody.
    """
    roots = [psutil.Process(pid) for pid in pids]
    family = [p for root in roots for p in (root, *root.children(recursive=True))]
    total_kib = 0
    for place, process in enumerate(family):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it ended meanwhile
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        total_kib += kib["Private_Clean"] + kib["Private_Dirty"] if place else kib["Rss"]
    return total_kib / 2**20


def measured(work: Work, sides: Sequence[Side], repeats: int, *, warm_up: bool) -> list[Row]:
    """One row a repetition and side: one side after the other, then again."""
    rows: list[Row] = []
    with ExitStack() as stack:
        children = [stack.enter_context(Child(side, work)) for side in sides]
        for child in children:
            child.wait()
        for number in range(-1 if warm_up else 0, repeats):
            for child in children:
                figures = child.measure(number)
                if number < 0:
                    continue
                row: Row = {"work": work.name, "side": child.side.name, "kind": child.side.kind}
                row |= {"processes": child.side.processes, "threads": child.threads}
                row |= {"workers": child.side.workers, "repetition": number}
                rows.append(row | figures | {"peak_memory_gib": child.peak_gib})
    return rows
