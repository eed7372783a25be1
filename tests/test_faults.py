"""The fault matrix: whatever dies, the tables stay whole and the same command ends the study.

After every fault: the tables are readable; no (trial_key, epoch) is there twice; epochs are 1, 2, 3
and so on; every row that a reader saw before the fault is still there and was not trained again;
the same command ends the study; and its numbers are those of a run without faults.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from search import results
from search.results import Results
from trainable.data.synthetic import draw_patches
from trainable.storage import folder_at

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "tests" / "spaces" / "faulty.py"
EPOCHS = 20
# The driver as the command starts it, with hung workers noticed after seconds instead of a minute.
DRIVER = """
import os, sys, search.watch
search.watch.HUNG_LEAST_S = 5.0
search.watch.HUNG_FACTOR = 8.0
search.watch.START_S = 30.0
if os.environ.get("FAULT"):  # in the workers, too
    import ray
    start = ray.init
    hook = {"worker_process_setup_hook": f"worker_faults.{os.environ['FAULT']}"}
    ray.init = lambda *given, **more: start(*given, **{**more, "runtime_env": hook})
from search.run import main
sys.exit(main(sys.argv[1:]))
"""
NUMBERS = ["train_loss", "val_loss", "val_auroc", "lr", "examples_seen", "updates"]

pytestmark = [pytest.mark.faults, pytest.mark.ray]


@dataclass
class Command:
    """A study under way, in a process of its own."""

    out: Path
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(SPACE), "--out", str(self.out), *self.settings],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, timeout: float = 120) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, said

    def rows(self) -> pd.DataFrame:
        """What a reader sees at this moment, of the files that are sound."""
        return results.epochs(Results("faulty", folder_at(str(self.out / "faulty"))))

    def wait_for(self, condition: Callable[[pd.DataFrame], bool], timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not condition(self.rows()):
            assert time.monotonic() < deadline, "the study does not get there"
            assert self.process.poll() is None, self.process.stdout.read()  # type: ignore[union-attr]
            time.sleep(0.05)

    def servers(self, name: str) -> list[psutil.Process]:
        """The command's processes whose command line has the name in it."""
        every = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in every if name in " ".join(_command_line(p))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The epochs of a run without faults."""
    command = Command(tmp_path_factory.mktemp("faultless"))
    command.start()
    status, said = command.end()
    assert status == 0, said
    return command.rows().set_index(["trial_key", "epoch"])[NUMBERS].sort_index()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """A study, of which nothing is left when the test ends."""
    made = Command(tmp_path)
    yield made
    if hasattr(made, "process") and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def enough(rows: pd.DataFrame) -> bool:
    """Both trials are under way, with evaluations that may be lost."""
    return rows["trial_key"].nunique() == 2 and bool((rows.groupby("trial_key").size() >= 3).all())


def check(
    command: Command,
    before: pd.DataFrame,
    faultless: pd.DataFrame,
    *,
    matrix: list[Any],
    **row: Any,
) -> None:
    """Everything that must hold at the end, and a line for the matrix."""
    opened = results.open_folder(str(command.out / "faulty"))
    assert results.faults(opened) == []
    after = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    pd.testing.assert_frame_equal(after[NUMBERS], faultless)
    trials = pd.read_parquet(command.out / "faulty" / "trials")
    assert list(trials["status"]) == ["completed"] * 2
    seen = before.set_index(["trial_key", "epoch"])
    lost = seen.index.difference(after.index)
    again = (after.loc[seen.index.difference(lost), "epoch_wall_s"] != seen["epoch_wall_s"]).sum()
    matrix.append({**row, "epochs done again": int(again), "rows lost": len(lost), "doubled": 0})
    assert len(lost) == 0
    assert again == 0


def go_on(command: Command) -> float:
    """Run the same command to its end; returns the seconds until it reported something new."""
    had = len(command.rows())
    began = time.monotonic()
    command.start()
    command.wait_for(lambda rows: len(rows) > had)
    recovered = time.monotonic() - began
    status, said = command.end()
    assert status == 0, said
    return recovered


def struck_worker(command: Command, number: int) -> tuple[float, pd.DataFrame]:
    """Signal one worker; the seconds until its trial reported again, and the rows before."""
    command.start()
    command.wait_for(enough)
    before = command.rows()
    victim = command.servers("ray::ImplicitFunc")[0]
    victim.send_signal(number)
    struck = time.monotonic()
    # Whichever trial it was: both must get further than they were, and one with another attempt.
    command.wait_for(lambda rows: bool((rows["attempt"] == 2).any()))
    recovered = time.monotonic() - struck
    status, said = command.end()
    assert status == 0, said
    return recovered, before


def test_a_killed_worker(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    recovered, before = struck_worker(command, signal.SIGKILL)
    row = {"fault": "kill -9 of a worker", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


def test_a_hung_worker(command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]) -> None:
    recovered, before = struck_worker(command, signal.SIGSTOP)
    row = {"fault": "a worker hangs (SIGSTOP; limit 5 s here)", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


@pytest.mark.parametrize(
    ("name", "number", "to_group", "status"),
    [
        ("kill -9 of the driver", signal.SIGKILL, False, -9),
        ("SIGINT", signal.SIGINT, False, 75),
        ("SIGTERM to the process group", signal.SIGTERM, True, 75),
    ],
)
def test_a_driver_that_ends(
    name: str,
    number: int,
    to_group: bool,
    status: int,
    command: Command,
    faultless: pd.DataFrame,
    fault_matrix: list[Any],
) -> None:
    command.start()
    command.wait_for(enough)
    names = ("ray::ImplicitFunc", "raylet/raylet", "gcs_server")
    servers = [server for name in names for server in command.servers(name)]
    assert len(servers) >= 4
    before = command.rows()
    struck = time.monotonic()
    if to_group:
        os.killpg(command.process.pid, number)
    else:
        command.process.send_signal(number)
    ended, said = command.end()
    took = time.monotonic() - struck
    assert ended == status, said
    assert took < 10
    deadline = time.monotonic() + 20
    while any(p.is_running() and p.status() != "zombie" for p in servers):  # nothing is left behind
        assert time.monotonic() < deadline, [p for p in servers if p.is_running()]
        time.sleep(0.2)
    recovered = go_on(command)
    row = {"fault": name, "detected after": took, "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


def test_the_head_is_killed(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    command.start()
    command.wait_for(enough)
    before = command.rows()
    command.servers("gcs_server")[0].kill()
    struck = time.monotonic()
    status, said = command.end()
    took = time.monotonic() - struck
    assert status == 75, said
    assert "the head of the cluster" in said
    assert "go on with" in said
    recovered = go_on(command)
    row = {"fault": "kill -9 of the GCS", "detected after": took, "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


def test_two_drivers_at_once(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    command.start()
    deadline = time.monotonic() + 60
    while not (command.out / "faulty" / "lock.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = command.rows()
    second = Command(command.out)
    began = time.monotonic()
    second.start()
    status, said = second.end()
    took = time.monotonic() - began
    assert status == 2, said
    assert f"process {command.process.pid} on" in said
    status, said = command.end()
    assert status == 0, said
    row = {"fault": "a second driver", "detected after": took}
    check(command, before, faultless, matrix=fault_matrix, **row)


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit flipped":
        content[len(content) // 2] ^= 16
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else content)


@pytest.mark.parametrize("how", ["bit flipped", "truncated"])
def test_broken_files_found_by_the_next_command(
    how: str, command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    """One trial's table of epochs and the other's newest checkpoint."""
    command.start()
    command.wait_for(enough)
    command.process.send_signal(signal.SIGINT)
    assert command.end()[0] == 75
    before = command.rows()
    one, other = sorted((command.out / "faulty" / "epochs").glob("*.parquet"))
    harm(one, how)
    newest = max(
        (command.out / "faulty" / "checkpoints" / other.stem).glob("*.pt"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    harm(newest, how)
    recovered = go_on(command)
    row = {"fault": f"Parquet and checkpoint {how}", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


def test_a_full_disk(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        command.out = disk
        command.start()
        command.wait_for(enough)
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                struck = time.monotonic()
        status, said = command.end()
        took = time.monotonic() - struck
        assert status == 75, said
        assert f"no space left in {disk}" in said
        assert "go on with" in said
        before = command.rows()
        full, said = _run_again(command)
        assert full == 75, said
        assert f"left in {disk}" in said
        filler.unlink()
        recovered = go_on(command)
        row = {"fault": "disk full", "detected after": took, "recovered after": recovered}
        check(command, before, faultless, matrix=fault_matrix, **row)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _run_again(command: Command) -> tuple[int, str]:
    command.start()
    return command.end()


@pytest.mark.slow
def test_host_memory_ends_a_trial_not_the_study(tmp_path: Path, fault_matrix: list[Any]) -> None:
    """Ray's monitor is told of a small machine, and one trial of two needs more than that."""
    used = psutil.virtual_memory()
    limit = (used.total - used.available + 3.2e9) / used.total
    monitor = {
        "RAY_memory_usage_threshold": f"{limit:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    settings = ("--set", "batch_size=32,1024", "--set", "width=256", "--set", "epochs=1")
    command = Command(tmp_path, settings, monitor)
    began = time.monotonic()
    command.start()
    status, said = command.end(300)
    trials = pd.read_parquet(tmp_path / "faulty" / "trials")
    assert status == 1, said
    assert len(trials) == 2
    lost = trials[trials["status"] == "failed"]
    assert lost["reason"].str.contains("oom_host").all()
    assert 1024 in set(lost["batch_size"])
    took = time.monotonic() - began
    row = {"fault": "host memory (Ray's monitor)", "detected after": took}
    fault_matrix.append({**row, "epochs done again": 0, "rows lost": 0, "doubled": 0})


TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.add_node(num_cpus=1)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_killed_raylet(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """A node is lost with the trial on it; another one comes, and the trial moves there."""
    nodes = subprocess.Popen(
        [sys.executable, "-c", TWO_NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    try:
        address = next(line for line in nodes.stdout if ":" in line).strip()
        command.settings = ("--address", address)
        command.start()
        command.wait_for(enough)
        before = command.rows()
        tree = psutil.Process(nodes.pid).children(recursive=True)
        worker = next(p for p in tree if "ray::ImplicitFunc" in " ".join(_command_line(p)))
        raylet = worker.parent()
        assert raylet is not None
        raylet.kill()
        struck = time.monotonic()
        nodes.stdin.write("more\n")
        nodes.stdin.flush()
        worker.wait(30)  # an orphan would hold its GPU beside its successor
        orphan = time.monotonic() - struck
        command.wait_for(lambda rows: bool((rows["attempt"] == 2).any()))
        recovered = time.monotonic() - struck
        status, said = command.end()
        assert status == 0, said
        row = {
            "fault": "kill -9 of a raylet",
            "detected after": orphan,
            "recovered after": recovered,
        }
        check(command, before, faultless, matrix=fault_matrix, **row)
    finally:
        nodes.kill()
        nodes.communicate()


def in_workers(fault: str, tmp_path: Path) -> dict[str, str]:
    """The environment in which workers do what `worker_faults` has under that name."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    return {"FAULT": fault, "FAULT_SEEN": str(tmp_path / "seen"), "PYTHONPATH": path}


def test_cuda_memory_runs_out(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """Simulated: the third step of each worker is told so. The microbatch is halved, no more."""
    command.environment = in_workers("out_of_memory", tmp_path)
    command.start()
    command.wait_for(enough)
    before = command.rows()
    status, said = command.end()
    assert status == 0, said
    assert (tmp_path / "seen").exists()
    trials = pd.read_parquet(tmp_path / "faulty" / "trials")
    assert (trials["oom_retries"] == 1).all()
    assert (trials["microbatch_size"] * 2 == trials["batch_size"]).all()
    # Its sums are in another order from the third step on: alike, and not to the last bit.
    row = {"fault": "CUDA memory (simulated)"}
    seen = before.set_index(["trial_key", "epoch"])
    alike = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    pd.testing.assert_index_equal(alike.index, faultless.index)
    same = ["lr", "examples_seen", "updates"]
    pd.testing.assert_frame_equal(alike[same], faultless[same])
    assert results.faults(results.open_folder(str(command.out / "faulty"))) == []
    lost = seen.index.difference(alike.index)
    again = int((alike.loc[seen.index, "epoch_wall_s"] != seen["epoch_wall_s"]).sum())
    assert len(lost) == again == 0
    fault_matrix.append({**row, "epochs done again": again, "rows lost": len(lost), "doubled": 0})


def test_the_clock_is_set_back(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """The first command's rows and files are of the next year."""
    command.start()
    command.wait_for(enough)
    command.process.send_signal(signal.SIGINT)
    assert command.end()[0] == 75
    before = command.rows()
    ahead = time.time() + 365 * 86400
    opened = results.open_folder(str(tmp_path / "faulty"))
    for trial in results.trials(opened).to_dict("records"):
        then = pd.Timestamp(ahead, unit="s", tz="UTC")
        sound = {name: value for name, value in trial.items() if not pd.isna(value)}
        results.commit_trial(opened, {**sound, "started_at": then, "ended_at": then})
    for path in (tmp_path / "faulty").rglob("*"):
        os.utime(path, (ahead, ahead))
    recovered = go_on(command)
    assert (results.trials(opened)["started_at"] < pd.Timestamp.now("UTC")).all()
    row = {"fault": "the clock is set back a year", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


def test_a_loss_that_is_not_a_number(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    """A third trial whose rate is far too high: its rows stay, and the others never know."""
    command.settings = ("--set", "base_lr=0.3,1e30")
    began = time.monotonic()
    command.start()
    status, said = command.end()
    took = time.monotonic() - began
    assert status == 0, said
    trials = pd.read_parquet(command.out / "faulty" / "trials").set_index("base_lr")
    assert set(trials.loc[1e30, "status"]) == {"diverged"}
    assert trials.loc[1e30, "reason"].str.contains("not finite").all()
    assert set(trials.loc[0.3, "status"]) == {"completed"}
    assert results.faults(results.open_folder(str(command.out / "faulty"))) == []
    rows = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    others = rows[rows.index.get_level_values(0).isin(trials.loc[0.3, "trial_key"])]
    pd.testing.assert_frame_equal(others[NUMBERS], faultless)
    again, said = _run_again(command)  # a finding, not a failure: nothing is left to do
    assert again == 0, said
    after = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    lost = rows.index.difference(after.index)
    redone = int((after.loc[rows.index, "epoch_wall_s"] != rows["epoch_wall_s"]).sum())
    assert len(lost) == redone == 0
    row = {"fault": "the loss is NaN", "detected after": took}
    fault_matrix.append({**row, "epochs done again": redone, "rows lost": len(lost), "doubled": 0})


def write_tif(folder: Path) -> Path:
    """Kaggle's layout; returns the images' folder."""
    (folder / "train").mkdir(parents=True)
    lines = ["id,label"]
    for i, (image, label) in enumerate(zip(*patches(1200), strict=True)):
        Image.fromarray(image).save(folder / "train" / f"{i:040x}.tif")
        lines.append(f"{i:040x},{label}")
    (folder / "train_labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "train"


def write_hdf5(folder: Path) -> Path:
    """The official layout; returns the file of training images."""
    folder.mkdir()
    for split, n in (("train", 1024), ("valid", 128)):
        images, labels = patches(n)
        for key, values in (("x", images), ("y", labels.reshape(-1, 1, 1, 1))):
            with h5py.File(folder / f"camelyonpatch_level_2_split_{split}_{key}.h5", "w") as file:
                file.create_dataset(key, data=values, compression="gzip", fletcher32=True)
    return folder / "camelyonpatch_level_2_split_train_x.h5"


def patches(n: int) -> tuple[Any, Any]:
    labels = np.arange(n) % 2
    return draw_patches(labels, np.random.default_rng(0)), labels


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_hdf5, write_tif])
def test_the_data_breaks_under_way(
    write: Callable[[Path], Path], command: Command, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """The study goes on from the node's cache; the next one names the file; mended, it goes on."""
    data = tmp_path / "data"
    written = write(data)
    struck = written if written.is_file() else sorted(written.iterdir())[7]
    command.settings = ("--set", "dataset=pcam", "--data", str(data))
    command.environment = {"DATA_CACHE_DIR": str(tmp_path / "cache")}
    command.start()
    command.wait_for(enough)
    sound, about = struck.read_bytes(), struck.stat()
    harm(struck, "truncated")
    status, said = command.end()
    assert status == 0, said  # all that it needs was decoded before
    before = command.rows()
    assert (before.groupby("trial_key").size() == EPOCHS).all()
    command.settings = (*command.settings, "--set", "seeds=2")
    began = time.monotonic()
    status, said = _run_again(command)
    took = time.monotonic() - began
    assert status == 2, said
    assert struck.name in said
    assert len(command.rows()) == len(before)
    struck.write_bytes(sound)
    os.utime(struck, ns=(about.st_atime_ns, about.st_mtime_ns))
    recovered = go_on(command)
    assert results.faults(results.open_folder(str(command.out / "faulty"))) == []
    after = command.rows().set_index(["trial_key", "epoch"])
    seen = before.set_index(["trial_key", "epoch"])
    assert len(after) == 2 * len(seen)
    lost = seen.index.difference(after.index)
    again = int((after.loc[seen.index, "epoch_wall_s"] != seen["epoch_wall_s"]).sum())
    kind = "HDF5" if write is write_hdf5 else "tif"
    row = {"fault": f"{kind} truncated", "detected after": took, "recovered after": recovered}
    fault_matrix.append({**row, "epochs done again": again, "rows lost": len(lost), "doubled": 0})
    assert len(lost) == again == 0
