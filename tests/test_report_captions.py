"""The charts' titles and captions, word for word; no chart is drawn."""

from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from made_tables import analysed as of

from search.analysis.analysis import analyse
from search.report.charts import gallery
from search.report.charts import surface as surface_charts
from search.report.charts import training as training_charts
from search.report.charts.training import whole_ticks
from search.report.findings import Findings

CHARTS = (
    *("heat_map", "lr_curves", "ridge_chart", "learning_curves", "collapse_chart", "target_chart"),
    *("noise_scale_chart", "throughput_chart", "importance_chart", "parallel_coordinates"),
)
SURFACE = (
    "Number: {mean}. Colour: how far it is behind the best, which is yellow, on a logarithmic "
    "scale{steps}. Diamond: the best learning rate of each batch size. Outlined: settings that "
    "cannot be told from the best{near}. Grey: no score, because the trials diverged (div.), were "
    "stopped early (stop.) or failed (fail.). On the page, click on settings (several: with Shift) "
    "to see only these."
)
NEAR = "; dashed: others within 0.01 of the best with 95 % confidence"
LR_CURVES = (
    "One line per batch size (means); one dot per trial. Diamond: the best rate, from a parabola "
    "through the best three, with its 95 % interval; hollow if it is the smallest or largest rate "
    "tried. Click on the legend to select a batch size."
)
RIDGE = (
    "Both axes are logarithmic; bars are 95 % intervals. Hollow points: the best rate is the "
    "smallest or largest tried (unbracketed). Solid line: the fitted power law. Dashed lines: "
    "constant, square-root and linear scaling."
)
TRAINING = {
    "learning_curves": (
        "val_auroc during training",
        "Thick lines: each batch size with its best learning rate, mean and range over seeds. Thin "
        "lines: other rates.",
    ),
    "collapse": (
        "Which scaling rule aligns the curves",
        "R2 of one parabola in log lr - a log B for all settings, for each exponent a: 0 is a "
        "constant rate, 1/2 is square-root and 1 is linear scaling.",
    ),
    "updates_to_target": (
        "Updates to reach val_auroc 0.8765",
        "Each batch size with the rate that needs the fewest images; both axes are logarithmic. "
        "Triangles: at most so many, as seeds reached it by their first evaluation. Dashed: "
        "perfect scaling, where doubling the batch size halves the updates. Solid: the fitted "
        "time-to-target curve, if there is one.",
    ),
    "noise_scale": (
        "Measured gradient noise scale",
        "Median and range over the trials of a batch size. Dashed: noise scale equal to batch "
        "size.",
    ),
    "throughput": (
        "Training speed in images per second",
        "Median over the trials of a batch size.",
    ),
}
SEARCH = {
    "importance": (
        "Importance of the searched fields",
        "How much each field distinguishes the best tenth of the trials (at least ten) from all "
        "trials (PED-ANOVA); importances add up to 1, on pure noise as well. Grey band: what "
        "shuffled scores reach. Without any effect no bar leaves its band in 95 of 100 searches. "
        "Stopped trials count with their last score, diverged trials with the worst score.",
    ),
    "parallel_coordinates": (
        "All trials and fields",
        "One line per trial and one axis per field; yellow is best. Stopped trials have their last "
        "score. On the page, draw a rectangle over lines to see only these.",
    ),
}


@pytest.fixture(autouse=True)
def no_chart_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    dot = alt.Chart(pd.DataFrame({"x": [1]})).mark_point()
    for name in CHARTS:
        monkeypatch.setattr(gallery, name, lambda *_, **__: dot)


def words(pictures: dict[str, gallery.Picture]) -> dict[str, tuple[str, str]]:
    for name, each in pictures.items():
        assert each.name == name
        assert each.spec["description"] == f"{each.title}. {each.caption}"
    return {name: (each.title, each.caption) for name, each in pictures.items()}


@pytest.mark.parametrize(
    ("scores", "binned", "mean", "steps"),
    [
        # Means of 0.5 and 0.5, of 0.6 (deviation 0.1), of 0.55 (deviation 0.0707).
        ([0.5], False, "one seed", " of steps of 1"),
        ([0.5, 0.6, 0.7], False, "mean of up to 3 seeds", " of steps of 0.1, the noise of a trial"),
        ([0.5, 0.6], True, "mean of up to 2 trials", " of steps of 0.07, the noise of a trial"),
    ],
)
def test_a_surfaces_charts_are_captioned(
    scores: list[float | str], binned: bool, mean: str, steps: str
) -> None:
    found = replace(of({(16, 0.1): scores, (16, 0.2): [0.5]}), binned=binned)
    near = NEAR if len(found.compared) else ""
    assert words(gallery.surface_pictures(found)) == {
        "surface": (
            "val_auroc over batch size and base_lr",
            SURFACE.format(mean=mean, near=near, steps=steps),
        ),
        "lr_curves": ("val_auroc against the peak learning rate", LR_CURVES),
        "ridge": ("Best peak learning rate against batch size", RIDGE),
    }
    one = replace(found, of={"optimizer": "adam", "dropout": 0.123456})
    titles = {
        name: title
        for name, (title, _) in words(gallery.surface_pictures(one, suffix="-a")).items()
    }
    of_it = " for optimizer=adam, dropout=0.1235"
    assert titles == {
        "surface-a": f"val_auroc over batch size and base_lr{of_it}",
        "lr_curves-a": f"val_auroc against the peak learning rate{of_it}",
        "ridge-a": f"Best peak learning rate against batch size{of_it}",
    }


