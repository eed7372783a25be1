import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from search.analysis.analysis import analyse
from search.analysis.foreign_table import OwnTable, TableError, read_own_table
from search.analysis.metric_name import mode_by_name
from search.report.__main__ import main

COLUMNS = {"batch_size": "bs", "lr": "rate", "metric": "score"}

pytestmark = pytest.mark.usefixtures("no_drawing")


def grid(**more: Any) -> pd.DataFrame:
    """Best at a rate of 0.001 bs, in three seeds."""
    rng = np.random.default_rng(0)
    rows = [
        (bs, rate, 0.9 - 0.1 * math.log10(rate / bs / 0.001) ** 2 + rng.normal(0, 0.002))
        for bs in (16, 32, 64, 128)
        for rate in (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
        for _ in range(3)
    ]
    return pd.DataFrame(rows, columns=["bs", "rate", "score"]).assign(**more)


def read(folder: Path, table: pd.DataFrame, **columns: str) -> OwnTable:
    file = folder / "own.csv"
    table.to_csv(file, index=False)
    return read_own_table(file, **COLUMNS | columns)


def report(folder: Path, file: Path, *more: str, **columns: str) -> tuple[int, dict[str, Any]]:
    named = COLUMNS | columns
    flags = ("--batch-size", named["batch_size"], "--lr", named["lr"], "--metric", named["metric"])
    status = main(["--table", str(file), *flags, "--out", str(folder / "out"), *more])
    written = folder / "out" / "report.json"
    return status, json.loads(written.read_text()) if written.exists() else {}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_grid_gives_its_exponent(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"own.{ending}"
    grid().to_csv(file, index=False) if ending == "csv" else grid().to_parquet(file)
    status, said = report(tmp_path, file)
    assert status == 0
    assert said["exponent"]["value"] == pytest.approx(1.0, abs=0.15)
    assert {row["n"] for row in said["surface"]} == {3}
    assert (tmp_path / "out" / "report.html").exists()


def test_of_less_is_better_the_lowest_is_best(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    grid().assign(score=lambda t: 1 - t["score"]).to_csv(file, index=False)
    _, low = report(tmp_path, file, "--mode", "min")
    grid().to_csv(file, index=False)
    _, high = report(tmp_path, file)
    assert [r["best_tried_lr"] for r in low["ridge"]] == [r["best_tried_lr"] for r in high["ridge"]]
    assert low["mode"] == "min"


def test_the_report_is_written_beside_the_file_unless_told(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    grid().to_csv(file, index=False)
    flags = ["--batch-size", "bs", "--lr", "rate", "--metric", "score"]
    assert main(["--table", str(file), *flags]) == 0
    assert (tmp_path / "report.html").exists()


def test_what_is_not_finite_diverged(tmp_path: Path) -> None:
    table = grid()
    table.loc[[0, 1], "score"] = [math.nan, math.inf]
    got = read(tmp_path, table)
    assert got.trials["status"].tolist()[:3] == ["diverged", "diverged", "completed"]
    assert "2 rows have no finite score and count as diverged" in " ".join(got.cautions)


def test_optunas_frame(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        bs = trial.suggest_categorical("batch_size", [16, 32, 64])
        if trial.number == 3:
            raise optuna.TrialPruned
        if trial.number == 4:
            raise ValueError
        return -(math.log10(rate / bs / 0.001) ** 2)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=90, catch=(ValueError,))
    study.enqueue_trial({"lr": 0.1, "batch_size": 16})  # WAITING
    names = {"batch_size": "params_batch_size", "lr": "params_lr", "metric": "value"}
    got = read(tmp_path, study.trials_dataframe(), **names)
    assert got.trials["status"].tolist()[3:5] == ["stopped", "failed"]
    assert (got.trials["status"] == "completed").sum() == 88
    assert any("1 rows of unfinished runs are left out" in each for each in got.cautions)
    found = analyse(got.trials, metric=got.metric, mode="max", lr="lr")
    assert found.binned  # scattered points
    best = found.ridge.set_index("batch_size")["lr"]
    assert best[16] < best[64]


def test_rays_frame(tmp_path: Path) -> None:
    table = grid().rename(columns={"bs": "config/bs", "rate": "config/rate"})
    table = table.assign(training_iteration=[3, *[9] * (len(table) - 1)], trial_id="x")
    got = read(tmp_path, table, batch_size="config/bs", lr="config/rate")
    assert len(got.trials) == len(table)
    assert "1 of 72 runs have fewer iterations" in " ".join(got.cautions)


def test_other_columns_that_differ_are_said(tmp_path: Path) -> None:
    table = grid(optimizer="adam", name=[f"r{i}" for i in range(72)])
    table.loc[:9, "optimizer"] = "sgd"
    (said,) = read(tmp_path, table).cautions
    assert "Rows also differ in optimizer (adam, sgd)" in said


@pytest.mark.parametrize(
    ("change", "columns", "said"),
    [
        ({}, {"lr": "rates"}, "no column 'rates' for --lr: did you mean --lr rate?"),
        ({}, {"batch_size": "batch"}, "no column 'batch' for --batch-size: it has bs, rate"),
        ({"params_q": 1}, {"metric": "q"}, "did you mean --metric params_q?"),
        ({}, {"metric": "rate"}, "must name three different columns"),
        (
            {"score": "good"},
            {},
            "column 'score' must contain numbers, got 'good' in row 1 (72 such",
        ),
        ({"bs": "many"}, {}, "column 'bs' must contain positive integers, got 'many'"),
        ({"rate": 0.0}, {}, "column 'rate' must contain positive numbers, got"),
        ({"rate": -0.1}, {}, "column 'rate' must contain positive numbers, got"),
        ({"bs": 16.5}, {}, "column 'bs' must contain positive integers, got"),
        (
            {"rate": math.nan},
            {},
            "column 'rate' must contain positive numbers, got nan in row 1 (72 such",
        ),
        ({"rate": math.inf}, {}, "column 'rate' must contain positive numbers, got inf in row 1"),
        ({"bs": math.inf}, {}, "column 'bs' must contain positive integers, got inf"),
        ({"bs": 1e30}, {}, "column 'bs' must contain positive integers, got 1e+30"),
        ({"score": "0,9"}, {}, "column 'score' must contain numbers, got '0,9' in row 1"),
    ],
)
def test_a_wrong_column_is_named(
    tmp_path: Path, change: dict[str, Any], columns: dict[str, str], said: str
) -> None:
    with pytest.raises(TableError) as error:
        read(tmp_path, grid(**change), **columns)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"bs,rate,score\n", "has no rows"),
        ("a.csv", b"\xff\xfe\x00\x81", "cannot be read as CSV"),
        ("a.csv", b'a,b\n1,2\n"3', "cannot be read as CSV"),
        ("a.parquet", b"no parquet", "cannot be read as PARQUET"),
        ("a.xlsx", b"", "must be a .csv or .parquet file"),
        (None, b"", "does not exist"),
    ],
)
def test_an_unreadable_file_is_one_line_and_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str | None,
    content: bytes,
    said: str,
) -> None:
    file = tmp_path / (name or "absent.csv")
    if name:
        file.write_bytes(content)
    assert report(tmp_path, file) == (2, {})
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_wrong_column_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.csv"
    grid(rate="fast").to_csv(file, index=False)
    for columns, said in (
        ({"lr": "rates"}, "no column 'rates' for --lr: did you mean --lr rate?"),
        ({}, "column 'rate' must contain positive numbers, got 'fast' in row 1"),
    ):
        assert report(tmp_path, file, **columns) == (2, {})
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (grid()[lambda t: t["bs"] == 16], "The table has 1 batch size; at least 2"),
        (grid()[lambda t: t["rate"] < 0.02], "The table has 2 learning rates"),
        (grid().drop_duplicates(["bs", "rate"]), "There is only one seed per setting"),
        (grid(score=math.nan), "No trial has a score"),
        (grid(score=-math.inf), "No trial has a score"),
        (grid(status="running"), "72 rows of unfinished runs are left out"),
        (grid(status="pruned"), "72 stopped trials are left out (censored)"),
        (grid().assign(score=lambda t: t["score"].where(t.index == 7)), "there is nothing to comp"),
        (grid(score=0.5), "the metric is the same in every cell"),
        (grid().head(1), "The table has 1 batch size; at least 2"),
    ],
    ids=[
        *("one batch size", "two rates", "one seed", "all diverged", "infinite", "under way"),
        *("all stopped", "one score", "constant", "one row"),
    ],
)
def test_what_a_table_cannot_say_its_report_says(
    tmp_path: Path, table: pd.DataFrame, said: str
) -> None:
    file = tmp_path / "own.csv"
    table.to_csv(file, index=False)
    status, numbers = report(tmp_path, file)
    assert status == 0
    sentences = [*numbers["conclusions"], *numbers["cautions"], numbers["interaction"]["why"]]
    assert any(said in each for each in sentences)


