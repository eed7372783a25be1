"""Results of other tools: each kind of file is made by the tool itself, then reported on."""

import contextlib
import importlib
import json
import math
import re
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from search.analysis.foreign_table import TableError
from search.report.__main__ import main
from search.report.findings import Findings, of_table
from search.report.sources.opened import open_source

SIZES, RATES, EPOCHS = (16, 64), (0.01, 0.03, 0.1), 3
BEST = (
    "A run has several rows: the score of each of the {n} runs is the best {metric} of its 3 rows."
)
CELLS = [(bs, lr) for bs in SIZES for lr in RATES]
DOCS = Path(__file__).parent.parent / "docs" / "report.md"

pytestmark = pytest.mark.usefixtures("no_drawing")


def score(bs: int, lr: float, epoch: int = EPOCHS) -> float:
    """Best at a rate of 0.001 bs, and at the second epoch of three."""
    return 0.9 - 0.1 * math.log10(lr / bs / 0.001) ** 2 - (0.2, 0.0, 0.1)[epoch - 1]


def found(where: Path | str, metric: str = "val_acc", **more: Any) -> Findings:
    return of_table(where, **({"batch_size": "batch_size", "lr": "lr", "metric": metric} | more))


def check(findings: Findings, *, epoch: int = 2, n: int = len(CELLS), abs_: float = 1e-6) -> None:
    """Every cell has its score."""
    completed = findings.trials[findings.trials["status"] == "completed"]
    assert len(completed) == n
    for row in completed.itertuples():
        got = getattr(row, findings.metric, None) or completed.loc[row.Index, findings.metric]
        assert got == pytest.approx(score(row.batch_size, row.lr, epoch), abs=abs_)


def check_curves(findings: Findings) -> None:
    """Every completed trial has the scores of its epochs, in their order."""
    assert findings.epochs is not None
    completed = findings.trials[findings.trials["status"] == "completed"]
    for row in completed.itertuples():
        scores = findings.epochs[findings.epochs["trial_key"] == row.trial_key]
        assert scores["epoch"].tolist() == [1, 2, 3]
        wanted = [score(row.batch_size, row.lr, epoch) for epoch in (1, 2, 3)]
        assert scores[findings.metric].tolist() == pytest.approx(wanted, abs=1e-6)


# --- Ray Tune -------------------------------------------------------------------------------------


class RayTrial:
    """What Ray's loggers ask of a trial."""

    checkpoint = None

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.local_path = str(folder)
        self.config = config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


def ray_folder(folder: Path, *loggers: str, done: tuple[int, ...] = (), **more: Any) -> Path:
    """Trials as Ray's own loggers write them; `done` are those that a scheduler stopped early."""
    from ray.tune import logger

    for at, (bs, lr) in enumerate(CELLS):
        config = {"lr": lr, "opt": {"batch_size": bs, "betas": [0.9, 0.99]}, **more}
        trial: Any = RayTrial(folder / f"f_ab_{at:05}_{at}_lr={lr}", config)
        callbacks = [getattr(logger, name)() for name in loggers]
        for callback in callbacks:
            trial.init_local_path()
            callback.log_trial_start(trial)
        for epoch in range(1, EPOCHS + 1 - (at in done)):
            result = {"val_acc": score(bs, lr, epoch), "loss": {"val": math.nan}, "lr": lr / epoch}
            result |= {"training_iteration": epoch, "trial_id": f"ab_{at:05}", "config": config}
            result |= {"done": at in done and epoch == EPOCHS - 1, "hostname": f"h{at % 2}"}
            for callback in callbacks:
                callback.log_trial_result(epoch, trial, result)
        for callback in callbacks:
            callback.log_trial_end(trial)
    return folder


