"""Each interval is the 95 % one: by scipy, by a regression, or by own draws."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from made_tables import analysed, best_set, table, with_scores
from numpy.typing import NDArray
from scipy import stats

from search.analysis.costs.critical_batch import front
from search.analysis.leaderboard import leaderboard
from search.analysis.noise import noise_of, redrawn, standard_errors
from search.analysis.scaling.exponent import EDGE_WITHIN_NOISE, exponent
from search.analysis.scaling.ridge import CURVED, ridge_interval
from search.analysis.surface import surface, with_interval
from search.report.charts.training import target_chart

Floats = NDArray[np.float64]
DRAWS = 40_000
SIZES = (16, 32, 64, 128, 256)


def cells_of(means: Mapping[tuple[int, float], float], std: float, n: int = 3) -> pd.DataFrame:
    """A surface of known means whose cells all have the same deviation."""
    rows = [(b, lr, mean, std, n, n, 0, 0, 0) for (b, lr), mean in means.items()]
    names = ["batch_size", "lr", "mean", "std", "n", "trials", "diverged", "stopped", "failed"]
    return with_scores(pd.DataFrame(rows, columns=names))


def parabolas(best: Mapping[int, float], std: float, fall: float = 0.01) -> pd.DataFrame:
    """Five lrs, a factor of two apart, about each batch size's best one."""
    means = {
        (b, top * 2.0**k): 0.9 - fall * k**2 for b, top in best.items() for k in (-2, -1, 0, 1, 2)
    }
    return cells_of(means, std)


def log_vertices(rng: np.random.Generator, std: float, fall: float, freedom: int) -> Floats:
    """Own draws of a best log lr beside its truth, on such a parabola, by numpy's polynomials.

    The five means have Student's noise: the deviation is off by one factor in all of a draw.
    """
    x = np.log(2.0) * np.arange(-2, 3)
    scale = np.sqrt(freedom / rng.chisquare(freedom, (DRAWS, 1)))
    y = -fall * np.arange(-2, 3) ** 2 + std / math.sqrt(3) * scale * rng.standard_normal((DRAWS, 5))
    at = y.argmax(axis=1)
    assert ((at > 0) & (at < 4)).mean() > 0.999  # no draw's best is on an edge
    at = at.clip(1, 3)
    found = np.empty(DRAWS)
    for middle in (1, 2, 3):
        rows = at == middle
        square, slope, _ = np.polyfit(
            x[middle - 1 : middle + 2], y[rows, middle - 1 : middle + 2].T, 2
        )
        found[rows] = -slope / (2 * square)
    return found


def intervals(scores: Mapping[tuple[int, float], list[float]], metric: str) -> list[pd.DataFrame]:
    """The intervals of a surface's cells and of a leaderboard's rows, by the same index."""
    trials = table(scores).rename(columns={"val_auroc": metric})
    trials = trials.assign(**{metric.replace("val_", "test_"): 0.5})
    cells = surface(trials, metric=metric).set_index(["batch_size", "lr"])
    by = ["batch_size", "base_lr"]
    leaders = leaderboard(trials, by=by, metric=metric, mode="max", rows=99).set_index(by)
    return [cells, leaders]


def by_the_delta_method(values: list[float], transformed: str) -> tuple[float, float]:
    """The interval on the scale of a function of the mean, with its numerical derivative."""
    forward = {"logit": stats.logistic.ppf, "log": np.log, "same": lambda x: x}[transformed]
    back = {"logit": stats.logistic.cdf, "log": np.exp, "same": lambda x: x}[transformed]
    mean, step = float(np.mean(values)), 1e-6
    slope = (forward(mean + step) - forward(mean - step)) / (2 * step)
    low, high = stats.t.interval(
        0.95, len(values) - 1, forward(mean), float(stats.sem(values)) * slope
    )
    return float(back(low)), float(back(high))


