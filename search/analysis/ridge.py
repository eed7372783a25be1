"""The ridge of a surface: the best lr of each batch size, with intervals."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.surface import DRAWS, LEVEL, redrawn


def ridge(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The best lr of each batch size: batch_size, lr, mean, edge, vertex.

    `lr` is the best that has a score and `edge` is `low` or `high` where that is the smallest or
    largest lr tried, so that a better one may lie outside; else an empty text. Beside an lr whose
    trials diverged or were stopped for being worse the best is no edge. `vertex` is the peak of
    the parabola in log lr through the best and its two neighbours; the best itself where there are
    not two.
    """
    rows = []
    sign = 1.0 if mode == "max" else -1.0
    for batch_size, group in cells.groupby("batch_size"):
        group = group.sort_values("lr")
        scored = group.dropna(subset="mean").reset_index(drop=True)
        if scored.empty:
            continue
        at = int((sign * scored["mean"]).idxmax())
        best = scored.loc[at]
        tried = group.loc[group["trials"] > group["failed"], "lr"]
        edges = {tried.min(): "low", tried.max(): "high"} if len(tried) > 1 else {}
        edge = edges.get(best["lr"], "")
        vertex = best["lr"]
        if 0 < at < len(scored) - 1:
            vertex = float(np.exp(_vertex(np.log(scored["lr"]), sign * scored["mean"], at)))
        rows.append((batch_size, best["lr"], best["mean"], edge, vertex))
    return pd.DataFrame(rows, columns=["batch_size", "lr", "mean", "edge", "vertex"])


def _vertex(x: "pd.Series[float]", y: "pd.Series[float]", at: int) -> float:
    """Where the parabola through the points `at - 1`, `at` and `at + 1` is highest.

    By divided differences; within the neighbours, as `at` is the highest of the three.
    """
    x0, x1, x2 = (float(x.iloc[i]) for i in (at - 1, at, at + 1))
    y0, y1, y2 = (float(y.iloc[i]) for i in (at - 1, at, at + 1))
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    return (x0 + x1) / 2 - first / (2 * bend) if bend < 0 else x1


def ridge_interval(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> pd.DataFrame:
    """`ridge` with lr_low and lr_high, the 95 % interval of each batch size's best lr.

    Percentiles of the vertex over redrawn surfaces; where the best then lies on an edge, the
    interval ends there. It is of the seeds' noise alone: where the curve falls off much faster on
    one side, the parabola's vertex is off by a part of a step between two lrs, which shows where
    the noise is small. NaN without seeds. `bracketed` says whether the best lies inside.
    """
    table = ridge(cells, mode=mode)
    table["bracketed"] = table["edge"] == ""
    vertices = ridge_draws(cells, mode=mode, draws=draws)
    tail = 50 * (1 - LEVEL)
    for name, q in (("lr_low", tail), ("lr_high", 100 - tail)):
        table[name] = (
            np.nan
            if vertices is None
            else [np.exp(np.percentile(vertices[b], q)) for b in table["batch_size"]]
        )
    return table


def ridge_draws(
    cells: pd.DataFrame, *, mode: str, draws: int = DRAWS
) -> dict[int, NDArray[np.float64]] | None:
    """Each batch size's log best lr (vertex) over redrawn surfaces, (draws,); None without seeds.

    Natural logarithms: a best on an edge of those with scores is exactly that edge's.
    """
    means = redrawn(cells, mode=mode, draws=draws)
    if means is None:
        return None
    sign = 1.0 if mode == "max" else -1.0
    found = {}
    for batch_size, group in cells.groupby("batch_size"):
        order = group.sort_values("lr")
        order = order[order["mean"].notna()]
        if order.empty:
            continue
        x = np.log(order["lr"].to_numpy())
        y = sign * means[:, cells.index.get_indexer(order.index)]
        found[batch_size] = _vertices(x, y)
    return found


def _vertices(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """`_vertex` of many curves at once: x (lrs,), y (draws, lrs) -> (draws,)."""
    at = y.argmax(axis=1)
    inner = (at > 0) & (at < len(x) - 1)
    i = np.clip(at, 1, max(len(x) - 2, 1))
    if len(x) < 3:
        return np.asarray(x[at])
    row = np.arange(len(y))
    x0, x1, x2 = x[i - 1], x[i], x[i + 1]
    y0, y1, y2 = y[row, i - 1], y[row, i], y[row, i + 1]
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    inner &= bend < 0
    vertex = (x0 + x1) / 2 - first / (2 * np.where(inner, bend, -1.0))
    found: NDArray[np.float64] = np.where(inner, vertex, x[at])
    return found
