"""How the best lr scales with batch size: the exponent of lr* = c B^a, other forms, the collapse.

Pure functions of the cells from `surface.surface`. `lr` should be the peak lr that the optimizer
gets: with the base lr, the exponent would be reduced by that of the batch-size rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from search.analysis.ridge import ridge_draws, ridge_interval
from search.analysis.surface import LEVEL

RULES = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}
LEAST_BATCH_SIZES = 3
EDGE_SHARE = 0.025  # if more redrawn surfaces have their best lr on an edge, it is not bracketed
EDGE_WITHIN_NOISE = "the noise allows a best lr at the edge of the grid"
COLLAPSE_EXPONENTS = np.round(np.arange(0.0, 2.0001, 0.01), 2)

Shape = Callable[[float], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """The exponent a of lr* = c B^a with its 95 % interval, and the batch sizes it is fitted to.

    `value` is NaN with fewer than three usable batch sizes; `low` and `high` are NaN if no interval
    can be estimated. `left_out` maps the other batch sizes to the reason.
    """

    value: float
    low: float
    high: float
    log_c: float
    batch_sizes: tuple[int, ...]
    left_out: Mapping[int, str]

    def verdict(self, rule: str) -> str:
        """`holds` if the interval contains the rule's a, else `rejected`; `unknown` without one."""
        if not np.isfinite([self.low, self.high]).all():
            return "unknown"
        return "holds" if self.low <= RULES[rule] <= self.high else "rejected"


@dataclass(frozen=True)
class _Points:
    """The bracketed points of the ridge: log B, log lr*, weights, and redrawn log lr* if any."""

    batch_sizes: tuple[int, ...]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    weights: NDArray[np.float64]
    redrawn: NDArray[np.float64] | None
    left_out: Mapping[int, str]


def exponent(cells: pd.DataFrame, *, mode: str) -> Exponent:
    """The slope of log lr* against log B over the bracketed batch sizes.

    Least squares, weighted by the variance of each ridge point over redrawn surfaces. The standard
    error is the larger one of two estimates: from the noise of the seeds, and from the scatter of
    the points about the line (with Student's t). So a ridge that is not a straight line widens the
    interval. Without replicates the scatter alone gives it, from four batch sizes on.
    """
    points = _bracketed(cells, mode=mode)
    if len(points.x) < LEAST_BATCH_SIZES:
        nan = float("nan")
        return Exponent(
            value=nan,
            low=nan,
            high=nan,
            log_c=nan,
            batch_sizes=points.batch_sizes,
            left_out=points.left_out,
        )
    value, log_c = _line(points.x, points.y, points.weights)
    half = _half_interval(points, value, log_c)
    return Exponent(
        value=value,
        low=value - half,
        high=value + half,
        log_c=log_c,
        batch_sizes=points.batch_sizes,
        left_out=points.left_out,
    )


def _bracketed(cells: pd.DataFrame, *, mode: str) -> _Points:
    """The points of the ridge whose best lr is certainly between two others."""
    draws = ridge_draws(cells, mode=mode)
    x, y, weights, used, left_out = [], [], [], [], {}
    redrawn: list[NDArray[np.float64]] = []
    for row in ridge_interval(cells, mode=mode).to_dict("records"):
        batch_size = int(row["batch_size"])
        lrs = cells.loc[(cells["batch_size"] == batch_size) & cells["mean"].notna(), "lr"]
        if row["edge"] or not lrs.min() < row["lr"] < lrs.max():
            left_out[batch_size] = "its best lr is not between two others that have scores"
            continue
        if draws is not None:
            logs = draws[batch_size]
            on_edge = np.isin(logs, np.log([lrs.min(), lrs.max()])).mean()
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


