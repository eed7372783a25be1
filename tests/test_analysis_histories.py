"""Tables with several rows per run: repeats with other seeds, or epochs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from search.analysis.foreign_table import OwnTable, TableError, own_table, read_own_table

NAN = math.nan
COLUMNS = {"batch_size": "bs", "lr": "rate", "metric": "acc"}
BEST = "A run has several rows: the score of each of the 6 runs is the best acc of its 3 rows."
REPEATS = (
    "Rows that share their run count as repeats with other seeds. If they are epochs of one run, "
    "add --run-column run."
)
NUMBERED = (
    "Rows of one setting count as repeats with other seeds. They are numbered by epoch: if they "
    "are epochs of one run, add --run-column with the columns that tell one run from another."
)


def history(**more: Any) -> pd.DataFrame:
    """Two batch sizes, three rates, three epochs; the second epoch is the best."""
    rows = [
        (f"r{i}{j}", bs, rate, epoch, 0.5 + rate + (0, 0.2, 0.1)[epoch - 1])
        for i, bs in enumerate((16, 32))
        for j, rate in enumerate((0.01, 0.02, 0.04))
        for epoch in (1, 2, 3)
    ]
    return pd.DataFrame(rows, columns=["run", "bs", "rate", "epoch", "acc"]).assign(**more)


def own(table: pd.DataFrame, **more: Any) -> OwnTable:
    return own_table(table, **({**COLUMNS, "file": "own.csv", "mode": "max"} | more))


@pytest.mark.parametrize("run", ["run", "run_id", "Run ID", "trial_id", "Name"])
@pytest.mark.parametrize("epoch", ["epoch", "step", "_step", "training_iteration"])
def test_epochs_are_recognised_and_the_best_counts(run: str, epoch: str) -> None:
    table = history().rename(columns={"run": run, "epoch": epoch})
    found = own(table)
    assert found.trials["acc"].tolist() == pytest.approx([0.71, 0.72, 0.74] * 2)
    assert found.cautions == (BEST,)
    worst = own(table, mode="min").trials
    assert worst["acc"].tolist() == pytest.approx([0.51, 0.52, 0.54] * 2)


def test_the_order_of_rows_is_of_no_matter() -> None:
    mixed = history().sample(frac=1, random_state=0)
    assert sorted(own(mixed).trials["acc"]) == pytest.approx(sorted([0.71, 0.72, 0.74] * 2))


def test_without_a_mode_the_last_row_counts(tmp_path: Path) -> None:
    history().to_csv(tmp_path / "own.csv", index=False)
    found = read_own_table(tmp_path / "own.csv", **COLUMNS)
    assert found.trials["acc"].tolist() == pytest.approx([0.61, 0.62, 0.64] * 2)


def test_repeats_with_seeds_stay_as_many_trials() -> None:
    """Rows of one name, a seed each; also without the column of seeds, and with a last epoch."""
    table = history().rename(columns={"epoch": "seed"})
    found = own(table)
    assert len(found.trials) == 18
    assert found.trials["seed"].tolist() == [1, 2, 3] * 6
    assert not own(table.assign(epoch=20)).cautions[1:]
    assert len(own(table.assign(epoch=20)).trials) == 18
    alone = own(table.drop(columns="seed"))
    assert len(alone.trials) == 18
    assert REPEATS in alone.cautions


def test_a_seed_that_differs_within_a_run_is_no_run() -> None:
    assert len(own(history(seed=[0, 1, 2] * 6)).trials) == 18


def test_rows_numbered_as_epochs_are_cautioned_about_and_read_as_told() -> None:
    table = history().drop(columns="run")
    found = own(table)
    assert len(found.trials) == 18
    assert found.cautions == (NUMBERED,)
    told = own(table, runs=["bs", "rate"])
    assert told.trials["acc"].tolist() == pytest.approx([0.71, 0.72, 0.74] * 2)
    assert told.cautions == (BEST,)
    seeded = pd.concat([table.assign(seed=seed) for seed in (0, 1)])
    assert len(own(seeded).trials) == 12  # two rows of one seed and setting are no repeats
    assert len(own(pd.concat([seeded, seeded])).trials) == 72
    renamed = seeded.rename(columns={"seed": "trial_seed"})
    assert len(own(renamed, seed="trial_seed").trials) == 12
    assert own(table.assign(epoch=5 * table["epoch"])).cautions == (NUMBERED,)
    assert len(own(seeded.assign(epoch=5 * seeded["epoch"])).trials) == 12
    best_epochs = table.assign(epoch=[3, 9, 7] * 6)  # one row per run, with its best epoch
    assert own(best_epochs).cautions == ()


def test_the_column_of_runs_may_have_any_name() -> None:
    table = history().rename(columns={"run": "which"}).drop(columns="epoch")
    assert len(own(table, runs=["which"]).trials) == 6
    with pytest.raises(TableError) as error:
        own(table, runs=["whihc"])
    assert str(error.value) == (
        "own.csv has no column 'whihc' for --run-column: did you mean --run-column which? It also "
        "has bs, rate, acc"
    )
    with pytest.raises(TableError) as error:
        own(table, runs=["bs"])
    assert str(error.value) == (
        "the rows of bs 16 differ in rate (0.01, 0.02, 0.04), which must be constant in a run: "
        "give --run-column all columns that tell one run from another"
    )


def test_how_a_run_ended_is_in_its_last_row() -> None:
    status = ["running", "running", "finished"] * 4 + ["running"] * 3 + ["running"] * 2 + ["failed"]
    found = own(history(status=status))
    assert found.trials["status"].tolist() == ["completed"] * 4 + ["failed"]
    assert "1 rows of unfinished runs are left out." in found.cautions


def test_what_is_not_finite_is_never_the_best() -> None:
    table = history()
    table["acc"] = table["acc"].where(table["epoch"] == 1, NAN)  # logged once
    assert own(table).cautions == ()
    assert own(table).trials["acc"].tolist() == pytest.approx([0.51, 0.52, 0.54] * 2)
    table = history()
    table.loc[[0, 1, 2, 4, 5], "acc"] = [NAN, NAN, math.inf, math.inf, NAN]
    found = own(table)
    assert found.trials["status"].tolist() == ["diverged", *["completed"] * 5]
    assert found.trials["acc"].tolist()[1] == pytest.approx(0.52)
    said = " ".join(found.cautions)
    assert "the best acc of its 1 to 3 rows" in said
    assert "1 of 6 runs end without a finite acc and count with their best value before" in said
    assert "1 rows have no finite acc and count as diverged" in said


def test_a_wrong_value_is_named_by_its_row() -> None:
    table = history().astype({"acc": object})
    table.loc[4, "acc"] = "0,9"
    with pytest.raises(TableError, match="column 'acc' must contain numbers, got '0,9' in row 5 "):
        own(table)
    with pytest.raises(TableError, match="column 'bs' must contain positive integers, got"):
        own(history().assign(bs=lambda t: t["bs"] + 0.5))


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        ("params.", "metrics."),
        ("config.", "summary."),
        ("config/", ""),
        ("params_", "values_"),
        ("hparams/", ""),
    ],
)
def test_what_a_tool_puts_before_a_name_may_be_left_out(settings: str, score: str) -> None:
    table = pd.concat([history(seed=k)[lambda t: t["epoch"] == 2] for k in range(2)])
    table = table.drop(columns=["run", "epoch"]).rename(
        columns={name: settings + name for name in ("bs", "rate", "seed")} | {"acc": score + "acc"}
    )
    found = own(table)
    assert found.trials.columns.tolist() == ["batch_size", "lr", "status", "acc", "seed"]
    assert found.trials["seed"].tolist() == [0] * 6 + [1] * 6
    full = {"batch_size": f"{settings}bs", "lr": f"{settings}rate", "metric": f"{score}acc"}
    assert own(table, **full).trials["lr"].tolist() == found.trials["lr"].tolist()
    other = own(table.rename(columns={f"{settings}rate": "rate"}), lr="config/rate")
    assert other.trials["lr"].tolist() == found.trials["lr"].tolist()


def test_a_name_that_could_be_two_columns_is_refused() -> None:
    table = history().rename(columns={"rate": "params.rate"}).assign(**{"config/rate": 1.0})
    with pytest.raises(TableError) as error:
        own(table)
    assert str(error.value) == (
        "own.csv has 2 columns that --lr rate could mean: give one of params.rate, config/rate"
    )
    with pytest.raises(TableError, match="must name three different columns"):
        own(history().rename(columns={"rate": "params.rate"}), metric="params.rate")


def test_an_unknown_column_gets_the_nearest_and_the_others() -> None:
    wide = history(**{f"c{i:02}": i for i in range(30)})
    with pytest.raises(TableError) as error:
        own(wide, metric="axc")
    said = str(error.value)
    assert said.startswith(
        "own.csv has no column 'axc' for --metric: did you mean --metric acc? It also has run, bs, "
    )
    assert said.endswith("c15, ...")


def test_runs_that_ended_before_they_had_settings_are_left_out() -> None:
    table = history()[lambda t: t["epoch"] == 2].drop(columns=["epoch"]).reset_index(drop=True)
    table = table.assign(state=[*["COMPLETE"] * 4, "FAIL", "COMPLETE"])
    table.loc[4, "bs"] = NAN
    table.loc[5, ["rate", "acc"]] = NAN
    found = own(table)
    assert len(found.trials) == 4
    assert "2 rows without a score lack bs or rate as well: they are left out." in found.cautions
    table.loc[5, "acc"] = 0.5
    with pytest.raises(TableError, match="column 'rate' must contain positive numbers, got nan"):
        own(table)


def test_many_epochs_are_read_in_seconds() -> None:
    num = 2000
    runs = np.repeat(np.arange(num), 100)
    table = pd.DataFrame(
        {
            "run": [f"r{run}" for run in runs],
            "bs": 2 ** (4 + runs % 4),
            "rate": 0.01 * 2.0 ** (runs // 4 % 6),
            "epoch": np.tile(np.arange(100), num),
            "acc": np.random.default_rng(0).uniform(size=num * 100),
        }
    )
    assert len(own(table).trials) == num


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_every_score_of_a_run_is_a_point_of_its_curve(order: slice) -> None:
    """Also of rows that are written last first, and of steps without a validation score."""
    table = history()
    unscored = table.assign(acc=NAN, epoch=table["epoch"] - 0.5)
    own_runs = own(pd.concat([table, unscored])[order].reset_index(drop=True))
    epochs = own_runs.epochs
    assert epochs is not None
    assert epochs.columns.tolist() == ["trial_key", "epoch", "acc"]
    assert len(epochs) == 18
    rates = own_runs.trials.set_index("trial_key")["lr"]
    for key, scores in epochs.groupby("trial_key"):
        assert scores["epoch"].tolist() == [1, 2, 3]
        assert scores["acc"].tolist() == pytest.approx(0.5 + rates[key] + [0, 0.2, 0.1])


def test_a_row_per_run_has_no_curves() -> None:
    best = history().query("epoch == 2")
    assert own(best).epochs is None
    assert own(best, runs=["run"]).epochs is None
