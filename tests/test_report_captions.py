"""The charts' titles and captions, word for word; no chart is drawn."""

from dataclasses import replace
from typing import Any

import altair as alt
import pandas as pd
import pytest
from made_tables import analysed as of

from search.report.charts import gallery
from search.report.charts.training import whole_ticks
from search.report.findings import Findings

CHARTS = (
    *("heat_map", "lr_curves", "ridge_chart", "learning_curves", "collapse_chart", "target_chart"),
    *("noise_scale_chart", "throughput_chart", "importance_chart", "parallel_coordinates"),
)
SURFACE = (
    "Colour and number: {mean}; yellow is best. Diamond: the best learning rate of each batch "
    "size. Outlined: settings that cannot be told from the best{near}. Grey: no score, because the "
    "trials diverged (div.), were stopped early (stop.) or failed (fail.)."
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
        "lines: other rates. The menu selects a batch size.",
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
        "score.",
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
    ("scores", "binned", "mean"),
    [
        ([0.5], False, "one seed"),
        ([0.5, 0.6, 0.7], False, "mean of up to 3 seeds"),
        ([0.5, 0.6], True, "mean of up to 2 trials"),
    ],
)
def test_a_surfaces_charts_are_captioned(
    scores: list[float | str], binned: bool, mean: str
) -> None:
    found = replace(of({(16, 0.1): scores, (16, 0.2): [0.5]}), binned=binned)
    near = NEAR if len(found.compared) else ""
    assert words(gallery.surface_pictures(found)) == {
        "surface": ("val_auroc over batch size and base_lr", SURFACE.format(mean=mean, near=near)),
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


def test_a_surface_of_nothing_has_a_caption_all_the_same() -> None:
    (_, caption) = words(gallery.surface_pictures(of({})))["surface"]
    assert caption == SURFACE.format(mean="one seed", near="")


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