@pytest.mark.parametrize("by_csv", [False, True])
def test_ray_tunes_folders(tmp_path: Path, by_csv: bool) -> None:
    """Of a folder with progress.csv alone, params.json is from the other logger."""
    loggers = ["JsonLoggerCallback", *(["CSVLoggerCallback"] if by_csv else [])]
    folder = ray_folder(tmp_path / "exp", *loggers, done=(5,))
    if by_csv:
        for file in folder.glob("*/result.json"):
            file.unlink()
    findings = found(folder, batch_size="opt/batch_size")
    check(findings, n=5)
    check_curves(findings)
    assert findings.trials["status"].tolist() == [*["completed"] * 5, "stopped"]
    assert findings.about["table"] == f"6 runs of Ray Tune in {folder}"
    assert findings.name == "exp"
    assert any("is the best val_acc of its 2 to 3 rows" in each for each in findings.cautions)
    assert not any("pooled" in each for each in findings.cautions)
    rows = open_source(str(folder)).rows
    assert {"trial_id", "lr", "opt/batch_size", "opt/betas", "loss/val", "lr (logged)"} < {*rows}
    assert rows["opt/betas"].iloc[0] == "[0.9, 0.99]"
    check(found(tmp_path, batch_size="config/opt/batch_size", lr="config/lr"), n=5)


def test_how_ray_tunes_trials_ended(tmp_path: Path) -> None:
    folder = ray_folder(tmp_path / "exp", "JsonLoggerCallback")
    trials = sorted(folder.iterdir())
    (trials[0] / "error.txt").write_text("Traceback")
    (trials[1] / "result.json").write_text("")
    (trials[1] / "error.txt").write_text("Traceback")
    (trials[2] / "result.json").write_text("")
    with open(trials[3] / "result.json", "a") as file:
        file.write('{"val_acc": 0.')  # the driver was killed
    findings = found(folder, batch_size="opt/batch_size")
    assert findings.trials["status"].tolist() == ["failed", "failed", *["completed"] * 3]
    assert "1 rows of unfinished runs are left out." in findings.cautions
    # What Ray wrote of the experiment counts, where it can be read: a retry may follow an error.
    ended = ["TERMINATED", "ERROR", "RUNNING", "TERMINATED", "PAUSED", "PENDING"]
    data = [
        [json.dumps({"trial_id": f"ab_{at:05}", "status": status}), "{}"]
        for at, status in enumerate(ended)
    ]
    (folder / "experiment_state-2026.json").write_text(json.dumps({"trial_data": data}))
    findings = found(folder, batch_size="opt/batch_size")
    assert findings.trials["status"].tolist() == ["completed", "failed", "completed"]
    (trials[4] / "result.json").write_text("{\nodd\n")
    with pytest.raises(TableError, match=r"result\.json is damaged .* move its folder away"):
        found(folder)


def test_of_several_experiments_of_ray_one_is_chosen(tmp_path: Path) -> None:
    for name in ("first", "second"):
        ray_folder(tmp_path / name, "JsonLoggerCallback", which=name)
    with pytest.raises(TableError) as error:
        found(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} has 2 experiments of Ray Tune: choose one with --study NAME, of first, second"
    )
    assert set(open_source(str(tmp_path), study="second").rows["which"]) == {"second"}
    assert open_source(str(tmp_path / "first"), study="first").name == "first"
    with pytest.raises(TableError, match="has no 'third' among its experiments of Ray Tune"):
        open_source(str(tmp_path), study="third")


# --- Optuna ---------------------------------------------------------------------------------------


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 0.001, 1.0)
    if trial.number == 7:
        raise ValueError
    bs = trial.suggest_int("batch_size", 16, 64)
    if trial.number == 6:
        trial.report(0.5, 1)
        raise optuna.TrialPruned
    return score(bs, lr)


def optuna_study(storage: Any, name: str = "mine", direction: str = "maximize") -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name=name, storage=storage, direction=direction)
    for bs, lr in (*CELLS, CELLS[0], CELLS[1]):
        study.enqueue_trial({"lr": lr, "batch_size": bs})
    study.optimize(objective, n_trials=8, catch=(ValueError,))
    study.enqueue_trial({"lr": 0.1, "batch_size": 16})  # waits


