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
from search.analysis.humps.by_model import ByModel, NextTrial, by_model
from search.analysis.humps.columns import columns_of
from search.analysis.humps.scored import has_repeats, scored_trials
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


def test_stopped_trials_count_with_their_forecasts() -> None:
    """Without forecasts there is no answer: scores are missing where they are low."""
    table = trials().assign(forecast=np.nan, forecast_std=np.nan)
    low = table["val_auroc"] < table.groupby("batch_size")["val_auroc"].transform("max") - 0.02
    table.loc[low, "status"] = "stopped"
    assert by_model(table, others=(), metric="val_auroc", mode="max") == []
    table.loc[low, "forecast"] = table["val_auroc"]
    table.loc[low, ["val_auroc", "forecast_std"]] = [0.5, 0.002]
    scored = scored_trials(table, metric="val_auroc", mode="max")
    assert scored["score"].tolist() == trials()["val_auroc"].tolist()
    assert scored["std"].tolist() == [0.002 if stopped else 0.0 for stopped in low]
    answer = only(table)
    assert answer.tried["lr"].to_numpy() == pytest.approx(only(trials()).tried["lr"], rel=0.3)
    losses = table.assign(**{name: -table[name] for name in ("val_auroc", "forecast")})
    again = scored_trials(losses, metric="val_auroc", mode="min")
    assert again["score"].tolist() == scored["score"].tolist()


def test_a_vague_forecast_tells_little() -> None:
    """The scores of the smaller half of the batch sizes are forecasts: precise, or vague."""
    table = trials().assign(forecast=lambda t: t["val_auroc"], forecast_std=0.0005)
    table.loc[table["batch_size"] <= 64, "status"] = "stopped"
    precise, vague = only(table), only(table.assign(forecast_std=0.05))
    width = [answer.tried["high"] / answer.tried["low"] for answer in (precise, vague)]
    assert (width[1] > 1.5 * width[0])[:2].all()


def test_each_value_of_another_field_has_a_ridge() -> None:
    both = pd.concat([trials(), trials().assign(optimizer="adam")])
    answers = by_model(both, others=("optimizer",), metric="val_auroc", mode="max")
    assert [answer.of for answer in answers] == ["optimizer=adam", "optimizer=sgd"]
    few = trials()[lambda t: t["batch_size"] == 16]
    assert by_model(few, others=(), metric="val_auroc", mode="max") == []


def said(
    exponent: tuple[float, float, float],
    at_edge: bool = False,
    make: Callable[..., list[str]] = by_model_sentences,
    mode: str = "max",
    gain: float = 0.0042,
) -> list[str]:
    rows = pd.DataFrame(
        {
            "batch_size": [16, 64, 128, 256],
            "lr": [0.0512, 0.1, 0.2, 0.4],
            "low": [0.02, 0.05, 0.01, 0.01],
            "high": [0.1, 0.2, 0.9, 10.0],
            "at_edge": [at_edge, False, False, True],
            "trials": [3, 4, 0, 0],
        }
    )
    more = NextTrial(batch_size=64, lr=0.0316, gain=gain)
    answer = ByModel(
        of="",
        rows=rows,
        exponent=exponent,
        noise_std=0.012,
        num_best=5,
        num_cells=7,
        next_trial=more,
    )
    return make([answer], metric="val_auroc", mode=mode)


def smooth(answers: list[ByModel], *, metric: str, mode: str) -> list[str]:
    return smooth_sentences(answers, metric=metric)


def test_its_sentences() -> None:
    assert said((0.6, 0.3, 1.1), at_edge=True) == [
        "The best peak lr is 0.051 [0.02, 0.1] at batch size 16 and 0.1 [0.05, 0.2] at batch size "
        "64; at batch size 16 the interval reaches the smallest or largest lr tried (95 % "
        "intervals, assuming that the scores have one smooth hump at each batch size).",
        "The best peak lr grows as B^0.60 [0.30, 1.10]. Square-root scaling and linear scaling are "
        "compatible with this; a constant rate is rejected.",
        "Predicted best peak lr, tested by no trial: 0.2 [0.01, 0.9] at batch size 128. At batch "
        "size 256 it may lie outside of the lrs tried.",
        "One more trial tells most at batch size 64 and a peak lr of 0.032: val_auroc at the lrs "
        "then chosen is expected to rise by 0.004 on average over batch sizes (the noise of one "
        "trial is 0.01).",
    ]
    assert said((0.2, 0.1, 0.3))[1] == (
        "The best peak lr grows as B^0.20 [0.10, 0.30]. A constant rate, square-root scaling and "
        "linear scaling are rejected."
    )
    assert said((0.5, -0.1, 1.2))[1].endswith("linear scaling are compatible with this.")
    assert said((-0.3, -0.5, -0.1))[1].startswith(
        "The best peak lr falls as B^-0.30 [-0.50, -0.10]"
    )
    assert said((0.5, 0.4, 0.6), mode="min")[3].count("is expected to fall by 0.004") == 1
    assert said((0.5, 0.4, 0.6), gain=0.0004)[3] == (
        "One more trial would tell little, wherever it is: val_auroc at the lrs then chosen is "
        "expected to rise by 0.0004 or less, on average over batch sizes (the noise of one trial "
        "is 0.01)."
    )
    nothing = said((math.nan,) * 3)[1]
    assert nothing.startswith("How the best peak lr grows is unknown: this needs two batch sizes")


