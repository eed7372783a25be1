"""The ridge of a surface: the best lr of each batch size, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.noise import redrawn
from search.analysis.surface import DRAWS, LEVEL, SEED, contenders

# Chosen in simulations (docs/statistics.md).
CURVED, REACH = 0.2, 0.6  # steps between two lrs
STEEP, CLIFF_SHARE = 6.0, 0.3

Array = NDArray[np.float64]


def ridge(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The best lr of each batch size: batch_size, lr, mean, edge, vertex.

    `lr` is the best lr among the batch size's `contenders`. `edge` is `low` or `high` if it is the
    smallest or largest lr that was tried, so that a better one may lie outside; otherwise it is
    empty. `vertex` is the peak of the parabola in log lr through the best lr and its two
    neighbours, or the best lr itself if it does not have two with scores.
    """
    rows = []
    for batch_size, group in cells.groupby("batch_size"):
        curve = _curve(group)
        if curve["mean"].isna().all():
            continue
        log_lrs, scores = _points(curve, mode=mode)
        index = int(scores.argmax())
        edge = {0: "low", len(curve) - 1: "high"}.get(index, "") if len(curve) > 1 else ""
        lr, mean = curve.iloc[index][["lr", "mean"]]
        log_vertex = _peaks(log_lrs, scores[None]).vertex[0]
        vertex = lr if log_vertex == log_lrs[index] else float(np.exp(log_vertex))
        rows.append((batch_size, lr, mean, edge, vertex))
    return pd.DataFrame(rows, columns=["batch_size", "lr", "mean", "edge", "vertex"])


def _curve(cells: pd.DataFrame) -> pd.DataFrame:
    """All lrs that were tried at one batch size; `mean` only of those that can be best."""
    tried = cells[cells["trials"] > cells["failed"]]
    can_be_best = tried.index.isin(contenders(cells).index)
    return tried.assign(mean=tried["mean"].where(can_be_best)).sort_values("lr")


def _points(curve: pd.DataFrame, *, mode: str) -> tuple[Array, Array]:
    """Log lrs and scores, where more is better; minus infinity where an lr cannot be best."""
    scores = curve["mean"].to_numpy(dtype=float) * (1.0 if mode == "max" else -1.0)
    return np.log(curve["lr"].to_numpy(dtype=float)), np.where(np.isnan(scores), -np.inf, scores)


