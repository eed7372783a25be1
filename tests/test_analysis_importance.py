"""What mattered in a search, and its trials across the fields."""

import math
from typing import Any

import altair as alt
import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.analysis.importance import _domain, _scores, importance, is_log
from search.report.search_charts import _heights, _label, importance_chart, parallel_coordinates

FIELDS = ["base_lr", "batch_size", "optimizer"]


def drawn(n: int = 60, **more: object) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "base_lr": 10 ** rng.uniform(-4, 0, n),
            "batch_size": rng.choice([16, 32, 64], n),
            "optimizer": rng.choice(["sgd", "adam"], n),
            "status": "completed",
        }
    )
    table["val_auroc"] = 0.9 - 0.1 * (np.log10(table["base_lr"]) + 2) ** 2
    return table.assign(**more)


def optunas(table: pd.DataFrame, scores: "pd.Series[float]", share: float) -> dict[str, float]:
    """The same trials told to a study by hand."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    lrs = table["base_lr"]
    distributions: dict[str, Any] = {
        "base_lr": FloatDistribution(lrs.min(), lrs.max(), log=True),
        "batch_size": CategoricalDistribution([16, 32, 64]),
        "optimizer": CategoricalDistribution(["adam", "sgd"]),
    }
    for row, score in zip(table.to_dict("records"), scores, strict=True):
        params = {name: row[name] for name in FIELDS}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=score)
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


@pytest.mark.parametrize(("n", "share"), [(20, 0.5), (60, 10 / 60), (200, 0.1)])
def test_importance_is_optunas_of_the_best_tenth_or_ten(n: int, share: float) -> None:
    table = drawn(n)
    quiet = optuna.logging.get_verbosity()
    found = importance(table, fields=FIELDS, metric="val_auroc", mode="max")
    assert optuna.logging.get_verbosity() == quiet
    assert found.columns.tolist() == ["field", "importance"]
    wanted = optunas(table, table["val_auroc"], share)
    assert dict(found.to_numpy().tolist()) == pytest.approx(wanted)
    assert found["field"].iloc[0] == "base_lr"
    assert found["importance"].is_monotonic_decreasing
    # Of less is better, the negative is.
    low = table.assign(val_auroc=-table["val_auroc"])
    found = importance(low, fields=FIELDS, metric="val_auroc", mode="min")
    assert dict(found.to_numpy().tolist()) == pytest.approx(wanted)


def test_stopped_trials_count_and_diverged_ones_as_the_worst() -> None:
    table = drawn()
    table.loc[0:9, "status"] = "stopped"
    table.loc[10:19, ["status", "val_auroc"]] = ["diverged", math.nan]
    failed = table.head(5).assign(status="failed", val_auroc=2.0)
    found = importance(pd.concat([table, failed]), fields=FIELDS, metric="val_auroc", mode="max")
    scores = table["val_auroc"].fillna(-1.0)
    wanted = optunas(table, scores, 10 / 60)
    assert dict(found.to_numpy().tolist()) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        (drawn(19), FIELDS),
        (drawn(), FIELDS[:1]),
        (drawn(val_auroc=0.5), FIELDS),
        (drawn(status="failed"), FIELDS),
        (drawn(val_auroc=math.nan), FIELDS),
    ],
    ids=["few trials", "one field", "one score", "failed", "no score"],
)
def test_of_too_little_nothing_is_important(table: pd.DataFrame, fields: list[str]) -> None:
    found = importance(table, fields=fields, metric="val_auroc", mode="max")
    assert found.empty
    assert found.columns.tolist() == ["field", "importance"]
    assert importance_chart(found) is None


def test_a_fields_domain_is_read_off_its_values() -> None:
    def of(values: list[Any]) -> Any:
        return _domain(pd.Series(values))

    assert of([1, 1, 1]) is None
    assert of([0.1, math.nan]) == CategoricalDistribution([0.1, "none"])
    assert of([True, False]) == CategoricalDistribution([False, True])
    assert of(["b", "a", None]) == CategoricalDistribution(["a", "b", "none"])
    assert of([*range(8)]) == CategoricalDistribution([*range(8)])
    assert of([*range(9)]) == IntDistribution(0, 8)
    assert of([*range(1, 31)]) == IntDistribution(1, 30, log=True)
    assert of([*range(1, 30)]) == IntDistribution(1, 29)
    assert of([k / 10 for k in range(1, 10)]) == FloatDistribution(0.1, 0.9)
    assert of([10.0**-k for k in range(9)]) == FloatDistribution(1e-8, 1.0, log=True)
    assert not is_log(pd.Series([0.0, 100.0]))
    assert is_log(pd.Series([1.0, 30.0]))


@pytest.mark.parametrize(("mode", "worst"), [("max", 0.2), ("min", -0.9)])
def test_what_is_not_finite_has_no_score_unless_it_diverged(mode: str, worst: float) -> None:
    rows = pd.DataFrame(
        {
            "own": [0.9, 0.2, math.inf, math.nan, math.nan],
            "status": ["completed"] * 3 + ["stopped", "diverged"],
        }
    )
    scores = _scores(rows, metric="own", mode=mode)
    sign = 1.0 if mode == "max" else -1.0
    assert scores.tolist()[:2] == [sign * 0.9, sign * 0.2]
    assert scores.isna().tolist() == [False, False, True, True, False]
    assert scores.iloc[4] == min(0.0, worst)  # of a metric of one's own the worst is not known


def test_values_lie_on_an_axis_from_0_to_1() -> None:
    height, low, high = _heights(pd.Series([1.0, 10.0, 100.0]))
    assert (height.tolist(), low, high) == (pytest.approx([0, 0.5, 1]), "1", "100")
    height, low, high = _heights(pd.Series([1.0, 2.0, 5.0]))
    assert (height.tolist(), low, high) == (pytest.approx([0, 0.25, 1]), "1", "5")
    height, low, high = _heights(pd.Series(["b", "a", None, "c"]))
    assert (height.tolist(), low, high) == (pytest.approx([1 / 3, 0, 1, 2 / 3]), "a", "none")
    assert _heights(pd.Series([2.0, 2.0]))[0].tolist() == [0.5, 0.5]
    assert _heights(pd.Series(["a", "a"]))[0].tolist() == [0, 0]
    assert [_label(each) for each in (0.123456, 1e-5, 16, None, True)] == [
        *("0.1235", "1e-05", "16", "none", "True"),
    ]


def test_every_trial_is_a_line_the_best_drawn_last() -> None:
    table = drawn(400)
    table.loc[0, "val_auroc"] = math.inf
    for mode in ("max", "min"):
        chart = parallel_coordinates(table, fields=FIELDS, metric="val_auroc", mode=mode)
        assert chart is not None
        with alt.data_transformers.enable(max_rows=None):
            spec = chart.to_dict()
        rows = pd.DataFrame(max(spec["datasets"].values(), key=len))
        assert rows["trial"].nunique() == 300
        assert set(rows["field"]) == {*FIELDS, "val_auroc"}
        scores = rows["score"].tolist()
        assert scores == sorted(scores, reverse=mode == "min")
        finite = table["val_auroc"].drop(0)
        assert {scores[0], scores[-1]} == {finite.min(), finite.max()}
        colour = spec["layer"][0]["encoding"]["color"]
        assert colour["scale"]["reverse"] == (mode == "min")
    few = {"fields": FIELDS, "metric": "val_auroc", "mode": "max"}
    assert parallel_coordinates(table.iloc[1:2], **few) is None  # type: ignore[arg-type]
    assert parallel_coordinates(table, **few | {"fields": FIELDS[:1]}) is None  # type: ignore[arg-type]
    failed = parallel_coordinates(table.assign(status="failed"), **few)  # type: ignore[arg-type]
    assert failed is None
