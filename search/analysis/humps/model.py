"""Scores as one hump in log lr for each batch size, whose place moves with log batch size.

All lengths are in octaves: b = log2(batch size), x = log2(lr). With t = b - (the middle of b):

    score = level(t) + amplitude(t) * hump(x - r(t)) + rest(b, x) + noise
    r(t) = middle + slope * t + bend * t**2
    hump(u) = -v / sqrt(1 + v), v = (u / width)**2: a parabola that goes over into straight flanks
    width = exp(log_width + skew / 2) above the top, exp(log_width - skew / 2 + widen * t) below it

`level` is a parabola in t and `amplitude` a line. Their five coefficients have a normal prior, and
`rest` is a Gaussian process, so that given the nine numbers of a `shape` the scores are jointly
normal (Rasmussen & Williams 2006, 2.7: a Gaussian process with explicit basis functions).

Where K other columns differ from trial to trial, each of them adds a parabola to the level and
moves the ridge along a line: a shape has K more numbers.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Of each number of a shape: mean and standard deviation of its normal prior. Slope: between a
# constant rate and linear scaling. Middle: as a share of the range of lrs. Width: of the hump, in
# octaves; skew: log of right over left width; widen: how much the log of the left width grows with
# an octave of batch size. Far below the best lr a score depends on lr / batch size, whatever the
# best lr does: without it the left flank would tell the exponent, and wrongly. Length: of the rest
# along x. Rough and noise: the standard deviations of rest and noise, where the scores have one
# of 1.
PRIOR = {
    "slope": (0.45, 0.3),
    "middle": (0.45, 0.2),
    "bend": (0.0, 0.06),
    "log_width": (np.log(2.2), 0.6),
    "skew": (-0.2, 0.8),
    "widen": (0.0, 0.2),
    "log_length": (np.log(2.5), 0.5),
    "log_rough": (np.log(0.3), 0.9),
    "log_noise": (np.log(0.08), 1.0),
}
SLOPE, MIDDLE, BEND, LOG_WIDTH, SKEW, WIDEN, LOG_LENGTH, LOG_ROUGH, LOG_NOISE = range(len(PRIOR))
PRIOR_MEAN = np.array([mean for mean, _ in PRIOR.values()])
PRIOR_STD = np.array([std for _, std in PRIOR.values()])
# Of the coefficients of 1, t/2, (t/2)**2, hump and hump * t/2.
COEFFICIENT_MEAN = np.array([0.3, 0.0, 0.0, 1.0, 0.0])
COEFFICIENT_VARIANCE = np.array([2.0, 1.0, 0.5, 1.5, 0.3]) ** 2
OTHER_VARIANCE = np.array([1.0, 0.5]) ** 2  # of another column and its square
SHIFT_STD = 1.0  # octaves by which one standard deviation of another column moves the ridge
LENGTH_B = 1.0  # of the rest along b
# Added to each variance, in z's unit and as a share of it: without them near copies of a cell, or a
# very narrow hump, have no Cholesky factor.
JITTER, JITTER_SHARE = 1e-7, 1e-10


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where the study looks: the middle of its b, and the range of its x, in octaves."""

    middle_b: float
    low_x: float
    high_x: float


@dataclass(frozen=True, kw_only=True)
class Points:
    """N cells: b, x, the mean score z (more is better, a standard deviation of about 1), repeats.

    `loose` is the variance by which a score may miss the model, beside the noise: of one from down
    a cliff it matters that it is low, not how low. `within` is the sum of squares of single scores
    about the means of their cells, with `df` degrees of freedom: what repeats tell of the noise.
    `others` (N, K) are the other columns, each with a mean of 0 and a standard deviation of 1.
    """

    b: Array
    x: Array
    z: Array
    repeats: Array
    loose: Array
    within: float = 0.0
    df: int = 0
    others: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def others_NK(self) -> Array:
        """The other columns; without any, N rows of none."""
        return self.others if self.others.size else np.zeros((len(self.b), 0))


def shape_prior(num_others: int) -> tuple[Array, Array]:
    """Means and standard deviations of the numbers of a shape."""
    mean = np.concatenate([PRIOR_MEAN, np.zeros(num_others)])
    return mean, np.concatenate([PRIOR_STD, np.full(num_others, SHIFT_STD)])


def ridge_x(shapes_PD: Array, b_M: Array, frame: Frame) -> Array:
    """(P, M): the x of the top of the hump."""
    t = b_M[None, :] - frame.middle_b
    start = frame.low_x + shapes_PD[:, MIDDLE, None] * (frame.high_x - frame.low_x)
    place: Array = start + shapes_PD[:, SLOPE, None] * t + shapes_PD[:, BEND, None] * t**2
    return place


