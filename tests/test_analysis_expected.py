"""Verdicts on small tables, with numbers that follow by hand."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from search.analysis import analyse
from search.analysis.effects import paired, rank_test
from search.analysis.expected import (
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNRESOLVED,
    Verdict,
    verdicts,
)

GRID: dict[str, Any] = {
    "explore": {"kind": "Grid"},
    "vary": {"base_lr": {"grid_search": [0.1, 0.2]}},
}
NAN = math.nan


def trials(cells: Mapping[tuple[Any, ...], Sequence[float]], *names: str) -> pd.DataFrame:
    """A row a seed, of cells by the values of the fields `names`; NaN is a diverged trial."""
    rows = [
        (*cell, seed, score) for cell, scores in cells.items() for seed, score in enumerate(scores)
    ]
    table = pd.DataFrame(rows, columns=[*names, "seed", "val_auroc"])
    status = np.where(table["val_auroc"].isna(), "diverged", "completed")
    return table.assign(status=status, trial_key=[f"k{i}" for i in range(len(table))])


def judged(
    table: pd.DataFrame, entry: Mapping[str, Any], mode: str = "max", **about: Any
) -> Verdict:
    known = {**GRID, **about, "expect": [{"source": "a", "where": {}, **entry}]}
    analyses = []
    if entry["kind"] == "Exponent":
        analyses = [analyse(table, metric="val_auroc", mode=mode)]
    (verdict,) = verdicts(table, known, analyses, metric="val_auroc", mode=mode)
    return verdict


def better(**changes: Any) -> dict[str, Any]:
    return {"kind": "Better", "field": "norm", "value": "group", "than": "batch"} | changes


NORMS = {
    ("group", 16, 0.1): [0.80, 0.83, 0.81],
    ("group", 16, 0.2): [0.90, 0.91, 0.93],
    ("batch", 16, 0.1): [0.86, 0.88, 0.87],
    ("batch", 16, 0.2): [0.70, 0.70, 0.70],
}
NAMES = ("norm", "batch_size", "base_lr")


def test_a_value_is_compared_at_its_own_best_lr_and_in_pairs_of_seeds() -> None:
    found = judged(trials(NORMS, *NAMES), better(by=0.05))
    differences = np.array([0.04, 0.03, 0.06])
    assert found.value == pytest.approx(differences.mean())
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert (found.outcome, found.seeds) == (REPRODUCED, 3)
    other_way = judged(trials(NORMS, *NAMES), better(value="batch", than="group"))
    assert other_way.outcome == NOT_REPRODUCED
    assert other_way.value == -found.value


def test_of_a_loss_less_is_better() -> None:
    table = trials({(n, 0.1): s for (n, _, lr), s in NORMS.items() if lr == 0.2}, *NAMES[::2])
    found = judged(table, better(), mode="min")
    assert found.value == pytest.approx(-np.mean([0.20, 0.21, 0.23]))
    assert found.outcome == NOT_REPRODUCED


def test_the_lr_is_selected_by_the_next_seed() -> None:
    """The best of two lrs by each seed itself would flatter by a fifteenth."""
    lucky = {
        ("group", 16, 0.1): [0.9, 0.7, 0.8],
        ("group", 16, 0.2): [0.7, 0.9, 0.8],
        ("batch", 16, 0.1): [0.8, 0.8, 0.8],
    }
    found = judged(trials(lucky, *NAMES), better())
    # By seed 1 the best is 0.2, where seed 0 has 0.7; seed 1 follows seed 2, and that seed 0.
    assert found.value == pytest.approx(np.mean([-0.1, -0.1, 0.0]))
    assert found.outcome == UNRESOLVED


def test_every_setting_counts_once_and_goes_with_its_like() -> None:
    cells = {(n, 64, lr): [x - 0.1 for x in s] for (n, _, lr), s in NORMS.items()}
    table = trials(NORMS | cells, *NAMES).assign(momentum=0.9)
    table.loc[table["norm"] == "group", "momentum"] = 0.5  # goes with the norm
    found = judged(table, better())
    assert found.value == pytest.approx(np.mean([0.04, 0.03, 0.06]))
    assert found.rows["setting"].tolist() == ["batch_size=16", "batch_size=64"]
    assert found.rows["value"].tolist() == pytest.approx([found.value] * 2)


def test_one_seed_resolves_nothing() -> None:
    found = judged(trials(NORMS, *NAMES).query("seed == 0"), better())
    assert (found.outcome, found.seeds) == (UNRESOLVED, 1)
    assert found.value == pytest.approx(0.04)
    assert math.isnan(found.low)
    assert found.why == "one seed gives no noise"


def test_seeds_that_only_leaders_got_are_no_pairs() -> None:
    more = NORMS | {("group", 16, 0.2): [*NORMS["group", 16, 0.2], 0.99, 0.99]}
    assert judged(trials(more, *NAMES), better()).value == pytest.approx(0.13 / 3)


def test_diverged_trials_leave_their_lr_and_lost_settings_are_named() -> None:
    cells = NORMS | {
        ("group", 16, 0.2): [0.90, NAN, 0.93],
        ("group", 64, 0.1): [0.5, 0.5, 0.5],
        ("batch", 64, 0.1): [NAN, NAN, NAN],
    }
    found = judged(trials(cells, *NAMES), better())
    # By seed 1, which diverged at 0.2, the best is 0.1; it has no other score itself.
    assert found.value == pytest.approx(np.mean([-0.06, -0.05, 0.06]))
    assert found.left_out == ("norm=batch at batch_size=64",)
    everything = trials({cell: [NAN] * 3 for cell in NORMS}, *NAMES)
    nothing = judged(everything, better())
    assert (nothing.outcome, nothing.seeds) == (NOT_MEASURED, 0)
    assert nothing.why == "no setting has scores with norm=group and batch"


@pytest.mark.parametrize(
    ("entry", "about", "why"),
    [
        (better(value="none"), {}, "no trial has norm=none (there is batch, group)"),
        (better(field="depth", value=3, than=2), {}, "the trials have no depth"),
        (better(where={"width": 8}), {}, "the trials have no width"),
        (better(where={"base_lr": 0.3}), {}, "no trial has base_lr=0.3 (there is 0.1, 0.2)"),
        (better(), {"vary": {"base_lr": "loguniform"}}, "the trials of a search differ in every"),
        ({"kind": "Worse"}, {}, "its entry in study.json cannot be read"),
        ({"kind": "Better", "field": "norm"}, {}, "its entry in study.json cannot be read"),
    ],
)
def test_what_was_not_tried_is_not_measured(
    entry: dict[str, Any], about: dict[str, Any], why: str
) -> None:
    found = judged(trials(NORMS, *NAMES), entry, **about)
    assert found.outcome == NOT_MEASURED
    assert found.why.startswith(why)


def test_where_nothing_beat_chance_nothing_is_measured() -> None:
    table = trials({cell: [0.5, 0.49] for cell in NORMS}, *NAMES)
    assert judged(table, better()).why == "no trial beat chance"


def test_without_expectations_there_are_no_verdicts() -> None:
    table = trials(NORMS, *NAMES)
    for about in (GRID, GRID | {"expect": []}, GRID | {"expect": "Better"}):
        assert verdicts(table, about, [], metric="val_auroc", mode="max") == []


def test_lowest_and_highest_are_ends_of_what_the_study_declares() -> None:
    cells = {(b, lr): [0.8 + lr + b / 1e4] for b in (16, 32, 64) for lr in (0.1, 0.2)}
    wider = cells | {(16, 0.4): [0.9]}  # `Grid(widen=1)` tried it at one batch size
    entry = {"kind": "Trend", "field": "batch_size", "direction": "rises"}
    for end, lr in (("lowest", 0.1), ("highest", 0.2)):
        found = judged(trials(wider, "batch_size", "base_lr"), entry | {"where": {"base_lr": end}})
        assert dict(found.where) == {"base_lr": lr}
        assert found.rows["measured"].tolist() == pytest.approx(
            [0.8 + lr + b / 1e4 for b in (16, 32, 64)]
        )
    undeclared = judged(
        trials(wider, "batch_size", "base_lr"), entry | {"where": {"base_lr": "highest"}}, vary={}
    )
    assert dict(undeclared.where) == {"base_lr": 0.4}


def test_a_variant_may_have_values_of_its_own() -> None:
    cells = {("sgd", b, lr): [0.8 + lr] for b in (16, 32, 64) for lr in (0.1, 0.2)}
    cells |= {("adam", b, lr): [0.9 + lr] for b in (16, 32, 64) for lr in (0.001, 0.002)}
    table = trials(cells, "optimizer", "batch_size", "base_lr")
    own = {"grid_search": [0.001, 0.002]}
    explore = {
        "kind": "Variants",
        "each": {"sgd": {"optimizer": "sgd"}, "adam": {"optimizer": "adam", "base_lr": own}},
    }
    about = {
        "explore": explore,
        "step_trials": {
            name: table.loc[table["optimizer"] == name, "trial_key"].tolist()
            for name in ("sgd", "adam")
        },
    }
    entry = {"kind": "Trend", "field": "batch_size", "direction": "rises"}
    for variant, lr in (("sgd", 0.1), ("adam", 0.001)):
        where = {"variant": variant, "base_lr": "lowest"}
        found = judged(table, entry | {"where": where}, **about)
        assert dict(found.where) == {"variant": variant, "base_lr": lr}
    # Of all variants together, the lowest of what was tried.
    found = judged(table, entry | {"where": {"base_lr": "lowest"}}, **about)
    assert dict(found.where) == {"base_lr": 0.001}
    better = {"kind": "Better", "field": "variant", "value": "adam", "than": "sgd"}
    assert judged(table, better, **about).value == pytest.approx(0.902 - 1.0)


# --- orders -----------------------------------------------------------------------------------


def ordered(values: Sequence[str], table: pd.DataFrame) -> Verdict:
    return judged(table, {"kind": "Order", "field": "norm", "values": list(values)})


def test_an_order_is_a_chain_of_comparisons_by_holms_correction() -> None:
    noise = ([0.710, 0.712, 0.714], [0.704, 0.703, 0.710], [0.7, 0.7, 0.7])
    scores = {(n, 16, 0.1): e for n, e in zip(("a", "b", "c"), noise, strict=True)}
    table = trials(scores, *NAMES)
    found = ordered("abc", table)
    p_values = [stats.ttest_rel(one, other).pvalue for one, other in itertools.pairwise(noise)]
    assert found.rows["p_value"].tolist() == pytest.approx(
        list(multipletests(p_values, method="holm")[1])
    )
    assert found.rows[["value", "than"]].to_numpy().tolist() == [["a", "b"], ["b", "c"]]
    assert found.outcome == UNRESOLVED
    clear = {(n, 16, 0.1): [i + x / 1000 for x in range(3)] for i, n in enumerate("cba")}
    assert ordered("abc", trials(clear, *NAMES)).outcome == REPRODUCED
    # One step the other way is enough to refuse it.
    other_way = ordered("acb", trials(clear, *NAMES))
    assert (other_way.outcome, other_way.order) == (NOT_REPRODUCED, ("a", "b", "c"))
    assert ordered("adb", trials(clear, *NAMES)).notes == ("no trial has norm=d",)
    alone = ordered("ad", trials(clear, *NAMES))
    assert (alone.outcome, alone.why) == (
        NOT_MEASURED,
        "fewer than two of the values of norm were tried",
    )


def test_steps_of_an_ablation_go_by_their_names() -> None:
    table = trials(
        {(e, 16, 0.1): [e + 0.5, e + 0.6] for e in (0.0, 1.0)}, "warmup_epochs", *NAMES[1:]
    )
    about = {
        "base": {"warmup_epochs": 0.0},
        "explore": {"kind": "Ablation", "steps": {"none": {}, "+ warmup": {"warmup_epochs": 1.0}}},
    }
    entry = better(field="step", value="+ warmup", than="none")
    found = judged(table, entry, **about)
    assert (found.outcome, found.value) == (REPRODUCED, pytest.approx(1.0))


# --- trends -----------------------------------------------------------------------------------


def test_a_trend_is_tested_by_permutations_within_each_seed() -> None:
    rho, p_value = rank_test([1, 2, 3], np.array([[0.1, 0.2, 0.3]]))
    assert rho == pytest.approx(1.0)
    assert p_value == pytest.approx(2 / 6, abs=0.03)
    rho, p_value = rank_test([1, 2, 3], np.array([[0.1, 0.2, 0.3], [5.0, 6.0, 7.0]]))
    assert p_value == pytest.approx(2 / 36, abs=0.01)
    blocks = np.random.default_rng(0).normal(size=(4, 6))
    rho, p_value = rank_test(range(6), blocks)
    assert rho == pytest.approx(
        np.mean([stats.spearmanr(range(6), block).statistic for block in blocks])
    )
    assert rank_test([1, 2, 3], np.ones((2, 3))) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("direction", "seeds", "outcome"),
    [
        ("rises", 1, REPRODUCED),
        ("falls", 1, NOT_REPRODUCED),
        ("rises", 3, REPRODUCED),
    ],
)
def test_a_trend_rises_or_falls(direction: str, seeds: int, outcome: str) -> None:
    cells = {(b, 0.1): [0.5 + b / 1000 + s for s in range(seeds)] for b in (16, 32, 64, 128, 256)}
    entry = {"kind": "Trend", "field": "batch_size", "direction": direction}
    found = judged(trials(cells, "batch_size", "base_lr"), entry)
    assert found.outcome == outcome
    assert found.seeds == seeds
    assert abs(found.value) == pytest.approx(1.0)


def test_kandels_crossing_is_seen_in_the_papers_own_table() -> None:
    """The paper's Table 1: its Adam column."""
    low, high = (
        [0.9677, 0.9636, 0.9616, 0.9567, 0.9585],
        [0.9144, 0.9332, 0.9381, 0.9432, 0.9652],
    )
    cells = {
        (b, lr): [score]
        for lr, scores in ((1e-4, low), (1e-3, high))
        for b, score in zip((16, 32, 64, 128, 256), scores, strict=True)
    }
    table = trials(cells, "batch_size", "base_lr")
    for end, direction, rho in (("lowest", "falls", 0.9), ("highest", "rises", 1.0)):
        entry = {"kind": "Trend", "field": "batch_size", "direction": direction}
        found = judged(table, entry | {"where": {"base_lr": end}}, vary={})
        assert found.value == pytest.approx(rho)
    rows = [
        {"batch_size": b, "base_lr": lr, "val_auroc": scores[0]}
        for (b, lr), scores in cells.items()
    ]
    table = table.assign(base_lr=table["base_lr"] * 30)  # as a preview tries other rates
    found = judged(table, {"kind": "Reported", "metric": "val_auroc", "rows": rows}, vary={})
    assert found.value == pytest.approx(1.0)
    assert found.notes == ("base_lr: 0.0001 there is 0.003 here, 0.001 there is 0.03 here",)
    assert found.rows["expected"].tolist() == pytest.approx(found.rows["measured"].tolist())


