"""Each sentence on near settings, the lr to use and how the best lr scales, word for word."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, table
from made_tables import analysed as of

from search.analysis.analysis import Analysis, analyse
from search.analysis.best_set import seeds_for
from search.analysis.groups import analyses
from search.report.sentences.conclusions import conclusions
from search.study.shown import show


def scaling_of(found: Analysis) -> str:
    """The one sentence on how the best lr scales."""
    (text,) = [s for s in conclusions(found) if s.startswith(("The best lr ", "How the best lr "))]
    return text


def peaked(tops: Mapping[int, float], offsets: Sequence[float], step: float = 0.5) -> Cells:
    """A parabola about each batch size's best lr; one seed for each offset, others in each cell."""
    lrs = sorted({lr * 2.0 ** (step * k) for lr in tops.values() for k in range(-6, 7)})
    cells = {}
    for i, (b, top) in enumerate(tops.items()):
        for j, lr in enumerate(lrs):
            if abs(math.log2(lr / top)) < 6.5 * step:
                mean = 0.9 - 0.01 * (math.log2(lr / top) / step) ** 2
                cells[b, lr] = list(mean + np.roll(offsets, i + j))
    return cells


def starting(found: Analysis, *starts: str) -> list[str]:
    """The conclusions that begin so."""
    return [text for text in conclusions(found) if text.startswith(starts)]


NEAR = (
    "{near} of {cells} settings are surely (95 %) within {margin} of the best; the largest batch "
)
NEAR += "size among them is {largest}."
NOT_NEAR = "No setting is surely (95 %) within {margin} of the best."
MORE_SEEDS = " To tell apart settings that differ by {margin} takes about {seeds} seeds each."


def test_settings_within_the_margin_are_counted() -> None:
    cells = peaked({16: 1.0, 32: 1.0}, (-0.0005, 0.0, 0.0005))
    found = of(cells)
    # A step from the top loses 0.01, and two steps 0.04; the bound adds the noise of both means.
    assert (found.margin, len(found.near)) == (0.01, 2)
    wide = analyse(table(cells), metric="val_auroc", mode="max", margin=0.02)
    assert len(wide.near) == 6
    assert starting(wide, "6 of", "No setting") == [
        NEAR.format(near=6, cells=26, margin=0.02, largest=32)
    ]


def test_without_enough_seeds_none_is_near_and_it_is_said_how_many_it_takes() -> None:
    found = of(peaked({16: 1.0, 32: 1.0}, (-0.02, 0.0, 0.02)))
    seeds = seeds_for(0.01, found.cells, mode="max")
    assert seeds > 20
    assert starting(found, "No setting") == [
        NOT_NEAR.format(margin=0.01) + MORE_SEEDS.format(margin=0.01, seeds=seeds)
    ]


def test_a_loss_has_no_margin_unless_one_is_given() -> None:
    trials = table(peaked({16: 1.0, 32: 1.0}, (-0.0005, 0.0, 0.0005)))
    trials = trials.assign(val_loss=1 - trials["val_auroc"])
    found = analyse(trials, metric="val_loss", mode="min")
    assert math.isnan(found.margin)
    assert not starting(found, "No setting", "2 of", "6 of")
    found = analyse(trials, metric="val_loss", mode="min", margin=0.02)
    assert starting(found, "6 of") == [NEAR.format(near=6, cells=26, margin=0.02, largest=32)]


def test_the_lr_to_use_is_told_at_the_ends_in_the_middle_and_beyond() -> None:
    found = of(peaked({b: b / 64 for b in (16, 32, 64, 128)}, (-0.0005, 0.0, 0.0005)))
    to_use = found.lr_to_use.set_index("batch_size")
    assert to_use["tried"].to_dict() == {
        8: False, 16: True, 32: True, 64: True, 128: True, 256: False
    }  # fmt: skip
    for b in to_use.index:
        assert to_use.loc[b, "lr"] == pytest.approx(b / 64, rel=0.02)

    def rate(b: int) -> str:
        lr, low, high = to_use.loc[b, ["lr", "low", "high"]]
        return f"{lr:.2g} [{low:.2g}, {high:.2g}] at batch size {b}"

    assert starting(found, "By one line") == [
        f"By one line through all batch sizes the peak lr to use is {rate(16)}, {rate(64)} and "
        f"{rate(128)}; if the line goes on, it is {rate(256)} (95 % intervals)."
    ]