def test_the_charts_of_training_and_of_a_search_are_captioned() -> None:
    found = replace(of({(16, 0.1): [0.5]}), target=0.87654)
    assert words(gallery.training_pictures(found, None)) == TRAINING
    known: dict[str, Any] = {
        "name": "made", "metric": "val_auroc", "mode": "max", "about": {}, "epochs": None,
        "trials": found.trials, "analyses": [found], "steps": {}, "cautions": [],
        "leaders": pd.DataFrame(), "importance": pd.DataFrame(),
    }  # fmt: skip
    assert words(gallery.search_pictures(Findings(**known, fields=["a", "b"]))) == SEARCH
    alone = words(gallery.search_pictures(Findings(**known, fields=[])))
    assert alone == {"importance": SEARCH["importance"]}  # a grid's trials are no search's


@pytest.mark.parametrize(
    ("num_lrs", "begins", "no_score", "mark", "has_numbers"),
    [
        (12, "Number: one seed.", "Grey: no score, because the trials diverged (div.)", "rect", 1),
        (13, "Each cell: one seed.", "Grey: no score, because the trials diverged,", "rect", 0),
        (25, "Each square: one seed.", "Hollow: no score, because the trials", "square", 0),
    ],
)
def test_the_caption_of_a_surface_says_what_its_cells_have(
    num_lrs: int, begins: str, no_score: str, mark: str, has_numbers: int
) -> None:
    analysis = of({(16, 0.001 * 1.5**n): [0.8 + 0.001 * n] for n in range(num_lrs)})
    (_, caption) = words(gallery.surface_pictures(analysis))["surface"]
    assert caption.startswith(begins)
    assert no_score in caption
    chart = surface_charts.heat_map(analysis)
    assert chart is not None
    marks = [layer["mark"]["type"] for layer in chart.to_dict()["layer"]]
    assert mark in marks
    assert ("text" in marks) == has_numbers


def test_a_surface_of_nothing_has_a_caption_all_the_same() -> None:
    (_, caption) = words(gallery.surface_pictures(of({})))["surface"]
    assert caption == SURFACE.format(mean="one seed", near="", steps="")


def test_curves_that_begin_far_below_are_drawn_at_the_edge() -> None:
    """Best means 0.5, 0.8, 0.85, 0.88, 0.9: as below, 0.7 is the edge."""
    found = of({(16, 0.1): [0.9], (16, 0.3): [0.6]})
    found.trials["trial_key"] = ["best", "other"]
    scores = (0.5, 0.8, 0.85, 0.88, 0.9)
    rows = [(key, n, s) for key in ("best", "other") for n, s in enumerate(scores, 1)]
    epochs = pd.DataFrame(rows, columns=["trial_key", "epoch", "val_auroc"])
    (_, caption) = words(gallery.training_pictures(found, epochs))["learning_curves"]
    assert caption == f"{TRAINING['learning_curves'][1]} Scores below 0.7 are drawn at the edge."
    chart = training_charts.learning_curves(found, epochs)
    assert chart is not None
    assert chart.to_dict()["layer"][0]["encoding"]["y"]["scale"]["domain"][0] == pytest.approx(0.7)


def test_a_seed_that_ends_earlier_or_later_makes_no_leap_in_a_curve() -> None:
    """Three seeds of 100, 83 and 61 evaluations at 0.5, 0.7 and 0.9: the mean is 0.7 or 0.6."""
    found = of({(16, 0.1): [0.5, 0.7, 0.9]})
    found.trials["trial_key"] = ["a", "b", "c"]
    rows = [
        (key, epoch, score)
        for key, score, num in (("a", 0.5, 100), ("b", 0.7, 83), ("c", 0.9, 61))
        for epoch in range(1, num + 1)
    ]
    epochs = pd.DataFrame(rows, columns=["trial_key", "epoch", "val_auroc"])
    curve = training_charts.curves_of(found, epochs).set_index("epoch")["mean"]
    assert curve.loc[:61].to_numpy() == pytest.approx(0.7)
    assert curve.loc[62:].to_numpy() == pytest.approx(0.6)
    assert curve.index[-1] == 82  # one of three went on


