"""Packs on Ray: the tables of the same study without them, whatever is lost or stopped."""

import signal
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from commands import start_command
from faulty_study import NUMBERS, command_line

from search.results import tables
from search.results.tables import Results
from trainable.host.storage import folder_at

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SPACE = """
from ray import tune

from search.explore import Asha
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="packs",
    base=TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        width=4,
        image_size=48,
        train_images=512,
        eval_images=128,
        epochs=8,
        precision="fp32",
        dropout=0.3,
    ),
    vary={
        "batch_size": tune.grid_search([32, 64]),
        "base_lr": tune.grid_search([1e-5, 1e-3, 0.1, 0.3]),
    },
    checkpoint_every_s=0,
)
"""


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "packs.py"
    path.write_text(SPACE)
    return path


def ended(space: Path, out: Path, *settings: str) -> str:
    """Run the command to its end; returns what it said."""
    process = start_command(space, out, *(word for s in settings for word in ("--set", s)))
    said, errors = process.communicate(timeout=280)
    assert process.returncode == 0, said + errors
    return said


def results_in(out: Path) -> Results:
    return Results("packs", folder_at(str(out)) / "packs")


def epochs_in(out: Path) -> pd.DataFrame:
    """What must not depend on packs; no evaluation is there twice."""
    rows = tables.epochs(results_in(out)).set_index(["trial_key", "epoch"]).sort_index()
    assert not rows.index.has_duplicates
    return rows[NUMBERS]


def trials_in(out: Path) -> pd.DataFrame:
    return tables.trials(results_in(out)).set_index("trial_key").sort_index()


@pytest.fixture(scope="session")
def without(
    space: Path, drawn_patches: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The evaluations and trials of the study without packs."""
    out = tmp_path_factory.mktemp("without")
    ended(space, out)
    return epochs_in(out), trials_in(out)


SCORES = ["status", "val_auroc", "val_loss", "test_auroc", "test_loss", "best_epoch", "noise_scale"]


def test_packs_have_the_tables_of_trials_alone(
    space: Path, without: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    ended(space, tmp_path, "pack=3")
    epochs, trials = without
    pd.testing.assert_frame_equal(epochs_in(tmp_path), epochs)
    packed = trials_in(tmp_path)
    pd.testing.assert_frame_equal(packed[SCORES], trials[SCORES])
    assert packed["pack_size"].max() in (2, 3)
    assert set(trials["pack_size"]) == {1}
    assert set(packed["attempt"]) == {1}
    # Twice, and with more seeds: only these are trained.
    assert "0 to run" in ended(space, tmp_path, "pack=3")
    ended(space, tmp_path, "pack=4", "seeds=2")
    assert len(trials_in(tmp_path)) == 16
    pd.testing.assert_frame_equal(epochs_in(tmp_path).loc[epochs.index], epochs)


def test_a_scheduler_stops_members_of_packs(
    space: Path, without: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    with_asha = tmp_path / "packs.py"
    with_asha.write_text(SPACE.replace("    checkpoint", "    stop=Asha(),\n    checkpoint"))
    ended(with_asha, tmp_path, "pack=4", "cpus_per_trial=1")
    epochs, trials = without
    packed, rows = trials_in(tmp_path), epochs_in(tmp_path)
    assert set(packed["status"]) == {"completed", "stopped"}
    assert packed["pack_size"].dropna().max() == 4
    stopped = packed[packed["status"] == "stopped"]
    assert stopped["reason"].str.startswith("asha at ").all()
    for key, row in packed.iterrows():
        assert len(rows.loc[key]) == row["epochs_completed"]
        assert (row["epochs_completed"] == 8) == (row["status"] == "completed")
    pd.testing.assert_frame_equal(rows, epochs.loc[rows.index])
    completed = packed.index[packed["status"] == "completed"]
    pd.testing.assert_frame_equal(
        packed.loc[completed, SCORES], trials.loc[completed, SCORES], check_dtype=False
    )


def test_the_trials_of_a_lost_pack_go_on_alone(
    space: Path, without: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    command = start_command(space, tmp_path, "--set", "pack=4")
    seen = wait_for(command, tmp_path, rows=10)
    workers = [
        child
        for child in psutil.Process(command.pid).children(recursive=True)
        if "ray::ImplicitFunc" in " ".join(command_line(child))
    ]
    workers[0].kill()
    said, errors = command.communicate(timeout=280)
    assert command.returncode == 0, said + errors
    assert "the worker of 4 trials was lost" in said, said
    assert "each goes on alone" in said
    epochs, trials = without
    pd.testing.assert_frame_equal(epochs_in(tmp_path), epochs)
    packed = trials_in(tmp_path)
    pd.testing.assert_frame_equal(packed[SCORES], trials[SCORES])
    assert packed.groupby("attempt")["pack_size"].agg(["min", "max", "size"]).to_dict("index") == {
        1: {"min": 4, "max": 4, "size": 4},
        2: {"min": 1, "max": 1, "size": 4},
    }
    again = tables.epochs(results_in(tmp_path)).set_index(["trial_key", "epoch"])
    walls = again["epoch_wall_s"].reindex(seen.index)
    assert (walls == seen["epoch_wall_s"]).all()  # what a reader saw was not trained again


def wait_for(command: object, out: Path, *, rows: int) -> pd.DataFrame:
    """The evaluations once there are so many."""
    deadline = time.monotonic() + 180
    while len(seen := tables.epochs(results_in(out))) < rows:
        assert time.monotonic() < deadline, "the study does not get there"
        time.sleep(0.05)
    return seen.set_index(["trial_key", "epoch"])


def test_an_interrupted_pack_goes_on_in_other_packs(
    space: Path, without: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    command = start_command(space, tmp_path, "--set", "pack=4")
    wait_for(command, tmp_path, rows=10)
    command.send_signal(signal.SIGINT)
    said, errors = command.communicate(timeout=120)
    assert command.returncode == 75, said + errors
    assert set(trials_in(tmp_path)["status"]) <= {"interrupted", "completed"}
    ended(space, tmp_path, "pack=3")
    epochs, trials = without
    pd.testing.assert_frame_equal(epochs_in(tmp_path), epochs)
    pd.testing.assert_frame_equal(trials_in(tmp_path)[SCORES], trials[SCORES])
