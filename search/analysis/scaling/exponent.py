"""How the best lr scales with batch size: the exponent of lr* = c B^a, and the lr to use.

Pure functions of the cells from `surface.surface`. `lr` should be the peak lr that the optimizer
gets: with the base lr, the exponent would be reduced by that of the batch-size rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import linalg, stats

from search.analysis.scaling.ridge import CURVED, ridge, ridge_draws
from search.analysis.surface import LEVEL, SEED, SIGNIFICANT, lr_step

RULES = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}
LEAST_BATCH_SIZES = 3
EDGE_SHARE = 0.025  # if more redrawn surfaces have their best lr on an edge, it is not bracketed
ON_EDGE = "its best lr is the smallest or largest that was tried"
ALONE = "no other lr has a score"
EDGE_WITHIN_NOISE = "the noise allows a best lr at the edge of the grid"
PERMUTATIONS = 999

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """The exponent a of lr* = c B^a with its 95 % interval, and the batch sizes it is fitted to.

    `value` is NaN with fewer than three usable batch sizes; `low` and `high` are NaN if no interval
    can be estimated. `left_out` maps the other batch sizes to the reason. Without replicates
    `from_scatter` is true, the scatter of the points about the line gives the interval, and `value`
    is NaN unless `p_flat` (`flat_p`) is significant. `points` is what the line is fitted to.
    """

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    log_c: float = float("nan")
    batch_sizes: tuple[int, ...]
    left_out: Mapping[int, str]
    from_scatter: bool = False
    p_flat: float = float("nan")
    points: "_Points | None" = field(default=None, repr=False, compare=False)

    @property
    def looks_flat(self) -> bool:
        """Whether the scores may be noise, and the ridge that of noise."""
        return self.p_flat > SIGNIFICANT

    def verdict(self, rule: str) -> str:
        """`compatible` if the interval contains the rule's a, else `rejected`, or `unknown`."""
        if not np.isfinite([self.low, self.high]).all():
            return "unknown"
        return "compatible" if self.low <= RULES[rule] <= self.high else "rejected"


@dataclass(frozen=True)
class _Points:
    """The bracketed points of the ridge: log B, log lr*, weights, and redrawn log lr* if any."""

    batch_sizes: tuple[int, ...]
    x: Array
    y: Array
    weights: Array
    redrawn: Array | None
    left_out: Mapping[int, str]


def exponent(cells: pd.DataFrame, *, mode: str) -> Exponent:
    """The slope of log lr* against log B over the bracketed batch sizes.

    Least squares, weighted by the variance of each ridge point over redrawn surfaces. The standard
    error is the larger one of two estimates: from the noise of the seeds, and from the scatter of
    the points about the line (with Student's t). So a ridge that is not a straight line widens the
    interval. Without replicates the scatter alone gives it, from four batch sizes on, and only if
    the scores are no noise.
    """
    points = _bracketed(cells, mode=mode)
    known: dict[str, Any] = {"batch_sizes": points.batch_sizes, "left_out": points.left_out}
    if len(points.x) < LEAST_BATCH_SIZES:
        return Exponent(**known)
    known["from_scatter"] = points.redrawn is None
    if points.redrawn is None:
        known["p_flat"] = flat_p(cells, mode=mode)
        if known["p_flat"] > SIGNIFICANT:
            return Exponent(**known)
    line = _line(points)
    log_c, value = line.params
    half = _half_interval(points, line)
    return Exponent(
        **known,
        value=float(value),
        low=float(value - half),
        high=float(value + half),
        log_c=float(log_c),
        points=points,
    )


def flat_p(cells: pd.DataFrame, *, mode: str) -> float:
    """How often the scores of each batch size in another order look as much like curves over lr.

    Without replicates nothing else tells a surface from noise. The statistic is the sum of squares
    of parabolas in log lr, each batch size with its own mean and slope and all with one curvature,
    which counts if they have a peak. Orders are drawn within each batch size. Where all trials were
    stopped or diverged, the score counts as the worst of the others.
    """
    worst = cells["mean"].min() if mode == "max" else cells["mean"].max()
    is_lost = cells["mean"].isna() & (cells["stopped"] + cells["diverged"] > 0)
    scored = cells.assign(mean=cells["mean"].mask(is_lost, worst)).dropna(subset="mean")
    groups = [group for _, group in scored.groupby("batch_size") if len(group) > 1]
    if not groups:
        return float("nan")
    rng = np.random.default_rng(SEED)
    scores, slopes, curves = [], [], []
    for group in groups:
        y = (group["mean"] - group["mean"].mean()).to_numpy(dtype=float)
        others = rng.permuted(np.tile(y[:, None], PERMUTATIONS), axis=0)
        scores.append(np.column_stack([y, others]))
        x = np.log(group["lr"].to_numpy(dtype=float))
        x = x - x.mean()
        slope = x / np.linalg.norm(x)
        slopes.append(slope[:, None])
        curve = x**2 - (x**2).mean()
        curves.append(curve - slope * (slope @ curve))
    all_scores, curve = np.concatenate(scores), np.concatenate(curves)
    of_slopes = ((linalg.block_diag(*slopes).T @ all_scores) ** 2).sum(axis=0)
    bend = curve @ all_scores * (-1.0 if mode == "max" else 1.0)
    fitted = of_slopes + np.maximum(bend, 0.0) ** 2 / max(float(curve @ curve), 1e-12)
    return float((fitted >= fitted[0] * (1 - 1e-9)).mean())


