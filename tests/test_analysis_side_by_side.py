"""Two surfaces with known differences: what the comparison finds, and what it does not claim."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_tables import table

from search.analysis.analysis import Analysis, analyse
from search.analysis.declared import differing_fields
from search.analysis.side_by_side import Compared, compared_analyses
from search.report.sentences.side_by_side import compared_sentences, names_of, settings_sentence

SIZES, LRS = (16, 32, 64, 128), tuple(0.003 * 3.0**k for k in range(7))
NAMES = ("plain", "mixed")


def surface(
    *,
    at: float = 0.03,
    top: float = 0.9,
    seeds: int = 4,
    noise: float = 0.002,
    of_seed: float = 0.0,
    rng: int = 0,
    first_seed: int = 0,
    lrs: tuple[float, ...] = LRS,
) -> Analysis:
    """Parabolas in log lr, whose best peak lr is `at` for batch size 16 and grows linearly.

    `of_seed` is the deviation of what a seed does to all settings, the same in every surface.
    """
    common = np.random.default_rng(99).normal(0, of_seed, 1000)
    draw = np.random.default_rng(rng)
    cells = {
        (b, lr): [
            top - 0.02 * math.log10(lr / (at * b / 16)) ** 2 + common[s] + draw.normal(0, noise)
            for s in range(first_seed, first_seed + seeds)
        ]
        for b in SIZES
        for lr in lrs
    }
    rows = table(cells)
    rows["seed"] = rows.groupby(["batch_size", "base_lr"]).cumcount() + first_seed
    return analyse(rows, metric="val_auroc", mode="max")


def compared(first: Analysis, second: Analysis) -> tuple[Compared, str]:
    found = compared_analyses(first, second)
    return found, "\n".join(compared_sentences(found, NAMES))


def test_a_moved_ridge_is_found_and_equal_scores_are_not_called_different() -> None:
    found, text = compared(surface(rng=1), surface(rng=2, at=0.09))
    assert found.shift.low < 3.0 < found.shift.high
    assert found.shift.excludes(1)
    assert "The ridge moved: the best peak learning rate of mixed is" in text
    assert list(found.ridge["batch_size"]) == list(SIZES)
    assert not found.mean.excludes(0)
    assert "no difference in val_auroc is visible above the noise" in text
    assert found.exponent.low < 0 < found.exponent.high
    assert "The exponents do not visibly differ" in text
    # At the same rates the scores do differ: on either side of the tops.
    assert "The scores surely differ at " in text


def test_better_scores_are_found_and_the_ridge_did_not_move() -> None:
    found, text = compared(surface(rng=1), surface(rng=2, top=0.91))
    assert found.mean.low < 0.01 < found.mean.high
    assert found.mean.excludes(0)
    assert "mixed is better than plain: val_auroc +0.0" in text
    assert (found.cells["low"] > 0).mean() > 0.9
    assert "The ridge did not visibly move" in text
    assert len(found.cells) == len(SIZES) * len(LRS)
    assert set(found.cells["pairs"]) == {4}


def test_what_seeds_do_to_both_cancels_if_they_are_the_same() -> None:
    """A seed's effect of 0.02 is ten times the difference."""
    alike = {"of_seed": 0.02, "noise": 0.0005}
    paired, _ = compared(surface(rng=1, **alike), surface(rng=2, top=0.902, **alike))
    other, _ = compared(surface(rng=1, **alike), surface(rng=2, first_seed=500, **alike))
    assert paired.mean.excludes(0)
    assert paired.mean.low < 0.002 < paired.mean.high
    assert set(other.cells["pairs"]) == {0}
    width = (other.cells["high"] - other.cells["low"]).median()
    assert width > 10 * (paired.cells["high"] - paired.cells["low"]).median()
    assert math.isnan(other.mean.low)  # no seed in common


def test_one_setting_with_too_few_common_seeds_leaves_the_others_paired() -> None:
    second = surface(rng=2)
    rows = second.trials
    hole = (rows["batch_size"] == 32) & (rows["base_lr"] == LRS[2]) & (rows["seed"] > 0)
    fewer = analyse(rows[~hole], metric="val_auroc", mode="max")
    cells = compared(surface(rng=1), fewer)[0].cells
    at_hole = (cells["batch_size"] == 32) & (cells["grid_lr"] == LRS[2])
    assert list(cells.loc[at_hole, "pairs"]) == [0]
    assert set(cells.loc[~at_hole, "pairs"]) == {4}
    assert np.isfinite(cells[["low", "high"]]).all(axis=None)
    whole = compared(surface(rng=1), second)[0].cells
    same = ["difference", "low", "high"]
    pd.testing.assert_frame_equal(
        cells.loc[~at_hole, ["batch_size", "difference"]],
        whole.loc[~at_hole, ["batch_size", "difference"]],
    )
    assert (cells.loc[~at_hole, same[1]] < cells.loc[~at_hole, same[2]]).all()


