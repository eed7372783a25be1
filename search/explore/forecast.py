"""The score that a trial will end with, forecast from its curve by the curves that ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NEAREST = 8  # trials by which a score is forecast
LEAST_STD = 0.25  # of the forecast, in standard deviations of what all have gained since
LEVEL = 0.95


@dataclass(frozen=True)
class Curve:
    """The best score so far of one trial (more is better), at ascending shares of its budget."""

    batch_size: int
    shares: Sequence[float]
    scores: Sequence[float]


@dataclass(frozen=True)
class Predicted:
    """A final score: mean, standard deviation, and the ends of its 95 % interval."""

    mean: float
    std: float
    low: float
    high: float


def forecast(curve: Curve, ended: Sequence[Curve]) -> Predicted:
    """The final score: the last one and what similar trials have gained from this share on.

    Of the trials that ran to their end, at least two, those that were nearest at this share: in
    score and in the logarithm of batch size, each in its standard deviations. Their gains have a
    mean and a standard deviation; the interval is that of Student's t for one more of them.
    """
    share, score = curve.shares[-1], curve.scores[-1]
    then = np.array([float(np.interp(share, other.shares, other.scores)) for other in ended])
    gains = np.array([other.scores[-1] for other in ended]) - then
    octaves = np.log2([other.batch_size / curve.batch_size for other in ended])
    distance = ((then - score) / _spread(then)) ** 2 + (octaves / _spread(octaves)) ** 2
    near = gains[np.argsort(distance, kind="stable")[:NEAREST]]
    mean = score + float(near.mean())
    std = max(float(near.std(ddof=1)), LEAST_STD * float(gains.std(ddof=1)))
    std *= math.sqrt(1 + 1 / len(near))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(near) - 1)) * std
    return Predicted(mean, std, mean - half, mean + half)


def _spread(values: np.ndarray) -> float:
    """The standard deviation; 1 where all are alike."""
    return float(values.std()) or 1.0
