"""Results that an older version made are read, kept and reported; their trials are trained anew.

tests/old_results was made by the version before `search/` was divided into rooms: two trials of
tests/spaces/small.py (`--set base_lr=0.3`), and tests/spaces/searched.py, both compacted. They are
of recipe 1, which gave other numbers: none of them stands for a trial of today.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from commands import ROOT, SMALL, SPACES, Run

from search.report.findings import of_study
from search.results import epochs, open_folder, trials


def rows_of(folder: Path) -> pd.DataFrame:
    return trials(open_folder(str(folder))).set_index("trial_key").sort_index()


def assert_kept(before: pd.DataFrame, after: pd.DataFrame) -> None:
    """Every old row is as it was; a column may now have rows without a value."""
    kept = after.loc[before.index].astype(before.dtypes)
    pd.testing.assert_frame_equal(kept, before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "old_results", tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_an_older_study_is_reported(out: Path) -> None:
    findings = of_study(open_folder(str(out / "searched")))
    assert len(findings.trials) == 8
    assert findings.fields  # a search: its report has the importance of fields
    assert of_study(open_folder(str(out / "small"))).fields == []


@pytest.mark.ray
def test_an_older_grid_is_trained_anew_beside_its_old_rows(out: Path, run_joined: Run) -> None:
    before = rows_of(out / "small")
    done = run_joined(SMALL, out)
    assert done.returncode == 0, done.stderr
    assert "4 trials on dataset=synthetic, 0 done before, 4 to run" in done.stdout
    after = rows_of(out / "small")
    assert len(after) == 2 + 4
    assert_kept(before, after)
    assert not epochs(open_folder(str(out / "small"))).duplicated(["trial_key", "epoch"]).any()
    assert json.loads((out / "small" / "study.json").read_text())["explore"]["kind"] == "Grid"
    findings = of_study(open_folder(str(out / "small")))
    assert len(findings.trials) == 4
    assert findings.unplanned["n"].sum() == 2  # the old ones have a section of their own


@pytest.mark.ray
def test_an_older_search_is_trained_anew_beside_its_old_rows(out: Path, run_joined: Run) -> None:
    space = SPACES / "searched.py"
    before = rows_of(out / "searched")
    more = run_joined(space, out, "--set", "explore.num_configs=10")
    assert more.returncode == 0, more.stderr
    assert "10 trials on dataset=synthetic, 0 done before, 10 to run" in more.stdout
    after = rows_of(out / "searched")
    assert len(after) == 8 + 10
    assert_kept(before, after)
