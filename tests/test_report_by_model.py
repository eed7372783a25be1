"""The ridge by the model: its numbers from a study's trials, its sentences, page and terminal."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Run
from ray import tune
from rich.console import Console

from search.analysis.foreign_table import TableError
from search.analysis.humps.by_model import ByModel, NextTrial, by_model, scored_trials
from search.analysis.humps.columns import columns_of
from search.explore import Ridge
from search.report.findings import conclusions_of, numbers, of_table
from search.report.sentences.by_model import by_model_sentences, smooth_sentences
from search.report.terminal import print_answer
from search.results.tables import Results
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import Folder

SPACE = """
from ray import tune

from search.analysis.humps.columns import columns_of
from search.explore import Ridge
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="few",
    base=TrialConfig(
        dataset="synthetic", model="plain", pretrained="none", precision="fp32", image_size=32,
        train_images=64, eval_images=48, width=4, epochs=2, augment="none",
    ),
    vary={"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(0.01, 10.0)},
    explore=Ridge(num_trials=6),
)
"""


def trials(noise: float = 0.001) -> pd.DataFrame:
    """A score over four batch sizes and nine peak lrs, best at 0.1 (B / 64)^0.5."""
    rng = np.random.default_rng(0)
    rows = []
    for size in (16, 64, 256, 1024):
        for lr in np.geomspace(1e-3, 10.0, 9):
            octaves = math.log2(lr / (0.1 * (size / 64) ** 0.5))
            score = 0.9 - 0.003 * octaves**2 + noise * rng.standard_normal()
            rows.append({"batch_size": size, "peak_lr": lr, "val_auroc": score})
    return pd.DataFrame(rows).assign(
        status="completed", collapsed=False, optimizer="sgd", base_lr=lambda t: t["peak_lr"], seed=0
    )


def only(table: pd.DataFrame, others: tuple[str, ...] = ()) -> ByModel:
    (answer,) = by_model(table, others=others, metric="val_auroc", mode="max")
    return answer


def test_the_best_lrs_and_their_growth() -> None:
    answer = only(trials())
    true = 0.1 * (answer.tried["batch_size"] / 64) ** 0.5
    assert answer.tried["lr"].to_numpy() == pytest.approx(true.to_numpy(), rel=0.3)
    assert ((answer.tried["low"] <= true) & (true <= answer.tried["high"])).all()
    value, low, high = answer.exponent
    assert low < 0.5 < high
    assert value == pytest.approx(0.5, abs=0.1)
    assert list(answer.tried["trials"]) == [9] * 4
    assert not answer.tried["at_edge"].any()
    assert answer.noise_std < 0.005
    assert answer.next_trial.gain < 0.001  # there are nine trials at each batch size


def test_batch_sizes_without_trials_have_predictions() -> None:
    """Between those tried and beside them, with intervals that get wider with the distance."""
    few = trials()[lambda t: t["batch_size"] != 256]
    (answer,) = by_model(few, others=(), metric="val_auroc", mode="max", batch_sizes=[256])
    predicted = answer.predicted.set_index("batch_size")
    assert list(predicted.index) == [8, 256, 2048]
    true = 0.1 * (predicted.index.to_numpy() / 64) ** 0.5
    assert (predicted["low"].to_numpy() < true).all()
    assert (true < predicted["high"].to_numpy()).all()
    of_64 = answer.tried.set_index("batch_size").loc[64]
    width = predicted["high"] / predicted["low"]
    assert (width > of_64["high"] / of_64["low"]).all()


def test_one_more_trial_is_where_least_is_known() -> None:
    few = trials()[lambda t: (t["batch_size"] != 1024) | (t["peak_lr"] == 0.001)]
    assert only(few).next_trial.batch_size == 1024


def test_a_loss_has_its_best_where_it_is_lowest() -> None:
    table = trials().assign(val_auroc=lambda t: 1 - t["val_auroc"])
    (answer,) = by_model(table, others=(), metric="val_auroc", mode="min")
    assert answer.rows["lr"].to_numpy() == pytest.approx(only(trials()).rows["lr"], rel=0.05)


def test_diverged_and_collapsed_count_as_lost_and_unfinished_trials_do_not_count() -> None:
    table = (
        trials()
        .iloc[:5]
        .assign(
            status=["completed", "diverged", "stopped", "failed", "completed"],
            collapsed=[False, False, False, False, True],
        )
    )
    scored = scored_trials(table, metric="val_auroc", mode="max")
    assert list(scored["lr"]) == list(table["peak_lr"].iloc[[0, 1, 4]])
    assert np.isfinite(scored["score"]).tolist() == [True, False, False]


def test_each_value_of_another_field_has_a_ridge() -> None:
    both = pd.concat([trials(), trials().assign(optimizer="adam")])
    answers = by_model(both, others=("optimizer",), metric="val_auroc", mode="max")
    assert [answer.of for answer in answers] == ["optimizer=adam", "optimizer=sgd"]
    few = trials()[lambda t: t["batch_size"] == 16]
    assert by_model(few, others=(), metric="val_auroc", mode="max") == []


def said(
    exponent: tuple[float, float, float],
    at_edge: bool = False,
    make: Callable[[list[ByModel], str], list[str]] = by_model_sentences,
) -> list[str]:
    rows = pd.DataFrame(
        {
            "batch_size": [16, 64, 128],
            "lr": [0.0512, 0.1, 0.2],
            "low": [0.02, 0.05, 0.01],
            "high": [0.1, 0.2, 0.9],
            "at_edge": [at_edge, False, True],
            "trials": [3, 4, 0],
        }
    )
    more = NextTrial(batch_size=64, lr=0.0316, gain=0.00042)
    answer = ByModel(
        of="",
        rows=rows,
        exponent=exponent,
        noise_std=0.012,
        num_best=5,
        num_cells=7,
        next_trial=more,
    )
    return make([answer], "val_auroc")


def test_its_sentences() -> None:
    assert said((0.6, 0.3, 1.1), at_edge=True) == [
        "The best peak lr is 0.051 [0.02, 0.1] at batch size 16 and 0.1 [0.05, 0.2] at batch size "
        "64; at batch size 16 the interval reaches the smallest or largest lr tried (95 % "
        "intervals, assuming that the scores have one smooth hump at each batch size).",
        "It grows as B^0.60 [0.30, 1.10]. Square-root scaling and linear scaling are compatible "
        "with this; a constant rate is rejected.",
        "No trial has tested this prediction of the best peak lr: 0.2 [0.01, 0.9] at batch size "
        "128.",
        "One more trial tells most at batch size 64 and a peak lr of 0.032: the lrs then chosen "
        "are expected to be better by 0.0004 in val_auroc, on average over batch sizes (the noise "
        "of one trial is 0.01).",
    ]
    assert said((0.2, 0.1, 0.3))[1] == (
        "It grows as B^0.20 [0.10, 0.30]. A constant rate, square-root scaling and linear scaling "
        "are rejected."
    )
    assert said((0.5, -0.1, 1.2))[1].endswith("linear scaling are compatible with this.")


def test_the_sentences_of_a_grid_with_one_seed() -> None:
    noise, best, interplay = said((0.6, 0.3, 1.1), make=smooth_sentences)
    assert noise == (
        "Assuming that scores change smoothly with batch size and lr, the noise of one trial is "
        "about 0.01 in val_auroc, and 5 of 7 settings cannot be told from the best."
    )
    assert best == said((0.6, 0.3, 1.1))[0]
    assert interplay == (
        "By the same model batch size and lr interact: no lr is the best at all batch sizes. "
        f"{said((0.6, 0.3, 1.1))[1]}"
    )
    assert said((0.2, -0.1, 0.4), make=smooth_sentences)[2].startswith(
        "By the same model one lr may be the best at all batch sizes. It grows as B^0.20"
    )


def test_cells_that_cannot_be_told_from_the_best_are_counted() -> None:
    """With noise as small as this the best set is what lies within half an octave of the top."""
    answer = only(trials(noise=0.0002))
    true = trials(noise=0.0)["val_auroc"]
    clearly_best = int((true > true.max() - 0.0003).sum())
    assert answer.num_cells == len(true)
    assert clearly_best <= answer.num_best <= int((true > true.max() - 0.004).sum())


def grid_file(path: Path, seeds: int) -> Path:
    parts = [trials(0.001).assign(seed=seed) for seed in range(seeds)]
    columns = ["batch_size", "peak_lr", "val_auroc", "seed"]
    pd.concat(parts)[columns].to_csv(path, index=False)
    return path


def test_a_table_with_one_seed_has_the_model_and_one_with_more_has_not(tmp_path: Path) -> None:
    columns = {"batch_size": "batch_size", "lr": "peak_lr", "metric": "val_auroc"}
    one = of_table(grid_file(tmp_path / "one.csv", 1), **columns)
    (answer,) = one.by_model
    assert answer.exponent[0] == pytest.approx(0.5, abs=0.1)
    said_of_one = conclusions_of(one)
    assert any(text.startswith("Assuming that scores change smoothly") for text in said_of_one)
    assert numbers(one)["by_model"][0]["num_cells"] == 36
    two = of_table(grid_file(tmp_path / "two.csv", 2), **columns)
    assert not two.by_model
    assert not any("Assuming that scores" in text for text in conclusions_of(two))


def drawn(path: Path) -> Path:
    """300 runs of which all was drawn: the best lr is 0.4 (1 - momentum) (B / 64)^0.5."""
    rng = np.random.default_rng(0)
    size = 2.0 ** rng.integers(4, 10, 300)
    momentum = 1 - 10 ** rng.uniform(-2, 0, 300)
    lr, decay = 10 ** rng.uniform(-4, 1, 300), 10 ** rng.uniform(-6, -2, 300)
    octaves = np.log2(lr / (0.4 * (1 - momentum) * (size / 64) ** 0.5))
    score = 0.9 - 0.005 * octaves**2 - 0.01 * np.log10(decay / 1e-4) ** 2
    score = np.where(octaves > 3, 0.3, score) + 0.002 * rng.standard_normal(300)
    columns = {"bs": size.astype(int), "rate": lr, "momentum": momentum, "decay": decay}
    pd.DataFrame({**columns, "accuracy": score}).to_csv(path, index=False)
    return path


def test_columns_that_were_drawn_as_well_are_taken_in(tmp_path: Path) -> None:
    file = drawn(tmp_path / "drawn.csv")
    columns = {"batch_size": "bs", "lr": "rate", "metric": "accuracy"}
    blind = of_table(file, **columns)
    assert any("--fields momentum weight_decay" in text for text in blind.cautions)
    found = of_table(file, **columns, fields=["momentum", "decay"])
    (answer,) = found.by_model
    assert answer.noise_std < 0.5 * blind.by_model[0].noise_std
    value, low, high = answer.exponent
    assert low < 0.5 < high
    assert high - low < 0.5
    assert value == pytest.approx(0.5, abs=0.15)
    row = answer.columns.set_index("column").loc["momentum"]
    # From one deviation below the mean to one above, 1 - momentum falls by as much as the best lr.
    true = (1 - row["above"]) / (1 - row["below"])
    assert row["low"] <= true <= row["high"] < 1
    true_lr = 0.4 * (1 - row["at"]) * (answer.tried["batch_size"] / 64) ** 0.5
    inside = (answer.tried["low"] <= true_lr) & (true_lr <= answer.tried["high"])
    assert inside.mean() >= 5 / 6
    texts = conclusions_of(found)
    assert texts[0].startswith("The best lr with momentum 0.")
    assert "the medians of the best tenth of the runs, is" in texts[0]
    assert [text[:20] for text in texts if "the best lr falls by" in text] == [
        "As momentum goes fro"
    ]
    assert {"momentum", "decay"} <= set(found.importance["field"])
    assert numbers(found)["by_model"][0]["columns"][0]["column"] == "momentum"


def test_a_field_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    file = drawn(tmp_path / "drawn.csv")
    columns = {"batch_size": "bs", "lr": "rate", "metric": "accuracy"}
    with pytest.raises(TableError, match="--fields rate: a column of this name has another"):
        of_table(file, **columns, fields=["rate"])
    with pytest.raises(TableError, match=r"no column 'momentun' for --fields: did you mean"):
        of_table(file, **columns, fields=["momentun"])


def test_a_column_has_the_scale_on_which_it_acts() -> None:
    table = pd.DataFrame(
        {"momentum": [0.5, 0.9, 0.98], "decay": [1e-6, 1e-4, 1e-2], "epochs": [5, 10, 15], "k": 1.0}
    )
    columns = columns_of(table, list(table))
    assert {c.name: c.scale for c in columns} == {
        "momentum": "momentum",
        "decay": "log",
        "epochs": "linear",
    }
    for column in columns:
        z = column.standardised(table[column.name].to_numpy(float))
        assert z.mean() == pytest.approx(0, abs=1e-12)
        assert z.std() == pytest.approx(1)
        back = [column.value(float(value)) for value in z]
        assert back == pytest.approx(table[column.name].tolist())


def test_the_terminal_has_a_row_for_each_batch_size() -> None:
    study = Study(
        name="s",
        base=TrialConfig(dataset="d"),
        vary={
            "batch_size": tune.choice([16, 64, 256, 1024]),
            "base_lr": tune.loguniform(0.001, 10),
        },
        explore=Ridge(num_trials=36),
    )
    table = trials().assign(
        dataset="d",
        reason="",
        begins_from=None,
        test_auroc=0.5,
        trial_key=[str(i) for i in range(36)],
    )
    console = Console(file=io.StringIO(), width=120)
    print_answer(console, study, table, Results("s", Folder("/r/s")), [])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    at = lines.index("best learning rate of each batch size, by the model")
    assert lines[at + 1].split()[:1] == ["batch_size"]
    rows = [line.split() for line in lines[at + 2 : at + 8]]
    assert [row[0] for row in rows] == ["8", "16", "64", "256", "1024", "2048"]
    assert [row[-1] for row in rows] == ["predicted", "9", "9", "9", "9", "predicted"]
    assert lines[at + 8].startswith("It grows as B^0.")
    assert lines[at + 9].startswith("One more trial tells most at batch size ")


@pytest.mark.ray
def test_a_study_runs_and_goes_on_with_more_trials(tmp_path: Path, run_joined: Run) -> None:
    space = tmp_path / "few.py"
    space.write_text(SPACE)
    first = run_joined(space, tmp_path)
    assert first.returncode == 0, first.stderr + first.stdout
    assert "best learning rate of each batch size, by the model" in first.stdout
    page = (tmp_path / "few" / "report.html").read_text()
    assert "Ridge by the model" in page
    more = run_joined(space, tmp_path, "--set", "explore.num_trials=8")
    assert more.returncode == 0, more.stderr
    assert "6 done before, 2 to run" in more.stdout
    assert len(pd.read_parquet(tmp_path / "few" / "trials")) == 8
