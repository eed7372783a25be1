"""Every space file under spaces/: what it says, its dry run and, marked slow, its whole preview."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search import run as command
from search.explore import Pbt
from search.results import tables
from search.results.tables import open_folder
from search.study.preview import as_preview
from search.study.space_file import load_study
from search.study.study import Study

ROOT = Path(__file__).parent.parent
SPACES = sorted(path for path in (ROOT / "spaces").glob("*.py") if path.stem != "__init__")
COST = re.compile(r"\nCost: (?:at most )?(\d+) trials? of ")


def documented_trials(space: Path) -> int:
    """How many trials the file's own text says that there are."""
    found = COST.search(space.read_text())
    assert found, f"{space.name} says no `Cost: N trials of ...`"
    return int(found.group(1))


def preview_of(space: Path) -> Study:
    return as_preview(load_study(space), dataset="synthetic")


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_space_file_says_what_it_declares(space: Path) -> None:
    text = space.read_text()
    study = load_study(space)
    assert study.name == space.stem
    assert f"\n    python -m search.run spaces/{space.name}" in text
    epochs = study.base.epochs
    assert re.search(rf"\bof (?:at most |a fifth of )?{epochs} epochs\b", text)
    sums = r"(\d+) trials of (\d+) epochs of ([\d,]+) patches, (\d+) million patches in all"
    for said in re.findall(sums, " ".join(text.split())):
        trials, epochs, patches, millions = (int(number.replace(",", "")) for number in said)
        assert trials == len(study.configs) * study.seeds
        assert round(trials * epochs * patches / 1e6) == millions


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_preview_plans_as_many_trials_as_its_file_says(
    space: Path, no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(space), "--preview", "--dry-run", "--out", str(tmp_path)]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    study = preview_of(space)
    more = study.leaders.top * (study.leaders.seeds - study.seeds) if study.leaders else 0
    num_trials = documented_trials(space) - more
    assert re.search(rf"^ *{study.name}: {num_trials} trials *$", said, re.MULTILINE)
    assert f"0 done, {num_trials} to run (dry run: nothing was trained)" in said
    assert "estimate on this machine (a device): " in said
    assert ("leaders) are not counted" in said) == bool(more)
    assert not (tmp_path / study.name / "trials").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_preview_runs_to_its_end_and_once_only(space: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "search.run", str(space), "--preview", "--out", str(tmp_path)]
    environment = {**os.environ, "COLUMNS": "140"}

    def run() -> str:
        started = time.monotonic()
        # From elsewhere: data/ of this folder would be taken for the study's.
        done = subprocess.run(
            words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=3600
        )
        print(f"{time.monotonic() - started:.0f} s\n{done.stdout}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert "dataset=synthetic" in first
    study = preview_of(space)
    folder = tmp_path / study.name
    trials = pd.read_parquet(folder / "trials")
    epochs = pd.read_parquet(folder / "epochs")
    assert len(trials) == documented_trials(space)
    assert set(trials["status"]) <= {"completed", "stopped", "diverged"}
    assert set(trials["dataset"]) == {"synthetic"}
    assert tables.faults(open_folder(str(folder))) == []
    assert (trials["status"] == "completed").any()
    if not isinstance(study.explore, Pbt):  # of which a trial trains a part of the budget
        reached = epochs.groupby("trial_key")["epoch"].max()[trials["trial_key"]].to_numpy()
        assert (reached[trials["status"] == "completed"] == study.base.epochs).all()
        assert (reached[trials["status"] == "stopped"] < study.base.epochs).all()
    assert (folder / "report.html").stat().st_size > 100_000
    assert trials["val_auroc"].max() > 0.75  # of 0.5 to about 0.9
    CHECKS.get(space.stem, lambda *_: None)(folder, trials)

    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    again = run()
    num_trials = len(trials)
    assert re.search(rf"\b{num_trials} done before, 0 to run|another round", again)
    assert "Ray " not in again
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def check_asha(folder: Path, trials: pd.DataFrame) -> None:
    grid = trials[trials["seed"] == 0]
    assert len(grid) == 35
    # The best three have three seeds, and no other has: the last two seeds have six trials.
    again = trials[trials["seed"] > 0]
    assert sorted(again["seed"]) == [1, 1, 1, 2, 2, 2]
    assert (again["status"] != "stopped").all()
    cells = ["batch_size", "base_lr"]
    best = grid[grid["status"] == "completed"].nlargest(3, "val_auroc")
    assert set(map(tuple, again[cells].to_numpy())) == set(map(tuple, best[cells].to_numpy()))
    # Each batch size is a race of its own, so each has one that was let through, and most are not.
    assert grid.loc[grid["status"] == "completed", "batch_size"].nunique() == 5
    assert (grid["status"] == "stopped").sum() >= 12


def check_search(folder: Path, trials: pd.DataFrame) -> None:
    (journal,) = folder.glob("optuna.journal")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    told = optuna.load_study(study_name=folder.name, storage=storage).get_trials()
    states = [each.state.name for each in told]
    assert len(states) == len(trials)
    assert states.count("PRUNED") == (trials["status"] == "stopped").sum() > 0
    assert states.count("COMPLETE") == len(trials) - states.count("PRUNED")


def check_conditional(folder: Path, trials: pd.DataFrame) -> None:
    check_search(folder, trials)
    by = dict(list(trials.groupby("optimizer")))
    assert set(by) == {"sgd", "adamw"}
    assert by["sgd"]["base_lr"].between(1e-3, 3.0).all()
    assert by["adamw"]["base_lr"].between(1e-5, 3e-2).all()
    assert by["sgd"]["momentum"].nunique() > 1
    assert by["adamw"]["momentum"].nunique() == 1  # it is not asked for: the field's default
    assert set(by["sgd"]["lr_scaling"]) == {"linear"}
    assert set(by["adamw"]["lr_scaling"]) == {"sqrt"}


def check_population(folder: Path, trials: pd.DataFrame) -> None:
    shares = trials["until_share"].round(3)
    assert shares.value_counts().to_dict() == {0.2: 8, 0.4: 8, 0.6: 8, 0.8: 8, 1.0: 8}
    share_of = dict(zip(trials["trial_key"], shares, strict=True))
    first = shares == 0.2
    assert trials.loc[first, "begins_from"].isna().all()
    before = trials.loc[~first, "begins_from"].map(share_of)
    assert (before + 0.2 - shares[~first]).abs().max() < 0.01  # of the generation just before
    assert (trials["status"] == "completed").eq(shares == 1.0).all()
    for _, generation in trials[~first].groupby(shares):
        assert generation["begins_from"].nunique() == 6  # two of eight go on from a better one
    assert not list((folder / "checkpoints").rglob("*.pt"))


CHECKS = {
    "pcam_asha": check_asha,
    "pcam_optuna": check_search,
    "pcam_conditional": check_conditional,
    "pcam_pbt": check_population,
}
