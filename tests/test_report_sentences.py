"""The report's conclusions, word for word, of tables whose truth is known by construction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, shares_of, table
from made_tables import analysed as of
from scipy import stats

from search.analysis.analysis import Analysis, analyse
from search.analysis.scaling.exponent import Exponent
from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions, scope
from search.report.sentences.wording import listed
from search.study.shown import show

# Each sentence once, so that another wording is one edit.
NO_SCORE = "No trial has a score yet, so nothing can be concluded."
ALONE = "Only {cell} has a score ({score}): there is nothing to compare."
UNREPEATED = (
    "{cell} has the best score ({score}), but one {seed} per setting is too few to rank the "
    "{cells} settings; {cure}."
)
ONE_BEST = "With {n} per setting, {cell} is the best of {cells} settings ({score})."
SOME_BEST = (
    "With {n} per setting, {some} of {cells} settings cannot be told from the best (batch "
    "size{span}). The {highest} mean is that of {cell}: {score}, probably about {optimism} too "
    "{off}, because it is the best of many."
)
ALL_BEST = (
    "With {n} per setting, none of the {cells} settings can be told from the best. The {highest} "
    "mean is that of {cell}: {score}, probably about {optimism} too {off}, because it is the best "
    "of many."
)
NO_EXPONENT = (
    "How the best lr scales with batch size is unknown: this needs three batch sizes with a "
    "bracketed best lr, and there are {usable}{loose}{noisy}."
)
LOOSE = "; at batch size{sizes} the best lr is at the edge of the grid: widen the grid"
NOISY = "; at batch size{sizes} the noise allows a best lr at the edge of the grid"
NO_INTERVAL = (
    "The best lr grows as B^{a} over batch sizes {sizes}; without more seeds or batch sizes there "
    "is no interval, so the scaling rules cannot be compared."
)
EXPONENT = (
    "The best lr grows as B^{a} [{low}, {high}]{scatter} over batch sizes {sizes}. {verdict}."
)
ALONE_IS, ALL_ARE = "is compatible with this", "are compatible with this"
SCATTER = " (from the scatter about the line: there is one seed per setting)"
NO_RULE = "None of the usual rules is compatible with this"
NO_INTERACTION_KNOWN = "Whether batch size and learning rate interact is unknown: {why}."
NO_GRID = "there are no scores for a grid of two batch sizes and two lrs"
UNTESTED = "O{shares}; {why}."
ONE_SEED = "with one seed per setting, interaction and noise cannot be separated"


def scaling_of(found: Analysis) -> str:
    """The one sentence on how the best lr scales."""
    (text,) = [s for s in conclusions(found) if s.startswith(("The best lr ", "How the best lr "))]
    return text


def ridged(best: Mapping[int, float], seeds: Sequence[float] = (0.0,)) -> Cells:
    """A parabola in log lr about each batch size's best lr; its seeds are off by `seeds`."""
    octaves = range(-3, 4)
    lrs = sorted({lr * 2.0**k for lr in best.values() for k in octaves})
    return {
        (b, lr): [0.9 - 0.01 * math.log2(lr / top) ** 2 + off for off in seeds]
        for b, top in best.items()
        for lr in lrs
        if abs(math.log2(lr / top)) < 3.5
    }


def test_a_best_score_that_all_trials_have_is_not_too_good() -> None:
    best = conclusions(of({(b, lr): [0.7, 0.7] for b in (16, 32) for lr in (0.1, 0.2)}))[0]
    assert best == (
        "With 2 seeds per setting, none of the 4 settings can be told from the best. The highest "
        "mean is that of batch size 16 with base_lr 0.1: val_auroc 0.7."
    )


def test_numbers_have_four_figures_and_lists_an_and() -> None:
    assert [show(value) for value in (0.123456, 1e-5, 256.0, 123456.0)] == [
        *("0.1235", "1e-05", "256", "1.235e+05"),
    ]
    assert [listed(list("abc"[:n])) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    "cells", [{(16, 0.1): ["diverged"], (32, 0.1): ["failed"]}, {}], ids=["lost", "empty"]
)
def test_of_no_score_nothing_is_said(cells: Cells) -> None:
    assert conclusions(of(cells)) == [NO_SCORE]


def test_one_cell_has_nothing_beside_it() -> None:
    found = of({(16, 0.1): [0.81234, 0.81236], (32, 0.1): ["failed"]})
    assert conclusions(found) == [
        ALONE.format(cell="batch size 16 with base_lr 0.1", score="val_auroc 0.8123"),
        NO_EXPONENT.format(usable=0, loose="", noisy=""),
        NO_INTERACTION_KNOWN.format(why=NO_GRID),
    ]


