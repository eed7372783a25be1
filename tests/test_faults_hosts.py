"""Faults of one host among several: it is left out, and no trial pays for it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faulty_study import Command, doubled, in_workers, two_nodes

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(600)]
SIX = ("--set", "seeds=3")


@pytest.mark.parametrize(
    ("fault", "name", "reason"),
    [
        (
            "poisoned_host",
            "a host whose GPU fails (simulated)",
            "AcceleratorError: CUDA error: an illegal memory access was encountered",
        ),
        pytest.param(
            "no_data",
            "a host without the data (simulated)",
            "no synthetic data in /data: it was unmounted",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_host_that_fails_everything_is_left_out(
    fault: str,
    name: str,
    reason: str,
    command: Command,
    fault_matrix: list[Any],
    tmp_path: Path,
) -> None:
    """One of two nodes: its trials move to the other, and none of them has failed."""
    environment = in_workers(fault, tmp_path)
    command.environment = environment
    with two_nodes(PYTHONPATH=environment["PYTHONPATH"], FAULT_SEEN=environment["FAULT_SEEN"]) as n:
        command.settings = ("--address", n.address, *SIX)
        command.start()
        status, said = command.end(400)
    assert status == 0, said
    (sentence,) = [line for line in said.splitlines() if "is left out from now on" in line]
    assert f"3 workers in a row failed there: {reason}" in sentence
    trials = pd.read_parquet(tmp_path / "faulty" / "trials")
    assert list(trials["status"]) == ["completed"] * 6
    assert len(command.rows()) == 6 * 20
    fault_matrix.append({"fault": name, "rows lost": 0, "doubled": doubled(command)})


def test_where_every_host_fails_the_study_stops_and_no_trial_has_failed(
    command: Command, tmp_path: Path
) -> None:
    command.environment = in_workers("poisoned_host", tmp_path)
    (tmp_path / "seen").write_text("all")
    command.settings = (*SIX, "--set", "epochs=4")
    command.start()
    status, said = command.end()
    assert status == 1, said
    assert "stopped: no host is left to train on:" in said
    assert "go on with" in said
    assert not list((tmp_path / "faulty").glob("trials/*.parquet"))
    command.environment = {}  # the GPU was mended
    command.start()
    status, said = command.end()
    assert status == 0, said
    assert len(command.rows()) == 24