def test_a_batch_size_left_out_is_named_with_its_reason() -> None:
    cells = peaked(dict.fromkeys((16, 32, 64), 1.0), (-0.0005, 0.0, 0.0005))
    edge = {(128, lr): scores for (b, lr), scores in cells.items() if b == 64 and lr < 1.1}
    assert (
        "over batch sizes 16 to 64, without 128, where its best lr is the smallest or largest "
        "that was tried. A constant rate is compatible" in scaling_of(of({**cells, **edge}))
    )


def test_scores_of_one_seed_without_a_peak_are_called_noise() -> None:
    rng = np.random.default_rng(1)
    cells = {(b, lr): [0.8 + rng.normal(0, 0.01)] for b in (16, 32, 64, 128) for lr in range(1, 8)}
    cells |= {(b, 4): [0.84] for b in (16, 32, 64, 128)}  # so that each best lr is bracketed
    found = of(cells)
    assert found.exponent.looks_flat
    assert scaling_of(found) == (
        "How the best lr scales with batch size is unknown: with one seed per setting the scores "
        f"look like noise (p = {found.exponent.p_flat:.2g} for any effect of the lr); add --set "
        "seeds=3."
    )


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda b: 4.0 / (1 + 100 / b), "a rate that saturates, lr_max / (1 + B_noise / B)"),
        (
            lambda b: 4.0 / (math.sqrt(200 / b) + math.sqrt(b / 200)),
            "a rate that rises and falls, with its top at B_noise",
        ),
    ],
    ids=["saturating", "surge"],
)
def test_a_form_that_is_far_ahead_is_named(form: Callable[[float], float], words: str) -> None:
    found = of(peaked({4 * 4**i: form(4 * 4**i) for i in range(7)}, (0.0,), step=1.0))
    first, second = found.forms.iloc[0], found.forms.iloc[1]
    assert second["delta"] > 4
    powers = found.forms[found.forms["form"].isin(["power", "a=0", "a=0.5", "a=1"])]
    assert scaling_of(found).endswith(
        f". But {words}, with B_noise about {show(first['b_noise'])}, describes it better than any "
        f"power of B (AICc lower by {powers['delta'].min():.1f})."
    )


def test_a_form_is_ahead_of_the_powers_by_as_much_as_of_the_best_of_them() -> None:
    found = of(peaked({4 * 4**i: 4.0 / (1 + 100 / 4 / 4**i) for i in range(7)}, (0.0,), step=1.0))
    others = {"saturating": 0.0, "surge": 5.0, "power": 20.0, "a=0": 30.0, "a=0.5": 30.0, "a=1": 30}
    forms = pd.DataFrame({"form": [*others], "delta": [*others.values()], "b_noise": 100.0})
    assert scaling_of(replace(found, forms=forms)).endswith("(AICc lower by 20.0).")


def test_of_several_surfaces_the_best_flatters_as_the_best_of_all() -> None:
    """Their settings are alike: the best of 4 x 10 is further above its truth than that of 10."""
    rng = np.random.default_rng(2)
    parts = []
    for dropout in (0.1, 0.2, 0.3, 0.4):
        settings = [(b, lr) for b in (16, 32) for lr in range(1, 6)]
        scores = 0.8 + 0.01 * rng.standard_normal((len(settings), 3))
        alike = {setting: list(seeds) for setting, seeds in zip(settings, scores, strict=True)}
        parts.append(table(alike).assign(dropout=dropout))
    trials = pd.concat(parts, ignore_index=True)
    first, *others = analyses(trials, None, {}, metric="val_auroc", mode="max")
    alone = analyse(first.trials, metric="val_auroc", mode="max")
    assert (first.surfaces, others[0].surfaces) == (4, 1)
    assert first.optimism > 1.2 * alone.optimism
    assert conclusions(first)[0].endswith("because it is the best of all settings of 4 surfaces.")
