"""What reading one's own table says, word for word."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from search.analysis.foreign_table import TableError, read_own_table

NAN = math.nan
UNDER_WAY = "{n} rows of unfinished runs are left out."
NOT_FINITE = (
    "{n} rows have no finite {metric} and count as diverged. This is wrong for runs without a "
    "score for another reason."
)
UNKNOWN_STATUS = (
    "The column {column} contains unknown statuses ({words}): these rows count as completed."
)
SHORT = (
    "{n} of {all} runs have fewer iterations than the longest one. If a scheduler stopped them, "
    "add a column status with `stopped` in their rows; otherwise they count as completed."
)
FEW_SIZES = "The table has {n}; at least 2 are needed to see how the two interact."
FEW_LRS = "The table has {n}; at least 3 are needed to see how the best one scales."
POOLED = (
    "Rows also differ in {column} ({values}) and are pooled: make a separate table of each if this "
    "matters."
)


def grid(**more: Any) -> pd.DataFrame:
    """Two batch sizes, three rates."""
    rows = [(b, lr, 0.5 + lr) for b in (16, 32) for lr in (0.1, 0.2, 0.4)]
    return pd.DataFrame(rows, columns=["bs", "rate", "q"]).assign(**more)


def said(folder: Path, table: pd.DataFrame, metric: str = "q") -> list[str]:
    return list(read(folder, table, metric)[1])


def read(
    folder: Path, table: pd.DataFrame, metric: str = "q", **columns: str
) -> tuple[pd.DataFrame, tuple[str, ...], str]:
    file = folder / "own.csv"
    table.to_csv(file, index=False)
    names = {"batch_size": "bs", "lr": "rate", "metric": metric} | columns
    found = read_own_table(file, **names)
    return found.trials, found.cautions, found.metric


@pytest.mark.parametrize(
    ("table", "cautions"),
    [
        (grid(), []),
        (grid(status=["done", "finished", "terminated", "complete", "completed", "Complete"]), []),
        (grid(status=[*["running", "waiting", "pending", "paused"], "done", "done"]),
         [UNDER_WAY.format(n=4), FEW_SIZES.format(n="1 batch size"),
          FEW_LRS.format(n="2 learning rates")]),
        (grid(q=[0.1, NAN, math.inf, 0.2, 0.3, 0.4]), [NOT_FINITE.format(n=2, metric="q")]),
        (grid(q=[0.1, NAN, NAN, 0.2, 0.3, 0.4], state=["done", "failed", "pruned", *["done"] * 3]),
         []),
        (grid(state=["done", "odd", "Even", "done", "odd", "done"]),
         [UNKNOWN_STATUS.format(column="state", words="even, odd")]),
        (grid(status=list("fedcba")),
         [UNKNOWN_STATUS.format(column="status", words="a, b, c, d, e")]),
        (grid(training_iteration=[3, 9, 9, 2, 9, 9]), [SHORT.format(n=2, all=6)]),
        (grid(training_iteration=9), []),
        (grid(training_iteration=[3, 9, 9, 2, 9, 9], status="done"), []),
        (grid().head(3), [FEW_SIZES.format(n="1 batch size")]),
        (grid()[lambda t: t["rate"] < 0.3], [FEW_LRS.format(n="2 learning rates")]),
        (grid(optimizer=[*["sgd"] * 3, *["adam"] * 3]),
         [POOLED.format(column="optimizer", values="adam, sgd")]),
        (grid(b=list("xyzxyz"), a=list("ppqqqq")),
         [POOLED.format(column="a", values="p, q"), POOLED.format(column="b", values="x, y, z")]),
        (grid(name=list("abcdaa")), []),  # more than half of the rows have their own: a name
        (grid(name="same", number=[1, 2, 3, 4, 5, 6], none=NAN), []),
        (pd.concat([grid(optimizer=f"o{k:02}") for k in range(12)]),
         [POOLED.format(column="optimizer", values="o00, o01, o02, o03")]),
        (pd.concat([grid(optimizer=f"o{k:02}") for k in range(13)]), []),
    ],
)  # fmt: skip
def test_a_tables_cautions(tmp_path: Path, table: pd.DataFrame, cautions: list[str]) -> None:
    assert said(tmp_path, table) == cautions


def test_how_a_training_ended_is_read_in_any_tools_words(tmp_path: Path) -> None:
    wanted = {
        "completed": ["COMPLETE", "TrialState.COMPLETE", "finished", "TERMINATED", "done"],
        "stopped": ["PRUNED", "stopped"],
        "failed": ["FAIL", "failed", "crashed", "killed", "ERROR"],
        "diverged": ["diverged"],
    }
    words = [(word, status) for status, each in wanted.items() for word in each]
    for column in ("status", "state", "State"):
        table = pd.DataFrame({"bs": 16, "rate": 0.1, "q": 0.5, column: [word for word, _ in words]})
        trials, _, _ = read(tmp_path, table)
        assert trials["status"].tolist() == [status for _, status in words]
    gone = pd.DataFrame({"bs": 16, "rate": 0.1, "q": 0.5, "state": ["interrupted", "running"]})
    assert read(tmp_path, gone)[0].empty


def test_the_trials_are_the_tables_rows(tmp_path: Path) -> None:
    trials, _, metric = read(tmp_path, grid())
    assert metric == "q"
    assert trials.columns.tolist() == ["batch_size", "lr", "status", "q"]
    assert trials["batch_size"].tolist() == grid()["bs"].tolist()
    assert trials["lr"].tolist() == grid()["rate"].tolist()
    assert trials["q"].tolist() == grid()["q"].tolist()
    assert trials["batch_size"].dtype.kind == "i"


@pytest.mark.parametrize(
    "name", ["batch_size", "lr", "grid_lr", "peak", "status", "seed", "trial_key"]
)
def test_a_metric_of_a_name_that_is_taken_is_called_otherwise(tmp_path: Path, name: str) -> None:
    trials, _, metric = read(tmp_path, grid().rename(columns={"q": name}), metric=name)
    assert metric == f"{name} score"
    assert trials[metric].tolist() == grid()["q"].tolist()


@pytest.mark.parametrize("name", ["mean", "std", "n", "low", "high"])
def test_a_metric_may_have_the_name_of_a_figure_of_the_leaderboard(
    tmp_path: Path, name: str
) -> None:
    from search.report.findings import of_table
    from search.report.markup import text
    from search.report.sections import leaders_table

    table = pd.concat([grid(), grid()]).assign(q=np.arange(12) / 100).rename(columns={"q": name})
    table.to_csv(tmp_path / "own.csv", index=False)
    found = of_table(tmp_path / "own.csv", batch_size="bs", lr="rate", metric=name, mode="max")
    best = found.leaders.iloc[0]
    assert best["mean"] == pytest.approx((0.05 + 0.11) / 2)
    assert best["std"] == pytest.approx(0.06 / math.sqrt(2))
    assert best["n"] == 2
    assert f">{text(f'mean {found.metric}')}</th>" in leaders_table(found)


def test_what_is_wrong_in_a_file_is_said_with_the_cure(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    same = f"--batch-size, --lr and --metric must name three different columns of {file}"
    with pytest.raises(TableError) as error:
        read(tmp_path, grid(), lr="q")
    assert str(error.value) == same
    with pytest.raises(TableError) as error:
        read(tmp_path, grid(), lr="zzz")
    assert str(error.value) == f"{file} has no column 'zzz' for --lr: it has bs, rate, q"
    with pytest.raises(TableError) as error:
        read(tmp_path, grid(rate=[0.1, 0.2, "x", "y", 0.1, 0.2]))
    assert str(error.value) == (
        f"{file}, column 'rate' must contain positive numbers, got 'x' in row 3 (2 such rows): "
        f"correct or remove them"
    )
    file.write_text("bs,rate,q\n")
    with pytest.raises(TableError) as error:
        read_own_table(file, batch_size="bs", lr="rate", metric="q")
    assert str(error.value) == f"{file} has no rows: it must have one row per run"
    with pytest.raises(TableError) as error:
        read_own_table(tmp_path / "gone.csv", batch_size="bs", lr="rate", metric="q")
    assert str(error.value) == f"--table {tmp_path / 'gone.csv'} does not exist"
    with pytest.raises(TableError) as error:
        read_own_table(tmp_path / "a.xlsx", batch_size="bs", lr="rate", metric="q")
    assert str(error.value) == f"--table must be a .csv or .parquet file, got {tmp_path / 'a.xlsx'}"