def test_equal_scores_neither_rise_nor_fall() -> None:
    """As where every trial predicts the same for every image."""
    cells = {(b, 0.1): [0.504, 0.507] for b in (16, 32, 64, 128)}
    entry = {"kind": "Trend", "field": "batch_size", "direction": "rises"}
    found = judged(trials(cells, "batch_size", "base_lr"), entry)
    assert (found.outcome, found.why) == (UNRESOLVED, "all scores of a seed are the same")


def test_two_values_are_too_few_for_a_trend() -> None:
    cells = {(16, 0.1): [0.5, 0.6], (32, 0.1): [0.6, 0.7]}
    entry = {"kind": "Trend", "field": "batch_size", "direction": "rises"}
    found = judged(trials(cells, "batch_size", "base_lr"), entry)
    assert (found.outcome, found.why) == (
        NOT_MEASURED,
        "this needs scores at 3 values of batch_size, there are 2",
    )


# --- tables and exponents ---------------------------------------------------------------------


def test_a_table_is_compared_in_the_settings_that_both_have() -> None:
    rows = [
        {"batch_size": b, "base_lr": "lowest", "val_auroc": s}
        for b, s in ((16, 70.0), (32, 71.0), (64, 72.0), (1024, 75.0))
    ]
    cells = {(b, 0.1): [0.5 + b / 100, 0.6 + b / 100] for b in (16, 32, 64)}
    entry = {"kind": "Reported", "metric": "val_auroc", "rows": rows}
    found = judged(trials(cells, "batch_size", "base_lr"), entry)
    assert found.value == pytest.approx(1.0)
    assert found.outcome == UNRESOLVED  # of three settings no order is beyond chance
    assert found.rows["expected"].tolist() == [70.0, 71.0, 72.0, 75.0]
    assert found.rows["measured"].tolist()[:3] == pytest.approx([0.71, 0.87, 1.19])
    assert math.isnan(found.rows["measured"].iloc[3])
    assert found.rows["seeds"].tolist() == [2, 2, 2, 0]
    fewer = judged(trials(cells, "batch_size", "base_lr").query("batch_size < 64"), entry)
    assert (fewer.outcome, fewer.why) == (
        NOT_MEASURED,
        "of 4 settings of the source 2 have scores here",
    )
    other = judged(trials(cells, "batch_size", "base_lr"), entry | {"metric": "test_auroc"})
    assert other.why == "no trial has test_auroc"