@pytest.mark.parametrize(
    ("metric", "transformed"),
    [
        ("val_auroc", "logit"),
        ("val_accuracy", "logit"),
        ("val_loss", "log"),
        ("val_utility", "same"),
    ],
)
def test_a_cells_interval_is_students_on_the_scale_of_its_bounds(
    metric: str, transformed: str
) -> None:
    rng = np.random.default_rng(0)
    counts = {(16, 0.1): 2, (16, 0.2): 3, (32, 0.1): 7, (32, 0.2): 1}
    drawn = {cell: rng.uniform(0.6, 0.99, n).tolist() for cell, n in counts.items()}
    for found in intervals(drawn, metric):
        for cell, values in drawn.items():
            low, high = found.loc[cell, ["low", "high"]]
            if len(values) == 1:
                assert math.isnan(low)
                assert math.isnan(high)
                continue
            assert (low, high) == pytest.approx(by_the_delta_method(values, transformed), rel=1e-6)


@pytest.mark.parametrize("scores", [(0.47, 0.95), (1.0, 0.98), (0.0, 0.1), (1.0, 1.0), (0.0, 0.0)])
def test_no_interval_leaves_the_scores_bounds(scores: tuple[float, float]) -> None:
    for metric in ("val_auroc", "val_acc", "val_loss"):
        for found in intervals({(16, 0.1): list(scores)}, metric):
            (row,) = found.to_dict("records")
            assert 0 <= row["low"] <= row["mean"] <= row["high"]
            assert row["high"] <= 1 or metric == "val_loss"
            if scores[0] == scores[1]:
                assert row["low"] == row["high"] == scores[0]


def test_a_score_in_percent_is_bounded_by_100() -> None:
    (cells, _) = intervals({(16, 0.1): [97.0, 88.0]}, "val_acc")
    (row,) = cells.to_dict("records")
    low, high = by_the_delta_method([0.97, 0.88], "logit")
    assert (row["low"], row["high"]) == pytest.approx((100 * low, 100 * high), rel=1e-6)


def test_near_its_bound_a_scores_interval_contains_the_true_mean_in_95_of_100() -> None:
    true_mean, n = 0.99, 3
    scores = np.random.default_rng(0).beta(200 * true_mean, 200 * (1 - true_mean), (DRAWS, n))
    drawn = pd.DataFrame({"mean": scores.mean(axis=1), "std": scores.std(axis=1, ddof=1), "n": n})
    shares = []
    for bounds in ((0.0, 1.0), None):
        found = with_interval(drawn, bounds=bounds)
        shares.append(found["low"].le(true_mean).mul(found["high"].ge(true_mean)).mean())
    assert shares[0] == pytest.approx(0.947, abs=0.005)
    assert shares[1] == pytest.approx(0.918, abs=0.005)  # what Student's own would contain


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_best_lrs_interval_holds_95_of_100_own_draws(mode: str) -> None:
    fall, std = 0.01, 0.006
    cells = parabolas({16: 0.5}, std, fall)
    freedom = 2 * 3  # of the better three of five cells
    cells["mean"] *= 1.0 if mode == "max" else -1.0
    (row,) = ridge_interval(cells, mode=mode).to_dict("records")
    off = log_vertices(np.random.default_rng(1), std, fall, freedom)
    low, high = np.log(row["lr_low"] / 0.5), np.log(row["lr_high"] / 0.5)
    wanted = np.percentile(off, [2.5, 97.5]) + math.log(2) * np.array([-CURVED, CURVED])
    assert (low, high) == pytest.approx(tuple(wanted), rel=0.08)
    assert row["bracketed"]


def test_an_exponents_interval_holds_95_of_100_own_draws() -> None:
    fall, std = 0.01, 0.004
    cells = parabolas({b: 0.001 * b for b in SIZES}, std, fall)
    freedom = 2 * 13  # of the better thirteen of 25 cells
    rng = np.random.default_rng(2)
    x = np.log(SIZES)
    # The deviation of a draw is off by the same factor in all cells, and so in all batch sizes.
    one_scale = np.sqrt(freedom / rng.chisquare(freedom, DRAWS))
    normal = [log_vertices(rng, std, fall, 10**9) * one_scale for _ in SIZES]
    slopes = (x - x.mean()) @ np.array(normal) / ((x - x.mean()) ** 2).sum()
    found = exponent(cells, mode="max")
    assert found.value == pytest.approx(1.0)
    assert found.high - found.value == pytest.approx(np.percentile(slopes, 97.5), rel=0.08)
    assert found.value - found.low == pytest.approx(found.high - found.value)