@pytest.mark.parametrize(("mode", "best"), [("max", 0.9), ("min", 0.7)])
@pytest.mark.parametrize(
    ("lr", "cure"), [("rate", "train with more seeds"), ("base_lr", "add --set seeds=3")]
)
def test_of_one_seed_a_cell_the_best_and_the_interaction_are_open(
    mode: str, best: float, lr: str, cure: str
) -> None:
    scores = [[0.9, 0.8], [0.7, 0.85]]
    places = {(b, lr): [scores[i][j]] for i, b in ((0, 16), (1, 32)) for j, lr in ((0, 1), (1, 2))}
    found = of(places, mode=mode, lr=lr)
    assert conclusions(found) == [
        UNREPEATED.format(
            cell=f"Batch size {16 if mode == 'max' else 32} with {lr} 1",
            score=f"val_auroc {best}",
            seed="seed",
            cells=4,
            cure=cure,
        ),
        NO_EXPONENT.format(usable=0, loose=LOOSE.format(sizes="s 16 and 32"), noisy=""),
        UNTESTED.format(shares=shares_of(scores, lr), why=f"{ONE_SEED}: {cure}"),
    ]


def test_scattered_trials_are_called_trials() -> None:
    """Each alone in its bin: a third of a decade about 0.001, 0.00215, 0.01 and 0.215."""
    scores = {16: [0.51, 0.9, 0.6, 0.55], 32: [0.52, 0.7, 0.8, 0.57]}
    lrs = {16: (0.001234, 0.001789, 0.01345, 0.2345), 32: (0.001111, 0.001999, 0.01222, 0.1888)}
    found = of({(b, lr): [s] for b in scores for lr, s in zip(lrs[b], scores[b], strict=True)})
    assert conclusions(found) == [
        UNREPEATED.format(
            cell="Batch size 16 with base_lr 0.00215",
            score="val_auroc 0.9",
            seed="trial",
            cells=8,
            cure="try more configurations",
        ),
        NO_EXPONENT.format(usable=2, loose="", noisy=""),
        UNTESTED.format(
            shares=shares_of(list(scores.values())), why=f"{ONE_SEED}: try more configurations"
        ),
    ]


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_a_cell_that_is_far_ahead_is_best_alone(mode: str, sign: int) -> None:
    far = {(b, lr): 0.5 for b in (16, 32) for lr in (0.1, 0.2)} | {(32, 0.2): 0.5 + sign * 0.3}
    # Three seeds as a rule, which is the median; then more in one cell; then two kinds of trials.
    for extra, n in ((0, "3 seeds"), (2, "up to 5 seeds")):
        cells = {at: [mean - 0.01, mean, mean + 0.01] for at, mean in far.items()}
        cells[(16, 0.1)] += [0.5] * extra
        (said, *_) = conclusions(of(cells, mode=mode))
        assert said == ONE_BEST.format(
            n=n,
            cell="batch size 32 with base_lr 0.2",
            cells=4,
            score=f"val_auroc {0.5 + sign * 0.3:g}",
        )
    (said, *_) = conclusions(replace(of(cells, mode=mode), binned=True))
    assert "With up to 5 trials per setting" in said


@pytest.mark.parametrize(
    ("mode", "sign", "highest", "off_by"),
    [("max", 1, "highest", "high"), ("min", -1, "lowest", "low")],
)
@pytest.mark.parametrize(
    ("equal", "span"), [([(16, 0.1), (16, 0.2)], " 16"), ([(16, 0.1), (64, 0.2)], "s 16 to 64")]
)
def test_of_two_cells_alike_both_are_best_and_the_pick_flatters(
    mode: str, sign: int, highest: str, off_by: str, equal: list[tuple[int, float]], span: str
) -> None:
    """Equal means: the larger of two errors is their deviation over the root of pi, on average."""
    off = 0.036  # of each of three seeds, or none: a standard deviation
    cells = {
        (b, lr): [0.5 + sign * 0.4 * ((b, lr) in equal) + d for d in (-off, 0.0, off)]
        for b in (16, 32, 64)
        for lr in (0.1, 0.2)
    }
    (said, *_) = conclusions(of(cells, mode=mode))
    assert said == SOME_BEST.format(
        n="3 seeds",
        some=2,
        cells=6,
        span=span,
        highest=highest,
        off=off_by,
        cell="batch size 16 with base_lr 0.1",  # the first of two
        score=f"val_auroc {0.5 + sign * 0.4:g}",
        optimism=f"{off / math.sqrt(3) / math.sqrt(math.pi):.2g}",
    )


