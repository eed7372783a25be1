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
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from scipy.stats import spearmanr

from search.analysis.ridge import ridge
from search.analysis.surface import surface
from search.results.tables import faults, open_folder
from search.run import main, parser
from search.study.space_file import load_study
from search.study.study import configurations
from trainable.config import trial_key
from trainable.data.cache import open_data
from trainable.finetune import finetune

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "tests" / "spaces" / "small.py"


def command(space: Path | str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "search.run", str(space), "--out", str(out), *more]


def run(space: Path | str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        command(space, out, *more),
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=600,
    )


@pytest.fixture(scope="module", autouse=True)
def drawn() -> None:
    """The synthetic patches, which the first command would draw and say so on stderr."""
    open_data("synthetic")


def test_flags_are_the_contracts() -> None:
    flags = {option for action in parser()._actions for option in action.option_strings}
    assert flags == {
        *("-h", "--help", "--out", "--data", "--address", "--preview", "--dry-run"),
        *("--set", "--retry"),
    }


@pytest.mark.ray
def test_a_study_from_start_to_more_seeds(tmp_path: Path) -> None:
    first = run(SMALL, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "[4/4]" in first.stdout
    assert "dashboard: http://127.0.0.1:" in first.stdout
    assert "no GPU here: trials run on cores" in first.stdout
    answer = first.stdout[first.stdout.index("\nsmall  dataset=synthetic") :]
    trials = pd.read_parquet(tmp_path / "small" / "trials")
    assert trials["status"].tolist() == ["completed"] * 4
    assert trials["code_version"].nunique(dropna=False) == 1
    assert len(pd.read_parquet(tmp_path / "small" / "epochs")) == 8
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    # Two workers trained four trials: one that is used again gives what a fresh process gives.
    epochs = pd.read_parquet(tmp_path / "small" / "epochs").set_index(["trial_key", "epoch"])
    for _, config in configurations(load_study(SMALL)):
        cell = (trials["batch_size"] == config.batch_size) & (trials["base_lr"] == config.base_lr)
        (key,) = trials.loc[cell, "trial_key"]
        for result in finetune(config):
            assert epochs.loc[(key, result.epoch), "val_loss"] == result.val_loss

    again = run(SMALL, tmp_path)
    assert again.returncode == 0
    assert "4 done before, 0 to run" in again.stdout
    assert "dashboard" not in again.stdout
    assert again.stdout.endswith(answer)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}

    seeds = run(SMALL, tmp_path, "--set", "seeds=2")
    assert seeds.returncode == 0
    assert "8 trials on dataset=synthetic, 4 done before, 4 to run" in seeds.stdout
    assert "mean of 2 seeds" in seeds.stdout
    assert sorted(pd.read_parquet(tmp_path / "small" / "trials")["seed"]) == [0] * 4 + [1] * 4