@pytest.mark.parametrize("share", [0.5, 4.0], ids=["less than the noise", "more than the noise"])
def test_a_ridge_that_is_no_line_widens_the_exponents_interval(share: float) -> None:
    """To the regression's, by the scatter about the line; scatter within the noise does not."""
    x = np.log(SIZES)
    bend = np.array([1.0, -0.5, -1.0, -0.5, 1.0])  # at right angles to every line
    std, fall = 0.002, 0.01
    # A vertex of three points a log 2 apart has the error e / (4 fall) sqrt(2) log 2.
    error = std / math.sqrt(3) / (4 * fall) * math.sqrt(2) * math.log(2)
    best = np.exp(x + share * error * bend)
    found = exponent(parabolas(dict(zip(SIZES, best, strict=True)), std, fall), mode="max")
    line = stats.linregress(x, np.log(best))
    scatter = stats.t.ppf(0.975, 3) * line.stderr
    noise = 1.96 * error / math.sqrt(((x - x.mean()) ** 2).sum())
    assert found.value == pytest.approx(line.slope, abs=0.3 * noise)  # the weights are drawn
    half = (found.high - found.low) / 2
    assert half == pytest.approx(scatter if share > 1 else noise, rel=0.1)
    assert (scatter > noise) == (share > 1)


@pytest.mark.parametrize(("p_value", "widens"), [(0.035, True), (0.07, False)])
def test_scatter_counts_where_one_in_twenty_straight_lines_has_as_much(
    p_value: float, widens: bool
) -> None:
    bend = np.array([1.0, -0.5, -1.0, -0.5, 1.0])
    std, fall = 0.001, 0.01
    error = std / math.sqrt(3) / (4 * fall) * math.sqrt(2) * math.log(2)
    error *= math.sqrt(26 / 24)  # the variance of Student's t of 26 degrees of freedom
    chi2 = stats.chi2.isf(p_value, 3)
    best = np.exp(np.log(SIZES) + bend * error * math.sqrt(chi2 / (bend**2).sum()))
    found = exponent(parabolas(dict(zip(SIZES, best, strict=True)), std, fall), mode="max")
    line = stats.linregress(np.log(SIZES), np.log(best))
    half = (found.high - found.low) / 2
    assert (half == pytest.approx(stats.t.ppf(0.975, 3) * line.stderr, rel=0.05)) == widens


@pytest.mark.parametrize(("share", "is_left_out"), [(0.018, False), (0.034, True)])
@pytest.mark.parametrize("edge", ["low", "high"])
def test_a_best_is_bracketed_unless_one_draw_in_forty_is_on_an_edge(
    share: float, is_left_out: bool, edge: str
) -> None:
    """Of three lrs the middle one leads; the edge is ahead where Student's t exceeds the lead."""
    std, n = 0.01, 3
    # The better half of nine cells: the three middle ones and two edges, of two degrees each.
    lead = stats.t.isf(share, 2 * 5) * std * math.sqrt(2 / n)
    near, far = 0.9 - lead, 0.5
    order = [near, 0.9, far] if edge == "low" else [far, 0.9, near]
    cells = cells_of(
        {(b, lr): s for b in (16, 32, 64) for lr, s in zip((1.0, 2.0, 4.0), order, strict=True)},
        std,
        n,
    )
    found = exponent(cells, mode="max")
    assert found.left_out == (dict.fromkeys((16, 32, 64), EDGE_WITHIN_NOISE) if is_left_out else {})
    assert found.batch_sizes == (() if is_left_out else (16, 32, 64))


@pytest.mark.parametrize(("gap", "stays"), [(0.98, 2), (1.02, 1)])
@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
def test_of_two_cells_the_worse_stays_within_students_one_sided_bound(
    gap: float, stays: int, mode: str, sign: float
) -> None:
    """With one other cell Dunnett's comparison is Student's, here of four degrees of freedom."""
    n = {0.1: 3, 0.2: 5}
    cells = cells_of({(16, 0.1): 0.0, (16, 0.2): 0.0}, 0.01)
    cells["n"] = cells["lr"].map(n)
    bound = stats.t.ppf(0.95, 4) * 0.01 * math.sqrt(1 / 3 + 1 / 5)
    cells["mean"] = sign * np.array([0.9 - gap * bound, 0.9])  # the better half is the second
    cells = with_scores(cells)
    kept = best_set(cells, mode=mode)
    assert kept["lr"].tolist() == [0.2, 0.1][:stays]