@pytest.mark.parametrize(
    ("mode", "highest", "off_by"), [("max", "highest", "high"), ("min", "lowest", "low")]
)
def test_of_cells_all_alike_none_can_be_told_from_the_best(
    mode: str, highest: str, off_by: str
) -> None:
    off = 0.036
    cells = {(16, lr): [0.5 - off, 0.5, 0.5 + off] for lr in (0.1, 0.2)}
    (said, *_) = conclusions(of(cells, mode=mode))
    assert said == ALL_BEST.format(
        n="3 seeds",
        cells=2,
        highest=highest,
        off=off_by,
        cell="batch size 16 with base_lr 0.1",
        score="val_auroc 0.5",
        optimism=f"{off / math.sqrt(3) / math.sqrt(math.pi):.2g}",
    )


@pytest.mark.parametrize(
    ("best", "usable", "loose"),
    [
        ({16: 1.0, 32: 1.0}, 2, ""),
        ({16: 1.0, 32: 1.0, 64: 1 / 16}, 2, LOOSE.format(sizes=" 64")),
        ({16: 16.0, 32: 1.0, 64: 1 / 16}, 1, LOOSE.format(sizes="s 16 and 64")),
        ({16: 16.0, 32: 16.0, 64: 1 / 16}, 0, LOOSE.format(sizes="s 16, 32 and 64")),
    ],
)
def test_an_exponent_takes_three_batch_sizes(
    best: dict[int, float], usable: int, loose: str
) -> None:
    lrs = [1 / 4, 1 / 2, 1.0, 2.0, 4.0]
    cells = {(b, lr): [0.9 - 0.01 * math.log2(lr / best[b]) ** 2] for b in best for lr in lrs}
    found = of(cells)
    assert scaling_of(found) == NO_EXPONENT.format(usable=usable, loose=loose, noisy="")
    inside = [b for b in best if best[b] == 1.0]
    said = f"peak lr over batch sizes {min(inside, default=0)} to {max(inside, default=0)}"
    assert scope(found) == (said if inside else "no batch size")


def test_a_best_within_the_noise_of_the_edge_is_told_beside_those_on_it() -> None:
    """Of batch size 64 the best is the edge; of the others so little inside that it may be."""
    scores = {16: (0.8, 0.86, 0.9, 0.899), 32: (0.8, 0.86, 0.9, 0.899), 64: (0.8, 0.86, 0.88, 0.9)}
    cells = {
        (b, lr): [s - 0.01, s, s + 0.01]
        for b in scores
        for lr, s in zip((0.1, 0.2, 0.4, 0.8), scores[b], strict=True)
    }
    assert scaling_of(of(cells)) == NO_EXPONENT.format(
        usable=0, loose=LOOSE.format(sizes=" 64"), noisy=NOISY.format(sizes="s 16 and 32")
    )


def test_three_batch_sizes_of_one_seed_have_an_exponent_without_interval() -> None:
    found = of(ridged({16: 0.125, 32: 0.5, 64: 2.0}))  # four times the lr for twice the batch
    assert scaling_of(found) == NO_INTERVAL.format(a="2.00", sizes="16 to 64")


@pytest.mark.parametrize(
    ("power", "verdict"),
    [
        (0.0, f"A constant rate {ALONE_IS}; square-root scaling and linear scaling are rejected"),
        (0.5, f"Square-root scaling {ALONE_IS}; a constant rate and linear scaling are rejected"),
        (1.0, f"Linear scaling {ALONE_IS}; a constant rate and square-root scaling are rejected"),
        (1.5, NO_RULE),
        (-0.5, NO_RULE),
    ],
)
def test_seeds_that_hardly_differ_tell_which_rule_made_the_ridge(
    power: float, verdict: str
) -> None:
    found = of(ridged({b: (b / 16) ** power for b in (16, 64, 256)}, seeds=(-1e-6, 1e-6)))
    a = f"{power:.2f}"
    low = f"{power - 1e-6:.2f}"
    assert scaling_of(found) == EXPONENT.format(
        a=a, low=low, high=a, scatter="", sizes="16 to 256", verdict=verdict
    )


