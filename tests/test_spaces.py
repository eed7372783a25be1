"""Every space file under spaces/: what it says, its dry run and, marked slow, its whole preview."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from commands import Run
from helpers import no_tables
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search import run as command
from search.explore import Ablation, Grid, Optuna, Pbt, Ridge, Variants
from search.explore.ask import ask
from search.results import tables
from search.results.tables import open_folder
from search.study.catalogue import entries, entry_of
from search.study.preview import as_preview
from search.study.space_file import load_study
from search.study.study import Study
from trainable.config import TrialConfig

SPACES = [entry.path for entry in entries()]
COST = re.compile(r"\nCost: (?:at most )?(\d+) trials? of ")
MOST_LINES = 40
PATCHES = 262_144  # PatchCamelyon's training split; other costs say how many images they are of


def documented_trials(space: Path) -> int:
    """How many trials the file's own text says that there are."""
    found = COST.search(space.read_text())
    assert found, f"{space.name} says no `Cost: N trials of ...`"
    return int(found.group(1))


def preview_of(space: Path) -> Study:
    return as_preview(load_study(space), dataset="synthetic")


def planned_trials(study: Study) -> int:
    """How many trials there are before leaders, by the explorer itself."""
    known = no_tables()
    ask(study, known, room=0)
    return study.explore.total(study, known)


