"""The model of a hump per batch size: its formulas, its draws, and which cell it asks for next."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal, norm

from search.analysis.humps import model
from search.analysis.humps.gain import choose, first_cells, next_cells
from search.analysis.humps.model import Frame, Points, log_likelihood, predict, ridge_x
from search.analysis.humps.posterior import (
    _best,
    best_lrs,
    fit,
    frame_of,
    intervals,
    moments,
    noise_variance,
)
from search.analysis.humps.sampler import draw

FRAME = Frame(middle_b=6.0, low_x=-10.0, high_x=0.0)
SIZES = np.array([16, 32, 64, 128, 256])
OCTAVES = np.arange(-10.0, 0.5, 1.0)


def some_points(num: int = 7, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    return Points(
        b=rng.uniform(4, 8, num),
        x=rng.uniform(-10, 0, num),
        z=rng.standard_normal(num),
        repeats=np.arange(1.0, num + 1),
        loose=np.linspace(0.0, 0.4, num),
    )


def some_shapes(num: int = 3, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return model.PRIOR_MEAN + model.PRIOR_STD * rng.standard_normal((num, len(model.PRIOR)))


def by_hand(shape: np.ndarray, b: list[float], x: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance without noise of the scores, written out cell by cell."""
    slope, middle, bend, log_width, skew, widen, log_length, log_rough, _ = shape
    columns = []
    for bi, xi in zip(b, x, strict=True):
        t = bi - 6.0
        u = xi - (-10.0 + 10.0 * middle + slope * t + bend * t * t)
        width = math.exp(log_width + (skew / 2 if u > 0 else widen * t - skew / 2))
        v = (u / width) ** 2
        hump = -v / math.sqrt(1 + v)
        columns.append([1.0, t / 2, t * t / 4, hump, hump * t / 2])
    basis = np.array(columns)
    covariance = basis @ np.diag([4.0, 1.0, 0.25, 2.25, 0.09]) @ basis.T
    for i in range(len(b)):
        for j in range(len(b)):
            far = (b[i] - b[j]) ** 2 + ((x[i] - x[j]) / math.exp(log_length)) ** 2
            covariance[i, j] += math.exp(2 * log_rough) * math.exp(-far / 2)
    return basis @ np.array([0.3, 0.0, 0.0, 1.0, 0.0]), covariance


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    points, shapes = some_points(), some_shapes()
    for shape, likelihood in zip(shapes, log_likelihood(shapes, points, FRAME), strict=True):
        mean, covariance = by_hand(shape, list(points.b), list(points.x))
        noise = math.exp(2 * shape[model.LOG_NOISE]) / points.repeats + points.loose + model.JITTER
        expected = multivariate_normal(mean, covariance + np.diag(noise)).logpdf(points.z)
        constant = -0.5 * len(points.z) * math.log(2 * math.pi)
        assert likelihood == pytest.approx(expected - constant, rel=1e-6, abs=1e-6)


def test_a_hump_of_no_width_is_no_error() -> None:
    """Far in the prior's tails the basis has values of thousands beside a noise of thousandths."""
    shapes = some_shapes()
    shapes[0, list(model.PRIOR).index("log_width")] = math.log(1e-4)
    shapes[:, list(model.PRIOR).index("log_noise")] = math.log(1e-5)
    points = replace(some_points(40), loose=np.zeros(40))
    assert np.isfinite(log_likelihood(shapes, points, FRAME)).all()


def test_another_column_adds_a_parabola_and_moves_the_ridge() -> None:
    """The likelihood of cells is that of cells whose lr is less by the shift, with two columns."""
    points, (shape, *_) = some_points(), some_shapes()
    z = np.linspace(-1.5, 1.5, 7)
    with_column = replace(points, others=z[:, None])
    (likelihood,) = log_likelihood(np.append(shape, 0.7)[None], with_column, FRAME)
    mean, covariance = by_hand(shape, list(points.b), list(points.x - 0.7 * z))
    _, unmoved = by_hand(shape, list(points.b), list(points.x))
    # The rest does not move: its covariance is that of the cells as they are.
    smooth = shape.copy()
    smooth[model.LOG_ROUGH] = -30.0
    covariance = by_hand(smooth, list(points.b), list(points.x - 0.7 * z))[1]
    covariance += unmoved - by_hand(smooth, list(points.b), list(points.x))[1]
    covariance += np.outer(z, z) + 0.25 * np.outer(z**2, z**2)
    noise = math.exp(2 * shape[-1]) / points.repeats + points.loose
    expected = multivariate_normal(mean, covariance + np.diag(noise)).logpdf(points.z)
    constant = -0.5 * 7 * math.log(2 * math.pi)
    assert likelihood == pytest.approx(expected - constant, abs=1e-5)