def test_the_sentences_of_a_grid_with_one_seed() -> None:
    noise, best, interplay = said((0.6, 0.3, 1.1), make=smooth)
    assert noise == (
        "Assuming that scores change smoothly with batch size and lr, the noise of one trial is "
        "about 0.01 in val_auroc, and 5 of 7 settings cannot be told from the best."
    )
    assert best == said((0.6, 0.3, 1.1))[0]
    assert interplay == (
        f"By the same model no peak lr is the best at all batch sizes. {said((0.6, 0.3, 1.1))[1]}"
    )
    assert said((0.2, -0.1, 0.4), make=smooth)[2].startswith(
        "By the same model one peak lr may be the best at all batch sizes. The best peak lr grows"
    )
    unknown = said((math.nan,) * 3, make=smooth)[2]
    assert unknown.startswith("How the best peak lr grows is unknown")


def test_cells_that_cannot_be_told_from_the_best_are_counted() -> None:
    """With noise as small as this the best set is what lies within half an octave of the top."""
    answer = only(trials(noise=0.0002))
    true = trials(noise=0.0)["val_auroc"]
    clearly_best = int((true > true.max() - 0.0003).sum())
    assert answer.num_cells == len(true)
    assert clearly_best <= answer.num_best <= int((true > true.max() - 0.004).sum())


def test_a_cell_counts_once_whatever_another_column_has() -> None:
    """The posterior has three points there. Their scores are equal, so a single cell is best."""
    table = trials(noise=0.0002)
    by_momentum = [table.assign(momentum=momentum) for momentum in (0.8, 0.9, 0.95)]
    (answer,) = by_model(
        pd.concat(by_momentum, ignore_index=True),
        others=(),
        columns=("momentum",),
        metric="val_auroc",
        mode="max",
    )
    assert (answer.num_best, answer.num_cells) == (1, len(table))


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
    assert inside.mean() >= 1 / 2
    assert (answer.tried["lr"] / true_lr).between(1 / 1.3, 1.3).all()
    texts = conclusions_of(found)
    assert texts[0].startswith("The best lr with momentum 0.")
    assert "the medians of the best tenth of the runs, is" in texts[0]
    assert [text[:20] for text in texts if "the best lr falls by" in text] == [
        "As momentum goes fro"
    ]
    assert {"momentum", "decay"} <= set(found.importance["field"])
    assert numbers(found)["by_model"][0]["columns"][0]["column"] == "momentum"


def test_batch_sizes_that_were_drawn_get_answers_at_powers_of_two() -> None:
    rng = np.random.default_rng(0)
    size = np.unique(rng.integers(16, 512, 60))
    rng.shuffle(size)
    lr = 10 ** rng.uniform(-4, 1, len(size))
    octaves = np.log2(lr / (0.1 * (size / 64) ** 0.5))
    table = pd.DataFrame({"batch_size": size, "peak_lr": lr, "val_auroc": 0.9 - 0.003 * octaves**2})
    answer = only(table.assign(status="completed"))
    assert set(answer.tried["batch_size"]) >= {32, 64, 128, 256}
    assert answer.tried["trials"].sum() == len(size)
    true = 0.1 * (answer.tried["batch_size"] / 64) ** 0.5
    inside = (answer.tried["low"] <= true) & (true <= answer.tried["high"])
    assert inside.mean() >= 0.8
    assert answer.exponent[1] < 0.5 < answer.exponent[2]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(trials()[lambda t: t["peak_lr"] == 0.001], id="one lr"),
        pytest.param(trials().iloc[[0, 10, 20, 30]], id="one lr a batch size"),
        pytest.param(trials()[lambda t: t["batch_size"] == 16], id="one batch size"),
        pytest.param(trials().assign(status="diverged"), id="no score"),
        pytest.param(trials().assign(status="failed"), id="nothing trained"),
        pytest.param(
            trials().assign(
                status=lambda t: np.where(t["val_auroc"] < 0.85, "stopped", "completed")
            ),
            id="the worse ones were stopped",
        ),
    ],
)
def test_what_is_no_surface_has_no_answer(table: pd.DataFrame) -> None:
    assert by_model(table, others=(), metric="val_auroc", mode="max") == []