@pytest.mark.ray
def test_a_study_that_widens_gives_seeds_and_packs_itself_does_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(ROOT / "tests" / "spaces" / "rounds.py"), "--out", str(tmp_path)]
    driver = "import sys\nfrom search import run\nrun.COMPACT_FROM = 7\nsys.exit(run.main())"
    done = subprocess.run(
        [sys.executable, "-c", driver, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "rounds: 2 trials on dataset=synthetic, 0 done before, 2 to run" in done.stdout
    assert done.stdout.count("another round: 1 trials that the results call for") == 2
    assert "[3/3]" in done.stdout
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

    def no_cluster(address: str) -> None:
        raise AssertionError("Ray is started though there is nothing to run")

    monkeypatch.setattr("search.run.connect", no_cluster)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert main(words) == 0
    assert "2 done before, 0 to run" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}


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
    more += ["--set", "train_images=None", "--set", "base_lr=0.3"]
    process = subprocess.Popen(
        [sys.executable, "-u", *command(SMALL, tmp_path / "out", *more)[1:]],
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
    said = r"failed .*\(ValueError: the data on \S+ \((\w{12})\) is not the driver's \((\w{12})\): "
    found = re.search(rf"{said}give every node the same files", out)
    assert found, out
    (trial,) = pd.read_parquet(tmp_path / "out" / "small" / "trials").to_dict("records")
    assert trial["data_fingerprint"].startswith(found.group(2))
    assert found.group(1) != found.group(2)
    assert not (tmp_path / "out" / "small" / "epochs").exists()

    (tmp_path / "data").rename(tmp_path / "other")
    (tmp_path / "the driver's").rename(tmp_path / "data")
    assert run(SMALL, tmp_path / "out", *more, "--retry", "failed").returncode == 0


@pytest.mark.ray
def test_interrupted_is_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    settings = ["--set", "epochs=12", "--set", "train_images=2048"]
    process = subprocess.Popen(
        command(SMALL, tmp_path, *settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    epochs = tmp_path / "small" / "epochs"
    deadline = time.monotonic() + 60
    while not list(epochs.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert time.monotonic() - sent < 10
    assert "interrupted: " in out
    assert f"{SMALL} --out {tmp_path}" in out
    before = pd.read_parquet(epochs)
    assert set(pd.read_parquet(tmp_path / "small" / "trials")["status"]) >= {"interrupted"}

    resumed = run(SMALL, tmp_path, *settings)
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
def test_a_search_that_was_interrupted_goes_on_with_what_it_learned(tmp_path: Path) -> None:
    space = ROOT / "tests" / "spaces" / "searched.py"
    process = subprocess.Popen(
        [sys.executable, "-u", *command(space, tmp_path)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "[3/8]" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    done = run(space, tmp_path)
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
    assert run(space, tmp_path).stdout.count("8 done before, 0 to run") == 1


@pytest.mark.ray
def test_a_trial_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    done = run(SMALL, tmp_path, "--set", "cpus_per_trial=800")
    assert done.returncode == 2
    assert "a trial takes 800 CPU and this machine has" in done.stderr


@pytest.mark.ray
def test_ctrl_c_while_ray_starts_is_75_too(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", *command(SMALL, tmp_path)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "to run" not in process.stdout.readline():
        pass
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "go on with" in out
    assert "Traceback" not in err


@pytest.mark.ray
def test_a_failed_trial_is_1_and_costs_no_other(tmp_path: Path) -> None:
    # Where the first trial's checkpoints should go there is a file.
    settings = ["--set", "batch_size=64"]
    config = replace(load_study(SMALL).base, batch_size=64, base_lr=0.3)
    key = trial_key(config, open_data(config.dataset).fingerprint)
    in_the_way = tmp_path / "small" / "checkpoints" / key
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("in the way")
    done = run(SMALL, tmp_path, *settings)
    assert done.returncode == 1, done.stderr
    trials = pd.read_parquet(tmp_path / "small" / "trials").set_index("trial_key")
    assert sorted(trials["status"]) == ["completed", "failed"]
    assert "FileExistsError" in trials.loc[key, "reason"] or "NotADir" in trials.loc[key, "reason"]
    traceback = trials.loc[key, "reason"].split("traceback: ")[1].rstrip(")")
    assert "Traceback (most recent call last)" in Path(traceback).read_text()
    assert "1 failed (--retry failed runs them again)" in done.stdout
    again = run(SMALL, tmp_path, *settings)
    assert again.returncode == 1
    assert "0 to run" in again.stdout
    in_the_way.unlink()
    retried = run(SMALL, tmp_path, *settings, "--retry", "failed")
    assert retried.returncode == 0
    assert "1 to run" in retried.stdout
    assert set(pd.read_parquet(tmp_path / "small" / "trials")["status"]) == {"completed"}


@pytest.mark.ray
def test_dry_run_trains_nothing_and_estimates(tmp_path: Path) -> None:
    done = run(SMALL, tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "0 done, 4 to run" in done.stdout
    assert "plain at batch 64:" in done.stdout
    assert "estimate on this machine (" in done.stdout
    assert not (tmp_path / "small" / "trials").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["spaces/none.py"],
            "there is no space file spaces/none.py; spaces has bag_of_tricks.py, pcam_asha.py",
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
def test_bad_input_is_one_line_and_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(arguments[0], tmp_path, *arguments[1:])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


@pytest.mark.ray
def test_the_flagships_preview_answers(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "search.run", str(ROOT / "spaces" / "pcam_grid.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    seconds = time.monotonic() - started
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
    assert seconds < 180


@pytest.mark.ray
@pytest.mark.slow
def test_kandels_preview_shows_the_crossing(tmp_path: Path) -> None:
    done = run(ROOT / "spaces" / "pcam_kandel.py", tmp_path, "--set", "optimizer=sgd")
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
    done = run(
        ROOT / "spaces" / "bag_of_tricks.py",
        tmp_path,
        *("--preview", "--set", "dataset=digits", "--set", "image_size=None", "--set", "epochs=3"),
        *("--set", "batch_size=32", "--set", "keep_weights=True"),
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("val_auroc step by step") :]
    assert [line.split("  ")[0] for line in table.splitlines()[2:6]] == [
        *("baseline", "+ linear scaling", "+ warmup", "+ zero gamma"),
    ]
    trials = pd.read_parquet(tmp_path / "bag_of_tricks" / "trials")
    assert (trials["status"] == "completed").all()
    # States to resume from are gone, the weights that were asked for are there.
    left = {path.name for path in (tmp_path / "bag_of_tricks" / "checkpoints").rglob("*.pt")}
    assert left == {"weights.pt"}
    taught = run(
        *(SMALL, tmp_path, "--set", "dataset=digits", "--set", "image_size=None"),
        *("--set", f"distill_from={tmp_path / 'bag_of_tricks'}", "--set", "batch_size=32"),
    )
    assert taught.returncode == 0, taught.stderr
    assert pd.read_parquet(tmp_path / "small" / "trials")["distill_from"].str.contains("#").all()


@pytest.mark.ray
@pytest.mark.data
@pytest.mark.slow
def test_both_previews_on_real_patches(tmp_path: Path, shared_data: Path) -> None:
    data = ["--preview", "--data", str(shared_data / "pcam_small")]
    assert run(ROOT / "spaces" / "pcam_grid.py", tmp_path, *data).returncode == 0
    trials = pd.read_parquet(tmp_path / "pcam_grid" / "trials")
    assert set(trials["dataset"]) == {"pcam"}
    assert (ridge(surface(trials, metric="val_auroc"), mode="max")["edge"] == "").sum() >= 4
    sgd = ["--set", "optimizer=sgd"]
    assert run(ROOT / "spaces" / "pcam_kandel.py", tmp_path, *data, *sgd).returncode == 0
    check_crossing(pd.read_parquet(tmp_path / "pcam_kandel" / "trials"))


@pytest.mark.ray
def test_two_raylets_on_one_machine(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for _ in range(2):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
command = [sys.executable, "-m", "search.run", *sys.argv[1:], "--address", cluster.address]
done = subprocess.run(command)
cluster.shutdown()
sys.exit(done.returncode)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(SMALL), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "3 node(s), 2 cores, 0 GPUs" in done.stdout
    assert len(pd.read_parquet(tmp_path / "small" / "trials")) == 4


@pytest.mark.ray
def test_ray_job_submit_ships_the_code(tmp_path: Path) -> None:
    """The head is started elsewhere and has never seen the folder that is submitted."""
    ray = str(Path(sys.executable).parent / "ray")
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_TMPDIR": f"/tmp/ray-test-{os.getpid()}",
    }
    code = tmp_path / "code"
    for name in ("search", "trainable", "cluster", "spaces"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SMALL, code / "spaces")
    head = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", "--port=6390", "--dashboard-port=8290"),
            *("--num-cpus=2", f"--temp-dir={environment['RAY_TMPDIR']}"),
        ],
        env=environment,
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        submit = [ray, "job", "submit", "--address", "http://127.0.0.1:8290"]
        command = ["--working-dir", str(code), "--", sys.executable, "-m", "search.run"]
        arguments = ["spaces/small.py", "--address", "auto", "--out", str(tmp_path / "out")]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [*submit, *command, *arguments],
                env=environment,
                cwd=home,
                capture_output=True,
                text=True,
                timeout=300,
            )
            if "Failed to connect" not in done.stdout + done.stderr:
                break
            assert time.monotonic() < deadline, done.stderr
            time.sleep(1)
    finally:
        # Everything that this head started names its folder, and nothing else does.
        subprocess.run(["pkill", "-9", "-f", environment["RAY_TMPDIR"]], check=False)
        head.wait(timeout=30)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(tmp_path / "out" / "small" / "trials")) == 4