def test_repeats_say_how_large_the_noise_is() -> None:
    singles = some_points()
    repeated = Points(
        b=singles.b,
        x=singles.x,
        z=singles.z,
        repeats=singles.repeats,
        loose=singles.loose,
        within=0.5,
        df=20,
    )
    shapes = np.repeat(some_shapes(1), 3, axis=0)
    stds = np.array([0.05, math.sqrt(0.5 / 20), 0.6])
    shapes[:, model.LOG_NOISE] = np.log(stds)
    more = log_likelihood(shapes, repeated, FRAME) - log_likelihood(shapes, singles, FRAME)
    assert more.argmax() == 1  # the standard deviation of the repeats
    assert more == pytest.approx(-20 * np.log(stds) - 0.25 / stds**2)


def test_a_prediction_is_the_conditional_normal_distribution() -> None:
    points, shapes = some_points(), some_shapes()
    b, x = [4.5, 6.0, 7.5], [-3.0, -5.0, -8.0]
    means, covariances = predict(
        shapes, points, FRAME, np.array(b), np.array(x), np.zeros((len(b), 0))
    )
    for shape, mean, covariance in zip(shapes, means, covariances, strict=True):
        all_mean, all_covariance = by_hand(shape, [*points.b, *b], [*points.x, *x])
        n = len(points.b)
        noise = math.exp(2 * shape[model.LOG_NOISE]) / points.repeats + points.loose + model.JITTER
        known = all_covariance[:n, :n] + np.diag(noise)
        weights = np.linalg.solve(known, all_covariance[:n, n:]).T
        assert mean == pytest.approx(
            all_mean[n:] + weights @ (points.z - all_mean[:n]), rel=1e-5, abs=1e-6
        )
        rest = all_covariance[n:, n:] - weights @ all_covariance[:n, n:]
        assert covariance == pytest.approx(rest, rel=1e-4, abs=1e-5)


def test_the_top_of_the_hump_moves_along_the_ridge() -> None:
    shape = model.PRIOR_MEAN[None, :].copy()
    shape[0, [model.SLOPE, model.MIDDLE, model.BEND]] = 0.5, 0.4, 0.1
    assert ridge_x(shape, np.array([4.0, 6.0, 8.0]), FRAME)[0] == pytest.approx([-6.6, -6.0, -4.6])


def test_draws_have_the_moments_of_a_posterior_that_is_known() -> None:
    """A normal prior and a normal likelihood, whose product is normal."""

    def log_of(draws: np.ndarray) -> np.ndarray:
        return np.asarray(norm.logpdf(draws, [3.0, -1.0], [0.5, 0.1]).sum(1))

    mean, std = np.array([0.0, 0.0]), np.array([1.0, 2.0])
    draws = draw(log_of, mean, std, num=4000, rng=np.random.default_rng(0))
    precision = 1 / std**2 + 1 / np.array([0.25, 0.01])
    expected = np.array([3.0 / 0.25, -1.0 / 0.01]) / precision
    assert draws.mean(0) == pytest.approx(expected, abs=0.03)
    assert draws.std(0) == pytest.approx(precision**-0.5, rel=0.1)


# --- simulated studies ----------------------------------------------------------------------------


def cells() -> tuple[np.ndarray, np.ndarray]:
    b = np.repeat(np.log2(SIZES), len(OCTAVES))
    return b, np.tile(OCTAVES, len(SIZES))


def best_x(b: np.ndarray) -> np.ndarray:
    return -5.3 + 0.6 * (b - 6.0)


