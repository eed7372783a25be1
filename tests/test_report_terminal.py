"""What the command prints at its end, line by line."""

import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.text import Text

from search.analysis.scaling.ridge import ridge
from search.analysis.surface import surface
from search.explore import Ablation, Pbt, Random, Variants
from search.report.terminal import COLOURS, _cell_text, _surface_table, print_answer
from search.results.tables import Results
from search.study.explorer import PlannedTrial
from search.study.shown import change, decimals, score
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import Folder

EDGE = (
    "the best learning rate for batch size {sizes} is at the edge of the grid ({lr}): "
    "try {edge} rates"
)
LEGEND = "rows: batch_size, columns: base_lr; * the best learning rate of a batch size"
FILES = [
    "Every trial and every evaluation:",
    '  pd.read_parquet("/r/s/trials")',
    '  pd.read_parquet("/r/s/epochs")',
]
DIVERGED = "{n} diverged (a finding: the learning rate is too high there), the first reasons:"
FAILED = "{n} failed (--retry failed runs them again), the first reasons:"
CHANGE = "change: from the step before, of the same seeds"


def rows(*known: tuple[int, float, int, str, float]) -> pd.DataFrame:
    table = pd.DataFrame(known, columns=["batch_size", "base_lr", "seed", "status", "val_auroc"])
    return table.assign(
        test_auroc=table["val_auroc"] - 0.1,
        dataset="d",
        reason="why",
        begins_from=None,
        trial_key=[f"k{i}" for i in range(len(table))],
    )


def answer(
    trials: pd.DataFrame,
    steps: tuple[str, ...] = (),
    variants: tuple[str, ...] = (),
    **changes: Any,
) -> list[str]:
    from ray import tune

    vary = {
        "batch_size": tune.grid_search([16, 32]),
        "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
    }
    known = {"name": "s", "base": TrialConfig(dataset="d"), "vary": vary, "seeds": 2}
    study = Study(**(known | changes))
    console = Console(file=io.StringIO(), width=120)
    parts = [(step, "") for step in steps] or [("", v) for v in variants] or [("", "")] * 9
    planned = [PlannedTrial(f"k{i}", study.base, *part) for i, part in enumerate(parts)]
    print_answer(console, study, trials, Results("s", Folder("/r/s")), planned)
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in written.splitlines() if line.strip()]


def words(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


NAN = math.nan
TRIALS = rows(
    (16, 0.1, 0, "completed", 0.8),
    (16, 0.1, 1, "completed", 0.9),
    (16, 0.2, 0, "completed", 0.7),
    (16, 0.4, 0, "diverged", NAN),
    (32, 0.1, 0, "completed", 0.6),
    (32, 0.2, 0, "completed", 0.75),
    (32, 0.4, 0, "completed", 0.7),
    (32, 0.4, 1, "diverged", NAN),
    (32, 0.1, 1, "failed", NAN),
)


def test_a_grids_answer_is_its_surface_its_leaders_and_its_troubles() -> None:
    said = answer(TRIALS.assign(reason=["", "", "", "NaN", "", "", "", "NaN", "boom"]))
    assert said[0] == "s  dataset=d  6 completed, 2 diverged, 1 failed of 9 trials"
    assert said[1] == "val_auroc, mean of 2 seeds"
    assert words(said[2:5]) == [
        ["0.1", "0.2", "0.4", "best", "base_lr"],
        ["16", "0.850*", "0.700", "diverged", "0.1"],
        ["32", "0.600", "0.750*", "0.700", "1", "div.", "0.2"],
    ]
    assert said[5] == EDGE.format(sizes="16", lr="0.1", edge="lower")
    assert said[6] == LEGEND
    assert said[7] == "best configurations"
    assert words(said[8:14]) == [
        ["batch_size", "base_lr", "val_auroc", "std", "seeds", "test_auroc"],
        ["16", "0.1", "0.8500", f"{np.std([0.8, 0.9], ddof=1):.4f}", "2", "0.7500"],
        ["32", "0.2", "0.7500", "-", "1", "0.6500"],
        ["16", "0.2", "0.7000", "-", "1", "0.6000"],
        ["32", "0.4", "0.7000", "-", "1", "0.6000"],
        ["32", "0.1", "0.6000", "-", "1", "0.5000"],
    ]
    assert said[14:] == [
        DIVERGED.format(n=2),
        "  batch_size=16 base_lr=0.4 seed=0: NaN",
        FAILED.format(n=1),
        "  batch_size=32 base_lr=0.1 seed=1: boom",
        *FILES,
    ]


def test_of_less_is_better_the_lowest_is_best() -> None:
    low = TRIALS.rename(columns={"val_auroc": "val_loss", "test_auroc": "test_loss"})
    said = answer(low[low["seed"] == 0], metric="val_loss")
    assert said[1] == "val_loss, one seed"
    assert words(said[3:5]) == [
        ["16", "0.800", "0.700*", "diverged", "0.2"],
        ["32", "0.600*", "0.750", "0.700", "0.1"],
    ]
    assert said[5] == EDGE.format(sizes="32", lr="0.1", edge="lower")
    assert [line[2] for line in words(said[9:14])] == [
        *("0.6000", "0.7000", "0.7000", "0.7500", "0.8000"),
    ]


def test_an_edge_is_told_for_all_batch_sizes_that_it_is_of() -> None:
    alike = rows(
        *((b, lr, 0, "completed", 0.5 + lr) for b in (16, 32) for lr in (0.1, 0.2, 0.4)),
    )
    said = answer(alike)
    assert said[5] == EDGE.format(sizes="16, 32", lr="0.4", edge="higher")
    ragged = answer(alike.iloc[:5])  # of 32 the largest was not tried yet: no edge of the grid
    assert ragged[4].split() == ["32", "0.600", "0.700*", "-", "0.2"]
    assert ragged[5] == EDGE.format(sizes="16", lr="0.4", edge="higher")
    assert ragged[6] == LEGEND


def test_what_varies_beside_has_a_surface_each() -> None:
    from ray import tune

    trials = pd.concat([TRIALS.assign(dropout=0.0), TRIALS.assign(dropout=0.12345)])
    vary = {
        "batch_size": tune.grid_search([16, 32]),
        "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
        "dropout": tune.grid_search([0.0, 0.12345]),
    }
    said = answer(trials, vary=vary)
    titles = [line for line in said if line.startswith("val_auroc")]
    assert titles == [
        "val_auroc (dropout=0), mean of 2 seeds",
        "val_auroc (dropout=0.1235), mean of 2 seeds",
    ]
    assert said.count(LEGEND) == 1
    each = {"short": {"epochs": 1}, "long": {"epochs": 9}}
    said = answer(TRIALS, variants=("short",) * 4 + ("long",) * 5, explore=Variants(each=each))
    titles = [line for line in said if line.startswith("val_auroc")]
    assert titles == [
        "val_auroc (long), one seed",
        "val_auroc (short), mean of 2 seeds",
    ]
    at = said.index("best configurations")
    assert words(said)[at + 2][:3] == ["short", "16", "0.1"]
    at = said.index("best val_auroc by batch size, each at its own best learning rate")
    assert words(said)[at + 1] == ["16", "32"]
    long, short = words(said)[at + 2 : at + 4]
    assert (long[0], short[0]) == ("long", "short")
    assert sum(cell.endswith("*") for cell in [*long, *short]) == 2  # the best of each batch size


def test_drawn_configurations_have_leaders_and_no_surface() -> None:
    from ray import tune

    vary = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(0.1, 0.4)}
    said = answer(TRIALS, explore=Random(num_configs=9), vary=vary, seeds=1)
    assert said[1] == "best configurations"
    assert LEGEND not in said