def test_two_trials_of_a_seed_are_no_pairs() -> None:
    """Bins and tables may have several trials of a seed in one cell: all of them count."""
    first, second = surface(rng=1), surface(rng=2, top=0.91)
    for analysis in (first, second):
        analysis.cells["seeds"] = [(0, 0, 1, 1)] * len(analysis.cells)
    found, _ = compared(first, second)
    assert (found.cells["pairs"] == 0).all()
    differences = found.cells["second"] - found.cells["first"]
    np.testing.assert_allclose(found.cells["difference"], differences)
    assert found.mean.value == pytest.approx(found.own_best["difference"].mean())


def test_of_equal_surfaces_hardly_any_setting_is_called_different() -> None:
    """The intervals of all settings hold together in 95 of 100 comparisons."""
    wrong = sum(
        bool(((found["low"] > 0) | (found["high"] < 0)).any())
        for i in range(15)
        for found in [
            compared(surface(rng=2 * i, seeds=3), surface(rng=2 * i + 1, seeds=3))[0].cells
        ]
    )
    assert wrong <= 3  # a binomial with 0.75 expected exceeds 3 once in two hundred


def test_one_seed_each_has_no_intervals_but_the_values() -> None:
    found, text = compared(surface(seeds=1, rng=1), surface(seeds=1, rng=2, at=0.09))
    assert math.isnan(found.mean.low)
    assert found.cells["low"].isna().all()
    assert "without two seeds in common there is no interval" in text
    assert math.isfinite(found.shift.value)
    assert "with one seed a setting there is no interval" in text
    assert "cannot be told from the best" not in compared(surface(), surface(seeds=1))[1]


def test_other_rates_have_no_setting_in_common_but_ridges_are_compared() -> None:
    other = surface(rng=2, lrs=tuple(1.5 * lr for lr in LRS))
    found, text = compared(surface(rng=1), other)
    assert found.cells.empty
    assert "They have no setting in common: no batch size with the same base_lr." in text
    assert len(found.own_best) == len(SIZES)
    assert not found.shift.excludes(1)


def test_best_sets_are_told_apart() -> None:
    found, text = compared(surface(rng=1), surface(rng=2, at=0.09))
    both, first, second = map(set, (found.both_best, found.first_best, found.second_best))
    assert not both & first
    assert not both & second
    assert first
    assert second
    assert (
        f"{len(both)} in both, {len(first)} only in plain and {len(second)} only in mixed" in text
    )


def test_where_nothing_has_a_score_nothing_is_compared() -> None:
    nothing = analyse(table({(16, 0.1): ["diverged"]}), metric="val_auroc", mode="max")
    found, text = compared(nothing, surface())
    assert found.cells.empty
    assert text.startswith("No batch size has scores in both, so they cannot be compared.")
    assert "Whether the ridge moved is unknown" in text


def test_the_interval_of_a_ratio_is_that_of_drawn_ones() -> None:
    """Zou and Donner's against a million draws of two lognormal rates."""
    from search.analysis.side_by_side import _ratio

    rng = np.random.default_rng(0)
    a, b = (np.exp(rng.normal(middle, std, 10**6)) for middle, std in ((0.0, 0.3), (1.0, 0.2)))
    ends = [np.quantile(x, (0.5, 0.025, 0.975)) for x in (a, b)]
    ratio = _ratio(ends)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx(
        tuple(np.quantile(b / a, (0.5, 0.025, 0.975))), rel=0.01
    )


def test_the_settings_that_differ_are_named() -> None:
    first: dict[str, Any] = {"base": {"mixup_alpha": 0.0, "seed": 0}, "vary": {"batch_size": 1}}
    second: dict[str, Any] = {
        "base": {"mixup_alpha": 0.2, "seed": 1},
        "vary": {"batch_size": 1, "base_lr": {"grid_search": [0.1, 0.3]}},
    }
    differing = differing_fields(first, second)
    assert differing == {
        "mixup_alpha": (0.0, 0.2),
        "base_lr": (None, {"grid_search": [0.1, 0.3]}),
    }
    assert settings_sentence(differing, NAMES) == (
        "They differ in mixup_alpha 0 in plain and 0.2 in mixed; base_lr (not set) in plain and "
        "(0.1 and 0.3) in mixed."
    )
    assert settings_sentence({}, NAMES).startswith("Both studies have the same settings")
    many = {f"field{i}": (0, 1) for i in range(8)}
    assert settings_sentence(many, NAMES).endswith("; and 2 more fields.")
    assert names_of(["a", "a"]) == ("a (first)", "a (second)")


def test_a_lower_loss_is_better() -> None:
    rows = [a.trials[["batch_size", "base_lr", "seed", "status", "val_auroc"]] for a in (
        surface(rng=1), surface(rng=2, top=0.91)
    )]  # fmt: skip
    first, second = (
        analyse(pd.DataFrame(r).assign(val_loss=1 - r["val_auroc"]), metric="val_loss", mode="min")
        for r in rows
    )
    found, text = compared(first, second)
    assert found.mean.value == pytest.approx(-0.01, abs=0.003)
    assert "mixed is better than plain: val_loss -0.0" in text
