import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.analysis.analysis import Analysis, analyse, in_bins
from search.analysis.foreign_table import read_own_table
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions

Draw = Callable[..., pd.DataFrame]


def searched(trials: int, batch_sizes: Sequence[int] = (16, 32, 64, 128)) -> pd.DataFrame:
    """A random search, best at 0.001 times the batch size."""
    rng = np.random.default_rng(0)
    batch_size, lr = rng.choice(batch_sizes, trials), 10 ** rng.uniform(-4, 1, trials)
    score = 0.9 - 0.05 * np.log10(lr / batch_size / 0.001) ** 2 + rng.normal(0, 0.01, trials)
    table = pd.DataFrame({"batch_size": batch_size, "base_lr": lr, "val_auroc": score})
    return table.assign(status="completed", trial_key=[f"k{i}" for i in range(trials)], seed=0)


def laid_out(lrs: Callable[[int], Sequence[float]], seeds: int = 1) -> pd.DataFrame:
    cells = [(b, lr) for b in (16, 32, 64, 128) for lr in lrs(b)]
    table = pd.DataFrame(cells * seeds, columns=["batch_size", "base_lr"])
    rng = np.random.default_rng(0)
    return table.assign(status="completed", val_auroc=rng.uniform(0.5, 0.9, len(table)))


def said_of(analysis: Analysis) -> str:
    return " ".join([*conclusions(analysis), *cautions(analysis)])


def of(trials: pd.DataFrame) -> Analysis:
    return analyse(trials, metric="val_auroc", mode="max")


@pytest.mark.parametrize("trials", [12, 60, 400])
def test_what_a_search_drew_is_put_in_bins(trials: int) -> None:
    found = of(searched(trials))
    assert found.binned
    assert set(found.cells["batch_size"]) <= {16, 32, 64, 128}
    assert found.cells["trials"].sum() == trials
    steps = np.diff(np.log10(np.unique(found.cells["lr"]))) * 3
    assert steps == pytest.approx(steps.round(), abs=0.02)
    assert steps.min() > 0.9


def test_of_many_drawn_batch_sizes_the_nearest_power_of_two() -> None:
    found = of(searched(300, range(16, 257)))
    assert set(found.cells["batch_size"]) == {16, 32, 64, 128, 256}


@pytest.mark.parametrize(
    "lrs",
    [
        lambda b: np.geomspace(1e-4, 1, 15),  # one seed of many lrs
        lambda b: [1e-4, 1e-3],
        lambda b: 1e-4 * math.sqrt(b) * 2.0 ** np.arange(-3, 4),  # each its own, about a rule
        lambda b: [0.1 * b / 64],
        lambda b: [*np.geomspace(1e-4, 1, 7), *(0.01 * b**0.7 * np.array([0.8, 1.25]))],  # refined
        lambda b: [0.001 * b, 0.003 * b, 0.01 * b, 0.1 * b],
    ],
)
def test_a_grid_stays_as_it_is(lrs: Callable[[int], Sequence[float]]) -> None:
    table = laid_out(lrs)
    rows, binned = in_bins(table.assign(grid_lr=table["base_lr"], peak=table["base_lr"]))
    assert not binned
    assert rows["grid_lr"].equals(table["base_lr"])


def test_a_search_of_few_trials_says_that_they_are_too_few() -> None:
    assert "12 scattered trials are too few for a surface" in said_of(of(searched(12)))
    assert "too few for a surface" not in said_of(of(searched(400)))


def test_a_search_of_many_trials_finds_the_exponent() -> None:
    found = of(searched(400)).exponent
    assert found.low <= 1 <= found.high
    assert found.verdict("constant") == "rejected"


def test_of_one_seed_the_cure_is_what_its_reader_can_type() -> None:
    table = laid_out(lambda b: [1e-4, 1e-3, 1e-2])
    named_lr = table.rename(columns={"base_lr": "lr"})
    own = said_of(analyse(named_lr, metric="val_auroc", mode="max", lr="lr"))
    assert "one seed per setting is too few to rank" in own
    assert "--set" not in own
    assert "add --set seeds=3" in said_of(of(table))


def test_without_evaluations_no_target_is_spoken_of() -> None:
    said = said_of(of(laid_out(lambda b: [1e-4, 1e-3, 1e-2], seeds=3)))
    assert "reach the target" not in said
    assert "Critical batch size: no evaluations during training are recorded with their" in said