@pytest.fixture(scope="module")
def optunas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name: a database, one with two studies, and a journal."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = tmp_path_factory.mktemp("optuna") / "my studies"
    folder.mkdir()
    optuna_study(f"sqlite:///{folder}/study.db")
    optuna_study(f"sqlite:///{folder}/two.db", "a b", "minimize")
    optuna_study(f"sqlite:///{folder}/two.db", "second")
    optuna_study(JournalStorage(JournalFileBackend(f"{folder}/journal.log")))
    return folder


@pytest.mark.parametrize("name", ["study.db", "sqlite:///", "journal.log"])
def test_optunas_storages(optunas: Path, name: str) -> None:
    where = f"sqlite:///{optunas}/study.db" if name == "sqlite:///" else str(optunas / name)
    before = {file: file.read_bytes() for file in optunas.iterdir()}
    findings = found(where, "value")
    assert {file: file.read_bytes() for file in optunas.iterdir()} == before
    assert findings.mode == "max"  # as the study says, not its name
    assert findings.trials["status"].tolist() == [*["completed"] * 6, "stopped"]
    check(findings, epoch=3)
    place = optunas / ("journal.log" if name == "journal.log" else "study.db")
    assert findings.about["table"] == f"9 runs of Optuna's study mine in {place}"
    assert "1 rows of unfinished runs are left out." in findings.cautions
    assert any("1 rows without a score lack batch_size or lr" in each for each in findings.cautions)


def test_of_several_studies_one_is_chosen(optunas: Path) -> None:
    file = optunas / "two.db"
    with pytest.raises(TableError) as error:
        found(file, "value")
    assert str(error.value) == (
        f"{file} has 2 studies of Optuna: choose one with --study NAME, of 'a b', second"
    )
    assert found(file, "value", study="a b").mode == "min"
    assert found(file, "value", study="a b", mode="max").mode == "max"
    assert found(file, "value", study="second").name == "second"
    with pytest.raises(TableError, match="has no 'third' among its studies of Optuna"):
        found(file, "value", study="third")


def test_a_study_with_two_objectives(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s", directions=["minimize", "maximize"]
    )
    for bs, lr in CELLS:
        study.enqueue_trial({"lr": lr, "batch_size": bs})
    study.optimize(lambda trial: (1 - objective(trial), objective(trial)), n_trials=6)
    check(found(tmp_path / "s.db", "values_1"), epoch=3)
    assert found(tmp_path / "s.db", "values_0").mode == "min"
    with pytest.raises(TableError, match="has no column 'value' for --metric: did you mean"):
        found(tmp_path / "s.db", "value")


@pytest.mark.filterwarnings("ignore:.*set_metric_names is experimental")
@pytest.mark.parametrize("metric", ["score", "value_score", "values_score"])
def test_objectives_with_names_keep_their_directions(tmp_path: Path, metric: str) -> None:
    """The name does not tell, and would be taken for one of which higher is better."""
    url, is_single = f"sqlite:///{tmp_path}/s.db", not metric.startswith("values_")
    best = ["minimize"] if is_single else ["maximize", "minimize"]
    study = optuna.create_study(storage=url, study_name="s", directions=best)
    study.set_metric_names(["acc", "score"][-len(best) :])
    for bs, lr in CELLS:
        study.enqueue_trial({"lr": lr, "batch_size": bs})
    study.optimize(lambda trial: [objective(trial)] * len(best), n_trials=6)
    findings = found(tmp_path / "s.db", metric)
    assert (findings.mode, len(findings.trials)) == ("min", 6)
    if not is_single:
        assert found(tmp_path / "s.db", "score").mode == "min"


def test_a_password_is_never_shown() -> None:
    with pytest.raises(TableError) as error:
        found("postgresql://me:secret@127.0.0.1:1/db", "value")
    assert str(error.value).startswith("postgresql://127.0.0.1:1/db cannot be read as a storage of")
    assert "secret" not in str(error.value)


