"""The report's conclusions on the interaction and on costs, word for word."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, shares_of, table
from made_tables import analysed as of
from scipy import stats

from search.analysis.analysis import Analysis, analyse
from search.report.sections import interaction_table
from search.report.sentences.conclusions import conclusions
from search.study.shown import show

NAN = math.nan
# Each sentence once, so that another wording is one edit; that of the shares is with the tables.
UNTESTED = "O{shares}; {why}."
TOGETHER = "Batch size and {lr_name} interact ({p}, permutation test): o{shares}."
APART = (
    "No interaction of batch size and {lr_name} is visible above the noise ({p}, permutation "
    "test): o{shares}."
)
CROSSING = (
    "Larger batches do {falls_are} at base_lr {falls} and {rises_are} at {rises}: which batch size "
    "wins depends on the learning rate."
)
STABLE = "Fewer than one trial in ten diverges up to a peak lr of {each}."
TARGET = (
    "To reach val_auroc {target} with its own best lr, batch size {first} needed {first_updates} "
    "updates ({first_images} images) and batch size {last} needed {last_updates} ({last_images} "
    "images){more}."
)
CRITICAL = (
    "; the critical batch size, above which a larger batch saves few updates, is about {critical} "
    "[{low}, {high}]"
)
OPEN = "the critical batch size, above which a larger batch saves few updates, is "
NOISE_SCALE = (
    "The measured gradient noise scale is {median} images [{low}, {high}] (median over {n} trials "
    "with its 95 % interval)."
)
NO_NOISE_SCALE = (
    "The gradient noise scale cannot be estimated: {n} measured {span} images, and an interval "
    "needs at least 6."
)


def said_of(found: Analysis, start: str) -> str:
    """The one sentence that begins so."""
    (text,) = [sentence for sentence in conclusions(found) if sentence.startswith(start)]
    return text


def test_additive_cells_show_no_interaction_above_the_noise() -> None:
    means = [[0.6, 0.7, 0.75], [0.8, 0.9, 0.95]]
    cells = {
        (b, lr): list(means[i][j] + np.roll([-0.03, 0.01, 0.02], i + j))
        for i, b in enumerate((16, 32))
        for j, lr in enumerate((0.1, 0.2, 0.4))
    }
    # The means lie exactly on the additive model: whatever is subtracted, no interaction is left.
    sentence = said_of(of(cells), "No interaction")
    assert sentence.startswith("No interaction of batch size and base_lr is visible above the")
    assert float(sentence.split("(p = ")[1].split(",")[0]) > 0.9
    assert sentence.endswith("and their interaction 0%.")
    same = {
        cell: [scores[0] + offset for offset in (0, 0.04, 0.05)] for cell, scores in cells.items()
    }
    shared = said_of(of(same, seed=[0, 1, 2] * len(same)), "Of the variance")
    assert "the seeds differ by the same amount in every setting" in shared


def test_crossed_cells_act_together_and_the_order_turns() -> None:
    """Ranks of batch size and mean by hand: a swap of two neighbours of five makes 1 - 12/120."""
    means = [[0.90, 0.60], [0.85, 0.65], [0.86, 0.71], [0.75, 0.75], [0.70, 0.80]]
    sizes, lrs = (16, 32, 64, 128, 256), (0.1, 0.4)
    for mode, falls_are, rises_are in (("max", "worse", "better"), ("min", "better", "worse")):
        cells = {  # so that the noise, which is subtracted, changes no per cent
            (b, lr): list(means[i][j] + np.roll([-0.002, 0.0, 0.002], i + j))
            for i, b in enumerate(sizes)
            for j, lr in enumerate(lrs)
        }
        *_, together, crossing = conclusions(of(cells, mode=mode))
        assert together == TOGETHER.format(
            lr_name="base_lr", p="p <= 0.001", shares=shares_of(means)
        )
        assert crossing == CROSSING.format(
            falls="0.1 (rho -0.90)",
            rises="0.4 (rho +1.00)",
            falls_are=falls_are,
            rises_are=rises_are,
        )


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({0.1: -0.8, 0.2: 0.8}, ("0.1 (rho -0.80)", "0.2 (rho +0.80)")),
        (
            {0.4: -1.0, 0.1: -0.9, 0.8: 0.9, 0.2: 0.0, 0.3: NAN},
            ("0.1 (rho -0.90) and 0.4 (rho -1.00)", "0.8 (rho +0.90)"),
        ),
        ({0.1: -0.79, 0.2: 1.0}, None),
        ({0.1: -1.0, 0.2: 0.79}, None),
        ({0.1: NAN, 0.2: NAN}, None),
    ],
)
def test_an_order_turns_where_it_is_strong_both_ways(
    ranks: dict[float, float], said: tuple[str, str] | None
) -> None:
    found = replace(of({(16, 0.1): [0.5], (32, 0.1): [0.6]}), spearman=ranks, crossing_p=0.05)
    wanted = []
    if said:
        falls, rises = said
        wanted = [CROSSING.format(falls=falls, rises=rises, falls_are="worse", rises_are="better")]
    assert conclusions(found)[3:] == wanted


@pytest.mark.parametrize(("p", "template"), [(0.3, APART), (0.01, TOGETHER)])
def test_where_there_is_only_noise_it_says_so(p: float, template: str) -> None:
    made = of({(b, lr): [0.5 + (0.5 * b + lr) / 40] for b in (16, 32) for lr in (1.0, 2.0)})
    nothing = {f"share_{part}": NAN for part in ("batch_size", "lr", "interaction")}
    mixed = replace(made.interaction, p_value=p, p_flat=p, why="", **nothing)
    only_noise = replace(made, interaction=mixed)
    shares = "averaged over the grid, the settings differ by no more than the noise"
    wanted = template.replace("o{shares}", "{shares}").format(
        lr_name="base_lr", p=f"p = {p}", shares=shares
    )
    assert conclusions(only_noise)[2] == wanted
    assert "p of the interaction" in interaction_table(only_noise)


@pytest.mark.parametrize(("crossing", "together"), [(0.051, 0.01), (0.01, 0.051)])
def test_what_noise_turns_as_often_is_not_said_to_turn(crossing: float, together: float) -> None:
    made = of({(b, lr): [0.5 + (0.5 * b + lr) / 40] for b in (16, 32) for lr in (1.0, 2.0)})
    mixed = replace(made.interaction, p_value=together)
    turned = replace(made, spearman={0.1: -1.0, 0.2: 1.0}, crossing_p=crossing, interaction=mixed)
    assert not any(sentence.startswith("Larger batches") for sentence in conclusions(turned))


@pytest.mark.parametrize(
    ("p", "said", "template"),
    [
        (0.001, "p <= 0.001", TOGETHER),
        (0.0011, "p = 0.0011", TOGETHER),
        (0.05, "p = 0.05", TOGETHER),
        (0.0501, "p = 0.0501", APART),
    ],
)
def test_the_tests_p_value_decides_the_sentence(p: float, said: str, template: str) -> None:
    made = of({(b, lr): [0.5 + (0.5 * b + lr) / 40] for b in (16, 32) for lr in (1.0, 2.0)})
    made = replace(made, interaction=replace(made.interaction, p_value=p))
    shares = shares_of([[9.0, 10.0], [17.0, 18.0]])
    wanted = template.format(lr_name="base_lr", p=said, shares=shares)
    assert conclusions(made)[2] == wanted


def test_seeds_of_equal_scores_test_nothing() -> None:
    scores = [[0.6, 0.9], [0.8, 0.8]]
    cells = {
        (b, lr): [scores[i][j]] * 2 for i, b in ((0, 16), (1, 32)) for j, lr in ((0, 1), (1, 2))
    }
    why = "all seeds of a setting have the same score"
    assert said_of(of(cells), "Of the variance") == UNTESTED.format(
        shares=shares_of(scores), why=why
    )


def test_few_trials_diverge_up_to_the_largest_stable_rate() -> None:
    cells: Cells = {
        (b, lr): [0.6, 0.61] if lr < limit else ["diverged"] * 2
        for b, limit in ((16, 0.3), (32, 0.3), (64, 0.15), (128, 9.0))
        for lr in (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    }
    assert said_of(of(cells), "Fewer") == STABLE.format(
        each="0.1 at batch size 16, 0.1 at batch size 32 and 0.1 at batch size 64"
    )
    nowhere: Cells = {(64, 0.4): ["diverged"], (128, 0.4): [0.6]}
    assert len(conclusions(of(nowhere))) == 3


def evaluated(updates: Mapping[int, float], **more: object) -> Analysis:
    """A trial a batch size, which comes to 0.9 at its second evaluation, after so many updates."""
    trials = table({(b, 0.1): [0.9] for b in updates})
    trials = trials.assign(trial_key=[f"k{b}" for b in updates], **more)
    epochs = pd.DataFrame(
        [
            (f"k{b}", epoch, s * epoch / 2, b * s * epoch / 2, 0.9 - 0.1 * (2 - epoch), 1.0, 0.1)
            for b, s in updates.items()
            for epoch in (1, 2)
        ],
        columns=[
            *("trial_key", "epoch", "updates", "examples_seen", "val_auroc", "epoch_wall_s", "lr"),
        ],
    )
    return analyse(trials, epochs, metric="val_auroc", mode="max")


@pytest.mark.parametrize(
    ("updates", "more"),
    [
        ({b: 500 * (1 + 200 / b) for b in (20, 40, 50, 100, 200)}, (200, 200, 200)),
        ({b: 1e5 / b for b in (20, 40, 50, 100)}, OPEN + "not bounded above; at least 31,182"),
        (dict.fromkeys((20, 40, 50, 100), 1000.0), OPEN + "at most 0.06414"),
        ({20: 5500.0, 40: 3000.0}, ""),
    ],
    ids=["hyperbola", "perfect", "none", "two"],
)  # fmt: skip
def test_a_target_costs_updates_and_images(
    updates: dict[int, float], more: str | tuple[int, int, int]
) -> None:
    first, last = min(updates), max(updates)
    said = f"; {more}" if isinstance(more, str) and more else ""
    if not isinstance(more, str):
        said = CRITICAL.format(critical=more[0], low=more[1], high=more[2])
    assert conclusions(evaluated(updates))[-1] == TARGET.format(
        target=0.9, first=first, first_updates=f"{updates[first]:,.0f}",
        first_images=f"{first * updates[first]:,.0f}", last=last,
        last_updates=f"{updates[last]:,.0f}", last_images=f"{last * updates[last]:,.0f}", more=said,
    )  # fmt: skip


def test_one_batch_size_has_no_cost_to_compare() -> None:
    assert not any("To reach" in each for each in conclusions(evaluated({20: 100.0})))


def told_of(scales: list[float]) -> str:
    """The sentence about trials that measured these scales, at two batch sizes in turn."""
    measured = {"images_per_s": 1.0, "train_wall_s": 1.0, "peak_memory_gib": 1.0, "trial_key": "k"}
    trials = pd.DataFrame({"base_lr": 0.1, "noise_scale": scales, "batch_size": 16})
    trials.loc[1::2, "batch_size"] = 32
    trials = trials.assign(status="completed", val_auroc=0.6, **measured)
    return conclusions(analyse(trials, metric="val_auroc", mode="max"))[-1]


def test_a_noise_scale_has_the_sign_tests_interval_of_its_trials() -> None:
    """Six trials from 1.37 to 963, whose medians by batch size are 7.974 and 8.334."""
    scales = [1.37, 4.2, 7.974, 8.334, 120.0, 963.0]
    assert told_of(scales) == NOISE_SCALE.format(median="8.154", low="1.37", high="963", n=6)
    many = np.random.default_rng(0).lognormal(3, 2, 40)
    # The largest r for which fewer than r of 40 fair coins fall one way in 2.5 % of all cases.
    r = next(r for r in range(1, 40) if stats.binom.cdf(r, 40, 0.5) > 0.025)
    low, high = np.sort(many)[[r - 1, 40 - r]]
    assert told_of(many.tolist()) == NOISE_SCALE.format(
        median=show(float(np.median(many))), low=show(float(low)), high=show(float(high)), n=40
    )


@pytest.mark.parametrize(
    ("scales", "n", "span"),
    [([123.456], "one trial", "123.5"), ([90.0, 2.5, 1234.5], "3 trials", "2.5 to 1234")],
)
def test_a_noise_scale_of_few_trials_cannot_be_said(scales: list[float], n: str, span: str) -> None:
    assert told_of(scales) == NO_NOISE_SCALE.format(n=n, span=span)


NEAR_CHANCE = "; {named} near chance and left out{others}"
GROWS = " The learning rate already grows with the {of} (lr_scaling={rule}), so {so}."
DEPARTURE = "this is a departure from {words}"
ACCOUNTS = "{words} accounts for how the two interact, as far as the noise shows"


def told_with(p: float, trials: pd.DataFrame | None = None, **changes: object) -> tuple[str, str]:
    """The sentence, and what it is without the change."""
    made = of({(b, lr): [0.5 + (0.5 * b + lr) / 40] for b in (16, 32) for lr in (1.0, 2.0)})
    mixed = replace(made.interaction, p_value=p, why="")
    plain = conclusions(replace(made, interaction=mixed))[2]
    changed = replace(made, interaction=replace(mixed, **changes))  # type: ignore[arg-type]
    changed = changed if trials is None else replace(changed, trials=trials)
    return conclusions(changed)[2], plain


@pytest.mark.parametrize("p", [0.3, 0.01])
@pytest.mark.parametrize(
    ("near", "left_out", "named", "others"),
    [
        ([(16, 3.0)], 1, "batch size 16 with base_lr 3 is", ""),
        (
            [(16, 3.0)],
            2,
            "batch size 16 with base_lr 3 is",
            ", with 1 setting in the same rows or columns",
        ),
        ([(16, 3.0), (32, 3.0)], 2, "batch size 16 with base_lr 3 and 1 more setting are", ""),
        (
            [(16, 0.123456), (32, 3.0), (32, 10.0)],
            7,
            "batch size 16 with base_lr 0.1235 and 2 more settings are",
            ", with 4 settings in the same rows or columns",
        ),
    ],
)
def test_settings_near_chance_are_named(
    p: float, near: list[tuple[float, float]], left_out: int, named: str, others: str
) -> None:
    said, plain = told_with(p, near_chance=tuple(near), left_out=left_out)
    assert said == f"{plain[:-1]}{NEAR_CHANCE.format(named=named, others=others)}."


@pytest.mark.parametrize(
    ("rule", "grows_with", "words"),
    [
        ("linear", "batch size", "linear scaling"),
        ("sqrt", "square root of the batch size", "square-root scaling"),
        ("malladi", "square root of the batch size", "square-root scaling"),
    ],
)
@pytest.mark.parametrize(("p", "so"), [(0.05, DEPARTURE), (0.051, ACCOUNTS)])
def test_where_the_rate_is_scaled_the_interaction_is_a_departure_from_the_rule(
    rule: str, grows_with: str, words: str, p: float, so: str
) -> None:
    trials = pd.DataFrame({"status": ["completed"], "val_auroc": 0.9, "lr_scaling": rule})
    said, plain = told_with(p, trials)
    assert said == plain + GROWS.format(of=grows_with, rule=rule, so=so.format(words=words))


@pytest.mark.parametrize("rules", [["constant"], ["linear", "sqrt"], [None], None])
def test_without_one_rule_nothing_is_added(rules: list[str | None] | None) -> None:
    trials = pd.DataFrame({"status": "completed", "val_auroc": 0.9}, index=range(2))
    if rules:
        trials["lr_scaling"] = (rules * 2)[:2]
    said, plain = told_with(0.01, trials)
    assert said == plain


def test_of_anyones_table_no_rule_is_known() -> None:
    made = of(
        {(b, lr): [0.5 + (0.5 * b + lr) / 40] for b in (16, 32) for lr in (1.0, 2.0)}, lr="lr"
    )
    made = replace(made, interaction=replace(made.interaction, p_value=0.01, why=""))
    plain = conclusions(made)[2]
    assert conclusions(replace(made, trials=made.trials.assign(lr_scaling="linear")))[2] == plain
