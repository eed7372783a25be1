"""A study whose trials have two ranks each, one of which is killed."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from commands import until
from faulty_study import Command, command_line, doubled

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(900)]
# Two GPUs that are not there: a trial takes both, and its ranks train on cores.
TWO_GPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2, "GPU": 2}'}
SETTINGS = (
    *("--set", "gpus_per_trial=2", "--set", "norm=sync"),
    *("--set", "checkpoint_every_s=0"),  # after each evaluation
)


def others(worker: psutil.Process) -> list[psutil.Process]:
    """The processes of a worker's other ranks."""
    return [p for p in worker.children() if "followers" in " ".join(command_line(p))]


def by_batch_size(epochs: pd.DataFrame, name: str) -> np.ndarray[Any, Any]:
    """A column of each trial, the trial with most updates first."""
    trials = [rows.sort_values("epoch") for _, rows in epochs.groupby("trial_key")]
    return np.array([rows[name] for rows in sorted(trials, key=lambda r: -r["updates"].max())])


def test_a_killed_rank_is_a_lost_worker_and_no_more(
    tmp_path: Path, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    command = Command(tmp_path, SETTINGS, TWO_GPUS)
    command.start()
    command.wait_for(lambda rows: len(rows) >= 3)
    before = command.rows().set_index(["trial_key", "epoch"])
    worker = command.servers("ray::ImplicitFunc")[0]
    (rank,) = others(worker)
    rank.kill()
    began = time.monotonic()
    assert until(lambda: not worker.is_running())
    noticed = time.monotonic() - began
    command.wait_for(lambda rows: bool((rows["attempt"] == 2).any()))
    recovered = time.monotonic() - began
    (worker,) = command.servers("ray::ImplicitFunc")
    (stopped,) = others(worker)
    stopped.suspend()
    worker.kill()
    assert until(lambda: not stopped.is_running())
    command.wait_for(lambda rows: bool((rows["attempt"] == 3).any()))
    last = [rank for worker in command.servers("ray::ImplicitFunc") for rank in others(worker)]
    status, said = command.end()
    assert status == 0, said
    assert until(lambda: not any(rank.is_running() for rank in last))

    trials = pd.read_parquet(tmp_path / "faulty" / "trials")
    assert list(trials["status"]) == ["completed"] * 2
    assert list(trials["num_gpus"]) == [2.0, 2.0]
    assert sorted(trials["attempt"]) == [1, 3]
    assert list(trials["microbatch_size"]) == list(trials["batch_size"] // 2)
    after = command.rows().set_index(["trial_key", "epoch"])
    again = (after.loc[before.index, "epoch_wall_s"] != before["epoch_wall_s"]).sum()
    fault_matrix.append(
        {
            "fault": "kill -9 of a rank of two",
            "detected after": noticed,
            "recovered after": recovered,
            "epochs done again": int(again),
            "rows lost": 0,
            "doubled": doubled(command),
        }
    )
    assert (again, doubled(command)) == (0, 0)
    # As one rank trains, but for rounding, which grows from update to update.
    for name in ("lr", "examples_seen", "train_loss", "val_loss"):
        of_two = by_batch_size(command.rows(), name)
        of_one = by_batch_size(faultless.reset_index(), name)
        np.testing.assert_allclose(of_two[:, :2], of_one[:, :2], rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(of_two, of_one, rtol=0.1, err_msg=name)
