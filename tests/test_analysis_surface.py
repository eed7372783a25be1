import io
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from search.analysis.leaderboard import ablation, leaderboard
from search.analysis.scaling.ridge import ridge
from search.analysis.surface import surface
from search.explore import Variants
from search.report.terminal import print_answer
from search.results.tables import Results
from search.study.explorer import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import Folder


def frame(*rows: tuple[int, float, int, str, float]) -> pd.DataFrame:
    names = ["batch_size", "base_lr", "seed", "status", "val_auroc"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(
        test_auroc=table["val_auroc"] - 0.1, dataset="d", reason="why", begins_from=None
    )


TRIALS = frame(
    (16, 0.1, 0, "completed", 0.8),
    (16, 0.1, 1, "completed", 0.9),
    (16, 0.2, 0, "completed", 0.7),
    (16, 0.4, 0, "diverged", math.nan),
    (32, 0.1, 0, "completed", 0.6),
    (32, 0.2, 0, "completed", 0.75),
    (32, 0.4, 0, "completed", 0.7),
    (32, 0.4, 1, "diverged", math.nan),
    (32, 0.1, 1, "stopped", 0.99),
)


def test_surface_averages_seeds_and_leaves_out_what_did_not_end() -> None:
    cells = surface(TRIALS, metric="val_auroc").set_index(["batch_size", "lr"])
    assert cells.loc[(16, 0.1), "mean"] == pytest.approx(0.85)
    assert cells.loc[(16, 0.1), "std"] == pytest.approx(0.0707, abs=1e-4)
    assert cells.loc[(16, 0.1), "n"] == 2
    assert math.isnan(cells.loc[(16, 0.4), "mean"])
    assert cells.loc[(16, 0.4), ["n", "diverged"]].tolist() == [0, 1]
    assert cells.loc[(32, 0.4), ["mean", "n", "diverged"]].tolist() == [0.7, 1, 1]
    assert cells.loc[(32, 0.1), "mean"] == 0.6  # the stopped 0.99 is not counted
    assert len(cells) == 6


def test_ridge_is_the_best_of_each_batch_and_knows_the_edge() -> None:
    best = ridge(surface(TRIALS, metric="val_auroc"), mode="max").to_dict("records")
    assert [(r["batch_size"], r["lr"], r["edge"]) for r in best] == [
        (16, 0.1, "low"),
        (32, 0.2, ""),
    ]
    low = ridge(surface(TRIALS, metric="val_auroc"), mode="min").to_dict("records")
    assert [(r["lr"], r["edge"]) for r in low] == [(0.2, ""), (0.1, "low")]


def test_leaderboard_ranks_means() -> None:
    table = leaderboard(
        TRIALS, by=["batch_size", "base_lr"], metric="val_auroc", mode="max", rows=2
    )
    assert table["mean"].tolist() == pytest.approx([0.85, 0.75])
    assert table["test_auroc"].tolist() == pytest.approx([0.75, 0.65])


@pytest.mark.parametrize(("mode", "lrs", "change"), [("max", [3, 1], 0.3), ("min", [1, 3], -0.1)])
def test_each_step_of_an_ablation_is_taken_at_its_own_best_lr(
    mode: str, lrs: list[float], change: float
) -> None:
    scores = {
        ("a", 1): (0.1, 0.1),
        ("a", 3): (0.4, 0.4),
        ("b", 1): (0.7, 0.7),
        ("b", 3): (0.0, 0.0),
    }
    rows = [
        {"step": step, "base_lr": lr, "seed": seed, "val_auroc": score, "status": "completed"}
        for (step, lr), seeds in scores.items()
        for seed, score in enumerate(seeds)
    ]
    rows.append({**rows[0], "base_lr": 9, "val_auroc": 0.99 if mode == "max" else -1.0})  # one seed
    table = pd.DataFrame(rows).assign(test_auroc=0.5)
    got = ablation(table, steps=["a", "b"], metric="val_auroc", mode=mode)
    assert got["base_lr"].tolist() == lrs
    assert got["change"].iloc[1] == pytest.approx(change)
    assert got["n"].tolist() == [2, 2]


def test_ablation_pairs_the_seeds() -> None:
    rows = [("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.6), ("b", 1, 0.8), ("b", 2, 0.9)]
    table = pd.DataFrame(rows, columns=["step", "seed", "val_auroc"])
    table = table.assign(status="completed", test_auroc=table["val_auroc"])
    got = ablation(table, steps=["a", "b", "c"], metric="val_auroc")
    assert got.loc["b", "change"] == pytest.approx(0.1)  # seed 2 has no partner
    assert got.loc["b", "change_std"] == pytest.approx(0.0, abs=1e-12)
    assert got.loc["b", ["mean", "n"]].tolist() == pytest.approx([0.7667, 3], abs=1e-4)
    assert math.isnan(got.loc["c", "mean"])


def answer(trials: pd.DataFrame, *, variants: Sequence[str] = ("",) * 12, **changes: Any) -> str:
    from ray import tune

    vary = {
        "batch_size": tune.grid_search([16, 32]),
        "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
    }
    study = Study(
        **({"name": "s", "base": TrialConfig(dataset="d"), "vary": vary, "seeds": 2} | changes)
    )
    console = Console(file=io.StringIO(), width=100)
    planned = [
        PlannedTrial(f"k{i}", study.base, variant=variant) for i, variant in enumerate(variants)
    ]
    print_answer(console, study, trials, Results("s", Folder("/r/s")), planned)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_answer_shows_surface_ridge_edges_leaders_and_files() -> None:
    text = answer(TRIALS)
    assert "s  dataset=d  6 completed, 2 diverged, 1 stopped of 12 trials" in text
    assert "0.850*" in text
    assert "diverged" in text
    assert (
        "the best learning rate for batch size 16 is at the edge of the grid (0.1): try lower"
        in text
    )
    assert "for 32" not in text
    assert "2 diverged (a finding" in text
    assert 'pd.read_parquet("/r/s/trials")' in text


def test_variants_have_a_surface_each() -> None:
    budgets = {"short": {"epochs": 1}, "long": {"epochs": 9}}
    trials = TRIALS.assign(trial_key=[f"k{i}" for i in range(len(TRIALS))])
    variants = ["short"] * 4 + ["long"] * 8
    text = answer(trials, variants=variants, explore=Variants(each=budgets))
    assert "val_auroc (short)" in text
    assert "val_auroc (long)" in text


def test_answer_of_nothing_and_of_only_divergence_says_so() -> None:
    assert "no trial finished yet" in answer(TRIALS.iloc[:0])
    text = answer(TRIALS[TRIALS["status"] == "diverged"])
    assert text.count("diverged") >= 3
    assert "best configurations" not in text
