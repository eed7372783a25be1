"""Which tables are scattered, and what is made of their learning rates."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from made_tables import analysed, table

from search.analysis.analysis import analyse, in_bins
from search.report.numbers import as_json, plain

NAN = math.nan
# Six of many digits, in steps of all sizes.
DRAWN = [0.0012341, 0.0017891, 0.0134567, 0.0234567, 0.2345678, 0.3345678]


def rows(cells: Sequence[tuple[int, float]]) -> pd.DataFrame:
    found = pd.DataFrame(cells, columns=["batch_size", "grid_lr"])
    return found.assign(peak=found["grid_lr"] * 2)


def scattered(cells: Sequence[tuple[int, float]]) -> bool:
    return in_bins(rows(cells))[1]


def test_bins_are_thirds_of_a_decade_and_powers_of_two() -> None:
    found, binned = in_bins(
        rows([(b, lr) for b, lr in zip([16, 22, 23, 90, 91, 5], DRAWN, strict=True)])
    )
    assert binned
    assert found["batch_size"].tolist() == [16, 16, 32, 64, 128, 4]
    thirds = [-9, -8, -6, -5, -2, -1]  # the nearest to three times the logarithm
    assert [round(3 * math.log10(lr)) for lr in DRAWN] == thirds
    assert found["grid_lr"].tolist() == [float(f"{10 ** (k / 3):.3g}") for k in thirds]
    peaks = [round(3 * math.log10(2 * lr)) for lr in DRAWN]
    assert found["peak"].tolist() == [float(f"{10 ** (k / 3):.3g}") for k in peaks]


@pytest.mark.parametrize(
    ("cells", "is_scattered"),
    [
        ([(16, lr) for lr in DRAWN], True),
        ([(16, lr) for lr in DRAWN[:5]], False),  # too few
        ([(16, lr) for lr in DRAWN] * 2, False),  # each twice: seeds
        ([(b, lr) for b in (16, 32) for lr in DRAWN], False),  # in common: a grid
        ([(16, float(f"{lr:.2g}")) for lr in DRAWN], False),  # of two digits: written by hand
        ([(16, 0.00123456 * 2.0**k) for k in range(6)], False),  # in even steps
        ([(16, 0.00123456 * 2.0**k) for k in (0, 1, 2, 3.9, 4.9, 5.9)], False),
        ([(16, 0.00123456 * 2.0**k) for k in (0, 1, 2, 4.1, 5.1, 6.1)], True),  # twice as wide
        ([(16 + k, 0.1) for k in range(13)], True),  # more batch sizes than a grid has
        ([(16 + k, 0.1) for k in range(12)], False),
        ([(2**k, lr) for k in range(20) for lr in DRAWN], False),  # a large grid
        ([(16 + k, lr) for k in range(20) for lr in DRAWN if k % 6 == DRAWN.index(lr)], True),
        ([(16 * 2 ** (k // 2), DRAWN[i]) for k, i in enumerate((0, 2, 1, 4, 3, 5))], True),
    ],
)  # fmt: skip
def test_a_search_is_told_from_a_grid(
    cells: Sequence[tuple[int, float]], is_scattered: bool
) -> None:
    found, binned = in_bins(rows(cells))
    assert binned == is_scattered
    if not binned:
        pd.testing.assert_frame_equal(found, rows(cells))


@pytest.mark.parametrize(
    ("rule", "factor"), [("constant", 1.0), ("sqrt", 2.0), ("linear", 4.0), ("malladi", 2.0)]
)
def test_the_peak_lr_follows_the_rule(rule: str, factor: float) -> None:
    trials = table({(16, 0.1): [0.5], (64, 0.1): [0.6], (64, 0.123456789): [0.7]})
    found = analyse(
        trials.assign(lr_scaling=rule, reference_batch_size=16), metric="val_auroc", mode="max"
    )
    lrs = found.cells[["batch_size", "lr", "grid_lr"]].to_numpy().tolist()
    assert lrs == [
        [16, 0.1, 0.1],
        [64, pytest.approx(0.1 * factor), 0.1],
        [64, float(f"{0.123456789 * factor:.6g}"), 0.123456789],
    ]
    bare = analyse(trials.assign(lr_scaling=rule), metric="val_auroc", mode="max")
    assert bare.cells["lr"].tolist() == bare.cells["grid_lr"].tolist()


def test_the_numbers_of_a_report_are_those_of_the_analysis() -> None:
    found = analysed(
        {(b, lr): [0.5 + b / 1000 - (lr - 0.2) ** 2 + more for more in offsets]
         for b, offsets in ((16, (0, 0.001)), (32, (0.001, 0)), (64, (0, 0.001)))
         for lr in (0.1, 0.2, 0.4)}
    )  # fmt: skip
    said: dict[str, Any] = as_json(found)
    assert (said["metric"], said["mode"], said["grid_lr_is"]) == ("val_auroc", "max", "base_lr")
    assert said["lr_is"] == "what the optimizer gets at its peak"
    assert said["noise_std"] == found.noise.std
    assert [row["mean"] for row in said["surface"]] == found.cells["mean"].tolist()
    assert [row["best_tried_lr"] for row in said["ridge"]] == found.ridge["lr"].tolist()
    assert [row["lr"] for row in said["ridge"]] == found.ridge["vertex"].tolist()
    for name in ("value", "low", "high"):
        assert said["exponent"][name] == getattr(found.exponent, name)
    assert said["exponent"]["scope"] == "peak lr over batch sizes 16 to 64"
    assert said["exponent"]["batch_sizes"] == [16, 32, 64]
    assert said["collapse"]["r2_at"] == {
        name: found.collapse.r2_at[a] for name, a in (("0", 0.0), ("0.5", 0.5), ("1", 1.0))
    }
    parts = ("share_batch_size", "share_lr", "share_interaction")
    for name in (*parts, "p_value", "p_flat", "f", "why"):
        assert said["interaction"][name] == getattr(found.interaction, name)
    assert said["interaction"]["replicates"] == 2
    assert said["spearman"] == {"0.1": 1.0, "0.2": 1.0, "0.4": 1.0}
    assert said["optimism"] == found.optimism
    assert said["target"] == found.target == 0.5 + 16 / 1000  # the worse seed at the best rate
    assert len(said["best_set"]) == len(found.best_set)
    assert said["front"]["critical_batch_size"] is None
    assert said["stable_lr"][0] == {"batch_size": 16, "stable_lr": 0.4, "diverges_at": None}


def test_plain_data_has_no_numpy_and_nothing_that_is_not_finite() -> None:
    said = plain({
        1: pd.Series([1.5]).iloc[0], "b": (math.inf, NAN, pd.NaT), "c": [True, None, "x"],
        "d": pd.Timestamp("2026-01-02"),
    })  # fmt: skip
    assert said == {
        "1": 1.5, "b": [None, None, None], "c": [True, None, "x"], "d": "2026-01-02T00:00:00"
    }  # fmt: skip
    assert type(said["1"]) is float
