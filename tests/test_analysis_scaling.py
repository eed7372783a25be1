import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest
from made_tables import with_scores

from search.analysis.scaling.collapse import collapse
from search.analysis.scaling.exponent import EDGE_WITHIN_NOISE, exponent
from search.analysis.scaling.forms import rival_forms
from search.analysis.scaling.ridge import ridge, ridge_interval
from search.analysis.surface import surface

Draw = Callable[..., pd.DataFrame]
# How many simulated studies, and the least share of nominal 95 % intervals that hold the truth:
# intervals half as wide fail even of few.
FEW, MANY = (60, 0.9), pytest.param(200, 0.93, marks=pytest.mark.slow)
BATCH_SIZES = (16, 32, 64, 128, 256)
# Test AUROC of Kandel & Castelli 2020 (doi:10.1016/j.icte.2020.04.010), Tables 1 and 2, at an lr of
# 1e-4 and of 1e-3.
KANDEL = {
    "adam": (
        [0.9677, 0.9636, 0.9616, 0.9567, 0.9585],
        [0.9144, 0.9332, 0.9381, 0.9432, 0.9652],
    ),
    "sgd": (
        [0.9555, 0.9570, 0.9512, 0.9302, 0.9077],
        [0.9461, 0.9521, 0.9545, 0.9567, 0.9579],
    ),
}


def kandel(optimizer: str) -> pd.DataFrame:
    low, high = KANDEL[optimizer]
    return table_of(
        {
            (batch_size, lr): score
            for lr, scores in ((1e-4, low), (1e-3, high))
            for batch_size, score in zip(BATCH_SIZES, scores, strict=True)
        }
    )


def table_of(scores: Mapping[tuple[float, float], float]) -> pd.DataFrame:
    """A surface of one seed a cell."""
    rows = [(b, lr, 0, "completed", score) for (b, lr), score in scores.items()]
    names = ["batch_size", "base_lr", "seed", "status", "val_auroc"]
    return surface(pd.DataFrame(rows, columns=names), metric="val_auroc")