def test_a_critical_batch_sizes_interval_is_its_profiles() -> None:
    """Where the sum of squares rises by what F allows, on a grid of its own."""
    sizes = np.array([16.0, 32, 64, 128, 256, 512, 1024])
    wobble = np.array([0.04, -0.05, 0.02, 0.03, -0.04, 0.01, -0.01])
    updates = 500 * (1 + 200 / sizes) * np.exp(wobble)
    found = front(pd.DataFrame({"batch_size": sizes, "updates": updates}))
    tried = np.exp(np.linspace(np.log(20), np.log(2000), 100_001))
    left = np.log(updates) - np.log1p(tried[:, None] / sizes)
    rss = ((left - left.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    inside = tried[rss <= rss.min() * (1 + stats.f.ppf(0.95, 1, 5) / 5)]
    assert found.critical_batch_size == pytest.approx(tried[rss.argmin()], rel=1e-3)
    assert (found.low, found.high) == pytest.approx((inside.min(), inside.max()), rel=1e-3)
    assert np.log(found.s_min) == pytest.approx(left[rss.argmin()].mean(), abs=1e-3)
    assert found.e_min == pytest.approx(found.s_min * found.critical_batch_size)


def test_the_bars_of_a_targets_cost_are_95_percent_of_a_normal() -> None:
    found = analysed({(16, 0.1): [0.5], (32, 0.1): [0.6]})
    rows = [(16, 0.1, 1000.0, 1.0, 1.0, 3, 0.1), (32, 0.1, 500.0, 1.0, 1.0, 3, 0.9)]
    names = ["batch_size", "lr", "updates", "examples_seen", "train_s", "n", "spread"]
    object.__setattr__(found, "needed", pd.DataFrame(rows, columns=names))
    chart = target_chart(found)
    assert chart is not None
    drawn = [row for rows in chart.to_dict()["datasets"].values() for row in rows if "low" in row]
    ends = {row["batch_size"]: (row["low"], row["high"]) for row in drawn}
    z = stats.norm.ppf(0.975)
    assert ends[16] == pytest.approx((1000 * (1 - 0.1 * z), 1000 * (1 + 0.1 * z)), rel=1e-3)
    assert ends[32] == pytest.approx((500 * (1 - 0.5 * z), 500 * (1 + 0.5 * z)), rel=1e-3)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_means_error_is_pooled_unless_its_own_is_larger_or_of_ten_seeds(mode: str) -> None:
    sign = 1.0 if mode == "max" else -1.0
    cells = pd.DataFrame(
        {
            "mean": sign * np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
            "std": [0.02, 0.01, 0.03, 0.5, 0.001, math.nan],
            "n": [3, 3, 4, 4, 10, 1],
        }
    )
    cells = with_scores(cells)
    # The better three of the five that have a deviation.
    pooled = math.sqrt((2 * 0.02**2 + 2 * 0.01**2 + 3 * 0.03**2) / 7)
    noise = noise_of(cells, mode=mode)
    error = standard_errors(cells, noise)
    assert noise.freedom == 7
    wanted = [
        *(pooled / math.sqrt(3), pooled / math.sqrt(3), 0.03 / 2, 0.5 / 2, 0.001 / math.sqrt(10)),
        pooled,
    ]
    assert error.tolist() == pytest.approx(wanted)
    draws = redrawn(cells, mode=mode, draws=DRAWS)
    assert draws is not None
    assert draws.shape == (DRAWS, 6)
    off = (draws - cells["mean"].to_numpy()) / error
    for column in off.T:
        quantiles = np.percentile(column, [2.5, 50, 97.5])
        assert quantiles == pytest.approx(stats.t.ppf([0.025, 0.5, 0.975], 7), abs=0.08)
    # One factor for all cells of a draw: their sizes go together, their signs do not.
    assert np.corrcoef(off[:, 0], off[:, 1])[0, 1] == pytest.approx(0, abs=0.03)
    assert np.corrcoef(np.abs(off[:, 0]), np.abs(off[:, 1]))[0, 1] > 0.1