def test_in_bins_every_curve_is_of_one_trial() -> None:
    """Trials of a bin differ in more than the seed, so their mean is of nothing."""
    rng = np.random.default_rng(0)
    rows = [(size, 10 ** rng.uniform(-3, 0)) for size in (16, 64) for _ in range(60)]
    drawn = pd.DataFrame(rows, columns=["batch_size", "lr"]).assign(status="completed")
    drawn["acc"] = 0.9 - 0.1 * np.log10(drawn["lr"] / 0.05) ** 2 + 0.01 * rng.normal(size=120)
    drawn["trial_key"] = range(120)
    found = analyse(drawn, metric="acc", mode="max", lr="lr")
    assert found.binned
    epochs = pd.concat(
        [drawn.assign(epoch=epoch, acc=drawn["acc"] * epoch / 3) for epoch in (1, 2, 3)]
    )[["trial_key", "epoch", "acc"]]
    table = training_charts.curves_of(found, epochs)
    assert set(table["count"]) == {1}
    thick = table[table["best"]]
    best = drawn.loc[drawn.groupby("batch_size")["acc"].idxmax()]
    assert sorted(thick["run"].unique()) == sorted(best["trial_key"].astype(str))
    assert sorted(thick.groupby("run")["mean"].max()) == pytest.approx(sorted(best["acc"]))
    assert table[~table["best"]]["run"].nunique() == training_charts.OTHER_CURVES
    (_, caption) = words(gallery.training_pictures(found, epochs))["learning_curves"]
    assert caption.startswith("Thick lines: the best trial of each batch size. Thin lines: other")


def test_scores_far_below_the_others_are_drawn_at_the_edge() -> None:
    """Of 0.5, 0.8, 0.85, 0.88 and 0.9 the median is 0.05 behind the best: four times as far, 0.7,
    is the edge.
    """
    cells: Any = {(16, 0.1 * n): [s] for n, s in enumerate((0.5, 0.8, 0.9, 0.88, 0.85), start=1)}
    found = of(cells)
    (_, caption) = words(gallery.surface_pictures(found))["lr_curves"]
    assert caption == f"{LR_CURVES} Scores below 0.7 are drawn at the edge."
    chart = surface_charts.lr_curves(found)
    assert chart is not None
    scale = chart.to_dict()["layer"][0]["encoding"]["y"]["scale"]
    assert scale["domain"] == [pytest.approx(0.7), pytest.approx(0.9, abs=0.01)]
    assert scale["clamp"]
    best = of({cell: scores for cell, scores in cells.items() if scores != [0.5]})
    assert words(gallery.surface_pictures(best))["lr_curves"][1] == LR_CURVES


def test_the_best_settings_differ_in_colour_where_the_worst_are_far_below() -> None:
    """Colours are spent by the logarithm of the distance, in steps of the noise."""
    rng = np.random.default_rng(0)
    means = {0.1: 0.85, 0.2: 0.84, 0.3: 0.5}
    cells: Any = {(16, lr): list(mean + 0.004 * rng.normal(size=5)) for lr, mean in means.items()}
    found = of(cells)
    chart = surface_charts.heat_map(found)
    assert chart is not None
    layers = [layer["encoding"].get("color", {}) for layer in chart.to_dict()["layer"]]
    (colour,) = [c for c in layers if c.get("field") == "behind"]
    assert colour["scale"]["type"] == "symlog"
    assert colour["scale"]["constant"] == pytest.approx(found.noise.std)
    behind = np.log1p(np.array([0.0, 0.01, 0.35]) / found.noise.std)
    assert behind[1] / behind[2] > 0.2  # 0.03 on a linear scale


def test_a_chart_that_there_is_not_has_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "heat_map", lambda _: None)
    assert set(gallery.surface_pictures(of({}))) == {"lr_curves", "ridge"}


def test_a_files_name_is_of_plain_characters() -> None:
    assert gallery.slug("optimizer=adam, epochs=5/../x") == "optimizer=adam_epochs=5_.._x"
    assert gallery.slug("<" + "a" * 90) == "a" * 80


@pytest.mark.parametrize(
    ("last", "ticks"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (20, [1, 2, *range(4, 21, 2)]),
     (100, [1, *range(10, 101, 10)])],
)  # fmt: skip
def test_a_learning_curves_evaluations_are_whole_and_each_is_written_once(
    last: int, ticks: list[int]
) -> None:
    assert whole_ticks(pd.Series(range(1, last + 1))) == ticks
