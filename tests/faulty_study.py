"""A small study in a process of its own, for faults to strike, and what must hold afterwards."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from commands import ROOT, SPACES

from search.results import tables
from search.results.tables import Results
from trainable.host.storage import folder_at

SPACE = SPACES / "faulty.py"
# The driver as the command starts it, with hung workers noticed after seconds instead of a minute,
# and without drawing the report's charts, which takes longer than the trials.
DRIVER = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r})"
    """
import os, search.execution.watchdog, search.report.report
from no_drawing import draw_nothing
search.report.report.drawing = draw_nothing
search.execution.watchdog.SILENT_S = 5.0
if os.environ.get("FAULT"):  # in the workers, too
    import ray
    start = ray.init
    hook = {"worker_process_setup_hook": f"worker_faults.{os.environ['FAULT']}"}
    ray.init = lambda *given, **more: start(*given, **{**more, "runtime_env": hook})
from search.run import main
sys.exit(main(sys.argv[1:]))
"""
)
NUMBERS = ["train_loss", "val_loss", "val_auroc", "lr", "examples_seen", "updates"]


@dataclass
class Command:
    """A study under way, in a process of its own."""

    out: Path | str  # a folder, or a URI
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # enters another host

    def start(self) -> None:
        words = [str(SPACE), "--out", str(self.out), *self.settings]
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-c", DRIVER, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, timeout: float = 240) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, said

    def rows(self) -> pd.DataFrame:
        """What a reader sees at this moment, of the files that are sound."""
        return tables.epochs(self.results)

    @property
    def results(self) -> Results:
        return Results("faulty", folder_at(str(self.out)) / "faulty")

    def wait_for(self, condition: Callable[[pd.DataFrame], bool], timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while not condition(self.rows()):
            assert time.monotonic() < deadline, "the study does not get there"
            assert self.process.poll() is None, self.process.stdout.read()  # type: ignore[union-attr]
            time.sleep(0.05)

    def servers(self, name: str) -> list[psutil.Process]:
        """The command's processes whose command line has the name in it."""
        every = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in every if name in " ".join(command_line(p))]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def faultless(tmp_path_factory: pytest.TempPathFactory, drawn_patches: None) -> pd.DataFrame:
    """The epochs of a run without faults."""
    command = Command(tmp_path_factory.mktemp("faultless"))
    command.start()
    status, said = command.end()
    assert status == 0, said
    return command.rows().set_index(["trial_key", "epoch"])[NUMBERS].sort_index()


@pytest.fixture
def command(tmp_path: Path, drawn_patches: None) -> Iterator[Command]:
    """A study, of which nothing is left when the test ends."""
    made = Command(tmp_path)
    yield made
    if hasattr(made, "process") and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


# When a fault strikes: benchmarks/faults.py draws the moment.
ENOUGH_EPOCHS = (
    random.Random(os.environ["FAULT_SEED"]).randint(1, 9) if "FAULT_SEED" in os.environ else 3
)


def enough(rows: pd.DataFrame) -> bool:
    """Both trials are under way, with evaluations that may be lost."""
    counts = rows.groupby("trial_key").size()
    return len(counts) == 2 and bool((counts >= ENOUGH_EPOCHS).all())


def check(
    command: Command,
    before: pd.DataFrame,
    faultless: pd.DataFrame,
    *,
    matrix: list[Any],
    most_again: int = 0,
    **row: Any,
) -> None:
    """Everything that must hold at the end, and a line for the matrix.

    `most_again`: a broken checkpoint costs one epoch, where its row was written already.
    """
    assert tables.faults(command.results) == []
    after = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    pd.testing.assert_frame_equal(after[NUMBERS], faultless)
    assert list(tables.trials(command.results)["status"]) == ["completed"] * 2
    seen = before.set_index(["trial_key", "epoch"])
    lost = seen.index.difference(after.index)
    again = (after.loc[seen.index.difference(lost), "epoch_wall_s"] != seen["epoch_wall_s"]).sum()
    matrix.append(
        {
            **row,
            "epochs done again": int(again),
            "rows lost": len(lost),
            "doubled": doubled(command),
        }
    )
    assert len(lost) == 0
    assert again <= most_again


def doubled(command: Command) -> int:
    """How many evaluations the tables have twice."""
    return int(command.rows().duplicated(["trial_key", "epoch"]).sum())


def run_again(command: Command) -> tuple[int, str]:
    """Run the same command to its end; returns its status and what it said."""
    command.start()
    return command.end()


def start_again(command: Command) -> float:
    """Start the same command; returns the seconds until it reported something new."""
    had = len(command.rows())
    began = time.monotonic()
    command.start()
    command.wait_for(lambda rows: len(rows) > had)
    return time.monotonic() - began


def go_on(command: Command) -> float:
    """Run the same command to its end; returns the seconds until it reported something new."""
    recovered = start_again(command)
    status, said = command.end()
    assert status == 0, said
    return recovered


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit flipped":
        content[len(content) // 2] ^= 16
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else content)


def in_workers(fault: str, tmp_path: Path) -> dict[str, str]:
    """The environment in which workers do what `worker_faults` has under that name."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    return {"FAULT": fault, "FAULT_SEEN": str(tmp_path / "seen"), "PYTHONPATH": path}


TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
while sys.stdin.readline():
    cluster.add_node(num_cpus=1)
cluster.shutdown()
"""


@dataclass(frozen=True)
class Nodes:
    """A cluster of a head without cores and two nodes of one core, in a process of its own."""

    process: subprocess.Popen[str]
    address: str

    def add_one(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("more\n")
        self.process.stdin.flush()


@contextmanager
def two_nodes(**environment: str) -> Iterator[Nodes]:
    """Nodes of Ray's with this in their environment; nothing of them is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        assert process.stdout is not None
        yield Nodes(process, next(line for line in process.stdout if ":" in line).strip())
    finally:
        process.kill()
        process.communicate()