def _bracketed(cells: pd.DataFrame, *, mode: str) -> _Points:
    """The points of the ridge whose best lr is certainly between two others."""
    draws = ridge_draws(cells, mode=mode)
    x, y, weights, used, left_out = [], [], [], [], {}
    redrawn: list[Array] = []
    for row in ridge(cells, mode=mode).to_dict("records"):
        batch_size = int(row["batch_size"])
        lrs = cells.loc[(cells["batch_size"] == batch_size) & cells["mean"].notna(), "lr"]
        if row["edge"] or len(lrs) < 2:
            left_out[batch_size] = ON_EDGE if row["edge"] else ALONE
            continue
        if draws is not None:
            logs = draws[batch_size]
            group = cells[(cells["batch_size"] == batch_size) & (cells["trials"] > cells["failed"])]
            on_edge = np.isin(logs, np.log([group["lr"].min(), group["lr"].max()])).mean()
            if on_edge > EDGE_SHARE:
                left_out[batch_size] = EDGE_WITHIN_NOISE
                continue
            redrawn.append(logs)
        x.append(np.log(batch_size))
        y.append(np.log(row["vertex"]))
        used.append(batch_size)
        weights.append(1.0 if draws is None else 1 / max(float(logs.var()), 1e-12))
    return _Points(
        batch_sizes=tuple(used),
        x=np.array(x),
        y=np.array(y),
        weights=np.array(weights),
        redrawn=np.array(redrawn) if redrawn else None,
        left_out=left_out,
    )


def _line(points: _Points) -> Any:
    """Weighted least squares of log lr* on log B, by statsmodels."""
    from statsmodels.regression.linear_model import WLS

    return WLS(points.y, _design(points.x), weights=points.weights).fit()


def _design(log_b: Array) -> Array:
    return np.column_stack([np.ones_like(log_b), log_b])


def _half_interval(points: _Points, line: Any) -> float:
    """Half of the exponent's 95 % interval; NaN if it cannot be estimated."""
    low, high = line.conf_int(alpha=1 - LEVEL)[1]
    half = float(high - low) / 2
    if points.redrawn is None:
        return half if line.df_resid > 1 else float("nan")
    slopes = (line.model.pinv_wexog @ (np.sqrt(points.weights)[:, None] * points.redrawn))[1]
    low, high = np.percentile(slopes, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    value = line.params[1]
    return float(max(value - low, high - value, 0.0 if _is_straight(line) else half))


def _is_straight(line: Any) -> bool:
    """Whether the points scatter about the line no more than their noise allows."""
    return bool(stats.chi2.sf(line.ssr, line.df_resid) > SIGNIFICANT)


def lr_to_use(fit: Exponent, cells: pd.DataFrame) -> pd.DataFrame:
    """The lr to use at each batch size, tried or not: batch_size, lr, low, high, tried.

    From the line through all batch sizes, which knows more than the points of one. `tried` tells
    sizes of the table from powers of two between them and one beyond each end. `low` and `high` are
    the 95 % prediction interval for the best lr: the larger one of the line's own, by the noise of
    the seeds, and of that of one more point about the line (with Student's t), each `CURVED` steps
    of the grid wider, as those of `ridge_interval`. Empty without an exponent and its interval.
    """
    columns = ["batch_size", "lr", "low", "high", "tried"]
    points = fit.points
    if points is None or not np.isfinite([fit.low, fit.high]).all():
        return pd.DataFrame(columns=columns)
    line = _line(points)
    tried = {int(b) for b in cells["batch_size"]}
    ends = np.log2(min(tried)), np.log2(max(tried))
    between = 2.0 ** np.arange(np.ceil(ends[0]) - 1, np.floor(ends[1]) + 2)
    sizes = np.array(sorted(tried | {int(b) for b in between if b >= 1}), dtype=float)
    design = _design(np.log(sizes))
    predicted = line.get_prediction(design, weights=np.median(points.weights))
    half = np.diff(predicted.conf_int(obs=True, alpha=1 - LEVEL))[:, 0] / 2
    mean = predicted.predicted_mean
    if points.redrawn is not None:
        lines = design @ (
            line.model.pinv_wexog @ (np.sqrt(points.weights)[:, None] * points.redrawn)
        )
        of_noise = np.abs(np.percentile(lines, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=1) - mean)
        half = of_noise.max(axis=0) if _is_straight(line) else np.fmax(half, of_noise.max(axis=0))
    half = half + CURVED * lr_step(cells)
    rows = (sizes.astype(int), np.exp(mean), np.exp(mean - half), np.exp(mean + half))
    table = pd.DataFrame(dict(zip(columns, rows, strict=False)))
    return table.assign(tried=table["batch_size"].isin(tried))
