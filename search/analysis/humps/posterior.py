"""What the trials of one surface say of the best lr of each batch size: draws, not a single fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from search.analysis.humps.model import (
    LOG_NOISE,
    Frame,
    Points,
    log_likelihood,
    predict,
    shape_prior,
)
from search.analysis.humps.sampler import draw

Array = NDArray[np.float64]

DRAWS = 192
# In quantiles of the distance to the best: what is further away counts by its log. Of trials drawn
# at random most may be on the cliff.
SHOULDER, MIDDLE, SCATTERED = 2.0, 0.5, 0.25
MOST_POINTS = 250  # that tell the shape
BEYOND = 10.0  # in shoulders: how far below the best a diverged training counts
SLOPE_AT_SHOULDER = 0.5
LOOSE = 0.5  # of how far a score is below the shoulder
WIDER = 1.2  # than the draws: the intervals of best lrs
# Threads of BLAS: on matrices as small as these several wait for one another, and while trials
# occupy all cores, 25 times as long as one takes.
THREADS = 1
LEAST = 1e-12  # of a difference between scores
ALL_LOST = -2.0  # what each counts if all diverged, where the prior's mean is about zero
# Octaves above a trial that diverged, how much lower that counts, and how often.
SHADOW, SHADOW_Z, SHADOWS = 2.0, 0.5, 2
OTHER = "other_"  # how the other columns are named here
LEAST_LRS = 3  # of a batch size, that tell its range


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Draws of the shape, with what they were drawn from.

    `std` turns the model's unit of score into the metric's, near the best. In the model's unit
    `top` is the best score, and scores lower than that by more than `shoulder` are loose.
    `others_at` (K,) are the values of the other columns at which questions are answered.
    """

    points: Points
    frame: Frame
    shapes_PD: Array
    std: float
    top: float
    shoulder: float
    others_at: Array


def frame_of(b_M: Array, x_M: Array) -> Frame:
    """The frame of cells: the middle batch size, and the range of lrs that is usual there.

    The lrs of other batch sizes may be others, as where the lr is scaled by the batch size. Where
    most batch sizes have one or two lrs, as in a table of runs drawn at random, the range is that
    of all.
    """
    sizes, counts = np.unique(b_M, return_counts=True)
    groups = [x_M[b_M == b] for b in sizes] if np.median(counts) >= LEAST_LRS else [x_M]
    return Frame(
        middle_b=float(sizes.mean()),
        low_x=float(np.mean([group.min() for group in groups])),
        high_x=float(np.mean([group.max() for group in groups])),
    )