def test_names_of_columns_that_charts_could_stumble_on(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    grid().rename(columns={"score": "a.b[0]/'c'", "rate": "peak"}).to_csv(file, index=False)
    assert report(tmp_path, file, "--mode", "max", metric="a.b[0]/'c'", lr="peak")[0] == 0
    grid().rename(columns={"score": "status", "rate": "grid_lr"}).to_csv(file, index=False)
    status, said = report(tmp_path, file, "--mode", "max", metric="status", lr="grid_lr")
    assert status == 0
    assert said["exponent"]["value"] == pytest.approx(1.0, abs=0.15)
    assert not any("unknown statuses" in each for each in said["cautions"])


@pytest.mark.data
def test_kandels_published_table(tmp_path: Path, shared_data: Path) -> None:
    file = shared_data / "curves" / "kandel_adam.csv"
    status, said = report(tmp_path, file, batch_size="batch_size", lr="lr", metric="test_auroc")
    assert status == 0
    assert said["collapse"]["exponent"] == 0.52
    assert said["collapse"]["r2"] == pytest.approx(0.933, abs=5e-4)
    assert said["collapse"]["r2_at"]["1"] == pytest.approx(0.873, abs=5e-4)
    assert said["collapse"]["r2_at"]["0"] == pytest.approx(0.478, abs=5e-4)
    assert said["interaction"]["share_interaction"] == pytest.approx(0.36, abs=0.005)
    assert said["spearman"] == {"0.0001": pytest.approx(-0.9), "0.001": pytest.approx(1.0)}
    text = (tmp_path / "out" / "report.html").read_text()
    assert "unbracketed" in text
    assert "one seed per setting is too few" in text


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"),
        ("valLoss", "min"),
        ("eval/error_rate", "min"),
        ("RMSE", "min"),
        ("test perplexity", "min"),
        ("val_acc", "max"),
        ("top5", "max"),
        ("roc_auc", "max"),
        ("f1-score", "max"),
        ("neg_log_loss", None),  # of scikit-learn: higher is better
        ("accuracy_loss", None),
        ("value", None),
        ("lossy", None),
    ],
)
def test_a_metrics_name_tells_which_values_are_best(metric: str, mode: str | None) -> None:
    assert mode_by_name(metric) == mode


