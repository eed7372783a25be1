"""A study on two hosts, of which one has a clock that jumps (tests/clock.c)."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import ROOT
from faulty_study import Command, check, enough
from hosts import ON_HOSTS, Host, hosts, start_ray

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
HOUR_S = 3600


def has_a_clock(host: Host) -> Path:
    """Give a host a clock of its own: seconds that are written into the file are added to it."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler here")
    library, clock = host.folder / "clock.so", host.folder / "clock"
    source = ROOT / "tests" / "clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    clock.write_text("0")
    host.environment.update(LD_PRELOAD=str(library), CLOCK=str(clock))
    return clock


@pytest.fixture
def on_hosts(tmp_path: Path, command: Command) -> Iterator[tuple[Command, Host, Path]]:
    """The study of two trials, started on the head's host; the other host, and its clock."""
    with hosts(2, tmp_path / "hosts") as made:
        head, other = made.hosts
        clock = has_a_clock(other)
        command.prefix = tuple(head.words([]))
        command.environment = dict(ON_HOSTS)
        address = start_ray(made.hosts)
        command.settings = ("--address", address, "--set", "checkpoint_every_s=0")
        yield command, other, clock


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_clock_that_jumps_costs_nothing(
    on_hosts: tuple[Command, Host, Path],
    jump_s: int,
    faultless: pd.DataFrame,
    fault_matrix: list[Any],
) -> None:
    command, other, clock = on_hosts
    command.start()
    command.wait_for(enough)
    before = command.rows()
    clock.write_text(str(jump_s))
    time.sleep(2)
    said_s = int(other.run("date", "+%s"))
    assert said_s - time.time() == pytest.approx(jump_s, abs=60)
    status, printed = command.end()
    assert status == 0, printed
    row = {"fault": "the clock of a host jumps by an hour"}
    check(command, before, faultless, matrix=fault_matrix, **row)
    trials = pd.read_parquet(command.out / "faulty" / "trials")
    assert set(trials["host"]) == {"h1", "h2"}
    assert set(command.rows()["attempt"]) == {1}
    assert (trials["train_wall_s"] < HOUR_S / 2).all()
    assert (trials["train_wall_s"] > 0).all()