def test_an_ablation_is_told_step_by_step() -> None:
    trials = rows(
        (16, 0.1, 0, "completed", 0.51),
        (16, 0.1, 1, "completed", 0.61),
        (16, 0.1, 0, "completed", 0.63),
        (16, 0.1, 1, "completed", 0.71),
        (16, 0.1, 0, "failed", NAN),
    )
    explore = Ablation(steps={"a": {}, "b": {"dropout": 0.1}, "c": {"epochs": 3}})
    said = answer(trials, steps=("a", "a", "b", "b", "c"), explore=explore, vary={})
    assert said[1] == "val_auroc step by step"
    pair = f"{np.std([0.12, 0.1], ddof=1):.4f}"
    assert words(said[2:6]) == [
        ["step", "val_auroc", "std", "seeds", "change", "std", "of", "change", "test"],
        ["a", "0.5600", f"{np.std([0.51, 0.61], ddof=1):.4f}", "2", "-", "-", "0.4600"],
        ["b", "0.6700", f"{np.std([0.63, 0.71], ddof=1):.4f}", "2", "+0.1100", pair, "0.5700"],
        ["c", "-", "-", "0", "-", "-", "-"],
    ]
    assert said[6] == CHANGE
    assert said[7] == FAILED.format(n=1)


def test_an_ablation_at_each_setting_names_it() -> None:
    from ray import tune

    trials = rows((16, 0.1, 0, "completed", 0.5), (32, 0.1, 0, "completed", 0.6))
    said = answer(
        trials,
        steps=("a", "a"),
        explore=Ablation(steps={"a": {}}),
        vary={"batch_size": tune.grid_search([16, 32])},
    )
    assert [line for line in said if "step by step" in line] == [
        "val_auroc step by step batch_size=16",
        "val_auroc step by step batch_size=32",
    ]


def test_how_the_best_of_a_population_came_about_is_told() -> None:
    from ray import tune

    trials = rows(
        (16, 0.1, 0, "stopped", 0.5),
        (32, 0.2, 0, "stopped", 0.6),
        (16, 0.12, 0, "completed", 0.8),
        (32, 0.2, 0, "completed", 0.7),
    ).assign(until_share=[0.5, 0.5, 1.0, 1.0], begins_from=[None, None, "k1", "k1"])
    vary = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(0.1, 0.4)}
    explore = Pbt(size=2, generations=2)
    said = answer(trials, explore=explore, vary=vary, seeds=1)
    at = said.index("how the best came about")
    assert words(said[at + 1 : at + 4]) == [
        ["until", "batch_size", "base_lr", "val_auroc"],
        ["50%", "32", "0.2", "0.6000"],
        ["100%", "16", "0.12", "0.8000"],
    ]
    none = answer(trials[trials["status"] == "stopped"], explore=explore, vary=vary, seeds=1)
    assert "how the best came about" not in none