def test_scores_of_which_most_are_equal_have_an_answer() -> None:
    table = trials(noise=0.0).assign(val_auroc=lambda t: t["val_auroc"].clip(upper=0.88))
    answer = only(table)
    assert (answer.rows["low"] < answer.rows["high"]).all()


def test_a_large_table_has_an_answer_from_some_of_its_runs() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    size, lr = 2.0 ** rng.integers(4, 9, n), 10 ** rng.uniform(-3, 1, n)
    octaves = np.log2(lr / (0.1 * (size / 64) ** 0.5))
    score = 0.9 - 0.003 * octaves**2 + 0.002 * rng.standard_normal(n)
    table = pd.DataFrame({"batch_size": size, "peak_lr": lr, "val_auroc": score})
    value, low, high = only(table.assign(status="completed")).exponent
    assert low < 0.5 < high
    assert value == pytest.approx(0.5, abs=0.1)


def test_where_the_best_lr_is_outside_of_the_range_no_exponent_is_made_up() -> None:
    """Below 0.01 the scores only rise with the lr: the ends of the range are no best lrs."""
    few = trials()[lambda t: t["peak_lr"] < 0.005 * (t["batch_size"] / 64) ** 0.5 * 8]
    answer = only(few)
    assert answer.tried["at_edge"].all()
    assert math.isnan(answer.exponent[0])


def test_a_grid_is_one_of_single_seeds_though_a_cell_was_run_twice() -> None:
    table = trials()
    twice = pd.concat([table, table.iloc[:3], table.assign(status="failed")])
    assert not has_repeats(twice, "peak_lr")
    assert has_repeats(pd.concat([table, table]), "peak_lr")


def test_scores_that_guessing_reaches_have_no_answer(tmp_path: Path) -> None:
    table = trials()[["batch_size", "peak_lr", "val_auroc"]]
    table["val_auroc"] = 0.5 - 0.01 * np.random.default_rng(0).random(len(table))
    table.to_csv(tmp_path / "guessed.csv", index=False)
    columns = {"batch_size": "batch_size", "lr": "peak_lr", "metric": "val_auroc"}
    found = of_table(tmp_path / "guessed.csv", **columns)
    assert not found.by_model
    assert len(conclusions_of(found)) == 1


def test_fields_without_enough_runs_are_no_empty_page(tmp_path: Path) -> None:
    file = drawn(tmp_path / "drawn.csv")
    pd.read_csv(file).iloc[:3].to_csv(file, index=False)
    columns = {"batch_size": "bs", "lr": "rate", "metric": "accuracy"}
    found = of_table(file, **columns, fields=["momentum", "decay", "momentum"])
    assert found.fields == ["batch_size", "lr", "momentum", "decay"]
    assert conclusions_of(found)


def test_runs_without_a_value_are_counted_and_left_out(tmp_path: Path) -> None:
    file = drawn(tmp_path / "drawn.csv")
    table = pd.read_csv(file)
    table.loc[:99, "decay"] = np.nan
    table.assign(constant=0.1).to_csv(file, index=False)
    columns = {"batch_size": "bs", "lr": "rate", "metric": "accuracy"}
    found = of_table(file, **columns, fields=["momentum", "decay", "constant"])
    assert "100 of 300 runs have no decay: the model leaves them out." in found.cautions
    (answer,) = found.by_model
    assert list(answer.columns["column"]) == ["momentum", "decay"]
    assert answer.tried["trials"].sum() == 200


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
    # Half of a deviation below the mean lies no value, on a scale that zeros keep from being log.
    (zeros,) = columns_of(pd.DataFrame({"decay": [0.0, 0.0, 0.0, 1.0]}), ["decay"])
    assert zeros.value(-1.0) == 0.0
    assert columns_of(pd.DataFrame({"k": [0.1] * 100}), ["k"]) == []
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
    assert lines[at + 8].startswith("The best peak lr grows as B^0.")
    assert lines[at + 9].startswith("One more trial would tell little, wherever it is: ")


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