def ridge(power: float, *, noise: float = 0.001) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    cells = {
        (b, lr): list(
            0.9
            - 0.05 * (math.log10(lr) - power * math.log10(b / 64)) ** 2
            + rng.normal(0, noise, 3)
        )
        for b in (16, 32, 64, 128, 256)
        for lr in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    }
    return trials(cells, "batch_size", "base_lr")


@pytest.mark.parametrize(
    ("power", "low", "high", "outcome"),
    [
        (1.0, 0.8, 1.2, REPRODUCED),
        (1.0, 0.0, 0.3, NOT_REPRODUCED),
        (0.5, 0.4, 0.6, REPRODUCED),
        (0.0, 0.8, 1.2, NOT_REPRODUCED),
        (0.0, -0.1, 0.1, REPRODUCED),
    ],
)
def test_an_exponent_is_reproduced_where_its_interval_meets_the_range(
    power: float, low: float, high: float, outcome: str
) -> None:
    found = judged(ridge(power), {"kind": "Exponent", "low": low, "high": high})
    assert found.low <= power <= found.high
    assert found.outcome == outcome


def test_an_interval_that_excludes_nothing_reproduces_nothing() -> None:
    found = judged(ridge(0.5, noise=0.03), {"kind": "Exponent", "low": 0.4, "high": 0.6})
    if math.isfinite(found.low):
        assert found.low < 0
        assert found.why == "the interval also contains 0, so it cannot tell"
    assert found.outcome == UNRESOLVED


def test_without_a_grid_of_rates_there_is_no_exponent() -> None:
    cells = {(b, 0.1): [0.6] for b in (16, 32, 64)}
    found = judged(
        trials(cells, "batch_size", "base_lr"), {"kind": "Exponent", "low": 0, "high": 1}
    )
    assert found.outcome == NOT_MEASURED
    assert found.why.startswith("this needs three batch sizes with a bracketed best rate, there")


def test_a_mean_over_no_common_settings_is_unknown() -> None:
    index = pd.MultiIndex.from_product([list("abcd"), [0, 1, 2]], names=["setting", "seed"])
    assert paired(pd.Series([NAN] * 12, index)).seeds == 0
    partly = paired(pd.Series([0.1, 0.2, 0.3] * 3 + [NAN, 9.0, 9.0], index))
    assert partly.value == pytest.approx(0.2)
    assert partly.seeds == 3
    assert list(partly.by_setting.index) == ["a", "b", "c"]