def score(b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """An AUROC: a parabola about the best lr, and a cliff three octaves above it."""
    u = x - best_x(b)
    return np.where(u > 3, 0.55, 0.86 - 0.004 * u**2 - 0.01 * (b - 4))


def trained(rows: list[int], *, noise: float, seed: int) -> pd.DataFrame:
    b, x = cells()
    rng = np.random.default_rng(seed)
    scores = score(b[rows], x[rows]) + noise * rng.standard_normal(len(rows))
    return pd.DataFrame({"batch_size": 2 ** b[rows], "lr": 2.0 ** x[rows], "score": scores})


def search(num: int, *, noise: float, seed: int) -> pd.DataFrame:
    """The trials of a search that trains one cell after the other."""
    b, x = cells()
    asked: list[int] = []
    while len(asked) < num:
        trials = trained(asked, noise=noise, seed=seed)
        asked += choose(trials, frame_of(b, x), b, x, pending=[], refused=[], num=1, seed=seed)
    return trained(asked, noise=noise, seed=seed)


def test_fourteen_of_55_trainings_find_the_best_lr_of_each_batch_size() -> None:
    b, x = cells()
    lost = []
    for seed in range(3):
        posterior = fit(search(14, noise=0.001, seed=seed), frame_of(b, x), seed=seed)
        mean, _ = moments(posterior, b, x)
        for size in np.unique(b):
            row = np.flatnonzero(b == size)
            chosen = row[mean[row].argmax()]
            lost.append(score(b[row], x[row]).max() - score(b[[chosen]], x[[chosen]])[0])
    assert np.mean(lost) < 0.002  # an octave beside the best lr costs 0.004


def test_intervals_of_the_best_lr_hold_it_and_get_narrower() -> None:
    b, x = cells()
    lrs = [np.geomspace(2.0**-10, 1.0, 31)] * len(SIZES)
    held, widths = [], []
    for seed in range(4):
        for num in (10, 30):
            posterior = fit(search(num, noise=0.002, seed=seed), frame_of(b, x), seed=seed)
            low, _, high = np.log2(intervals(best_lrs(posterior, list(SIZES), lrs)))
            held += list((low <= best_x(np.log2(SIZES))) & (best_x(np.log2(SIZES)) <= high))
            widths.append((num, float(np.mean(high - low))))
    assert np.mean(held) >= 0.9
    mean_width = pd.DataFrame(widths, columns=["num", "width"]).groupby("num")["width"].mean()
    assert mean_width[30] < mean_width[10]


def test_repeats_tell_the_noise() -> None:
    b, x = cells()
    rows = [cell for cell in range(0, len(b), 3) for _ in range(3)]
    posterior = fit(trained(rows, noise=0.004, seed=0), frame_of(b, x))
    std = math.sqrt(noise_variance(posterior)) * posterior.std
    assert std == pytest.approx(0.004, rel=0.35)


# --- which cell next ------------------------------------------------------------------------------


def test_it_begins_in_the_middle_and_at_both_ends() -> None:
    b, x = cells()
    begin = first_cells(frame_of(b, x), b, x)
    assert [(int(2 ** b[k]), x[k]) for k in begin] == [(64, -5.0), (16, -6.0), (256, -4.0)]
    none = trained([], noise=0.0, seed=0)
    chosen = choose(none, frame_of(b, x), b, x, pending=[], refused=[], num=2)
    assert chosen == begin[:2]
    more = choose(none, frame_of(b, x), b, x, pending=chosen, refused=[], num=5)
    assert more[0] == begin[2]
    assert len({*chosen, *more}) == 7  # without any result it spreads them


def test_what_is_under_way_is_not_asked_for_again_nor_what_is_refused() -> None:
    b, x = cells()
    posterior = fit(search(8, noise=0.001, seed=0), frame_of(b, x))
    (first, gain), (second, less) = next_cells(posterior, b, x, pending=[], refused=[], num=2)
    assert gain > less > 0
    ((other, _),) = next_cells(posterior, b, x, pending=[first], refused=[], num=1)
    assert other == second
    ((another, _),) = next_cells(posterior, b, x, pending=[], refused=[first], num=1)
    assert another != first


def test_the_gain_is_what_a_simulated_score_gains() -> None:
    b, x = cells()
    posterior = fit(search(8, noise=0.001, seed=0), frame_of(b, x))
    ((cell, gain),) = next_cells(posterior, b, x, pending=[], refused=[], num=1)
    mean, covariance = moments(posterior, b, x)
    noise = noise_variance(posterior)
    rng = np.random.default_rng(0)
    deviation = math.sqrt(covariance[cell, cell] + noise)
    gains = []
    for _ in range(4000):
        told = deviation * rng.standard_normal()
        after = mean + covariance[:, cell] * told / deviation**2
        gains.append(sum(after[b == s].max() - mean[b == s].max() for s in np.unique(b)))
    assert gain == pytest.approx(np.mean(gains) * posterior.std, rel=0.2)


def test_divergence_is_information() -> None:
    """After divergence at one lr the next one is not above it, at that batch size or a smaller."""
    b, x = cells()
    rows = first_cells(frame_of(b, x), b, x)
    trials = trained(rows, noise=0.001, seed=0)
    trials.loc[0, "score"] = -math.inf  # the middle batch size
    posterior = fit(trials, frame_of(b, x))
    mean, _ = moments(posterior, b, x)
    above, below = (np.flatnonzero((b == 6.0) & (x == value)) for value in (-3.0, -7.0))
    assert mean[above] < mean[below]


def test_while_all_trials_diverge_the_next_lr_is_lower() -> None:
    """Nothing has a score: what is known is that all of these lrs are too high."""
    b, x = cells()
    asked: list[int] = []
    for _ in range(7):
        trials = trained(asked, noise=0.0, seed=0).assign(score=-math.inf)
        (cell,) = choose(trials, frame_of(b, x), b, x, pending=[], refused=[], num=1)
        if len(asked) >= 3:
            assert x[cell] < max(x[asked])
            assert cell not in asked
        asked.append(cell)
    assert min(x[asked]) <= min(x[asked[:3]]) - 2


def test_lrs_need_not_be_evenly_spaced() -> None:
    """The top of a parabola is found between any three lrs."""
    lrs = np.exp(np.array([0.0, 0.5, 2.0, 2.3, 4.0]))
    scores = -((np.log(lrs) - 1.4) ** 2)
    assert _best(scores[None], lrs) == pytest.approx([math.exp(1.4)])
    assert _best(np.log(lrs)[None], lrs) == pytest.approx([lrs[-1]])
