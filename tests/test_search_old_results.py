"""Results that an older version made are read, and gone on with.

tests/old_results was made by the version before `search/` was divided into rooms: two trials of
tests/spaces/small.py (`--set base_lr=0.3`), and tests/spaces/searched.py, both compacted.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from search.report.findings import of_study
from search.results import epochs, open_folder, trials
from search.run import main

HERE = Path(__file__).parent


def rows_of(folder: Path) -> pd.DataFrame:
    return trials(open_folder(str(folder))).set_index("trial_key").sort_index()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    shutil.copytree(HERE / "old_results", tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_an_older_study_is_reported(out: Path) -> None:
    findings = of_study(open_folder(str(out / "searched")))
    assert len(findings.trials) == 8
    assert findings.fields  # a search: its report has the importance of fields
    assert of_study(open_folder(str(out / "small"))).fields == []


@pytest.mark.ray
def test_an_older_grid_goes_on(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = rows_of(out / "small")
    assert main([str(HERE / "spaces" / "small.py"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 trials on dataset=synthetic, 2 done before, 2 to run" in printed
    after = rows_of(out / "small")
    assert len(after) == 4
    pd.testing.assert_frame_equal(after.loc[before.index], before)
    assert not epochs(open_folder(str(out / "small"))).duplicated(["trial_key", "epoch"]).any()
    assert json.loads((out / "small" / "study.json").read_text())["explore"]["kind"] == "Grid"


@pytest.mark.ray
def test_an_older_search_is_extended(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = str(HERE / "spaces" / "searched.py")
    before = rows_of(out / "searched")
    assert main([space, "--out", str(out)]) == 0
    assert "8 trials on dataset=synthetic, 8 done before, 0 to run" in capsys.readouterr().out
    assert main([space, "--out", str(out), "--set", "explore.num_configs=10"]) == 0
    assert "10 trials on dataset=synthetic, 8 done before, 2 to run" in capsys.readouterr().out
    after = rows_of(out / "searched")
    assert len(after) == 10
    pd.testing.assert_frame_equal(after.loc[before.index], before)
