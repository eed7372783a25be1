"""The fault matrix: whatever dies, the tables stay whole and the same command ends the study.

After every fault: the tables are readable; no (trial_key, epoch) is there twice; epochs are 1, 2, 3
and so on; every row that a reader saw before the fault is still there and was not trained again;
the same command ends the study; and its numbers are those of a run without faults.

Two studies go through all kinds of fault one after another, and two more need a study for
themselves. Each fault alone, in a study of its own, with its times and others that are rarer:

    uv run pytest -m "slow and faults" tests/test_faults.py
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from commands import Run
from faulty_study import (
    NUMBERS,
    SPACE,
    Command,
    check,
    command_line,
    doubled,
    enough,
    go_on,
    harm,
    in_workers,
    run_again,
    start_again,
    two_nodes,
)

from search.results import tables

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(900)]
HUNG = "a worker hangs (SIGSTOP; limit 5 s here)"


# --- a study through one fault after another ------------------------------------------------------


def test_a_study_survives_a_second_driver_a_dead_and_a_hung_worker(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any], run_here: Run
) -> None:
    command.start()
    deadline = time.monotonic() + 120
    while not (command.out / "faulty" / "lock.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    second = run_here(SPACE, command.out)
    refused = time.monotonic() - began
    assert second.returncode == 2, second.stdout
    assert f"process {command.process.pid} on" in second.stderr

    command.wait_for(enough)
    before = command.rows()
    killed, hung = command.servers("ray::ImplicitFunc")
    killed.kill()
    hung.send_signal(signal.SIGSTOP)
    struck = time.monotonic()
    command.wait_for(lambda rows: bool((rows["attempt"] == 2).any()))
    recovered = time.monotonic() - struck
    command.wait_for(lambda rows: rows.groupby("trial_key")["attempt"].max().eq(2).all())
    both_recovered = time.monotonic() - struck
    status, said = command.end()
    assert status == 0, said
    for row in (
        {"fault": "a second driver", "detected after": refused},
        {"fault": "kill -9 of a worker", "recovered after": recovered},
        {"fault": HUNG, "recovered after": both_recovered},
    ):
        check(command, before, faultless, matrix=fault_matrix, **row)


@dataclass(frozen=True)
class Ending:
    """What ends the command, and how that must look."""

    name: str
    strike: Callable[[Command], object]
    status: int = 75
    said: str = "go on with"
    within_s: float = (
        20  # of the 30 s that SLURM and Kubernetes give; 5 s on a machine that is idle
    )
    afterwards: Callable[[Command], object] = lambda command: None


def harm_two_files(command: Command, how: str = "bit flipped") -> None:
    """One trial's table of epochs and the other's newest checkpoint."""
    one, other = sorted((command.out / "faulty" / "epochs").glob("*.parquet"))
    harm(one, how)
    newest = max(
        (command.out / "faulty" / "checkpoints" / other.stem).glob("*.pt"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    harm(newest, how)


def fill_disk(command: Command) -> None:
    with open(command.out / "filler", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def refused_until_emptied(command: Command) -> None:
    status, said = run_again(command)
    assert status == 75, said
    assert f"left in {command.out}" in said
    (command.out / "filler").unlink()


ENDINGS = [
    Ending("kill -9 of the driver", lambda c: c.process.kill(), status=-9, said=""),
    Ending(
        "SIGTERM to the process group",
        lambda c: os.killpg(c.process.pid, signal.SIGTERM),
        said="interrupted: ",
    ),
    Ending(
        "Parquet and checkpoint bit flipped",
        lambda c: c.process.send_signal(signal.SIGINT),
        afterwards=harm_two_files,
    ),
    Ending(
        "kill -9 of the GCS",
        lambda c: c.servers("gcs_server")[0].kill(),
        said="the head of the cluster",
        within_s=60,
    ),
]
DISK_FULL = Ending(
    "disk full",
    fill_disk,
    said="no space left in ",
    within_s=60,
    afterwards=refused_until_emptied,
)


def test_a_study_goes_on_after_all_that_ended_it(
    small_disk: Path | None,
    command: Command,
    faultless: pd.DataFrame,
    fault_matrix: list[Any],
) -> None:
    """Five faults, each of which the same command goes on after."""
    endings = ENDINGS
    if small_disk is not None:
        command.out = small_disk
        endings = [*ENDINGS, DISK_FULL]
    command.start()
    command.wait_for(enough)
    rows: list[dict[str, Any]] = []
    seen = command.rows()
    for ending in endings:
        # As each row was when a reader first saw it.
        seen = pd.concat([seen, command.rows()]).drop_duplicates(["trial_key", "epoch"])
        print(f"{len(seen)} rows were seen before: {ending.name}")  # shown where the test fails
        row = {"fault": ending.name, "detected after": end_by(ending, command)}
        rows.append(row | {"recovered after": start_again(command)})
    status, said = command.end()
    assert status == 0, said
    for row in rows:
        check(command, seen, faultless, matrix=fault_matrix, most_again=1, **row)


def end_by(ending: Ending, command: Command) -> float:
    """Strike; the seconds until the command had ended, with nothing left behind."""
    servers = all_servers(command)
    struck = time.monotonic()
    ending.strike(command)
    status, said = command.end()
    took = time.monotonic() - struck
    assert status == ending.status, (ending.name, said)
    assert ending.said in said
    assert took < ending.within_s
    if status == 75:
        assert f"{SPACE} --out {command.out}" in said
    wait_until_gone(servers)
    ending.afterwards(command)
    return took


def all_servers(command: Command) -> list[psutil.Process]:
    """Workers, raylet and GCS."""
    names = ("ray::ImplicitFunc", "raylet/raylet", "gcs_server")
    servers = [server for name in names for server in command.servers(name)]
    assert len(servers) >= 3  # one worker where the other trial has ended
    return servers


def wait_until_gone(servers: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 20
    while left := [p for p in servers if p.is_running() and p.status() != "zombie"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 24 MB, or None where mounting one is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


# --- each fault in a study of its own -------------------------------------------------------------


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


@pytest.mark.slow
def test_a_killed_worker(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    recovered, before = struck_worker(command, signal.SIGKILL)
    row = {"fault": "kill -9 of a worker", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


@pytest.mark.slow
def test_a_hung_worker(command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]) -> None:
    recovered, before = struck_worker(command, signal.SIGSTOP)
    row = {"fault": HUNG, "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


@pytest.mark.slow
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
    servers = all_servers(command)
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
    if status == 75:
        assert "interrupted: " in said
        assert f"{SPACE} --out {command.out}" in said
    wait_until_gone(servers)
    recovered = go_on(command)
    row = {"fault": name, "detected after": took, "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    harm_two_files(command, how)
    recovered = go_on(command)
    row = {"fault": f"Parquet and checkpoint {how}", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, most_again=1, **row)


@pytest.mark.slow
def test_a_full_disk(
    small_disk: Path | None, command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    if small_disk is None:
        pytest.skip("mounting a small disk is not allowed here")
    command.out = small_disk
    command.start()
    command.wait_for(enough)
    fill_disk(command)
    struck = time.monotonic()
    status, said = command.end()
    took = time.monotonic() - struck
    assert status == 75, said
    assert f"no space left in {small_disk}" in said
    assert "go on with" in said
    before = command.rows()
    refused_until_emptied(command)
    recovered = go_on(command)
    row = {"fault": "disk full", "detected after": took, "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


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
    rows = command.rows()
    acknowledged = trials[trials["status"] == "completed"]["epochs_completed"].sum()
    missing = int(acknowledged) - int(rows["trial_key"].isin(trials["trial_key"]).sum())
    assert (doubled(command), missing) == (0, 0)
    fault_matrix.append({**row, "rows lost": missing, "doubled": doubled(command)})


@pytest.mark.slow
def test_a_killed_raylet(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    """A node is lost with the trial on it; another one comes, and the trial moves there."""
    with two_nodes() as nodes:
        command.settings = ("--address", nodes.address)
        command.start()
        command.wait_for(enough)
        before = command.rows()
        tree = psutil.Process(nodes.process.pid).children(recursive=True)
        worker = next(p for p in tree if "ray::ImplicitFunc" in " ".join(command_line(p)))
        raylet = worker.parent()
        assert raylet is not None
        raylet.kill()
        struck = time.monotonic()
        nodes.add_one()
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
    assert tables.faults(tables.open_folder(str(command.out / "faulty"))) == []
    lost = seen.index.difference(alike.index)
    again = int((alike.loc[seen.index, "epoch_wall_s"] != seen["epoch_wall_s"]).sum())
    assert len(lost) == again == 0
    fault_matrix.append(
        {**row, "epochs done again": again, "rows lost": len(lost), "doubled": doubled(command)}
    )


@pytest.mark.slow
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
    opened = tables.open_folder(str(tmp_path / "faulty"))
    for trial in tables.trials(opened).to_dict("records"):
        then = pd.Timestamp(ahead, unit="s", tz="UTC")
        sound = {name: value for name, value in trial.items() if not pd.isna(value)}
        tables.commit_trial(opened, {**sound, "started_at": then, "ended_at": then})
    for path in (tmp_path / "faulty").rglob("*"):
        os.utime(path, (ahead, ahead))
    recovered = go_on(command)
    assert (tables.trials(opened)["started_at"] < pd.Timestamp.now("UTC")).all()
    row = {"fault": "the clock is set back a year", "recovered after": recovered}
    check(command, before, faultless, matrix=fault_matrix, **row)


@pytest.mark.slow
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
    assert tables.faults(tables.open_folder(str(command.out / "faulty"))) == []
    rows = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    others = rows[rows.index.get_level_values(0).isin(trials.loc[0.3, "trial_key"])]
    pd.testing.assert_frame_equal(others[NUMBERS], faultless)
    again, said = run_again(command)  # a finding, not a failure: nothing is left to do
    assert again == 0, said
    after = command.rows().set_index(["trial_key", "epoch"]).sort_index()
    lost = rows.index.difference(after.index)
    redone = int((after.loc[rows.index, "epoch_wall_s"] != rows["epoch_wall_s"]).sum())
    assert len(lost) == redone == 0
    row = {"fault": "the loss is NaN", "detected after": took}
    fault_matrix.append(
        {**row, "epochs done again": redone, "rows lost": len(lost), "doubled": doubled(command)}
    )
