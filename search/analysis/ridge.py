"""The ridge of a surface: the best lr of each batch size, with intervals."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.surface import DRAWS, LEVEL, contenders, redrawn


def ridge(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The best lr of each batch size: batch_size, lr, mean, edge, vertex.

    `lr` is the best lr among the batch size's `contenders`. `edge` is `low` or `high` if it is the
    smallest or largest lr that was tried, so that a better one may lie outside; otherwise it is
    empty. An lr whose trials diverged or were stopped counts as tried. `vertex` is the peak of the
    parabola in log lr through the best lr and its two neighbours, or the best lr itself if it does
    not have two.
    """
    rows = []
    sign = 1.0 if mode == "max" else -1.0
    for batch_size, group in cells.groupby("batch_size"):
        group = group.sort_values("lr")
        scored = contenders(group).reset_index(drop=True)
        if scored.empty:
            continue
        index = int((sign * scored["mean"]).idxmax())
        best = scored.loc[index]
        tried = group.loc[group["trials"] > group["failed"], "lr"]
        edges = {tried.min(): "low", tried.max(): "high"} if len(tried) > 1 else {}
        edge = edges.get(best["lr"], "")
        vertex = best["lr"]
        if 0 < index < len(scored) - 1:
            vertex = float(np.exp(_vertex(np.log(scored["lr"]), sign * scored["mean"], index)))
        rows.append((batch_size, best["lr"], best["mean"], edge, vertex))
    return pd.DataFrame(rows, columns=["batch_size", "lr", "mean", "edge", "vertex"])


def _vertex(x: "pd.Series[float]", y: "pd.Series[float]", index: int) -> float:
    """Where the parabola through the point at `index` and its two neighbours is highest.

    By divided differences. It is between the neighbours, because the middle point is the highest.
    """
    x0, x1, x2 = (float(x.iloc[i]) for i in (index - 1, index, index + 1))
    y0, y1, y2 = (float(y.iloc[i]) for i in (index - 1, index, index + 1))
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    return (x0 + x1) / 2 - first / (2 * bend) if bend < 0 else x1


def ridge_interval(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> pd.DataFrame:
    """`ridge` with lr_low and lr_high, the 95 % interval of each batch size's best lr.

    They are percentiles of the vertex over redrawn surfaces; the interval ends at the edge if the
    best lr of a draw is there. It contains only the noise of the seeds: if the curve falls much
    faster on one side, the vertex of the parabola is off by a part of a step between two lrs, which
    matters when the noise is small. NaN without replicates. `bracketed`: the best lr is no edge.
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
    """The log of each batch size's vertex over redrawn surfaces, (draws,); None without replicates.

    Natural logarithms. A best lr on the edge gives exactly the logarithm of that edge.
    """
    means = redrawn(cells, mode=mode, draws=draws)
    if means is None:
        return None
    sign = 1.0 if mode == "max" else -1.0
    vertices = {}
    for batch_size, group in cells.groupby("batch_size"):
        order = contenders(group.sort_values("lr"))
        if order.empty:
            continue
        x = np.log(order["lr"].to_numpy())
        y = sign * means[:, cells.index.get_indexer(order.index)]
        vertices[batch_size] = _vertices(x, y)
    return vertices


def _vertices(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """`_vertex` of many curves: x (lrs,), y (draws, lrs) -> (draws,)."""
    best = y.argmax(axis=1)
    inner = (best > 0) & (best < len(x) - 1)
    i = np.clip(best, 1, max(len(x) - 2, 1))
    if len(x) < 3:
        return np.asarray(x[best])
    row = np.arange(len(y))
    x0, x1, x2 = x[i - 1], x[i], x[i + 1]
    y0, y1, y2 = y[row, i - 1], y[row, i], y[row, i + 1]
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (second - first) / (x2 - x0)
    inner &= bend < 0
    vertex = (x0 + x1) / 2 - first / (2 * np.where(inner, bend, -1.0))
    vertices: NDArray[np.float64] = np.where(inner, vertex, x[best])
    return vertices
