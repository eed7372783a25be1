"""The best lr of each batch size with its interval, by the model: of few trials, or of one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.chance import collapsed
from search.analysis.humps.posterior import (
    best_lrs,
    fit,
    frame_of,
    intervals,
    noise_variance,
)

Array = NDArray[np.float64]

LRS = 31  # of a batch size, between which the best lr is sought
DRAWS = 384
ENDS = (0.025, 0.5, 0.975)
LEAST_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class ByModel:
    """What the model says of one surface.

    `rows` has `batch_size`, the best peak `lr` with its 95 % interval `low` to `high`, `at_edge`
    (the interval reaches the smallest or largest lr tried), and the number of `trials`. `exponent`
    is that of lr* = c B^a: the median and the ends of its 95 % interval. `noise_std` is of one
    training.
    """

    of: str
    rows: pd.DataFrame
    exponent: tuple[float, float, float]
    noise_std: float


def by_model(
    trials: pd.DataFrame, *, others: Sequence[str], metric: str, mode: str
) -> list[ByModel]:
    """One for each combination of the `others`, the fields that vary beside batch size and lr.

    Trials have `batch_size`, `peak_lr`, `status` and the metric. What diverged or collapsed counts
    as worse than all others; what was stopped, failed or interrupted is left out. A surface of
    fewer than four trials, or of one batch size, is left out.
    """
    answers = []
    for values, group in trials.groupby(list(others), dropna=False) if others else [((), trials)]:
        name = ", ".join(f"{n}={v}" for n, v in zip(others, values, strict=True))
        scored = scored_trials(group, metric=metric, mode=mode)
        enough = len(scored) >= LEAST_TRIALS and np.isfinite(scored["score"]).any()
        if enough and scored["batch_size"].nunique() > 1:
            answers.append(_answer(name, scored))
    return answers


def scored_trials(trials: pd.DataFrame, *, metric: str, mode: str) -> pd.DataFrame:
    """`batch_size`, `lr` and `score`, of which more is better; -inf where the lr was too high."""
    sign = 1.0 if mode == "max" else -1.0
    score = sign * trials[metric].astype(float)
    lost = (trials["status"] == "diverged") | collapsed(trials)
    ended = trials["status"].isin(("completed", "diverged"))
    rows = trials.assign(score=score.mask(lost, -math.inf), lr=trials["peak_lr"].astype(float))
    rows = rows[ended & rows["score"].notna()]
    return rows[["batch_size", "lr", "score"]].astype(float)


def _answer(name: str, scored: pd.DataFrame) -> ByModel:
    b, x = (np.log2(scored[column].to_numpy()) for column in ("batch_size", "lr"))
    posterior = fit(scored, frame_of(b, x), num=DRAWS)
    sizes = sorted(scored["batch_size"].unique())
    lrs = [np.geomspace(scored["lr"].min(), scored["lr"].max(), LRS)] * len(sizes)
    draws = best_lrs(posterior, sizes, lrs)
    low, middle, high = intervals(draws)
    slopes = np.polyfit(np.log2(sizes), np.log2(draws).T, 1)[0]
    first, last = lrs[0][0], lrs[0][-1]
    rows = pd.DataFrame(
        {
            "batch_size": np.asarray(sizes).astype(int),
            "lr": middle,
            "low": low,
            "high": high,
            "at_edge": (low <= first) | (high >= last),
            "trials": scored.groupby("batch_size").size().loc[sizes].to_numpy(),
        }
    )
    slope_low, slope, slope_high = np.quantile(slopes, ENDS)
    return ByModel(
        of=name,
        rows=rows,
        exponent=(float(slope), float(slope_low), float(slope_high)),
        noise_std=math.sqrt(noise_variance(posterior)) * posterior.std,
    )
