"""The tables' files: damage, packing, and what a writer that was killed leaves."""

import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import ROOT

from search.results import files, tables
from search.results.tables import EPOCHS, Results
from trainable.config import TrialConfig

CONFIG = TrialConfig(model="plain", pretrained="none")


def fill(opened: Results, keys: list[str], *, epochs: int = 3, status: str = "completed") -> None:
    now = datetime.now(UTC)
    for key in keys:
        rows = [
            {"study": "s", "trial_key": key, "seed": 0, "attempt": 1, "epoch": e, "val_auroc": 0.5}
            for e in range(1, epochs + 1)
        ]
        tables.commit_epochs(opened, key, rows)
        said = {"study": "s", "trial_key": key, "attempt": 1, "status": status, "reason": ""}
        ended = {"epochs_completed": epochs, "val_auroc": 0.5, "ended_at": now}
        tables.commit_trial(opened, asdict(CONFIG) | said | ended)


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    found = tables.open_results(str(tmp_path), "s")
    fill(found, ["k1", "k2", "k3"])
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, truncate, empty])
def test_a_broken_file_is_named_and_the_rest_is_read(
    harm: Any, opened: Results, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harm(tmp_path / "s" / "trials" / "k2.parquet")
    assert list(tables.trials(opened)["trial_key"]) == ["k1", "k3"]
    assert "trials/k2.parquet cannot be read" in caplog.text
    assert list(tables.damaged(opened)) == ["trials/k2.parquet"]
    assert tables.make_sound(opened) == ["trials/k2.parquet"]
    assert tables.damaged(opened) == {}
    assert len(list((tmp_path / "s" / "damaged" / "trials").iterdir())) == 1  # nothing is deleted


@pytest.mark.parametrize("status", ["completed", "stopped"])
def test_a_trial_whose_epochs_are_lost_runs_again(
    status: str, opened: Results, tmp_path: Path
) -> None:
    fill(opened, ["k2"], status=status)
    flip(tmp_path / "s" / "epochs" / "k2.parquet")
    assert tables.make_sound(opened) == ["epochs/k2.parquet", "trials/k2.parquet"]
    assert list(tables.trials(opened)["trial_key"]) == ["k1", "k3"]
    assert tables.faults(opened) == []


def test_packing_changes_no_row_and_pandas_reads_the_folder(
    opened: Results, tmp_path: Path
) -> None:
    before = {name: pd.read_parquet(tmp_path / "s" / name) for name in ("trials", "epochs")}
    assert tables.compact(opened) == 4
    for name, frame in before.items():
        assert len(list((tmp_path / "s" / name).iterdir())) == 1
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "s" / name), frame)
    fill(opened, ["k4"])
    assert sorted(tables.trials(opened)["trial_key"]) == ["k1", "k2", "k3", "k4"]
    tables.compact(opened)
    assert tables.compact(opened) == 0
    assert tables.faults(opened) == []


def test_a_packed_trial_that_runs_again_is_there_once(opened: Results, tmp_path: Path) -> None:
    tables.compact(opened)
    tables.take_apart(opened, ["k2", "unknown"])
    fill(opened, ["k2"], epochs=5)
    rows = pd.read_parquet(tmp_path / "s" / "epochs")
    assert rows.groupby("trial_key").size().to_dict() == {"k1": 3, "k2": 5, "k3": 3}
    assert tables.faults(opened) == []


def test_doubles_and_gaps_are_faults(opened: Results) -> None:
    rows = [{"study": "s", "trial_key": "k1", "epoch": e} for e in (2, 3)]
    tables.commit_epochs(opened, "k1", rows)
    files.write_part(opened / "epochs", "again.parquet", EPOCHS, rows)
    said = " ".join(tables.faults(opened))
    assert "epochs: 2 duplicate rows" in said
    assert "epochs of trial k1 are not 1, 2, 3" in said
    assert "trial k1 has fewer epochs" in said


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "search.results", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_verify_and_compact_from_the_command_line(opened: Results, tmp_path: Path) -> None:
    """What they say and how they end otherwise is in test_results_verify.py."""
    packed = command("compact", str(tmp_path / "s"))
    assert (packed.returncode, packed.stdout) == (0, "3 trials, 9 epochs: 4 files fewer\n")
    truncate(next((tmp_path / "s" / "trials").iterdir()))
    broken = command("verify", str(tmp_path / "s"))
    assert broken.returncode == 1
    assert "cannot be read" in broken.stdout
