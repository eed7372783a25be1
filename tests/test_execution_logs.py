"""--log: what TensorBoard, MLflow and Weights & Biases get, read back with these tools."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from commands import SMALL, Run
from ray import tune
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_execution_filling import BASE, trial

from search.execution import logs
from search.execution.logs import Log, LogError, check_logs, logged_to, numbers_of
from search.results.tables import Results, open_results
from search.session import run_study
from search.study import Study

EPOCH = {"epoch": 1, "val_auroc": 0.7, "train_loss": 0.6, "grad_norm": None, "note": "text"}
END = {"status": "completed", "epochs_completed": 2, "val_auroc": 0.8, "test_auroc": 0.75}


@pytest.fixture
def study() -> Study:
    return Study(name="made", base=BASE, vary={"batch_size": tune.grid_search([16, 32])})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path), "made")


class Recorded:
    """A callback that notes its calls, and raises at one of them."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails_at = fails_at

    def __getattr__(self, name: str) -> Callable[..., None]:
        def called(*arguments: Any, **named: Any) -> None:
            self.calls.append((name, *arguments, *named.values()))
            if name == self.fails_at:
                raise ConnectionError("no server\nat all")

        return called

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


def played(log: Log) -> None:
    """One trial from its start to its end, and one that is interrupted."""
    log.thread.start()
    log.started(trial(16, 0.1))
    log.evaluated(trial(16, 0.1), EPOCH)
    log.ended(trial(16, 0.1), END)
    log.started(trial(32, 0.1))
    log.close()


def test_each_trial_is_a_run_with_its_evaluations_and_its_end(
    study: Study, results: Results
) -> None:
    callback, notes = Recorded(), []
    played(Log(study, results, {"mlflow": callback}, notes.append))
    assert callback.names == [
        *("log_trial_start", "log_trial_result", "log_trial_result", "log_trial_end"),
        *("log_trial_start", "log_trial_end", "on_experiment_end"),
    ]
    logged = callback.calls[0][1]
    assert str(logged) == "batch_size=16,seed=0"
    assert logged.config["trial_key"] == "16-0.1-0"
    assert logged.config["batch_size"] == 16
    assert Path(logged.local_path).is_dir()
    assert callback.calls[1][3] == {
        **{"epoch": 1.0, "val_auroc": 0.7, "train_loss": 0.6},
        "training_iteration": 1,
    }
    assert callback.calls[2][3] == {
        **{"final_val_auroc": 0.8, "final_test_auroc": 0.75},
        "training_iteration": 2,
    }
    assert callback.calls[3][2] is False
    assert callback.calls[5][2] is True  # it had not ended
    assert notes == []


def test_a_tool_that_fails_is_named_once_and_costs_nothing(study: Study, results: Results) -> None:
    broken, whole, notes = Recorded("log_trial_result"), Recorded(), []
    played(Log(study, results, {"mlflow": broken, "wandb": whole}, notes.append))
    assert broken.names == ["log_trial_start", "log_trial_result"]
    assert len(whole.names) == 7
    assert notes == [
        "--log mlflow has stopped (ConnectionError: no server); the study goes on without it"
    ]


def test_a_tool_that_hangs_holds_nothing_up(
    study: Study, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "WAIT_S", 0.2)
    answers = threading.Event()
    callback = Recorded()
    callback.log_trial_start = lambda _: answers.wait()  # type: ignore[method-assign, assignment]
    notes: list[str] = []
    played(Log(study, results, {"wandb": callback}, notes.append))
    answers.set()
    assert notes == ["--log wandb: not all was sent in 0 s"]


def test_a_server_that_does_not_answer_costs_no_study(
    study: Study, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(logs, "_callback_of", refuse)
    notes: list[str] = []
    with logged_to(("mlflow",), study, results, notes.append) as log:
        assert log is not None
        log.started(trial(16, 0.1))
    assert notes == [
        "--log mlflow cannot be used (ConnectionError: refused); the study goes on without it"
    ]
    with logged_to((), study, results, notes.append) as log:
        assert log is None


def test_only_finite_numbers_are_sent() -> None:
    row = {"a": 1, "b": float("nan"), "c": None, "d": "x", "e": True, "f": 0.5}
    assert numbers_of(row) == {"a": 1.0, "f": 0.5}


def test_what_is_missing_is_said_before_the_first_trial(
    study: Study, results: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be
    with pytest.raises(LogError, match="--log wandb needs a key: type `wandb login`, set"):
        check_logs(["wandb"], study, results)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_logs(["wandb", "tensorboard", "mlflow"], study, results)
    monkeypatch.setitem(logs.PACKAGES, "mlflow", "no_such_package")
    with pytest.raises(LogError, match="--log mlflow needs the package no_such_package: pip inst"):
        check_logs(["mlflow"], study, results)
    with pytest.raises(LogError, match="log takes tensorboard, mlflow, wandb, got 'tensorbord'"):
        run_study(study, log=["tensorbord"])


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # MLflow uses what SQLAlchemy deprecates
def test_a_study_is_logged_to_all_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Run, run_joined: Run
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    flags = ["--log", "tensorboard", "--log", "mlflow", "--log", "wandb"]
    first = run_here(SMALL, tmp_path, "--set", "pack=2", *flags)
    assert first.returncode == 0, first.stderr
    assert "--log" not in first.stdout
    rows = pd.read_parquet(tmp_path / "small" / "trials").set_index("trial_key")
    assert len(rows) == 4

    folders = sorted((tmp_path / "small" / "logs").iterdir())
    assert len(folders) == 4
    for folder in folders:
        row = rows.loc[next(key for key in rows.index if key[:6] == folder.name[-6:])]
        assert f"batch_size={row['batch_size']},base_lr={row['base_lr']:g},seed=0" in folder.name
        events = EventAccumulator(str(folder))
        events.Reload()
        (final,) = events.Scalars("ray/tune/final_test_auroc")
        assert final.value == pytest.approx(row["test_auroc"])
        scores = {event.step: event.value for event in events.Scalars("ray/tune/val_auroc")}
        assert scores[row["best_epoch"]] == pytest.approx(row["val_auroc"])
        assert len(list((folder / "wandb").glob("offline-run-*/run-*.wandb"))) == 1

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/small/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    assert {r.data.params["trial_key"] for r in runs} == set(rows.index)
    assert {r.info.status for r in runs} == {"FINISHED"}
    for r in runs:
        row = rows.loc[r.data.params["trial_key"]]
        assert float(r.data.params["batch_size"]) == row["batch_size"]
        assert r.data.metrics["final_test_auroc"] == pytest.approx(row["test_auroc"])
        assert len(client.get_metric_history(r.info.run_id, "val_auroc")) == row["epochs_completed"]
    # Again: what has ended is not logged a second time.
    assert run_here(SMALL, tmp_path, "--set", "pack=2", *flags).returncode == 0
    assert len(client.search_runs([experiment.experiment_id])) == 4
