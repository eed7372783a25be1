"""A study whose trials have two ranks each, one of which is killed."""

from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from commands import until
from faulty_study import NUMBERS, Command, command_line, doubled

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(300)]
# Two GPUs that are not there: trials take both, and their ranks train on cores.
TWO_GPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2, "GPU": 2}'}


def followers() -> list[psutil.Process]:
    """The processes of other ranks than the first, of this user's studies."""
    return [p for p in psutil.process_iter() if "trainable.host.followers" in " ".join(command_line(p))]


def test_a_killed_rank_is_a_lost_worker_and_no_more(
    tmp_path: Path, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    settings = ("--set", "gpus_per_trial=2", "--set", "cpus_per_trial=2", "--set", "norm=sync")
    command = Command(tmp_path, settings, TWO_GPUS)
    command.start()
    command.wait_for(lambda rows: len(rows) >= 3)
    before = command.rows()
    worker = command.servers("ray::ImplicitFunc")[0]
    (rank,) = [p for p in worker.children() if "followers" in " ".join(command_line(p))]
    rank.kill()
    assert until(lambda: not worker.is_running())
    command.wait_for(lambda rows: bool((rows["attempt"] == 2).any()))
    status, said = command.end()
    assert status == 0, said
    trials = pd.read_parquet(tmp_path / "faulty" / "trials").sort_values("batch_size")
    assert list(trials["status"]) == ["completed"] * 2
    assert list(trials["num_gpus"]) == [2.0, 2.0]
    assert list(trials["attempt"]) == [2, 1]
    assert list(trials["microbatch_size"]) == [16, 32]
