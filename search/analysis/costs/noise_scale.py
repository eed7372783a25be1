"""The measured gradient noise scale: a median, and how far it can be trusted."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from search.analysis.surface import LEVEL, usable

LEAST_MEASURED = 6  # trials: the median of fewer has no 95 % interval, whatever they measured


@dataclass(frozen=True, kw_only=True)
class NoiseScale:
    """The median of measured noise scales, its 95 % interval, and their number and range.

    `low` and `high` are NaN with fewer than LEAST_MEASURED of them.
    """

    median: float
    low: float
    high: float
    n: int
    least: float
    most: float


def median_noise_scale(trials: pd.DataFrame, *, metric: str) -> NoiseScale:
    """Over all usable trials with a measured noise scale, of which there must be one.

    Single trials differ by orders of magnitude, so the interval assumes nothing about how they are
    distributed: its ends are order statistics (the sign test's).
    """
    scales = _measured(trials, metric=metric)["noise_scale"].astype(float)
    ends = (float("nan"), float("nan"))
    if len(scales) >= LEAST_MEASURED:
        median = float(scales.median())
        interval = stats.quantile_test(scales, q=median, p=0.5).confidence_interval(LEVEL)
        ends = float(interval.low), float(interval.high)
    return NoiseScale(
        median=float(scales.median()),
        low=ends[0],
        high=ends[1],
        n=len(scales),
        least=float(scales.min()),
        most=float(scales.max()),
    )


def noise_scales(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """The measured gradient noise scales of each batch size's usable trials: median and range."""
    groups = _measured(trials, metric=metric).groupby("batch_size")["noise_scale"]
    scales = groups.agg(["median", "min", "max", "count"]).reset_index()
    names = {"median": "noise_scale", "min": "least", "max": "most", "count": "n"}
    return scales.rename(columns=names)


def _measured(trials: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    rows = usable(trials, metric=metric)
    return rows[np.isfinite(rows["noise_scale"].astype(float))]
