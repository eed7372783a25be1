"""The command, in this process or in one of its own, and clusters that several tests join."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from no_drawing import DRAWING_STEP, draw_nothing

from trainable.data.cache import default_cache_dir, open_data

ROOT = Path(__file__).parent.parent
SPACES = ROOT / "tests" / "spaces"
SMALL = SPACES / "small.py"
Run = Callable[..., "subprocess.CompletedProcess[str]"]
RAY = str(Path(sys.executable).parent / "ray")


def search_command(space: Path | str, out: Path | str, *more: str) -> list[str]:
    """The words of the command, for a process."""
    return [sys.executable, "-u", "-m", "search.run", str(space), "--out", str(out), *more]


def run_command(
    space: Path | str, out: Path | str, *more: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, to its end."""
    return subprocess.run(
        search_command(space, out, *more),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
        cwd=cwd,
        timeout=280,
    )


def start_command(space: Path | str, out: Path | str, *more: str) -> "subprocess.Popen[str]":
    """The command in a process group of its own, under way."""
    return subprocess.Popen(
        search_command(space, out, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def until(is_done: Callable[[], bool], timeout_s: float = 60) -> bool:
    """Wait until something holds; False where it did not in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if is_done():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their numbers and sentences, and stand-ins for charts; not where it `draws`."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(DRAWING_STEP, draw_nothing)


@pytest.fixture(scope="session")
def draw_patches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Draws the synthetic patches of a task, once for all processes of the suite.

    The first command would draw them otherwise, and say so on stderr: each process has a cache of
    its own.
    """
    folder = tmp_path_factory.getbasetemp()
    cache = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "patches"

    def draw(task: str) -> None:
        open_data("synthetic", cache_dir=cache, task=task)
        for entry in cache.glob("synthetic-????????????????"):
            own = default_cache_dir() / entry.name
            if not own.exists():
                own.symlink_to(entry)

    return draw


@pytest.fixture(scope="session")
def drawn_patches(draw_patches: Callable[[str], None]) -> None:
    """The synthetic patches of classification, drawn."""
    draw_patches("classification")


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_drawing: None,
    drawn_patches: None,
) -> Iterator[Run]:
    """The command in this process: its exit status and what it printed."""
    from search.run import main  # Ray, which most tests do without

    monkeypatch.setenv("COLUMNS", "120")
    before = signal.getsignal(signal.SIGTERM)  # the command puts its own there

    def run(space: Path | str, out: Path | str, *more: str) -> "subprocess.CompletedProcess[str]":
        words = [str(space), "--out", str(out), *more]
        capsys.readouterr()
        try:
            status = main(words)
        except SystemExit as error:  # of argparse
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class SharedCluster:
    """Two cores that have never seen this repository, for tests that destroy nothing."""

    address: str
    dashboard: str


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedCluster]:
    port, dashboard_port = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    words = [
        # Until this process ends: the head of a `--block` would outlive it.
        *("sh", "-c", '"$@" >/dev/null 2>&1 & cat; kill $!', "sh"),
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"),
        *("--num-cpus=2", "--num-gpus=0", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--dashboard-port={dashboard_port}"),
        # Jobs are submitted through it: the default port may be another cluster's on this machine.
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    with servers(words, cwd=tmp_path_factory.mktemp("head")) as head:
        ports = (port, dashboard_port)
        assert until(lambda: head.poll() is not None or all(map(answers, ports)))
        assert head.poll() is None, "the shared cluster does not start"
        yield SharedCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run_joined(run_here: Run, shared_cluster: SharedCluster) -> Run:
    """The command in this process, on the cluster that tests share."""
    return lambda *words: run_here(*words, "--address", shared_cluster.address)


TWO_GPU_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for _ in range(2):
    cluster.add_node(num_cpus=2, num_gpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def two_gpu_nodes() -> Iterator[str]:
    """The address of a head and two nodes on this machine, each with a GPU that is not there."""
    with servers([sys.executable, "-c", TWO_GPU_NODES]) as nodes:
        assert nodes.stdout is not None
        yield next(line for line in nodes.stdout if ":" in line).strip()


@contextmanager
def servers(words: list[str], cwd: Path = ROOT) -> Iterator["subprocess.Popen[str]"]:
    """A process and those that it starts, all of which end.

    It must end when its input does, which happens where the tests are killed.
    """
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
    )
    try:
        yield process
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        for each in [*started, psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()
        left = [p for p in psutil.wait_procs(started, timeout=20)[1] if p.status() != "zombie"]
        assert left == []


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