# --- MLflow ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """A store as MLflow writes it: mlruns, with search_runs.csv beside it, or mlflow.db."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.setenv(name, "true")
        yield lambda name: mlflow_store(folder, name)


def mlflow_store(folder: Path, name: str) -> Path:
    if (folder / name).exists():
        return folder / name
    database = name == "mlflow.db"
    at = folder / "of_database" if database else folder
    at.mkdir(exist_ok=True)
    with warnings.catch_warnings(), contextlib.chdir(at):
        warnings.simplefilter("ignore")  # MLflow's own, on SQLAlchemy
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder / name}" if database else f"file://{at}/mlruns")
        log_to_mlflow(mlflow)
        if not database:
            mlflow.search_runs(experiment_names=["grid"]).to_csv(folder / "search_runs.csv")
    return folder / name


def log_to_mlflow(mlflow: Any) -> None:
    """Six runs inside another, one that failed, one deleted; the same again without failures."""
    mlflow.set_experiment("grid")
    with mlflow.start_run():
        mlflow.log_metric("val_acc", 1.0)
        mlflow.log_param("search", "grid")
        for bs, lr in CELLS:
            with mlflow.start_run(nested=True):
                mlflow.log_params({"lr": lr, "batch_size": bs, "opt/momentum": 0.9, "kind": "sgd"})
                for epoch in (1, 3, 2):  # not in their order
                    mlflow.log_metric("val_acc", score(bs, lr, epoch), step=epoch)
                mlflow.log_metric("val/last", score(bs, lr))
                mlflow.log_metric("val_loss", math.nan)
                mlflow.log_metric("worst_loss", math.inf)
    mlflow.start_run()
    mlflow.log_params({"lr": 1.0, "batch_size": 16})
    mlflow.end_run("FAILED")
    with mlflow.start_run() as run:
        mlflow.log_params({"lr": 1.0, "batch_size": 16})
    mlflow.delete_run(run.info.run_id)


@pytest.mark.parametrize("name", ["mlruns", "mlflow.db"])
def test_mlflows_stores(mlflow_of: Callable[[str], Path], name: str) -> None:
    store = mlflow_of(name)
    findings = found(store)
    check(findings)
    check_curves(findings)
    assert sorted(findings.trials["status"]) == [*["completed"] * 6, "failed"]
    assert BEST.format(n=7, metric="val_acc") in findings.cautions
    assert findings.name == "grid"
    assert findings.about["table"] == f"7 runs of MLflow's experiment grid in {store}"
    rows = open_source(str(store)).rows
    assert rows["params.opt/momentum"].dropna().unique().tolist() == [0.9]
    assert rows["params.kind"].dropna().unique().tolist() == ["sgd"]
    check(found(store, "val/last", mode="max"), epoch=3)
    for metric in ("val_loss", "worst_loss"):
        assert sorted(found(store, metric).trials["status"]) == [*["diverged"] * 6, "failed"]
    if name == "mlruns":
        experiment = next(each for each in store.iterdir() if len(list(each.iterdir())) > 1)
        check(found(experiment))
    else:
        check(found(f"sqlite:///{store}"))


def test_mlflows_search_runs_as_csv(mlflow_of: Callable[[str], Path]) -> None:
    """`mlflow.search_runs().to_csv(...)` has the last value of each metric."""
    file = mlflow_of("mlruns").parent / "search_runs.csv"
    table = pd.read_csv(file)
    table[table["params.lr"].notna()].to_csv(file, index=False)
    findings = found(file)
    assert sorted(findings.trials["status"]) == [*["completed"] * 6, "failed"]
    check(findings, epoch=3)
    check(found(file, "metrics.val_acc", lr="params.lr"), epoch=3)