def log_likelihood(shapes_PD: Array, points: Points, frame: Frame) -> Array:
    """(P,): of the scores, for each shape; but for a constant."""
    basis, covariance = _prior(shapes_PD, points, frame)
    lower = np.linalg.cholesky(covariance)
    mean = basis @ _coefficients(basis)[0]
    whitened = np.linalg.solve(lower, (points.z - mean)[..., None])[..., 0]
    log_noise = shapes_PD[:, LOG_NOISE]
    log_diagonal = np.log(np.diagonal(lower, axis1=1, axis2=2))
    of_means = -0.5 * (whitened**2).sum(1) - log_diagonal.sum(1)
    within: Array = -points.df * log_noise - 0.5 * points.within * np.exp(-2 * log_noise)
    return np.asarray(of_means + within)


def predict(
    shapes_PD: Array, points: Points, frame: Frame, b_M: Array, x_M: Array, others_MK: Array
) -> tuple[Array, Array]:
    """Means (P, M) and covariances (P, M, M) of the scores without noise at other cells."""
    basis, covariance = _prior(shapes_PD, points, frame)
    basis_there = _basis(shapes_PD, b_M, x_M, others_MK, frame)
    coefficient_mean, coefficient_variance = _coefficients(basis)
    between = _rest(shapes_PD, points.b, points.x, b_M, x_M)
    between += (basis * coefficient_variance) @ basis_there.transpose(0, 2, 1)
    lower = np.linalg.cholesky(covariance)
    residual = (points.z - basis @ coefficient_mean)[..., None]
    solved = np.linalg.solve(lower, np.concatenate([between, residual], axis=2))
    gain, whitened = solved[..., :-1], solved[..., -1]
    means = basis_there @ coefficient_mean + np.einsum("pnm,pn->pm", gain, whitened)
    there = _rest(shapes_PD, b_M, x_M, b_M, x_M)
    there += (basis_there * coefficient_variance) @ basis_there.transpose(0, 2, 1)
    return means, there - gain.transpose(0, 2, 1) @ gain


def _prior(shapes_PD: Array, points: Points, frame: Frame) -> tuple[Array, Array]:
    """The basis (P, N, 5 + 2K) and covariance (P, N, N) of the scores before any is known."""
    basis = _basis(shapes_PD, points.b, points.x, points.others_NK, frame)
    covariance = _rest(shapes_PD, points.b, points.x, points.b, points.x)
    covariance += (basis * _coefficients(basis)[1]) @ basis.transpose(0, 2, 1)
    diagonal = np.arange(len(points.b))
    noise = np.exp(2 * shapes_PD[:, LOG_NOISE])[:, None] / points.repeats
    covariance[:, diagonal, diagonal] *= 1 + JITTER_SHARE
    covariance[:, diagonal, diagonal] += noise + points.loose + JITTER
    return basis, covariance


def _coefficients(basis_PMC: Array) -> tuple[Array, Array]:
    """Mean and variance (C,) of the coefficients of a basis."""
    num_others = (basis_PMC.shape[-1] - len(COEFFICIENT_MEAN)) // 2
    mean = np.concatenate([COEFFICIENT_MEAN, np.zeros(2 * num_others)])
    return mean, np.concatenate([COEFFICIENT_VARIANCE, *[OTHER_VARIANCE] * num_others])


def _basis(shapes_PD: Array, b_M: Array, x_M: Array, others_MK: Array, frame: Frame) -> Array:
    """(P, M, 5 + 2K): 1, t/2, (t/2)**2, hump, hump * t/2; each other column and its square."""
    moved = shapes_PD[:, len(PRIOR) :] @ others_MK.T
    u = x_M[None, :] - ridge_x(shapes_PD, b_M, frame) - moved
    octaves = b_M - frame.middle_b
    skew = np.where(u > 0, 0.5, -0.5) * shapes_PD[:, SKEW, None]
    widen = np.where(u > 0, 0.0, shapes_PD[:, WIDEN, None]) * octaves
    v = (u / np.exp(shapes_PD[:, LOG_WIDTH, None] + skew + widen)) ** 2
    hump = -v / np.sqrt(1 + v)
    t = np.broadcast_to(octaves / 2, hump.shape)
    others = [np.broadcast_to(z**power, hump.shape) for z in others_MK.T for power in (1, 2)]
    return np.stack([np.ones_like(hump), t, t**2, hump, hump * t, *others], axis=-1)


def _rest(shapes_PD: Array, b_N: Array, x_N: Array, b_M: Array, x_M: Array) -> Array:
    """(P, N, M): the covariance of the rest, squared exponential in b and x."""
    in_b = ((b_N[:, None] - b_M[None, :]) / LENGTH_B) ** 2
    in_x = (x_N[:, None] - x_M[None, :]) ** 2 * np.exp(-2 * shapes_PD[:, LOG_LENGTH])[:, None, None]
    variance = np.exp(2 * shapes_PD[:, LOG_ROUGH])[:, None, None]
    return np.asarray(variance * np.exp(-0.5 * (in_b + in_x)))