def test_three_reasons_that_differ_are_told() -> None:
    told = ["a (traceback in x)", "a (traceback in y)", "b [bold]", "c", "d"]
    trials = rows(*((16, 0.1, seed, "failed", NAN) for seed in range(5))).assign(reason=told)
    said = answer(trials)
    assert said[-7:] == [
        FAILED.format(n=5),
        "  batch_size=16 base_lr=0.1 seed=0: a (traceback in x)",
        "  batch_size=16 base_lr=0.1 seed=2: b [bold]",
        "  batch_size=16 base_lr=0.1 seed=3: c",
        *FILES,
    ]


def test_before_a_trial_finished_there_are_no_tables_to_read() -> None:
    assert answer(TRIALS.iloc[:0]) == ["s  dataset=d  no trial finished yet"]


@pytest.mark.parametrize(
    ("mean", "mode", "colour", "ink"),
    [
        (0.0, "max", 0, "white"),
        (0.5, "max", 3, "white"),
        (0.51, "max", 3, "black"),
        (1.0, "max", -1, "black"),
        (0.0, "min", -1, "black"),
        (1.0, "min", 0, "white"),
        (0.34, "max", 2, "white"),
    ],
)
def test_a_cell_is_the_brighter_the_better(mean: float, mode: str, colour: int, ink: str) -> None:
    """Six colours between the worst, 0, and the best, 1."""
    cell = pd.Series({"mean": mean, "diverged": 0.0})
    for is_best, more in ((False, ""), (True, " bold underline")):
        shown = _cell_text(cell, low=0.0, high=1.0, mode=mode, is_ridge=is_best, is_best=is_best)
        mark = "*" if is_best else " "
        assert shown == Text(f"{mean:.3f}{mark}")
        assert shown.style == f"{ink} on {COLOURS[colour]}{more}"
    alone = _cell_text(cell, low=mean, high=mean, mode="max", is_ridge=True, is_best=True)
    assert str(alone.style).startswith(f"black on {COLOURS[-1]}")


@pytest.mark.parametrize(("mode", "best"), [("max", "0.850*"), ("min", "0.600*")])
def test_the_best_cell_of_all_stands_out(mode: str, best: str) -> None:
    cells = surface(TRIALS, metric="val_auroc")
    table = _surface_table(cells, ridge(cells, mode=mode), mode=mode)
    loud = [
        str(cell)
        for column in table.columns
        for cell in column.cells
        if isinstance(cell, Text) and "bold underline" in str(cell.style)
    ]
    assert loud == [best]


def test_an_answer_at_chance_says_so_and_names_collapsed_trials() -> None:
    at_chance = rows(
        (16, 1e5, 0, "completed", 0.5), (16, 1e6, 0, "completed", 0.5),
        (32, 1e5, 0, "completed", 0.49), (32, 1e6, 0, "diverged", NAN),
    )  # fmt: skip
    said = answer(at_chance.assign(reason=["", "", "", "NaN"]))
    assert said[1].startswith(
        "no trial beat chance: the best AUROC is 0.5, and guessing gives 0.5."
    )
    assert "best configurations" not in said
    (line,) = [i for i, text in enumerate(said) if "collapsed" in text]
    assert said[line].startswith("2 collapsed (the same prediction for every image")
    assert said[line + 1 : line + 3] == [
        "  batch_size=16 base_lr=1e+05 seed=0",
        "  batch_size=16 base_lr=1e+06 seed=0",
    ]


def test_a_score_keeps_its_digits_however_small() -> None:
    assert [score(x) for x in (0.85214, 0.0012, 0.00021, 0.0, -0.5, math.nan, None)] == [
        *("0.8521", "0.0012", "0.00021", "0.0000", "-0.5000", "-", "-")
    ]
    assert [change(x) for x in (0.01, 0.00021, 0.0, -0.5, -0.00021, math.nan, None)] == [
        *("+0.0100", "+0.00021", "+0.0000", "-0.5000", "-0.00021", "-", "-")
    ]
    assert decimals([0.85, 0.01, math.nan], digits=3) == 3
    assert decimals([0.0, math.nan], digits=3) == 3
    assert [decimals([0.004], digits=digits) for digits in (1, 2, 3)] == [3, 4, 5]
    assert decimals([1e-17, 2e-17], digits=1) == 3  # the spread of equal scores


def test_the_cells_of_small_scores_are_not_all_zero() -> None:
    cells = surface(
        rows((16, 0.1, 0, "completed", 2.1e-4), (16, 0.2, 0, "completed", 3.4e-4)),
        metric="val_auroc",
    )
    table = _surface_table(cells, ridge(cells, mode="min"), mode="min")
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    printed = console.file.getvalue()
    assert "2.1e-04*" in printed
    assert "3.4e-04" in printed