def test_of_several_experiments_of_mlflow_one_is_chosen(tmp_path: Path) -> None:
    """Made by hand: both kinds of store are small, and MLflow takes seconds for one."""
    for at, name in enumerate(("a b", "second", "gone")):
        folder = tmp_path / "mlruns" / str(at)
        run = folder / f"r{at}"
        for part, text in (
            ("params/lr", "0.1"),
            ("params/batch_size", "16"),
            ("metrics/q", "1 2 3"),
        ):
            (run / part).parent.mkdir(parents=True, exist_ok=True)
            (run / part).write_text(text)
        stage = "deleted" if name == "gone" else "active"
        (folder / "meta.yaml").write_text(
            f"artifact_location: x\nlifecycle_stage: {stage}\nname: '{name}'\n"
        )
        (run / "meta.yaml").write_text(f"lifecycle_stage: active\nrun_id: r{at}\nstatus: 1\n")
    store = tmp_path / "mlruns"
    with pytest.raises(TableError) as error:
        found(store, "q")
    assert str(error.value) == (
        f"{store} has 2 experiments of MLflow: choose one with --study NAME, of 'a b', second"
    )
    findings = found(store, "q", study="second", mode="max")
    assert "1 rows of unfinished runs are left out." in findings.cautions
    (run / "metrics" / "q").write_text("1 x 3")
    (folder / "meta.yaml").write_text("artifact_location: x\nlifecycle_stage: active\nname: gone\n")
    with pytest.raises(TableError, match="q is damaged"):
        found(store, "q", study="gone")


# --- TensorBoard ----------------------------------------------------------------------------------


def log_events(folder: Path, library: str, **more: Any) -> Path:
    writer_of: Any = importlib.import_module(library).SummaryWriter
    for bs, lr in CELLS:
        writer = writer_of(str(folder / f"run_{bs}_{lr}"))
        for epoch in range(1, EPOCHS + 1):
            writer.add_scalar("val/acc", score(bs, lr, epoch), epoch, **more)
        settings = {"lr": lr, "batch_size": bs, "opt": "sgd", "nesterov": True, "run": "mine"}
        writer.add_hparams(settings, {"hparam/acc": score(bs, lr)})
        writer.close()
    return folder


@pytest.mark.parametrize("library", ["torch.utils.tensorboard", "tensorboardX", "tensors"])
def test_tensorboards_event_files(tmp_path: Path, library: str) -> None:
    """`add_hparams` of both libraries, in a folder inside the run's; scalars also as tensors."""
    tensors: dict[str, Any] = {"new_style": True} if library == "tensors" else {}
    library = "torch.utils.tensorboard" if tensors else library
    folder = log_events(tmp_path / "logs", library, **tensors)
    findings = found(folder, "val/acc")
    check(findings)
    check_curves(findings)
    assert BEST.format(n=6, metric="val/acc") in findings.cautions
    assert findings.about["table"] == f"6 runs of TensorBoard in {folder}"
    rows = open_source(str(folder)).rows
    assert rows["run"].unique().tolist()[0].startswith("run_16_0.01/")
    assert set(rows["nesterov"]) == {True}
    last = [column for column in rows if str(column).endswith("hparam/acc")]
    check(found(folder, last[0], mode="max"), epoch=3)


def test_hyperparameters_around_the_folders_of_a_run(tmp_path: Path) -> None:
    """As Keras writes them: scalars in train/ and validation/, hyperparameters beside these."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for bs, lr in CELLS:
        run = tmp_path / "logs" / f"{bs}_{lr}"
        with SummaryWriter(str(run)) as writer:
            for summary in hparams({"lr": lr, "batch_size": bs}, {}):
                writer.file_writer.add_summary(summary)
        for part in ("train", "validation"):
            with SummaryWriter(str(run / part)) as writer:
                for epoch in range(1, EPOCHS + 1):
                    writer.add_scalar("acc", score(bs, lr, epoch) - (part == "train"), epoch)
    check(found(tmp_path / "logs", "validation/acc"))


def test_all_hyperparameters_in_one_folder(tmp_path: Path) -> None:
    """One writer for all runs: each `add_hparams` is a run, the shared scalars are of none."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        writer.add_scalar("val/acc", 1.0, 0)
        for bs, lr in CELLS:
            name = f"{bs}_{lr}"
            values = {"lr": lr, "batch_size": bs}
            writer.add_hparams(values, {"hparam/acc": score(bs, lr)}, run_name=name)
    check(found(tmp_path / "logs", "hparam/acc"), epoch=3)