def curved(best_lr: Callable[[float], float], batch_sizes: list[int]) -> pd.DataFrame:
    """A surface without noise whose best lr is given; lrs a factor of two about each best."""
    lrs = 2.0 ** np.arange(-16, 8)
    return table_of(
        {(b, lr): 0.9 - 0.01 * math.log2(lr / best_lr(b)) ** 2 for b in batch_sizes for lr in lrs}
    )


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "censored and diverged"])
@pytest.mark.parametrize("noise", [0.003, pytest.param(0.001, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("repetitions", "least_share"), [FEW, MANY])
def test_intervals_hold_the_known_exponent_and_best_lrs(
    draw_trials: Draw, lost: bool, noise: float, repetitions: int, least_share: float
) -> None:
    rng = np.random.default_rng(1)
    held, best_lrs_held = [], []
    for _ in range(repetitions):
        trials = draw_trials(rng, exponent=0.7, noise=noise, lost=lost)
        cells = surface(trials, metric="val_auroc")
        found = exponent(cells, mode="max")
        held.append(found.low <= 0.7 <= found.high)  # an exponent that is not found holds nothing
        known = trials.groupby("batch_size")["best"].first()
        rows = ridge_interval(cells, mode="max").set_index("batch_size")
        best_lrs_held += list((rows["lr_low"] <= known) & (known <= rows["lr_high"]))
    assert np.mean(held) >= least_share
    assert np.mean(best_lrs_held) >= least_share


def test_an_interval_is_no_wider_than_its_noise(draw_trials: Draw) -> None:
    """What an interval that always holds would not do: shrink with the noise, reject the rules."""
    widths = {}
    for noise in (0.0005, 0.003):
        cells = surface(draw_trials(np.random.default_rng(0), noise=noise), metric="val_auroc")
        found = exponent(cells, mode="max")
        widths[noise] = found.high - found.low
    assert widths[0.0005] < widths[0.003] / 3
    # The vertex of y = -c x^2 at offset d from the middle of three points one apart, each of error
    # e, has the variance (e / 4c)^2 (2 + 24 d^2) to first order; d^2 is 1/12 on average.
    vertex = 0.003 / math.sqrt(3) / (4 * 0.004) * math.sqrt(2 + 24 / 12)
    slope = vertex / math.sqrt(sum(k**2 for k in (-2, -1, 0, 1, 2)))
    assert widths[0.003] == pytest.approx(2 * 1.96 * slope, rel=0.3)


@pytest.mark.parametrize(("a", "holds"), [(0.0, "constant"), (0.5, "sqrt"), (1.0, "linear")])
def test_the_rule_that_made_the_surface_holds_alone(
    draw_trials: Draw, a: float, holds: str
) -> None:
    trials = draw_trials(np.random.default_rng(2), exponent=a, noise=0.0015)
    found = exponent(surface(trials, metric="val_auroc"), mode="max")
    assert {rule: found.verdict(rule) for rule in ("constant", "sqrt", "linear")} == {
        **dict.fromkeys(("constant", "sqrt", "linear"), "rejected"),
        holds: "compatible",
    }


def test_less_is_better_mirrors_more_is_better(draw_trials: Draw) -> None:
    trials = draw_trials(np.random.default_rng(3))
    high = exponent(surface(trials, metric="val_auroc"), mode="max")
    mirrored = trials.assign(val_auroc=1 - trials["val_auroc"])
    low = exponent(surface(mirrored, metric="val_auroc"), mode="min")
    # The mirrored surface's draws are others, and so the weights of the points a little.
    assert low.value == pytest.approx(high.value, abs=0.01)
    assert (low.low, low.high) == pytest.approx((high.low, high.high), abs=0.05)


def test_a_best_lr_on_the_edge_is_left_out_and_said() -> None:
    cells = curved(lambda b: 2.0 ** (-20 if b == 16 else 0) * b / 64, [16, 32, 64, 128])
    found = exponent(cells, mode="max")
    assert set(found.left_out) == {16}
    assert found.batch_sizes == (32, 64, 128)
    assert found.value == pytest.approx(1.0)
    assert math.isnan(found.low)  # three points without seeds: no interval
    assert found.verdict("linear") == "unknown"
    assert math.isnan(exponent(cells[cells["batch_size"] > 32], mode="max").value)


@pytest.mark.parametrize("edge", [0.01, 0.1, 0.3, 0.7, 1.0, 3.0])
def test_a_best_lr_that_may_be_the_edge_within_the_noise_is_left_out(edge: float) -> None:
    """Whatever the edge: the exponential of a number's logarithm is not always the number."""
    scores = (0.8, 0.86, 0.90, 0.899)
    cells = pd.DataFrame(
        [
            (b, lr, score, 0.01, 3, 3, 0, 0, 0)
            for b in BATCH_SIZES
            for lr, score in zip((edge / 8, edge / 4, edge / 2, edge), scores, strict=True)
        ],
        columns=["batch_size", "lr", "mean", "std", "n", "trials", "diverged", "stopped", "failed"],
    )
    cells = with_scores(cells)
    found = exponent(cells, mode="max")
    assert found.left_out == dict.fromkeys(BATCH_SIZES, EDGE_WITHIN_NOISE)
    assert found.batch_sizes == ()


def test_the_vertex_is_that_of_a_parabola_through_three_points() -> None:
    lrs, scores = [0.1, 0.3, 0.7], [0.8, 0.9, 0.7]
    cells = table_of({(16, lr): score for lr, score in zip(lrs, scores, strict=True)})
    square, slope, _ = np.polyfit(np.log(lrs), scores, 2)
    (vertex,) = ridge(cells, mode="max")["vertex"]
    assert vertex == pytest.approx(np.exp(-slope / (2 * square)))


NOISE_SCALE = 200.0
FORMS: dict[str, Callable[[float], float]] = {
    "saturating": lambda b: 4.0 / (1 + NOISE_SCALE / b),
    "surge": lambda b: 4.0 / ((math.sqrt(NOISE_SCALE / b) + math.sqrt(b / NOISE_SCALE)) / 2),
    "power": lambda b: 0.01 * b**0.73,
    "a=0.5": lambda b: 0.1 * b**0.5,
    "a=0": lambda b: 0.1,
}


def forms_of(cells: pd.DataFrame) -> pd.DataFrame:
    return rival_forms(exponent(cells, mode="max"), ridge(cells, mode="max"))


@pytest.mark.parametrize("form", FORMS)
def test_the_form_that_made_the_ridge_is_chosen(form: str) -> None:
    sizes = [16, 32, 64, 128, 256, 512, 1024, 2048]
    table = forms_of(curved(FORMS[form], sizes))
    best = table.iloc[0]
    assert best["form"] == form
    assert best["delta"] == 0
    others = table[table["parameters"] >= best["parameters"]].iloc[1:]
    assert (others["delta"] > 1.9).all()  # 2 for each parameter that gains nothing
    if form in ("saturating", "surge"):
        assert best["b_noise"] == pytest.approx(NOISE_SCALE, rel=0.01)


@pytest.mark.parametrize("repetitions", [15, pytest.param(40, marks=pytest.mark.slow)])
def test_the_form_is_chosen_through_noise(repetitions: int) -> None:
    """Of noisy ridges of each form, nine in ten: the form that made it."""
    rng = np.random.default_rng(0)
    sizes = [16, 32, 64, 128, 256, 512, 1024, 2048]
    for form in ("saturating", "surge"):
        chosen = []
        for _ in range(repetitions):
            error = dict(zip(sizes, np.exp(rng.normal(0, 0.1, len(sizes))), strict=True))
            cells = curved(lambda b, form=form, error=error: FORMS[form](b) * error[b], sizes)
            chosen.append(forms_of(cells).loc[0, "form"])
        assert chosen.count(form) >= 0.9 * repetitions


def test_few_batch_sizes_have_no_rivals() -> None:
    sizes = [16, 32, 64, 128, 256, 512]
    assert forms_of(curved(lambda b: 0.01 * b, sizes[:5])).empty
    assert len(forms_of(curved(lambda b: 0.01 * b, sizes))) == 6


@pytest.mark.parametrize(
    ("optimizer", "best", "r2", "r2_at"),
    [
        ("adam", 0.52, 0.933, {0.0: 0.478, 0.5: 0.933, 1.0: 0.873}),
        ("sgd", 1.17, 0.951, {0.0: 0.187, 0.5: 0.871, 1.0: 0.947}),
    ],
)
def test_kandels_tables_collapse(
    optimizer: str, best: float, r2: float, r2_at: dict[float, float]
) -> None:
    found = collapse(kandel(optimizer))
    assert found.exponent == best
    assert found.r2 == pytest.approx(r2, abs=5e-4)
    assert {a: found.r2_at[a] for a in r2_at} == pytest.approx(r2_at, abs=5e-4)


def test_r2_is_that_of_numpys_polynomial(draw_trials: Draw) -> None:
    cells = surface(draw_trials(np.random.default_rng(4), lost=True), metric="val_auroc")
    found = collapse(cells)
    known = cells.dropna(subset="mean")
    assert len(known) < len(cells)
    for a in (0.0, 0.33, 1.0, 2.0):
        x = np.log10(known["lr"]) - a * np.log10(known["batch_size"])
        left = known["mean"] - np.polyval(np.polyfit(x, known["mean"], 2), x)
        assert found.r2_at[a] == pytest.approx(1 - left.var() / known["mean"].var(), abs=1e-9)
    assert found.r2 == max(found.r2_at.values())


def test_the_collapse_finds_the_exponent(draw_trials: Draw) -> None:
    for a in (0.0, 0.4, 1.0, 1.5):
        trials = draw_trials(np.random.default_rng(5), exponent=a, noise=0.001)
        found = collapse(surface(trials, metric="val_auroc"))
        assert found.exponent == pytest.approx(a, abs=0.03)
        assert found.r2 > 0.99


@pytest.mark.parametrize("rows", [0, 4, 10], ids=["nothing", "too few", "constant"])
def test_what_cannot_be_collapsed_is_not(rows: int) -> None:
    cells = kandel("adam").head(rows).assign(mean=0.5)
    assert math.isnan(collapse(cells).exponent)
    assert collapse(cells).r2_at == {}
