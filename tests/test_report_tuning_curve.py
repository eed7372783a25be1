"""The tuning curve on the page: its sentence, its notes, its chart and its numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from search.report.charts.gallery import tuning_pictures
from search.report.charts.tuning_curve import tuning_chart
from search.report.findings import Findings, of_study
from search.report.tuning_curve import (
    curve_of,
    notes,
    tuning_numbers,
    tuning_section,
    tuning_sentence,
)
from search.results.tables import Results

MakeStudy = Callable[..., Results]
RANDOM = {"kind": "Random", "num_configs": 25, "points": [], "sampling_seed": 0}
RANGES = {"batch_size": "[16, 32, 64] Categorical", "base_lr": "(0.001, 1) Float"}


def searched(make_study: MakeStudy, **more: Any) -> Findings:
    """25 settings that count as random draws; one diverged."""
    about = {"explore": RANDOM, "vary": RANGES, **more.pop("about", {})}
    return of_study(make_study(about=about, **more))


def test_random_draws_have_a_band(make_study: MakeStudy) -> None:
    findings = searched(make_study)
    said = tuning_numbers(findings)
    assert said is not None
    assert (said["kind"], said["trials"], said["seed"]) == ("random", 25, 0)
    rows = {row["trials"]: row for row in said["curve"]}
    one, eight, last = rows[1], rows[8], rows[25]
    assert tuning_sentence(findings) == (
        f"After 1 random trial the median best val_auroc is {one['best']:.4g} "
        f"[{one['low']:.4g}, {one['high']:.4g}]; after 8, {eight['best']:.4g} (at least "
        f"{eight['low']:.4g}); after 25, {last['best']:.4g} (at least {last['low']:.4g}) (95 % for "
        f"all at once)."
    )
    assert last["high"] is None
    curve = curve_of(findings)
    assert curve is not None
    assert notes(curve) == [
        "One trial of each configuration was used, that with seed 0.",
        "1 of 25 trials have no score. Trials without a score, because they diverged or failed, "
        "count as worse than any other.",
    ]
    (picture,) = tuning_pictures(findings).values()
    assert picture.title == "Best val_auroc against the number of trials"
    assert "exact simultaneous bands" in picture.caption
    chart = tuning_chart(curve, metric="val_auroc")
    assert chart is not None
    chart.to_dict(validate=True)
    assert [layer["mark"]["type"] for layer in picture.spec["layer"]] == ["area", "line"]
    html = tuning_section(findings, "FIGURE")
    assert html.startswith("FIGURE<p>After 1 random trial")
    assert f"{rows[16]['best']:.4g}" in html


def test_a_grid_has_none_and_says_whose_settings_are_drawn(make_study: MakeStudy) -> None:
    findings = of_study(make_study())
    said = tuning_numbers(findings)
    assert said is not None
    assert (said["kind"], said["settings"], said["trials"]) == ("grid", 25, 75)
    assert said["why_no_band"] == "the settings of a grid are no random draws"
    assert "low" not in said["curve"][0]
    assert tuning_sentence(findings).startswith(
        "Of settings drawn at random from the 25 of this grid, each trained with one seed, the "
        "median best val_auroc is "
    )
    (picture,) = tuning_pictures(findings).values()
    assert "there is no band" in picture.caption
    assert [layer["mark"]["type"] for layer in picture.spec["layer"]] == ["line"]


def test_adaptive_searches_show_the_best_so_far(make_study: MakeStudy) -> None:
    explore = {"kind": "Optuna", "num_configs": 25, "sampler": "tpe"}
    findings = searched(make_study, seeds=1, about={"explore": explore})
    trials = findings.trials
    trials["ended_at"] = np.arange(len(trials))
    said = tuning_numbers(findings)
    assert said is not None
    assert said["kind"] == "in order"
    best = said["curve"][-1]["best"]
    assert best == trials["val_auroc"].max()
    last = int(trials["val_auroc"].argmax()) + 1
    assert tuning_sentence(findings).endswith(
        f"{best:.4g} after 25; it last improved with trial {last}."
    )
    assert said["notes"][0] == (
        "No confidence band: which trials were started or stopped depended on the scores of "
        "others. The best of many noisy scores is a little better than its setting is."
    )
    (picture,) = tuning_pictures(findings).values()
    assert picture.spec["layer"][0]["mark"]["interpolate"] == "step-after"


def test_of_several_surfaces_the_best_is_the_grid(make_study: MakeStudy) -> None:
    findings = of_study(make_study(changes=[{"optimizer": "sgd"}, {"optimizer": "adamw"}]))
    curve = curve_of(findings)
    assert curve is not None
    assert curve.num_settings == 25
    (picture,) = tuning_pictures(findings).values()
    assert picture.title == "Best val_auroc against the number of trials for optimizer=sgd"


@pytest.mark.parametrize(
    "about",
    [
        {"planned": ["made0000000000000", "made0000000000001", "not yet"]},
        {"explore": {"kind": "Ablation", "steps": {"a": {}}}},
    ],
)
def test_an_unfinished_grid_and_an_ablation_have_no_curve(
    make_study: MakeStudy, about: Any
) -> None:
    findings = of_study(make_study(about=about))
    assert curve_of(findings) is None
    assert (tuning_sentence(findings), tuning_section(findings, ""), tuning_numbers(findings)) == (
        "",
        "",
        None,
    )
    assert tuning_pictures(findings) == {}


def test_test_scores_have_no_curve(make_study: MakeStudy) -> None:
    assert curve_of(of_study(make_study(), metric="test_auroc")) is None


def test_without_any_score_the_sentence_says_so(make_study: MakeStudy) -> None:
    findings = of_study(make_study(status="diverged", val_auroc=None))
    assert tuning_sentence(findings) == "So far no trial has a val_auroc."
    assert tuning_pictures(findings) == {}