def test_event_files_without_hyperparameters_or_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs" / "a")) as writer:
        writer.add_scalar("val/acc", 1.0, 0)
    with pytest.raises(TableError, match=r"without hyperparameters: log them with SummaryWriter"):
        found(tmp_path / "logs", "val/acc")
    name = "tensorboard.backend.event_processing.event_accumulator"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TableError, match="needs the package tensorboard: pip install tensorboard"):
        found(tmp_path / "logs", "val/acc")


# --- Weights & Biases -----------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "config."])
def test_weights_and_biases_export_of_runs(tmp_path: Path, before: str) -> None:
    """Made by pandas in the shape of the CSV that the page of a project exports.

    The export needs W&B's server. Its columns are Name, State, Notes, User, Tags, Created, Runtime,
    Sweep, then config and summary under their own names (`config.` where a user's script adds it).
    """
    rows = [
        {
            "Name": f"sweep-{at}",
            "State": state,
            "Notes": "-",
            "User": "me",
            "Tags": "",
            "Created": f"2026-11-0{at + 1}T10:00:00.000Z",
            "Runtime": 61,
            "Sweep": "q1w2e3",
            f"{before}batch_size": bs,
            f"{before}lr": lr,
            "val_acc": score(bs, lr) if state == "finished" else None,
        }
        for at, ((bs, lr), state) in enumerate(
            zip(
                [*CELLS, (16, 1.0), (64, 1.0)],
                [*["finished"] * 6, "crashed", "running"],
                strict=True,
            )
        )
    ]
    file = tmp_path / "wandb_export.csv"
    pd.DataFrame(rows).to_csv(file, index=False, quoting=1)
    findings = found(file)
    check(findings, epoch=3)
    assert findings.trials["status"].tolist() == [*["completed"] * 6, "failed"]
    assert "1 rows of unfinished runs are left out." in findings.cautions


