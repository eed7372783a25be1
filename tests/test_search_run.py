"""The command on Ray: what it prints, its exit status, its tables.

Most tests run it in this process, on a cluster that they share; those that interrupt it run it in a
process of its own.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from commands import (
    RAY,
    ROOT,
    SMALL,
    SPACES,
    Run,
    SharedCluster,
    run_command,
    search_command,
    start_command,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from scipy.stats import spearmanr

from search.analysis.scaling.ridge import ridge
from search.analysis.surface import surface
from search.results.tables import faults, open_folder
from search.run import parser
from search.study.space_file import load_study
from trainable.config import trial_key
from trainable.data.cache import open_data
from trainable.finetune import finetune

pytestmark = pytest.mark.usefixtures("drawn_patches")


def parquet_times(folder: Path) -> dict[Path, int]:
    """When each file of the tables was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def refuse_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cluster(address: str, *, study: str) -> None:
        raise AssertionError("Ray is started though there is nothing to run")

    monkeypatch.setattr("cluster.connect.connect", no_cluster)


def test_flags_are_the_contracts() -> None:
    flags = {option for action in parser()._actions for option in action.option_strings}
    assert flags == {
        *("-h", "--help", "--out", "--data", "--address", "--preview", "--dry-run"),
        *("--set", "--retry", "--list", "--log"),
    }


