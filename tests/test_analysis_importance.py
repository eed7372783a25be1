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

from search.analysis.importance import (
    _domain,
    _scores,
    _shuffled,
    by_chance,
    importance,
    is_log,
)
from search.report.charts.search import _heights, _label, importance_chart, parallel_coordinates
from search.report.sentences.search import importance_sentence

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


def shares(found: pd.DataFrame) -> dict[str, float]:
    return dict(zip(found["field"], found["importance"], strict=True))


@pytest.mark.parametrize(("n", "share"), [(20, 0.5), (60, 10 / 60), (200, 0.1)])
def test_importance_is_optunas_of_the_best_tenth_or_ten(n: int, share: float) -> None:
    table = drawn(n)
    quiet = optuna.logging.get_verbosity()
    found = importance(table, fields=FIELDS, metric="val_auroc", mode="max")
    assert optuna.logging.get_verbosity() == quiet
    assert found.columns.tolist() == ["field", "importance", "by_chance", "stands_out"]
    wanted = optunas(table, table["val_auroc"], share)
    assert shares(found) == pytest.approx(wanted)
    assert found["field"].iloc[0] == "base_lr"
    assert found["importance"].is_monotonic_decreasing
    # Of less is better, the negative is.
    low = table.assign(val_auroc=-table["val_auroc"])
    found = importance(low, fields=FIELDS, metric="val_auroc", mode="min")
    assert shares(found) == pytest.approx(wanted)


def test_stopped_trials_count_and_diverged_ones_as_the_worst() -> None:
    table = drawn()
    table.loc[0:9, "status"] = "stopped"
    table.loc[10:19, ["status", "val_auroc"]] = ["diverged", math.nan]
    failed = table.head(5).assign(status="failed", val_auroc=2.0)
    found = importance(pd.concat([table, failed]), fields=FIELDS, metric="val_auroc", mode="max")
    scores = table["val_auroc"].fillna(-1.0)
    wanted = optunas(table, scores, 10 / 60)
    assert shares(found) == pytest.approx(wanted)


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
    assert found.columns.tolist() == ["field", "importance", "by_chance", "stands_out"]
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


def noise(
    rng: np.random.Generator, *, n: int = 60, seeds: int = 1, strength: float = 0.0
) -> pd.DataFrame:
    """A search of four fields, of which at most the learning rate has an effect."""
    table = pd.DataFrame(
        {
            "base_lr": 10 ** rng.uniform(-4, 0, n),
            "batch_size": rng.choice([16, 32, 64, 128], n),
            "optimizer": rng.choice(["sgd", "adam"], n),
            "weight_decay": 10 ** rng.uniform(-6, -2, n),
        }
    )
    table = pd.concat([table] * seeds, ignore_index=True).assign(status="completed")
    effect = -strength * (np.log10(table["base_lr"]) + 2) ** 2
    return table.assign(val_auroc=0.8 + 0.01 * (rng.standard_normal(len(table)) + effect))


def found_in(table: pd.DataFrame) -> pd.DataFrame:
    fields = [*FIELDS, "weight_decay"]
    return importance(table, fields=fields, metric="val_auroc", mode="max")


