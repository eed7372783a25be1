"""The chart of several surfaces: each at the best learning rate of each batch size."""

from typing import Any

import pandas as pd
import pytest

from search.analysis.analysis import Analysis, analyse
from search.report.charts.compared import best_by_batch_size_chart
from search.report.charts.gallery import compared_pictures

LRS = (0.01, 0.1, 1.0)


def analysis(scores: dict[tuple[int, float], list[float]], mode: str = "max") -> Analysis:
    rows = [
        {
            **{
                "batch_size": size,
                "base_lr": lr,
                "peak_lr": lr,
                "seed": seed,
                "status": "completed",
            },
            **{"val_auroc": value, "lr_scaling": "constant"},
        }
        for (size, lr), values in scores.items()
        for seed, value in enumerate(values)
    ]
    return analyse(pd.DataFrame(rows), metric="val_auroc", mode=mode)


def drawn(chart: Any) -> pd.DataFrame:
    """The rows of the chart's points."""
    return pd.DataFrame(chart.layer[-1].data)


GOOD = {
    (16, 0.01): [0.7, 0.72],
    (16, 0.1): [0.8, 0.84],
    (16, 1.0): [0.6, 0.6],
    (64, 0.01): [0.7, 0.7],
    (64, 0.1): [0.75, 0.77],
    (64, 1.0): [0.78, 0.8],
}
BAD = {cell: [value - 0.1 for value in values] for cell, values in GOOD.items()}


def test_each_surface_has_its_best_cell_of_each_batch_size() -> None:
    chart = best_by_batch_size_chart({"good": analysis(GOOD), "bad": analysis(BAD)})
    rows = drawn(chart).set_index(["surface", "batch_size"])
    assert list(rows.index) == [("good", 16), ("good", 64), ("bad", 16), ("bad", 64)]
    best = rows.loc[("good", 16)]
    assert best[["lr", "mean", "low", "high", "n"]].tolist() == pytest.approx(
        [0.1, 0.82, 0.8, 0.84, 2]
    )
    assert rows.loc[("bad", 64), ["lr", "mean"]].tolist() == pytest.approx([1.0, 0.69])


def test_the_lowest_is_best_of_a_loss() -> None:
    surfaces = {"a": analysis(GOOD, mode="min"), "b": analysis(BAD, mode="min")}
    rows = drawn(best_by_batch_size_chart(surfaces)).set_index(["surface", "batch_size"])
    assert rows.loc[("a", 16), ["lr", "mean"]].tolist() == pytest.approx([1.0, 0.6])


def test_one_surface_needs_no_chart_nor_one_without_scores() -> None:
    assert best_by_batch_size_chart({"good": analysis(GOOD)}) is None
    lost = analysis({cell: [float("nan")] for cell in GOOD})
    assert best_by_batch_size_chart({"good": analysis(GOOD), "lost": lost}) is None
    assert compared_pictures([analysis(GOOD)]) == {}
