"""Which cells to train next: those that raise the best score of the batch sizes most, on average.

The knowledge gradient with correlated beliefs (Frazier, Powell & Dayanik 2009), summed over batch
sizes: how much better the best lr of each would be chosen if one more cell were known.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.humps.model import Frame
from search.analysis.humps.posterior import Posterior, fit, moments, variance_of_one

Array = NDArray[np.float64]

START_SLOPE = 0.3  # octaves of lr an octave of batch size
# Gauss-Hermite nodes and weights of a standard normal variable.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def first_cells(frame: Frame, b_M: Array, x_M: Array) -> list[int]:
    """Where to begin: one cell at the middle batch size, one at the smallest, one at the largest.

    In the middle of the range of lrs, and at other batch sizes a little along the expected ridge.
    """
    sizes = np.unique(b_M)
    wanted = [sizes[len(sizes) // 2], sizes[0], sizes[-1]]
    cells = []
    for b in dict.fromkeys(wanted):
        x = (frame.low_x + frame.high_x) / 2 + START_SLOPE * (b - frame.middle_b)
        row = np.flatnonzero(b_M == b)
        cells.append(int(row[np.abs(x_M[row] - x).argmin()]))
    return cells


def choose(
    trials: pd.DataFrame,
    frame: Frame,
    b_M: Array,
    x_M: Array,
    *,
    pending: Sequence[int],
    refused: Sequence[int],
    num: int,
    seed: int = 0,
) -> list[int]:
    """The `num` of M cells to train next, given the trials that ended and the cells under way.

    Begins with `first_cells`. `refused` cannot be chosen: in a table of results, for example, cells
    that have no further seed.
    """
    num_asked = len(trials) + len(pending)
    begin = [cell for cell in first_cells(frame, b_M, x_M)[num_asked:] if cell not in refused][:num]
    if len(begin) == num:
        return begin
    more = next_cells(
        fit(trials, frame, seed=seed),
        b_M,
        x_M,
        pending=[*pending, *begin],
        refused=[*refused, *begin],
        num=num - len(begin),
    )
    return begin + [cell for cell, _ in more]


def next_cells(
    posterior: Posterior,
    b_M: Array,
    x_M: Array,
    *,
    pending: Sequence[int],
    refused: Sequence[int],
    num: int,
) -> list[tuple[int, float]]:
    """`num` of M cells, the best first, with the gain of each in the metric's unit.

    `pending` are under way: their scores are expected to be as predicted. Each chosen cell counts
    as pending for the next one. `refused` cannot be chosen.
    """
    mean, covariance = moments(posterior, b_M, x_M)
    noise_M = variance_of_one(posterior, mean)  # on a cliff one score tells little
    rows = [np.flatnonzero(b_M == b) for b in np.unique(b_M)]
    for cell in pending:
        covariance = _known(covariance, cell, noise_M[cell])
    chosen: list[tuple[int, float]] = []
    open_cells = np.setdiff1d(np.arange(len(b_M)), list(refused))
    while len(chosen) < num and len(open_cells):
        gains = np.array(
            [_gain(mean, covariance, rows, cell, noise_M[cell]) for cell in open_cells]
        )
        best = int(open_cells[gains.argmax()])
        chosen.append((best, float(gains.max()) * posterior.std))
        covariance = _known(covariance, best, noise_M[best])
        open_cells = open_cells[open_cells != best]
    return chosen


def _gain(
    mean_M: Array, covariance_MM: Array, rows: Sequence[NDArray[np.intp]], cell: int, noise: float
) -> float:
    """How much the sum of the best means rises on average once one score of the cell is known."""
    variance = covariance_MM[cell, cell] + noise
    shift = covariance_MM[:, cell] / np.sqrt(variance)
    after = mean_M[None, :] + NODES[:, None] * shift[None, :]
    return float(sum(WEIGHTS @ after[:, row].max(1) - mean_M[row].max() for row in rows))


def _known(covariance_MM: Array, cell: int, noise: float) -> Array:
    """The covariance once one score of the cell is known."""
    column = covariance_MM[:, cell]
    return np.asarray(covariance_MM - np.outer(column, column) / (column[cell] + noise))