def images_of(config: TrialConfig, patches: int) -> int:
    """How many images a trial sees; of a budget in seconds that is not known."""
    train_images = config.train_images or patches
    return (config.epochs or 0) * train_images + (config.updates or 0) * config.batch_size


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_space_file_says_what_it_declares(space: Path) -> None:
    text = space.read_text()
    study = load_study(space)
    assert study.name == space.stem
    assert f"\n    python -m search.run spaces/{space.name}" in text
    assert "\nExpected: " in text
    assert len(text.splitlines()) <= MOST_LINES
    cost = entry_of(space).cost
    searched = isinstance(study.explore, Optuna)
    num_trials = planned_trials(study) if not searched else documented_trials(space)
    more = study.leaders.top * (study.leaders.seeds - study.seeds) if study.leaders else 0
    assert num_trials + more == documented_trials(space)
    if previewed := re.search(r"Preview: (\d+) trials", cost):
        assert int(previewed.group(1)) == planned_trials(preview_of(space))
    if isinstance(study.explore, Grid | Variants | Ablation) and not (study.stop or study.leaders):
        of = re.search(r"of (?:Kaggle's )?([\d,]+) (?:images|patches)", cost)
        patches = int(of.group(1).replace(",", "")) if of else PATCHES
        millions = sum(images_of(config, patches) for config in set(study.configs)) / 1e6
        said = re.search(r"([\d.]+) million", cost)
        known = said.group(1) if said else "0"
        assert float(known) == round(millions, len(known.partition(".")[2]))


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_space_that_is_copied_into_another_folder_loads(space: Path, tmp_path: Path) -> None:
    copied = tmp_path / "spaces" / space.name
    copied.parent.mkdir()
    copied.write_text(space.read_text())
    assert load_study(copied).configs == load_study(space).configs


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_preview_plans_as_many_trials_as_its_explorer_says(
    space: Path,
    no_ray: None,
    draw_patches: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = preview_of(space)
    draw_patches(study.base.task)
    words = [str(space), "--preview", "--dry-run", "--out", str(tmp_path)]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    num_trials = planned_trials(study)
    assert re.search(rf"^ *{study.name}: {num_trials} trials *$", said, re.MULTILINE)
    assert f"0 done, {num_trials} to run (dry run: nothing was trained)" in said
    assert "estimate on this machine (a device): " in said
    assert ("leaders) are not counted" in said) == bool(study.leaders)
    assert not (tmp_path / study.name / "trials").exists()


# --- every preview, shrunk: in CI -----------------------------------------------------------------

TINY = {"image_size": 32, "train_images": 64, "eval_images": 48, "width": 4, "epochs": 2}
# Of fields that vary: a few values, as a comma list.
TINY_VALUES = {
    **{"batch_size": "16,32", "base_lr": "0.1,", "weight_decay": "0.1,1", "train_images": "48,64"},
    "momentum": "0.5,0.9",
}


OWN = ("base_lr",)  # of which a variant has values
MOST_TRIALS = 8


def parquet_times(folder: Path) -> dict[Path, int]:
    """When each file of the tables was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def tiny_step(more: Mapping[str, Any]) -> dict[str, Any]:
    """A step or a variant with one value of its own and a few updates."""
    small = {n: {**v, "grid_search": v["grid_search"][:1]} for n, v in more.items() if n in OWN}
    return {**more, **small, **({"updates": 4} if "updates" in more else {})}


def tiny_settings(study: Study) -> list[str]:
    """The settings that leave at most eight trials of less than a second of a preview."""
    settings: dict[str, object] = {n: v for n, v in TINY.items() if n not in study.vary}
    settings |= {name: TINY_VALUES[name] for name in study.vary if name in TINY_VALUES}
    explore = study.explore
    if study.base.seconds is not None:
        settings |= {"epochs": None, "seconds": 0.2}
    num_steps = max(len(getattr(explore, "each", ())), len(getattr(explore, "steps", ())))
    if num_steps > MOST_TRIALS / 2 or "activation" in study.vary:
        settings["batch_size"] = "16,"
    if isinstance(explore, Variants):
        settings["explore.each"] = {name: tiny_step(more) for name, more in explore.each.items()}
    elif isinstance(explore, Ridge):  # which needs a range of rates
        settings |= {"explore.num_trials": 4}
        del settings["base_lr"]
    elif isinstance(explore, Pbt):
        settings |= {"explore.size": 2, "explore.generations": 2}
    elif isinstance(explore, Optuna):  # whose space may have batch sizes up to 256
        settings |= {"explore.num_configs": 3, "train_images": 256}
    if study.leaders:
        settings |= {"leaders.top": 1, "leaders.seeds": 2}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.ray
@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_tiny_preview_runs_to_its_end_and_once_only(
    space: Path, tmp_path: Path, run_joined: Run, draw_patches: Callable[[str], None]
) -> None:
    study = preview_of(space)
    draw_patches(study.base.task)
    words = ["--preview", *tiny_settings(study)]
    first = run_joined(space, tmp_path, *words)
    assert first.returncode == 0, first.stderr + first.stdout
    assert "dataset=synthetic" in first.stdout
    trials = pd.read_parquet(tmp_path / space.stem / "trials")
    assert 2 <= len(trials) <= MOST_TRIALS
    assert set(trials["status"]) <= {"completed", "stopped", "diverged"}
    assert (trials["status"] == "completed").any()
    files = parquet_times(tmp_path)
    again = run_joined(space, tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert re.search(rf"\b{len(trials)} done before, 0 to run", again.stdout)
    assert parquet_times(tmp_path) == files


# --- every preview, whole: by hand ----------------------------------------------------------------


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
    assert len(trials) >= planned_trials(study)
    assert set(trials["status"]) <= {"completed", "stopped", "diverged"}
    assert set(trials["dataset"]) == {"synthetic"}
    assert tables.faults(open_folder(str(folder))) == []
    assert (trials["status"] == "completed").any()
    in_epochs = study.base.epochs is not None and study.base.eval_epochs == 1
    if in_epochs and isinstance(study.explore, Grid | Ablation | Optuna):
        reached = epochs.groupby("trial_key")["epoch"].max()[trials["trial_key"]].to_numpy()
        assert (reached[trials["status"] == "completed"] == study.base.epochs).all()
        assert (reached[trials["status"] == "stopped"] < study.base.epochs).all()
    assert (folder / "report.html").stat().st_size > 100_000
    assert trials["val_auroc"].max() > 0.75  # of 0.5 to about 0.9
    CHECKS.get(space.stem, lambda *_: None)(folder, trials)

    files = parquet_times(folder)
    again = run()
    num_trials = len(trials)
    assert re.search(rf"\b{num_trials} done before, 0 to run|another round", again)
    assert "Ray " not in again
    assert files == parquet_times(folder)


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