def fit(
    trials: pd.DataFrame,
    frame: Frame,
    *,
    others: Sequence[str] = (),
    seed: int = 0,
    num: int = DRAWS,
) -> Posterior:
    """Draws of the posterior of trials with `batch_size`, peak `lr` and `score` (more is better).

    A score of -inf is a training that diverged; one that is a forecast has its standard deviation
    in `std`. Without trials, the draws are those of the prior.
    `others` are columns that differ from trial to trial, with a mean of 0 and a standard deviation
    of 1; answers are then for what the best tenth of the trials has (medians).
    """
    rows, std, shoulder = _rows(trials, others)
    names = [name for name in rows if name.startswith(OTHER)]
    points = _points(rows, names)
    some = _some(rows, names, seed)
    with threadpool_limits(THREADS, user_api="blas"):
        shapes = draw(
            lambda shapes_PD: log_likelihood(shapes_PD, some, frame),
            *shape_prior(len(others)),
            num=num,
            rng=np.random.default_rng(seed),
        )
    best = rows.nlargest(max(1, len(rows) // 10), "z")
    at = best[names].median().to_numpy(float)
    return Posterior(
        points=points,
        frame=frame,
        shapes_PD=shapes,
        std=std,
        top=float(rows["z"].max()) if len(rows) else 0.0,
        shoulder=shoulder,
        others_at=at,
    )


def _rows(trials: pd.DataFrame, others: Sequence[str]) -> tuple[pd.DataFrame, float, float]:
    """Each trial's b, x, z and the rest of a point, the score that is one of z, and the shoulder.

    What diverges at one lr does so at higher ones. So where the highest lr of a batch size diverged
    it has shadows above it: nothing else would say on which side of the hump it is.
    """
    scores = trials["score"].to_numpy(float)
    rows = pd.DataFrame(
        {
            "b": np.log2(trials["batch_size"].to_numpy(float)),
            "x": np.log2(trials["lr"].to_numpy(float)),
            **{f"{OTHER}{k}": trials[name].to_numpy(float) for k, name in enumerate(others)},
            "guessed": False,
        }
    )
    if np.isfinite(scores).any():
        below, shoulder = _below_best(scores, SCATTERED if others else MIDDLE)
        near = -shoulder * np.log1p(below / shoulder)
        std = max(float(near.std()), LEAST)
        rows["z"] = (near - near.mean()) / std
        rows["slope"] = 1 / (1 + below / shoulder)
        shoulder *= math.log(2) / std  # where a difference is half as large as it would be
        rows["loose"] = _loose(-near / std, shoulder)
        if "std" in trials:
            rows["guessed"] = trials["std"].to_numpy(float) > 0
            rows["loose"] += (rows["slope"] * trials["std"].to_numpy(float) / std) ** 2
    else:
        rows, std, shoulder = rows.assign(z=ALL_LOST, slope=0.0, loose=0.0), 1.0, math.inf
    if others:  # there are trials everywhere
        return rows, std, shoulder
    highest = rows["x"] == rows.groupby("b")["x"].transform("max")
    shadows = rows[highest & np.isneginf(scores)].drop_duplicates("b")
    above = [
        shadows.assign(x=shadows["x"] + k * SHADOW, z=shadows["z"] - k * SHADOW_Z, slope=0.0)
        for k in range(1, SHADOWS + 1)
    ]
    return pd.concat([rows, *above], ignore_index=True), std, shoulder


def _loose(below_top: Array, shoulder: float) -> Array:
    """The variance by which scores so far below the best may miss the model, beside the noise."""
    return (LOOSE * np.maximum(below_top - shoulder, 0)) ** 2


def _some(rows: pd.DataFrame, others: Sequence[str], seed: int) -> Points:
    """The points that tell the shape: of many, some, since the time grows with their cube."""
    few = rows.sample(MOST_POINTS, random_state=seed) if len(rows) > MOST_POINTS else rows
    return _points(few, others)


def _below_best(scores: Array, quantile: float) -> tuple[Array, float]:
    """How far each score is below the best, and the shoulder.

    Near the best a difference counts as it is, beyond the shoulder by its logarithm: a hump is
    tenths of a percent high, and a cliff tens of percent. Diverged is below all others.
    """
    finite = np.isfinite(scores)
    below = scores[finite].max() - scores[finite]
    apart = below[below > 0]  # of scores in steps many may be equal to the best
    shoulder = max(SHOULDER * float(np.quantile(apart, quantile)), LEAST) if len(apart) else 1.0
    all_below = np.full(len(scores), max(float(below.max()), BEYOND * shoulder))
    all_below[finite] = below
    return all_below, shoulder


def _points(rows: pd.DataFrame, others: Sequence[str]) -> Points:
    """The cells of single scores, with what their repeats say of the noise.

    On a cliff repeats differ for reasons of their own: only those above the shoulder count, where
    a difference of scores is one of z times `slope`. A cell with a forecast tells no noise either.
    """
    by_cell = rows.groupby(["b", "x", *others])
    cells = by_cell["z"].agg(["mean", "count", "var"]).reset_index()
    slope, loose = by_cell["slope"].mean().to_numpy(), by_cell["loose"].mean().to_numpy()
    guessed = by_cell["guessed"].any().to_numpy()
    repeated = (cells["count"] > 1) & (slope >= SLOPE_AT_SHOULDER) & ~guessed
    df = cells["count"] - 1
    return Points(
        b=cells["b"].to_numpy(float),
        x=cells["x"].to_numpy(float),
        z=cells["mean"].to_numpy(float),
        repeats=cells["count"].to_numpy(float),
        loose=loose,
        within=float((cells["var"] * df / slope**2)[repeated].sum()),
        df=int(df[repeated].sum()),
        others=cells[list(others)].to_numpy(float),
    )


def moments(posterior: Posterior, b_M: Array, x_M: Array) -> tuple[Array, Array]:
    """The mean (M,) and covariance (M, M) of the scores of cells, over all draws of the shape."""
    with threadpool_limits(THREADS, user_api="blas"):
        means, covariances = predict(
            posterior.shapes_PD, posterior.points, posterior.frame, b_M, x_M, _at(posterior, b_M)
        )
    return means.mean(0), covariances.mean(0) + np.cov(means.T, bias=True)


def _at(posterior: Posterior, b_M: Array) -> Array:
    """The other columns of M cells."""
    return np.tile(posterior.others_at, (len(b_M), 1))


def noise_variance(posterior: Posterior) -> float:
    """Of one training, in the model's unit: the median of the draws."""
    return float(np.median(np.exp(2 * posterior.shapes_PD[:, LOG_NOISE])))


def variance_of_one(posterior: Posterior, mean_M: Array) -> Array:
    """(M,): how much one score at cells of these means would vary about the model's surface."""
    return noise_variance(posterior) + _loose(posterior.top - mean_M, posterior.shoulder)


def best_lrs(
    posterior: Posterior, batch_sizes: Sequence[float], lrs: Sequence[Array], *, seed: int = 0
) -> Array:
    """(P, K): for each draw of the surface the best lr of each of K batch sizes.

    Among the `lrs` of that batch size, at least three; between them by a parabola through the best
    and its neighbours.
    """
    b = np.repeat(np.log2(np.asarray(batch_sizes, float)), [len(x) for x in lrs])
    x = np.log2(np.concatenate(lrs))
    with threadpool_limits(THREADS, user_api="blas"):
        means, covariances = predict(
            posterior.shapes_PD, posterior.points, posterior.frame, b, x, _at(posterior, b)
        )
        values, vectors = np.linalg.eigh(covariances)
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(means.shape) * np.sqrt(np.clip(values, 0, None))
    surfaces = means + np.einsum("pmn,pn->pm", vectors, normal)
    rows = np.split(surfaces, np.cumsum([len(x) for x in lrs])[:-1], axis=1)
    return np.stack([_best(row, x) for row, x in zip(rows, lrs, strict=True)], axis=1)


def intervals(draws_PK: Array) -> tuple[Array, Array, Array]:
    """Of best lrs: the ends (K,) of 95 % intervals with the median between them.

    Wider than the draws by a factor, in the logarithm: in simulations of humps that are no
    parabolas, with cliffs and ridges that bend, the draws' own held the best lr in 80 to 94 %.
    """
    low, middle, high = np.quantile(np.log(draws_PK), (0.025, 0.5, 0.975), axis=0)
    low, high = (middle + WIDER * (end - middle) for end in (low, high))
    return np.exp(low), np.exp(middle), np.exp(high)


def _best(scores_PM: Array, lr_M: Array) -> Array:
    """(P,): where each row of scores has its top; between lrs by a parabola through three."""
    x = np.log(lr_M)
    best = scores_PM.argmax(1)
    inner = np.clip(best, 1, len(lr_M) - 2)
    rows = np.arange(len(scores_PM))
    to_left, to_right = x[inner] - x[inner - 1], x[inner + 1] - x[inner]
    middle = scores_PM[rows, inner]
    left, right = scores_PM[rows, inner - 1] - middle, scores_PM[rows, inner + 1] - middle
    slope = to_left**2 * right - to_right**2 * left
    curvature = to_left * right + to_right * left
    is_top = (best == inner) & (curvature < 0)
    shift = np.where(is_top, -0.5 * slope / np.where(is_top, curvature, -1.0), 0.0)
    return np.asarray(np.exp(x[best] + shift))