def test_of_a_loss_the_lowest_is_best_without_a_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.csv"
    grid().assign(val_loss=lambda t: 1 - t["score"]).to_csv(file, index=False)
    status, told = report(tmp_path, file, metric="val_loss")
    assert (status, told["mode"]) == (0, "min")
    assert "val_loss: lower is better" in capsys.readouterr().out
    lowest = min(told["surface"], key=lambda cell: cell["mean"])
    assert told["leaderboard"][0]["lr"] == lowest["lr"]


def test_a_name_that_does_not_tell_needs_a_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.csv"
    grid().assign(value=lambda t: t["score"]).to_csv(file, index=False)
    assert report(tmp_path, file, metric="value") == (2, {})
    error = capsys.readouterr().err
    assert "--metric value does not tell whether higher or lower is better" in error
    assert "add --mode max or --mode min" in error
    assert report(tmp_path, file, "--mode", "max", metric="value")[0] == 0


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_with_other_separators_is_told_with_the_cure(
    tmp_path: Path, separator: str, name: str
) -> None:
    file = tmp_path / "own.csv"
    grid().to_csv(file, index=False, sep=separator, decimal=",")
    with pytest.raises(TableError, match=f"separates its columns by {name}") as refused:
        read_own_table(file, **COLUMNS)
    assert f"sep={separator!r}" in str(refused.value)


@pytest.mark.parametrize("names", [[0, 1, 2], ["a", "b", "c"], [None, None, None]])
def test_rows_of_one_seed_are_pairs(names: list[Any], tmp_path: Path) -> None:
    """What a seed does to all settings alike is no noise of a comparison."""
    rng = np.random.default_rng(0)
    rows = [
        (b, lr, names[seed], 0.8 + 0.01 * i + 0.05 * seed + 0.002 * rng.standard_normal())
        for b in (16, 32)
        for i, lr in enumerate((0.1, 0.2, 0.4, 0.8))
        for seed in range(3)
    ]
    file = tmp_path / "mine.csv"
    pd.DataFrame(rows, columns=["bs", "rate", "seed", "acc"]).to_csv(file, index=False)
    table = read_own_table(file, batch_size="bs", lr="rate", metric="acc")
    assert not any("seed" in caution for caution in table.cautions)
    found = analyse(table.trials, metric="acc", mode="max", lr="lr")
    if names[0] is None:
        assert found.noise.std == pytest.approx(0.05, rel=0.2)
    else:
        assert found.noise.std < 0.005
        assert found.noise.seed_std == pytest.approx(0.05, rel=0.2)