def ridge_interval(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> pd.DataFrame:
    """`ridge` with lr_low and lr_high, the 95 % interval of each batch size's best lr.

    They are percentiles of the vertex over redrawn surfaces, `CURVED` steps of the grid further
    out: a curve that is no parabola has its best lr beside the vertex. Beside a cliff (`_peaks`)
    the vertex says little, and the interval extends towards it. It ends at the edge if the best lr
    of a draw is there. NaN without replicates, and of a batch size with one lr. `bracketed`: other
    lrs were tried on both sides of the best one.
    """
    table = ridge(cells, mode=mode)
    num_lrs = cells[cells["trials"] > cells["failed"]].groupby("batch_size")["lr"].count()
    table["bracketed"] = (table["edge"] == "") & (table["batch_size"].map(num_lrs) > 1)
    peaks = _redrawn_peaks(cells, mode=mode, draws=draws)
    if peaks is None:
        return table.assign(lr_low=np.nan, lr_high=np.nan)
    ends = [_ends(cells, row, peaks[row["batch_size"]]) for row in table.to_dict("records")]
    return table.assign(lr_low=[low for low, _ in ends], lr_high=[high for _, high in ends])


def _ends(cells: pd.DataFrame, best: Mapping[str, Any], peaks: "_Peaks") -> tuple[float, float]:
    """The ends of the interval of one batch size's best lr."""
    logs = np.log(_curve(cells[cells["batch_size"] == best["batch_size"]])["lr"].to_numpy())
    if len(logs) == 1:
        return np.nan, np.nan
    index = int(np.argmin(np.abs(logs - np.log(best["lr"]))))
    is_inner = 0 < index < len(logs) - 1
    tail = 50 * (1 - LEVEL)
    ends = []
    for beside, q, sign in ((peaks.low, tail, -1), (peaks.high, 100 - tail, 1)):
        is_cliff = (beside != peaks.vertex).mean() > CLIFF_SHARE
        end = np.percentile(beside if is_cliff else peaks.vertex, q)
        step = abs(logs[index + sign] - logs[index]) if is_inner else 0.0
        ends.append(float(np.exp(np.clip(end + sign * CURVED * step, logs[0], logs[-1]))))
    return ends[0], ends[1]


def ridge_draws(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> dict[int, Array] | None:
    """The log of each batch size's best lr over redrawn surfaces, (draws,); None without seeds.

    Natural logarithms. A best lr on the edge gives exactly the logarithm of that edge. Beside an lr
    whose trials all diverged or were stopped, it is drawn evenly, up to `REACH` steps to each side.
    """
    peaks = _redrawn_peaks(cells, mode=mode, draws=draws)
    if peaks is None:
        return None
    rng = np.random.default_rng(SEED)
    return {
        b: np.where(peak.is_bound, rng.uniform(peak.low, peak.high), peak.vertex)
        for b, peak in peaks.items()
    }


@dataclass(frozen=True)
class _Peaks:
    """Of each of many curves the log lr of its vertex, and the range in which its best lr lies.

    `is_bound`: a neighbour has no score, and the range is all that is known.
    """

    vertex: Array
    low: Array
    high: Array
    is_bound: NDArray[np.bool_]


def _redrawn_peaks(cells: pd.DataFrame, *, mode: str, draws: int) -> dict[int, _Peaks] | None:
    means = redrawn(cells, mode=mode, draws=draws)
    if means is None:
        return None
    sign = 1.0 if mode == "max" else -1.0
    peaks = {}
    for batch_size, group in cells.groupby("batch_size"):
        curve = _curve(group)
        if curve["mean"].notna().any():
            y = sign * means[:, cells.index.get_indexer(curve.index)]
            log_lrs, _ = _points(curve, mode=mode)
            peaks[batch_size] = _peaks(log_lrs, np.where(curve["mean"].isna(), -np.inf, y))
    return peaks


def _peaks(x: Array, y: Array) -> _Peaks:
    """The peaks of curves y (draws, lrs) over log lrs x: parabolas through the best three points.

    By divided differences. A best point on the edge is its own vertex and range. Where one side
    falls `STEEP` times as much as the other, it may be a cliff, which says nothing of where the
    best lr is: it may lie up to `REACH` steps from the middle point towards it. So it may on both
    sides where y is minus infinity on one.
    """
    best = y.argmax(axis=1)
    inner = (best > 0) & (best < len(x) - 1)
    if len(x) < 3:
        return _Peaks(x[best], x[best], x[best], inner)
    i = np.clip(best, 1, len(x) - 2)
    row = np.arange(len(y))
    x0, x1, x2 = x[i - 1], x[i], x[i + 1]
    y0, y1, y2 = y[row, i - 1], y[row, i], y[row, i + 1]
    is_bound = inner & (np.isinf(y0) | np.isinf(y2))
    below, above = x1 - REACH * (x1 - x0), x1 + REACH * (x2 - x1)
    y0, y1, y2 = (np.where(inner & ~is_bound, value, x1 * 0.0) for value in (y0, y1, y2))
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    is_peak = bend < 0
    vertex = (x0 + x1) / 2 - first / (2 * np.where(is_peak, bend, -1.0))
    cliff_below, cliff_above = y1 - y0 > STEEP * (y1 - y2), y1 - y2 > STEEP * (y1 - y0)
    low = np.where(cliff_below, np.minimum(vertex, below), vertex)
    high = np.where(cliff_above, np.maximum(vertex, above), vertex)
    vertex, low, high = (np.where(is_peak, value, x[best]) for value in (vertex, low, high))
    low, high = np.where(is_bound, below, low), np.where(is_bound, above, high)
    return _Peaks(vertex, low, high, is_bound)