@pytest.mark.parametrize(
    ("octaves", "verdict"),
    [
        (
            (0, 1, 0, 1),
            f"A constant rate, square-root scaling and linear scaling {ALL_ARE}",
        ),
        (
            (0, 0.4, 0.2, 0.7),
            f"A constant rate and square-root scaling {ALL_ARE}; linear scaling is rejected",
        ),
        (
            (0, 0.6, 1.7, 2.2),
            f"Square-root scaling and linear scaling {ALL_ARE}; a constant rate is rejected",
        ),
        (
            (0, 1, 2, 3),
            f"Linear scaling {ALONE_IS}; a constant rate and square-root scaling are rejected",
        ),
        ((0, 2, 4, 7), NO_RULE),
    ],
)
def test_without_seeds_the_interval_is_that_of_a_regression(
    octaves: Sequence[float], verdict: str
) -> None:
    sizes = [16, 32, 64, 128]
    best = {b: 2.0**k for b, k in zip(sizes, octaves, strict=True)}
    line = stats.linregress(np.log(sizes), np.log(list(best.values())))
    half = stats.t.ppf(0.975, 2) * line.stderr
    low, high = line.slope - half, line.slope + half
    rules = [low <= a <= high for a in (0.0, 0.5, 1.0)]
    assert verdict.count("rejected") == (0 < sum(rules) < 3)  # the case is what it is here for
    assert scaling_of(of(ridged(best))) == EXPONENT.format(
        a=f"{line.slope:.2f}", low=f"{low:.2f}", high=f"{high:.2f}", sizes="16 to 128",
        verdict=verdict, scatter=SCATTER,
    )  # fmt: skip


def test_an_interval_holds_its_own_ends() -> None:
    found = of(ridged({16: 1.0, 32: 1.0, 64: 1.0}))
    ends = {"value": 0.75, "low": 0.5, "high": 1.0, "log_c": 0.0, "batch_sizes": (16, 64)}
    said = scaling_of(replace(found, exponent=Exponent(**ends, left_out={})))
    assert said == EXPONENT.format(
        a="0.75", low="0.50", high="1.00", sizes="16 to 64",
        verdict=f"Square-root scaling and linear scaling {ALL_ARE}; a constant rate is rejected",
        scatter="",
    )  # fmt: skip


FEW = "2 batch sizes reach the target; at least four batch sizes are needed"
DECAYING = (
    "the learning rate decays, so every batch size reaches the target late in its schedule. To "
    "know it, train the grid with several budgets (Variants) and compare the shortest one with "
    "which each batch size reaches the target, or train with decay=constant"
)
NEEDED = (
    "To reach val_auroc 0.9 with its own best lr, batch size 16 needed {} and batch size 32 {}."
)


def costs(scores: Mapping[int, Sequence[Sequence[float]]], **more: object) -> Analysis:
    """A trial for each curve of a batch size; an evaluation after every 100 updates."""
    trials = table({(b, 0.1): [max(c) for c in curves] for b, curves in scores.items()}, **more)
    trials["trial_key"] = [f"{b}-{seed}" for b in scores for seed in range(len(scores[b]))]
    epochs = pd.DataFrame(
        [
            (f"{b}-{seed}", n, 100 * n, 100 * n * b, score, 1.0, 0.1)
            for b, curves in scores.items()
            for seed, curve in enumerate(curves)
            for n, score in enumerate(curve, 1)
        ],
        columns=[
            *("trial_key", "epoch", "updates", "examples_seen", "val_auroc", "epoch_wall_s", "lr"),
        ],
    )
    return analyse(trials, epochs, metric="val_auroc", mode="max")


def test_a_target_met_at_the_first_evaluation_was_met_at_or_before_it() -> None:
    found = costs({16: [[0.9, 0.9]], 32: [[0.8, 0.9]]})
    assert found.needed["early"].tolist() == [1, 0]
    assert conclusions(found)[-1] == NEEDED.format(
        "at most 100 updates (1,600 images)", "needed 200 (6,400 images)"
    )
    assert f"Critical batch size: {FEW}." in cautions(found)


@pytest.mark.parametrize(
    ("unreached", "seeds"),
    [
        (1, "; mean of 2 seeds of 3, as one never reached it"),
        (2, "; mean of 2 seeds of 4, as the others never reached it"),
    ],
)
def test_seeds_that_never_reach_the_target_are_told(unreached: int, seeds: str) -> None:
    found = costs({16: [[0.8, 0.9], [0.8, 0.9]], 32: [[0.8, 0.9]]})
    needed = found.needed.assign(unreached=[unreached, 0])
    assert conclusions(replace(found, needed=needed))[-1] == NEEDED.format(
        f"200 updates (3,200 images{seeds})", "needed 200 (6,400 images)"
    )


@pytest.mark.parametrize("decay", ["cosine", "step", "polynomial", "batch_growth"])
def test_under_a_decaying_rate_a_cost_is_at_most_so_much(decay: str) -> None:
    found = costs({16: [[0.8, 0.9]], 32: [[0.8, 0.9]]}, decay=decay)
    assert conclusions(found)[-1] == NEEDED.format(
        "at most 200 updates (3,200 images)", "needed at most 200 (6,400 images)"
    )
    assert f"Critical batch size: {DECAYING}." in cautions(found)