def _half_interval(points: _Points, value: float, log_c: float) -> float:
    """Half of the exponent's 95 % interval; NaN if it cannot be estimated."""
    xs, w = points.x, points.weights
    freedom = len(xs) - 2
    residuals = points.y - log_c - value * xs
    spread = (w * (xs - np.average(xs, weights=w)) ** 2).sum()
    scatter = float(np.sqrt((w * residuals**2).sum() / freedom / spread))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom) * scatter)
    if points.redrawn is None:
        return half if freedom > 1 else float("nan")
    tilt = w * (xs - np.average(xs, weights=w)) / spread
    slopes = tilt @ points.redrawn
    low, high = np.percentile(slopes, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    chi2 = float((w * residuals**2).sum())
    is_straight = stats.chi2.sf(chi2, freedom) > 0.05
    return float(max(value - low, high - value, 0.0 if is_straight else half))


def _line(
    x: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and intercept by weighted least squares."""
    mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
    slope = (w * (x - mean_x) * (y - mean_y)).sum() / (w * (x - mean_x) ** 2).sum()
    return float(slope), float(mean_y - slope * mean_x)


def rival_forms(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """Forms of lr*(B) fitted to the ridge, best AIC first: form, parameters, aic, delta, b_noise.

    `a=0`, `a=0.5`, `a=1` and a free power of B; `saturating`, lr_max / (1 + B_noise / B)
    (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.13); `surge`, lr_max / ((sqrt(B_noise / B) +
    sqrt(B / B_noise)) / 2) (Li et al. 2024, arXiv:2405.14578). AIC = n log(RSS / n) + 2 k of
    log lr*, where k includes the variance. Empty with fewer than four bracketed batch sizes. With
    so few points a difference below 2 is meaningless.
    """
    columns = ["form", "parameters", "aic", "delta", "b_noise"]
    fitted = exponent(cells, mode=mode)
    if len(fitted.batch_sizes) < LEAST_BATCH_SIZES + 1:
        return pd.DataFrame(columns=columns)
    table = ridge_interval(cells, mode=mode).set_index("batch_size")
    b = np.array(fitted.batch_sizes, dtype=float)
    y = np.log(table.loc[list(fitted.batch_sizes), "vertex"].to_numpy())
    rows = []

    def add(form: str, residuals: NDArray[np.float64], parameters: int, b_noise: float) -> None:
        # At least a thousandth in log lr: a perfect fit of so few points is a coincidence.
        variance = max(float((residuals**2).mean()), 1e-6)
        rows.append((form, parameters, len(b) * np.log(variance) + 2 * (parameters + 1), b_noise))

    for a in RULES.values():
        add(f"a={a:g}", y - a * np.log(b) - (y - a * np.log(b)).mean(), 1, np.nan)
    slope, intercept = _line(np.log(b), y, np.ones_like(b))
    add("power", y - intercept - slope * np.log(b), 2, np.nan)
    shapes: Mapping[str, Shape] = {
        "saturating": lambda n: -np.log1p(n / b),
        "surge": lambda n: -np.log((np.sqrt(n / b) + np.sqrt(b / n)) / 2),
    }
    for form, shape in shapes.items():
        b_noise = _best_b_noise(shape, b, y)
        residuals = y - shape(b_noise)
        add(form, residuals - residuals.mean(), 2, b_noise)
    forms = pd.DataFrame(rows, columns=["form", "parameters", "aic", "b_noise"]).sort_values("aic")
    forms["delta"] = forms["aic"] - forms["aic"].min()
    return forms.reset_index(drop=True)[columns]


def _best_b_noise(shape: Shape, b: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The B_noise with which a form fits log lr* best, by a scan and a bounded minimization."""

    def rss(log_n: float) -> float:
        residuals = y - shape(np.exp(log_n))
        return float(((residuals - residuals.mean()) ** 2).sum())

    starts = np.linspace(np.log(b.min()) - 5, np.log(b.max()) + 5, 60)
    start = starts[int(np.argmin([rss(s) for s in starts]))]
    step = starts[1] - starts[0]
    bounds = (start - step, start + step)
    return float(np.exp(optimize.minimize_scalar(rss, bounds=bounds, method="bounded").x))


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """The a for which one parabola in log lr - a log B fits all cells best; `r2_at` maps a to R2.

    NaN and empty with fewer than five scored cells, or if all scores are equal.
    """

    exponent: float
    r2: float
    r2_at: Mapping[float, float]


def collapse(cells: pd.DataFrame) -> Collapse:
    """Scan a in [0, 2] in steps of 0.01: fit a quadratic in log10 lr - a log10 B to the means."""
    scored = cells[cells["mean"].notna()]
    y = scored["mean"].to_numpy(dtype=float)
    if (
        len(scored) < 5
        or np.ptp(y) == 0
        or scored["lr"].nunique() * scored["batch_size"].nunique() < 4
    ):
        return Collapse(exponent=float("nan"), r2=float("nan"), r2_at={})
    log_lr, log_b = np.log10(scored["lr"]), np.log10(scored["batch_size"])
    total = ((y - y.mean()) ** 2).sum()
    r2_at = {}
    for a in COLLAPSE_EXPONENTS:
        x = (log_lr - a * log_b).to_numpy()
        x = x - x.mean()
        fit = np.vander(x, 3)
        residuals = y - fit @ np.linalg.lstsq(fit, y, rcond=None)[0]
        r2_at[float(a)] = float(1 - (residuals**2).sum() / total)
    best = max(r2_at, key=lambda a: r2_at[a])
    return Collapse(exponent=best, r2=r2_at[best], r2_at=r2_at)