def test_when_no_cell_is_better_it_says_so() -> None:
    rng = np.random.default_rng(0)
    table = laid_out(lambda b: [1e-4, 1e-3, 1e-2], seeds=3)
    found = of(table.assign(val_auroc=0.9 + 0.01 * rng.standard_normal(len(table))))
    assert "none of the 12 settings can be told from the best" in conclusions(found)[0]


def test_within_the_noise_on_the_edge_is_not_bracketed(draw_trials: Draw) -> None:
    trials = draw_trials(np.random.default_rng(0), noise=0.004, fall=0.0001)
    found = of(trials)
    assert math.isnan(found.exponent.value)
    assert "the noise allows a best lr at the edge of the grid" in said_of(found)


def test_a_large_study_is_analysed_within_seconds() -> None:
    trials = searched(2000)
    each = 50
    updates = np.tile(np.arange(1, each + 1), len(trials)) * 100
    last = trials["val_auroc"].to_numpy().repeat(each)
    epochs = pd.DataFrame(
        {
            "trial_key": trials["trial_key"].to_numpy().repeat(each),
            "epoch": updates // 100,
            "updates": updates,
            "examples_seen": updates * trials["batch_size"].to_numpy().repeat(each),
            "epoch_wall_s": 1.0,
            "lr": 0.1,
            "val_auroc": last - 0.1 * np.exp(-updates / 1000),
        }
    )
    began = time.process_time()
    found = analyse(trials, epochs, metric="val_auroc", mode="max")
    assert time.process_time() - began < 8
    assert len(found.needed) >= 2


@pytest.mark.data
def test_fashion_mnist_is_analysed_as_the_search_it_is(shared_data: Path) -> None:
    """2,000 random configurations of LCBench: seven hyperparameters differ, not two."""
    table = read_own_table(
        shared_data / "curves" / "lcbench_fashion_mnist.parquet",
        batch_size="batch_size",
        lr="learning_rate",
        metric="final_val_accuracy",
    )
    found = analyse(table.trials, metric=table.metric, mode="max", lr="lr")
    assert found.binned
    assert found.cells["trials"].sum() == 2000
    assert sorted(set(found.cells["batch_size"])) == [16, 32, 64, 128, 256, 512]
    assert found.interaction.p_value <= 0.01
    shares = found.interaction
    assert shares.share_lr > max(shares.share_batch_size, shares.share_interaction)
    assert len(found.best_set) > 10  # and not one winner
    said = said_of(found)
    assert "Batch size and lr interact" in said
    assert "(unbracketed)" in said  # the search went to 0.1 and no further
    assert "the spread within a bin includes everything else that differed" in said
    assert "no evaluations during training are recorded with their number of updates" in said
    # The mean of a bin, by hand.
    near = table.trials["lr"].between(10 ** (-2 - 1 / 6), 10 ** (-2 + 1 / 6))
    near &= np.log2(table.trials["batch_size"]).round() == 6
    cell = found.cells.set_index(["batch_size", "lr"]).loc[(64, 0.01)]
    assert cell["n"] == near.sum()
    assert cell["mean"] == pytest.approx(table.trials.loc[near, table.metric].mean())


@pytest.mark.data
def test_alexnet_is_analysed_with_its_divergence(shared_data: Path, tmp_path: Path) -> None:
    """The last epoch of each random-search run on ImageNet; a NaN of its loss is a divergence."""
    runs = pd.read_parquet(shared_data / "curves" / "alexnet_imagenet.parquet")
    last = runs.sort_values("epoch_index").groupby("iteration").tail(1)
    file = tmp_path / "alexnet.csv"
    last.assign(
        status=np.where(last["nan_train_loss"], "diverged", "completed"),
    ).to_csv(file, index=False)
    table = read_own_table(file, batch_size="batch_size", lr="lr", metric="top_1")
    found = analyse(table.trials, metric=table.metric, mode="max", lr="lr")
    assert found.binned
    assert found.cells["diverged"].sum() == last["nan_train_loss"].sum() > 50
    assert sorted(set(found.cells["batch_size"])) == [128, 256, 512, 1024]
    best = found.ridge.set_index("batch_size")["lr"]
    assert ((best > 0.002) & (best < 0.2)).all()  # of a search from 0.005 to 50
    said = said_of(found)
    assert f"{last['nan_train_loss'].sum()} trials diverged" in said
    assert (
        "are compatible with this" in said or "is unknown" in said
    )  # four batch sizes do not tell the rules
    assert len(found.best_set) > 1
