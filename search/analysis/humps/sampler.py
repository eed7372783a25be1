"""Draws from a posterior by sequential Monte Carlo: from the prior to the posterior in steps.

At each step the likelihood counts a little more; draws are weighted, drawn again by their weights,
and moved by random-walk Metropolis with their own covariance (Del Moral, Doucet & Jasra 2006).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOVES = 2  # of each draw in each step
STEP = 2.38  # over sqrt(D): the width of a random walk in D dimensions (Gelman et al. 1996)
ACCEPTED = 0.25  # the share to aim at
SMALLEST_STEP, LARGEST_STEP = 0.2, 1.5
EFFECTIVE = 0.5  # the effective share of the draws that a step leaves
RIDGE = 1e-9


def draw(
    log_likelihood: Callable[[Array], Array],
    mean: Array,
    std: Array,
    *,
    num: int,
    rng: np.random.Generator,
) -> Array:
    """(num, D) draws from a normal prior times a likelihood of (num, D) that returns (num,)."""
    draws = mean + std * rng.standard_normal((num, len(mean)))
    known = log_likelihood(draws)
    power, scale = 0.0, 1.0

    def log_prior(of: Array) -> Array:
        return np.asarray(-0.5 * (((of - mean) / std) ** 2).sum(1))

    while power < 1:
        step = _largest_step(known, 1 - power)
        power += step
        chosen = rng.choice(num, num, p=_weights(known, step))
        draws, known = draws[chosen], known[chosen]
        covariance = np.cov(draws.T) + RIDGE * np.eye(len(mean))
        walk = STEP / np.sqrt(len(mean)) * np.linalg.cholesky(covariance)
        for _ in range(MOVES):
            proposed = draws + scale * rng.standard_normal(draws.shape) @ walk.T
            likelihood = log_likelihood(proposed)
            gain = power * (likelihood - known) + log_prior(proposed) - log_prior(draws)
            accepted = np.log(rng.random(num)) < gain
            draws = np.where(accepted[:, None], proposed, draws)
            known = np.where(accepted, likelihood, known)
            scale *= np.exp(accepted.mean() - ACCEPTED)
            scale = float(np.clip(scale, SMALLEST_STEP, LARGEST_STEP))
    return draws


def _weights(log_likelihood: Array, step: float) -> Array:
    weights = np.exp(step * (log_likelihood - log_likelihood.max()))
    return np.asarray(weights / weights.sum())


def _largest_step(log_likelihood: Array, left: float) -> float:
    """The largest power up to `left` after which enough of the draws count."""

    def is_small_enough(step: float) -> bool:
        weights = _weights(log_likelihood, step)
        return bool(1 / (weights**2).sum() >= EFFECTIVE * len(weights))

    if is_small_enough(left):
        return left
    low, high = 0.0, left
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if is_small_enough(middle) else (low, middle)
    return low or high