def test_weights_and_biases_histories(tmp_path: Path) -> None:
    """`Api().runs(...).histories()` has run_id, _step and what was logged, as a `wandb.Table` here.

    The call needs W&B's server. Each run's config is merged by run_id. Metrics logged at different
    steps leave holes.
    """
    import wandb

    data = [
        [f"id{at}", step, bs, lr, score(bs, lr, step // 2) if step % 2 == 0 else None, 0.1 * step]
        for at, (bs, lr) in enumerate(CELLS)
        for step in range(2, 8)
    ]
    columns = ["run_id", "_step", "batch_size", "lr", "val_acc", "train_loss"]
    file = tmp_path / "histories.csv"
    wandb.Table(columns=columns, data=data).get_dataframe().to_csv(file, index=False)
    findings = found(file)
    check(findings)
    check_curves(findings)
    assert BEST.format(n=6, metric="val_acc") in findings.cautions


# --- what is none of these, and the command -------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("gone", "--table {}/gone does not exist"),
        ("gone.db", "--table {}/gone.db does not exist"),
        ("sqlite:///{}/gone.db", "--table {}/gone.db does not exist"),
        ("empty", "{}/empty has no results of Ray Tune (params.json), MLflow (meta.yaml) or"),
        ("study", "{}/study is a study's folder: give it without --table"),
        ("notes.txt", "--table must be a .csv or .parquet file, a folder of Ray Tune, MLflow or"),
        ("other.db", "{}/other.db is neither a storage of Optuna nor a database of MLflow: it has"),
        ("broken.db", "{}/broken.db cannot be read as a SQLite database"),
        ("broken.log", "{}/broken.log cannot be read as a journal of Optuna"),
        ("empty.log", "{}/empty.log has no studies of Optuna with runs"),
        ("https://api.wandb.ai/x", "--table cannot read https:// addresses: copy the results here"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"x" * 2000)
    (tmp_path / "broken.log").write_text('{"op_code": 4}\n{"op_code":4}\n'.replace(" ", ""))
    worker = '"worker_id":"w","study_name":"s","directions":[2]'
    (tmp_path / "empty.log").write_text(
        f'{{"op_code":0,{worker}}}\n{{"op_code":1,"worker_id":"w","study_id":0}}\n'
    )
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE things (a)")
    database.close()
    before = sorted(tmp_path.iterdir())
    place = where.format(tmp_path) if "://" in where else str(tmp_path / where)
    words = ["--table", place, "--batch-size", "bs", "--lr", "lr", "--metric", "value"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("search.report: " + said.format(tmp_path))
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--study", "one"], "--study is not for a file such as"),
        (["--run-column", "ran"], "has no column 'ran' for --run-column: did you mean"),
    ],
)
def test_flags_that_do_not_fit_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    file = tmp_path / "own.csv"
    pd.DataFrame({"run": [1], "bs": [1], "lr": [1], "acc": [1]}).to_csv(file, index=False)
    assert main(
        ["--table", str(file), "--batch-size", "bs", "--lr", "lr", "--metric", "acc", *flags]
    )
    assert said in capsys.readouterr().err


def test_the_command_says_what_it_read_on_screen_and_page(
    optunas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "study.db"
    shutil.copy(optunas / "study.db", copy)
    words = ["--batch-size", "batch_size", "--lr", "lr", "--metric", "value"]
    assert main(["--table", f"sqlite:///{copy}", *words]) == 0
    said = f"9 runs of Optuna's study mine in {copy}"
    out = capsys.readouterr().out
    assert f"read {said}\n" in out
    assert "value: higher is better, as recorded (else add --mode min)" in out
    page = (tmp_path / "report.html").read_text()
    assert said.replace("'", "&#x27;") in page
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["study"], told["about"]["table"]) == ("mine", said)


def test_the_page_of_the_report_names_every_kind_with_what_to_type(
    mlflow_of: Callable[[str], Path],
    optunas: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row of the table of formats in docs/report.md, typed in a folder that has them all."""
    monkeypatch.chdir(tmp_path)
    ray_folder(tmp_path / "ray_results" / "exp", "JsonLoggerCallback", batch_size=16)
    for file in tmp_path.glob("ray_results/exp/*/params.json"):
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"batch_size": config["opt"]["batch_size"]}))
    shutil.copy(optunas / "study.db", "study.db")
    shutil.copy(optunas / "journal.log", "journal.log")
    Path("mlruns").symlink_to(mlflow_of("mlruns"))
    Path("mlflow.db").symlink_to(mlflow_of("mlflow.db"))
    log_events(tmp_path / "runs", "tensorboardX")
    rows = [
        (at, epoch, bs, lr, score(bs, lr, epoch))
        for at, (bs, lr) in enumerate(CELLS)
        for epoch in (1, 2, 3)
    ]
    columns = ["run", "epoch", "batch_size", "lr", "val_acc"]
    history = pd.DataFrame(rows, columns=columns)
    history.to_csv("history.csv", index=False)
    history[history["epoch"] == 2].drop(columns=["run", "epoch"]).to_csv("runs.csv", index=False)
    typed = re.findall(r"^\|[^|]*\| `(--table [^`]*)` \|", DOCS.read_text(), re.MULTILINE)
    assert len(typed) == 10
    for each in typed:
        words = each.split()
        metric = words[words.index("--metric") + 1] if "--metric" in words else "val_acc"
        check(found(words[1], metric), epoch=3 if metric == "value" else 2)