@pytest.mark.parametrize(
    ("repetitions", "shuffles", "error"),
    [(25, 39, 0.12), pytest.param(400, 39, 0.03, marks=pytest.mark.slow),
     pytest.param(400, 199, 0.03, marks=pytest.mark.slow)],
)  # fmt: skip
def test_on_pure_noise_no_field_stands_out_in_95_of_100_searches(
    repetitions: int, shuffles: int, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.analysis.importance.MOST_SHUFFLES", shuffles)
    rng = np.random.default_rng(0)
    tables = [found_in(noise(rng)) for _ in range(repetitions)]
    nothing = np.mean([not table["stands_out"].any() for table in tables])
    top = np.mean([table["importance"].iloc[0] for table in tables])
    print(f"{shuffles} shuffles: {nothing:.3f} of {repetitions} without a field; top {top:.2f}")
    assert nothing == pytest.approx(0.95, abs=error)
    assert top > 0.4


@pytest.mark.parametrize("seeds", [1, 3])
def test_beside_a_field_with_an_effect_the_others_do_not_stand_out(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeds of a configuration score alike: by themselves they make a field look important."""
    monkeypatch.setattr("search.analysis.importance.MOST_SHUFFLES", 39)
    rng = np.random.default_rng(1)
    tables = [found_in(noise(rng, n=40, seeds=seeds, strength=10.0)) for _ in range(12)]
    out = pd.concat(tables).groupby("field")["stands_out"].mean()
    print(out.to_dict())
    assert out["base_lr"] >= 0.7
    assert (out.drop("base_lr") <= 0.17).all()


def test_shuffles_keep_the_trials_of_a_configuration_together() -> None:
    scores = np.array([1.0, 9.0, 2.0, 8.0, 1.5, 9.5])
    config = np.array([0, 1, 0, 1, 0, 1])
    for dealt in _shuffled(scores, config):
        assert sorted(dealt) == sorted(scores)
        assert {dealt[0] < 5, dealt[2] < 5, dealt[4] < 5} in ({True}, {False})
    assert len(_shuffled(scores, config)) == 199
    assert [len(_shuffled(np.zeros(n), np.arange(n))) for n in (800, 2000, 5000)] == [100, 40, 39]


def test_the_band_is_left_by_five_of_a_hundred_of_its_own_shuffles() -> None:
    rng = np.random.default_rng(2)
    shuffled = rng.chisquare([1, 3, 8], size=(199, 3)) * [1.0, 0.1, 10.0]
    above = (shuffled > by_chance(shuffled)).any(axis=1)
    assert 7 <= above.sum() <= 9  # the tenth largest of 199 is the limit itself
    fields = (shuffled > by_chance(shuffled)).sum(axis=0)
    assert fields.max() <= 6  # each field has its part of them


def test_each_shuffle_is_compared_with_the_others() -> None:
    shuffled = np.random.default_rng(3).chisquare([1, 8], size=(39, 2))
    roots = np.cbrt(shuffled)
    apart = [np.delete(roots, at, axis=0) for at in range(39)]
    largest = [
        ((root - others.mean(axis=0)) / others.std(axis=0, ddof=1)).max()
        for root, others in zip(roots, apart, strict=True)
    ]
    limit = sorted(largest)[37]  # the second largest of 39: two of 40 with the search itself
    wanted = (roots.mean(axis=0) + limit * roots.std(axis=0, ddof=1)) ** 3
    assert by_chance(shuffled) == pytest.approx(wanted)


def test_the_sentence_names_the_fields_that_stand_out() -> None:
    table = pd.DataFrame(
        {
            "field": ["a", "b", "c"],
            "importance": [0.7, 0.25, 0.05],
            "by_chance": [0.213, 0.2, 0.1],
            "stands_out": [True, True, False],
        }
    )
    assert importance_sentence(table) == (
        "a (importance 70%, shuffled scores reach 21%) and b (importance 25%, shuffled scores "
        "reach 20%) stand out above chance; the other field does not."
    )
    one = table.assign(stands_out=[True, False, False])
    assert importance_sentence(one) == (
        "a (importance 70%, shuffled scores reach 21%) stands out above chance; the other 2 fields "
        "do not."
    )
    assert importance_sentence(table.head(1)) == (
        "a (importance 70%, shuffled scores reach 21%) stands out above chance."
    )
    assert importance_sentence(table.assign(stands_out=False, by_chance=1.4)) == (
        "No searched field stands out above chance: even the most important, a (70%), is within "
        "what shuffled scores give."
    )
    assert importance_sentence(table.assign(by_chance=math.nan, stands_out=False)) == ""
    assert importance_sentence(table.iloc[:0]) == ""


def test_the_chart_has_a_bar_before_a_band_that_ends_at_one() -> None:
    table = pd.DataFrame(
        {
            "field": ["a", "b"],
            "importance": [0.8, 0.2],
            "by_chance": [0.3, 1.4],
            "stands_out": [True, False],
        }
    )
    chart = importance_chart(table)
    assert chart is not None
    spec = chart.to_dict()
    band, bar = spec["layer"]
    assert [layer["encoding"]["x"]["field"] for layer in (band, bar)] == ["band", "importance"]
    (rows,) = spec["datasets"].values()
    assert [row["band"] for row in rows] == [0.3, 1.0]
    assert band["encoding"]["x"]["scale"]["domain"] == [0, 1]