@pytest.mark.ray
def test_a_study_from_start_to_more_seeds(tmp_path: Path, run_here: Run, run_joined: Run) -> None:
    """The first command as a user types it, with a Ray of its own, a dashboard and charts."""
    first = run_command(SMALL, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "[4/4]" in first.stdout
    assert "dashboard: http://127.0.0.1:" in first.stdout
    assert "no GPU here: trials run on cores" in first.stdout
    answer = first.stdout[first.stdout.index("\nsmall  dataset=synthetic") :]
    trials = pd.read_parquet(tmp_path / "small" / "trials")
    assert trials["status"].tolist() == ["completed"] * 4
    assert trials["code_version"].nunique(dropna=False) == 1
    assert len(pd.read_parquet(tmp_path / "small" / "epochs")) == 8
    files = parquet_times(tmp_path)
    assert (tmp_path / "small" / "charts" / "surface.png").read_bytes().startswith(b"\x89PNG")
    # Two workers trained four trials: one that is used again gives what a fresh process gives.
    epochs = pd.read_parquet(tmp_path / "small" / "epochs").set_index(["trial_key", "epoch"])
    for config in load_study(SMALL).configs:
        cell = (trials["batch_size"] == config.batch_size) & (trials["base_lr"] == config.base_lr)
        (key,) = trials.loc[cell, "trial_key"]
        for result in finetune(config):
            assert epochs.loc[(key, result.epoch), "val_loss"] == result.val_loss

    again = run_here(SMALL, tmp_path)
    assert again.returncode == 0
    assert "4 done before, 0 to run" in again.stdout
    assert "dashboard" not in again.stdout
    assert again.stdout.endswith(answer)
    assert files == parquet_times(tmp_path)

    seeds = run_joined(SMALL, tmp_path, "--set", "seeds=2")
    assert seeds.returncode == 0
    assert "8 trials on dataset=synthetic, 4 done before, 4 to run" in seeds.stdout
    assert "mean of 2 seeds" in seeds.stdout
    assert sorted(pd.read_parquet(tmp_path / "small" / "trials")["seed"]) == [0] * 4 + [1] * 4


@pytest.mark.ray
def test_a_study_that_widens_gives_seeds_and_packs_itself_does_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Run, run_joined: Run
) -> None:
    monkeypatch.setattr("search.session.COMPACT_FROM", 7)
    done = run_joined(SPACES / "rounds.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rounds: 2 trials on dataset=synthetic, 0 done before, 2 to run" in done.stdout
    assert "[2/2]" in done.stdout
    assert "[3/3]" in done.stdout  # what the results call for is added to the count
    assert "[4/4]" in done.stdout
    trials = pd.read_parquet(tmp_path / "rounds" / "trials")
    first = trials[trials["seed"] == 0].set_index("base_lr")["val_auroc"]
    # The grid's own ratio beyond its better edge; then another seed for the best of the three.
    assert sorted(first.index) == [0.03, 0.3, pytest.approx(3.0)]
    assert first[0.3] > first[0.03]
    assert list(trials.loc[trials["seed"] == 1, "base_lr"]) == [first.idxmax()]
    assert set(trials["status"]) == {"completed"}
    # Eight files are more than seven: each table is one file now, and nothing is lost or doubled.
    for table, rows in (("trials", 4), ("epochs", 8)):
        assert [path.name[:7] for path in (tmp_path / "rounds" / table).iterdir()] == ["packed-"]
        assert len(pd.read_parquet(tmp_path / "rounds" / table)) == rows
    assert faults(open_folder(str(tmp_path / "rounds"))) == []

    refuse_ray(monkeypatch)
    files = parquet_times(tmp_path)
    again = run_here(SPACES / "rounds.py", tmp_path)
    assert again.returncode == 0
    assert "4 trials on dataset=synthetic, 4 done before, 0 to run" in again.stdout
    assert files == parquet_times(tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_has_other_data_than_the_driver_is_refused(tmp_path: Path) -> None:
    # The driver has read the data when its workers start; they find other files at the same place.
    for name in ("data", "other"):
        draws = np.random.default_rng(len(name))
        for i in range(160):
            path = tmp_path / name / ("normal", "tumour")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    more = ["--data", str(tmp_path / "data"), "--set", "dataset=pcam", "--set", "batch_size=32"]
    more += ["--set", "train_images=none", "--set", "eval_images=none", "--set", "base_lr=0.3"]
    process = subprocess.Popen(
        search_command(SMALL, tmp_path / "out", *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    while "to run" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
    (tmp_path / "data").rename(tmp_path / "the driver's")
    (tmp_path / "other").rename(tmp_path / "data")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    said = r"failed .*: the data on \S+ \((\w{12})\) is not the driver's \((\w{12})\): "
    found = re.search(rf"{said}give every node the same files", out)
    assert found, out
    (trial,) = pd.read_parquet(tmp_path / "out" / "small" / "trials").to_dict("records")
    assert trial["data_fingerprint"].startswith(found.group(2))
    assert found.group(1) != found.group(2)
    assert not (tmp_path / "out" / "small" / "epochs").exists()

    (tmp_path / "data").rename(tmp_path / "other")
    (tmp_path / "the driver's").rename(tmp_path / "data")
    assert run_command(SMALL, tmp_path / "out", *more, "--retry", "failed").returncode == 0


@pytest.mark.ray
def test_interrupted_is_75_and_the_same_command_goes_on(
    tmp_path: Path, shared_cluster: SharedCluster, run_joined: Run
) -> None:
    settings = ["--set", "epochs=12", "--set", "train_images=2048"]
    process = start_command(SMALL, tmp_path, *settings, "--address", shared_cluster.address)
    epochs = tmp_path / "small" / "epochs"
    deadline = time.monotonic() + 120
    while not list(epochs.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert time.monotonic() - sent < 20  # 5 s on a machine that does nothing else
    assert "interrupted: " in out
    assert f"{SMALL} --out {tmp_path}" in out
    before = pd.read_parquet(epochs)
    assert set(pd.read_parquet(tmp_path / "small" / "trials")["status"]) >= {"interrupted"}

    resumed = run_joined(SMALL, tmp_path, *settings)
    assert resumed.returncode == 0, resumed.stderr
    after = pd.read_parquet(epochs)
    assert not after.duplicated(["trial_key", "epoch"]).any()
    assert (after.groupby("trial_key")["epoch"].max() == 12).all()
    kept = before.merge(after, on=["trial_key", "epoch"], suffixes=("", "_after"))
    assert len(kept) == len(before)
    assert (kept["val_loss"] == kept["val_loss_after"]).all()
    trials = pd.read_parquet(tmp_path / "small" / "trials")
    assert (trials["status"] == "completed").all()
    assert trials["attempt"].max() == 2


@pytest.mark.ray
def test_a_search_that_was_interrupted_goes_on_with_what_it_learned(
    tmp_path: Path, shared_cluster: SharedCluster, run_here: Run, run_joined: Run
) -> None:
    space = SPACES / "searched.py"
    process = start_command(space, tmp_path, "--address", shared_cluster.address)
    assert process.stdout is not None
    while "[3/8]" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    done = run_joined(space, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = pd.read_parquet(tmp_path / "searched" / "trials")
    assert len(trials) == 8
    assert set(trials["status"]) <= {"completed", "stopped", "diverged"}
    told = optuna.load_study(
        study_name="searched",
        storage=JournalStorage(JournalFileBackend(str(tmp_path / "searched" / "optuna.journal"))),
    ).get_trials()
    states = sorted(t.state.name for t in told)
    assert states.count("PRUNED") == (trials["status"] == "stopped").sum()
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert run_here(space, tmp_path).stdout.count("8 done before, 0 to run") == 1


def test_a_trial_larger_than_the_machine_is_refused(
    tmp_path: Path, no_ray: None, run_here: Run
) -> None:
    done = run_here(SMALL, tmp_path, "--set", "cpus_per_trial=800")
    assert done.returncode == 2
    assert "a trial takes 800 CPU and this machine has 2" in done.stderr


@pytest.mark.ray
def test_ctrl_c_while_ray_starts_is_75_too(tmp_path: Path) -> None:
    process = start_command(SMALL, tmp_path)
    assert process.stdout is not None
    while "to run" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "go on with" in out
    assert "Traceback" not in err


@pytest.mark.ray
def test_a_failed_trial_is_1_and_costs_no_other(
    tmp_path: Path, run_here: Run, run_joined: Run
) -> None:
    # Where the first trial's checkpoints should go there is a file.
    settings = ["--set", "batch_size=64"]
    config = replace(load_study(SMALL).base, batch_size=64, base_lr=0.3)
    key = trial_key(config, open_data(config.dataset).fingerprint)
    in_the_way = tmp_path / "small" / "checkpoints" / key
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("in the way")
    done = run_joined(SMALL, tmp_path, *settings)
    assert done.returncode == 1, done.stderr
    trials = pd.read_parquet(tmp_path / "small" / "trials").set_index("trial_key")
    assert sorted(trials["status"]) == ["completed", "failed"]
    assert "FileExistsError" in trials.loc[key, "reason"] or "NotADir" in trials.loc[key, "reason"]
    traceback = trials.loc[key, "reason"].split("traceback: ")[1].rstrip(")")
    assert "Traceback (most recent call last)" in Path(traceback).read_text()
    assert "1 failed (--retry failed runs them again)" in done.stdout
    again = run_here(SMALL, tmp_path, *settings)
    assert again.returncode == 1
    assert "0 to run" in again.stdout
    in_the_way.unlink()
    retried = run_joined(SMALL, tmp_path, *settings, "--retry", "failed")
    assert retried.returncode == 0
    assert "1 to run" in retried.stdout
    assert set(pd.read_parquet(tmp_path / "small" / "trials")["status"]) == {"completed"}


@pytest.mark.ray
def test_dry_run_trains_nothing_and_estimates(tmp_path: Path, run_joined: Run) -> None:
    done = run_joined(SMALL, tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "0 done, 4 to run" in done.stdout
    assert "plain at batch 64:" in done.stdout
    assert "estimate on the cluster (" in done.stdout
    assert not (tmp_path / "small" / "trials").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["spaces/none.py"],
            "there is no space file spaces/none.py; spaces has accumulation.py, activations.py",
        ),
        ([str(SMALL), "--set", "seeds"], "--set takes FIELD=VALUE"),
        ([str(SMALL), "--set", "base_lr=-1"], "base_lr must be > 0"),
        ([str(SMALL), "--set", "batch_size=512"], "batch_size 512 is larger than the 256"),
        ([str(SMALL), "--set", "model=resnet19", "--set", "width=16"], "did you mean resnet"),
        ([str(SMALL), "--set", "norm=frozen"], "norm='frozen' keeps pretrained statistics"),
        ([str(SMALL), "--set", "distill_from=README.md"], "README.md does not contain a trial"),
        (
            [str(SMALL), "--set", "model=resnet18", "--set", "pretrained=README.md"],
            "README.md is not a state_dict of tensors",
        ),
        ([str(SMALL), "--set", "model=vit_b_16"], "vit_b_16 cannot take images of 48x48 px"),
        ([str(SMALL), "--set", "image_size=48,200"], "image_size 200 is larger than the images"),
        ([str(SMALL), "--set", "name=../x"], "name must be 1 to 128 letters"),
        ([str(SMALL), "--set", "base_lr=1,1.0"], "base_lr: tune.grid_search repeats a value"),
        ([str(SMALL), "--out", "/proc/nowhere"], "cannot write to --out /proc/nowhere"),
        (["spaces/pcam_grid.py", "--data", "tests"], "no recognised data set in tests"),
    ],
)
def test_bad_input_is_one_line_and_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_here: Run,
) -> None:
    monkeypatch.chdir(ROOT)
    done = run_here(arguments[0], tmp_path, *arguments[1:])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


def test_a_process_ends_with_2_and_one_line_too(tmp_path: Path) -> None:
    done = run_command(SMALL, tmp_path, "--set", "base_lr=-1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "base_lr must be > 0" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_flagships_preview_answers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search.run", str(ROOT / "spaces" / "pcam_grid.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, done.stderr
    assert "preview on the embedded synthetic patches (dataset=synthetic)" in " ".join(
        done.stdout.split()
    )
    trials = pd.read_parquet(tmp_path / "results/pcam_grid/trials")
    assert len(trials) == 35
    assert len(pd.read_parquet(tmp_path / "results/pcam_grid/epochs")) == 35 * 5
    assert set(trials["dataset"]) == {"synthetic"}
    best = ridge(surface(trials, metric="val_auroc"), mode="max")
    assert (best["edge"] == "").sum() >= 4
    assert best["mean"].between(0.75, 0.95).all()
    octaves = np.log2(best["lr"])
    peak_octaves = np.log2(best["lr"] * best["batch_size"] / 256)
    assert np.ptp(octaves) < np.ptp(peak_octaves)


@pytest.mark.ray
@pytest.mark.slow
def test_kandels_preview_shows_the_crossing(tmp_path: Path) -> None:
    done = run_command(ROOT / "spaces" / "pcam_kandel.py", tmp_path, "--set", "optimizer=sgd")
    assert done.returncode == 0, done.stderr
    check_crossing(pd.read_parquet(tmp_path / "pcam_kandel" / "trials"))


def check_crossing(trials: pd.DataFrame) -> None:
    sgd = trials[trials["optimizer"] == "sgd"]
    rho = {
        lr: spearmanr(cells["batch_size"], cells["val_auroc"]).statistic
        for lr, cells in sgd.groupby("base_lr")
    }
    assert rho[min(rho)] < 0 < rho[max(rho)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_ten_class_ablation_keeps_weights_and_prints_its_table(tmp_path: Path) -> None:
    done = run_command(
        ROOT / "spaces" / "tricks_refinements.py",
        tmp_path,
        *("--preview", "--set", "dataset=digits", "--set", "image_size=None", "--set", "epochs=3"),
        *("--set", "batch_size=32", "--set", "base_lr=0.05", "--set", "keep_weights=True"),
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("val_accuracy step by step") :]
    assert [line.split("  ")[0] for line in table.splitlines()[2:6]] == [
        *("efficient", "+ cosine", "+ label smoothing", "+ mixup"),
    ]
    trials = pd.read_parquet(tmp_path / "tricks_refinements" / "trials")
    assert (trials["status"] == "completed").all()
    # States to resume from are gone, the weights that were asked for are there.
    left = {path.name for path in (tmp_path / "tricks_refinements" / "checkpoints").rglob("*.pt")}
    assert left == {"weights.pt"}
    taught = run_command(
        *(SMALL, tmp_path, "--set", "dataset=digits", "--set", "image_size=None"),
        *("--set", f"distill_from={tmp_path / 'tricks_refinements'}", "--set", "batch_size=32"),
    )
    assert taught.returncode == 0, taught.stderr
    assert pd.read_parquet(tmp_path / "small" / "trials")["distill_from"].str.contains("#").all()


@pytest.mark.ray
@pytest.mark.data
@pytest.mark.slow
def test_both_previews_on_real_patches(tmp_path: Path, shared_data: Path) -> None:
    data = ["--preview", "--data", str(shared_data / "pcam_small")]
    assert run_command(ROOT / "spaces" / "pcam_grid.py", tmp_path, *data).returncode == 0
    trials = pd.read_parquet(tmp_path / "pcam_grid" / "trials")
    assert set(trials["dataset"]) == {"pcam_small"}
    assert (ridge(surface(trials, metric="val_auroc"), mode="max")["edge"] == "").sum() >= 4
    sgd = ["--set", "optimizer=sgd"]
    assert run_command(ROOT / "spaces" / "pcam_kandel.py", tmp_path, *data, *sgd).returncode == 0
    check_crossing(pd.read_parquet(tmp_path / "pcam_kandel" / "trials"))


@pytest.mark.ray
def test_two_nodes_on_one_machine(tmp_path: Path, two_gpu_nodes: str, run_here: Run) -> None:
    settings = ("--set", "gpus_per_trial=0", "--address", two_gpu_nodes)
    done = run_here(SMALL, tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    assert "3 node(s), 4 cores, 2 GPUs; a trial takes 1 CPU" in done.stdout
    assert len(pd.read_parquet(tmp_path / "small" / "trials")) == 4


@pytest.mark.ray
def test_ray_job_submit_ships_the_code(tmp_path: Path, shared_cluster: SharedCluster) -> None:
    """The head was started elsewhere and has never seen the folder that is submitted."""
    code = tmp_path / "code"
    for name in ("search", "trainable", "cluster", "spaces"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SMALL, code / "spaces")
    submit = [RAY, "job", "submit", "--address", shared_cluster.dashboard]
    command = ["--working-dir", str(code), "--", sys.executable, "-m", "search.run"]
    arguments = ["spaces/small.py", "--address", "auto", "--out", str(tmp_path / "out")]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            [*submit, *command, *arguments],
            env={**os.environ, "COLUMNS": "120"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
        # The agent that starts jobs comes some seconds after the dashboard.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(tmp_path / "out" / "small" / "trials")) == 4
