"""The nightly fault matrix: goes on where it was stopped, and sums up what the tests measured."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.faults import fault_tests, matrix_of, rows_of, run


def test_every_fault_test_is_found() -> None:
    tests = fault_tests("")
    assert len(tests) >= 20
    assert all("tests/test_" in test for test in tests)
    assert 0 < len(fault_tests("hosts")) < len(tests)


def test_what_was_measured_is_kept_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str]] = []

    def runs(words: list[str], env: dict[str, str], **_: Any) -> Any:
        assert ("-m", "faults") in itertools.pairwise(words)  # or slow ones would be left out
        ran.append((words[-1], env["FAULT_SEED"]))
        broken = words[-1] == "t::b" and env["FAULT_SEED"] == "8"
        if not broken:
            row = {"fault": f"of {words[-1]}", "rows lost": 0, "recovered after": float(len(ran))}
            Path(env["FAULT_ROWS"]).write_text(json.dumps(row) + "\n")
        return subprocess.CompletedProcess(words, int(broken), stdout="what went wrong")

    monkeypatch.setattr(faults.subprocess, "run", runs)
    out = tmp_path / "faults.jsonl"
    assert run(["t::a", "t::b"], out, times=2, seed=7) == 1
    assert ran == [("t::a", "7"), ("t::b", "7"), ("t::a", "8"), ("t::b", "8")]
    assert run(["t::a", "t::b"], out, times=3, seed=7) == 0
    assert ran[4:] == [("t::a", "9"), ("t::b", "9")]
    matrix = matrix_of(rows_of(out))
    assert matrix.loc["of t::a", "times"] == 3
    assert matrix.loc["of t::a", "went_on_median_s"] == 3
    assert matrix.loc["of t::a", "went_on_worst_s"] == 5
    assert matrix.loc["b", "failed"] == 1  # a run that broke measured nothing
    assert matrix["rows_lost"].sum() == 0
