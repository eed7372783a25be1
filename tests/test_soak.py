"""Faults drawn at random over study after study, for SOAK_MINUTES (1) by SOAK_SEED (0).

For the night, not for each change, whose faults are in tests/test_faults.py:

    SOAK_MINUTES=60 SOAK_SEED=$RANDOM uv run pytest -m slow tests/test_soak.py -s
"""

import os
import random
import signal
import time
from typing import Any

import pandas as pd
import pytest
from faulty_study import Command, check, enough, harm

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(0)]

DRIVER_ENDS = {"kill -9 of the driver": signal.SIGKILL, "SIGINT": signal.SIGINT}
WORKER_STRUCK = {"kill -9 of a worker": signal.SIGKILL, "a worker hangs": signal.SIGSTOP}
FILES = {"a table's file broken": "epochs/*.parquet", "a checkpoint broken": "checkpoints/*/*.pt"}


def test_a_study_under_random_faults_ends_as_one_without(
    command: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    rng = random.Random(int(os.environ.get("SOAK_SEED", "0")))
    until = time.monotonic() + 60 * float(os.environ.get("SOAK_MINUTES", "1"))
    drawn: list[str] = []
    number = 0
    while time.monotonic() < until:
        number += 1
        command.out = command.out.with_name(f"study{number}")
        command.out.mkdir()
        before = strike_until_done(command, rng, drawn)
        row = {"fault": "random faults, a study"}
        check(command, before, faultless, matrix=fault_matrix, **row)
    assert drawn
    print(f"{number} studies, {len(drawn)} faults: {', '.join(drawn)}")


def strike_until_done(command: Command, rng: random.Random, drawn: list[str]) -> pd.DataFrame:
    """Run a study through up to four faults to its end; returns the last rows that were seen."""
    before = command.rows()
    for _ in range(4):
        command.start()
        if not get_under_way(command, rng):
            break
        before = command.rows()
        fault = rng.choice([*DRIVER_ENDS, *WORKER_STRUCK, *FILES])
        drawn.append(fault)
        if fault in WORKER_STRUCK:
            workers = command.servers("ray::ImplicitFunc")
            if workers:
                rng.choice(workers).send_signal(WORKER_STRUCK[fault])
            if not get_under_way(command, rng, further=len(before) + 4):
                break
            before = command.rows()
        command.process.send_signal(DRIVER_ENDS.get(fault, signal.SIGINT))
        command.end()
        if fault in FILES:
            found = sorted((command.out / "faulty").glob(FILES[fault]))
            if found:
                struck = rng.choice(found)
                harm(struck, rng.choice(["truncated", "bit flipped"]))
                before = before[before["trial_key"] != struck.stem]  # its rows were lost on purpose
    if command.process.poll() is None:
        status, said = command.end()
    else:
        command.start()
        status, said = command.end()
    assert status == 0, said
    return before


def get_under_way(command: Command, rng: random.Random, *, further: int = 0) -> bool:
    """Wait until the trials report, and a little; False where the study ended meanwhile."""
    deadline = time.monotonic() + 90
    while not (enough(rows := command.rows()) and len(rows) >= further):
        if command.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the study does not get there"
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1))
    return command.process.poll() is None
