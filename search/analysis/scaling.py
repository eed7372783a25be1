"""How the best lr scales with batch size: the exponent of lr* = c B^a, its rivals, the collapse.

Pure functions over the cells that `surface.surface` makes. `lr` should be what the optimizer gets
at its peak: a base lr before a batch-size rule has the rule's exponent taken off.
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
EDGE_SHARE = 0.025  # of redrawn surfaces whose best is on an edge: above it, it is not bracketed
EDGE_WITHIN_NOISE = "within the noise its best lr reaches the edge of the grid"
COLLAPSE_EXPONENTS = np.round(np.arange(0.0, 2.0001, 0.01), 2)


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """a of lr* = c B^a with its 95 % interval, and which batch sizes it rests on.

    `value` is NaN with fewer than three usable batch sizes; `low` and `high` are NaN where there is
    nothing to estimate an interval from. `left_out` maps the other batch sizes to why.
    """

    value: float
    low: float
    high: float
    log_c: float
    batch_sizes: tuple[int, ...]
    left_out: Mapping[int, str]

    def verdict(self, rule: str) -> str:
        """`holds`, `rejected`, or `unknown` without an interval: whether it holds a rule's a."""
        if not np.isfinite([self.low, self.high]).all():
            return "unknown"
        return "holds" if self.low <= RULES[rule] <= self.high else "rejected"


def exponent(cells: pd.DataFrame, *, mode: str) -> Exponent:
    """The slope of log lr* against log B over the bracketed batch sizes.

    Least squares weighted by the variance of each ridge point over redrawn surfaces. The standard
    error is the larger of what the seeds' noise gives and what the points' scatter about the line
    gives, the latter with Student's t: a ridge that is no straight line widens the interval, and
    without seeds the scatter alone makes it (from four batch sizes on).
    """
    table = ridge_interval(cells, mode=mode)
    draws = ridge_draws(cells, mode=mode)
    x, y, weights, used, left_out = [], [], [], [], {}
    sampled: list[NDArray[np.float64]] = []
    for row in table.to_dict("records"):
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
            sampled.append(logs)
        x.append(np.log(batch_size))
        y.append(np.log(row["vertex"]))
        used.append(batch_size)
        weights.append(1.0 if draws is None else 1 / max(float(logs.var()), 1e-12))
    if len(x) < LEAST_BATCH_SIZES:
        nan = float("nan")
        return Exponent(
            value=nan, low=nan, high=nan, log_c=nan, batch_sizes=tuple(used), left_out=left_out
        )
    xs, ys, w = np.array(x), np.array(y), np.array(weights)
    value, log_c = _line(xs, ys, w)
    freedom = len(xs) - 2
    residuals = ys - log_c - value * xs
    spread = (w * (xs - np.average(xs, weights=w)) ** 2).sum()
    scatter = float(np.sqrt((w * residuals**2).sum() / freedom / spread))
    half = stats.t.ppf(0.5 + LEVEL / 2, freedom) * scatter
    if sampled:
        tilt = w * (xs - np.average(xs, weights=w)) / spread
        slopes = tilt @ np.array(sampled)
        low, high = np.percentile(slopes, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        chi2 = float((w * residuals**2).sum())
        straight = stats.chi2.sf(chi2, freedom) > 0.05
        half = max(value - low, high - value, 0.0 if straight else half)
    elif freedom < 2:
        half = float("nan")
    return Exponent(
        value=value,
        low=value - half,
        high=value + half,
        log_c=log_c,
        batch_sizes=tuple(used),
        left_out=left_out,
    )


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
    log lr*, k counting the variance. Empty with fewer than four bracketed batch sizes; with so few
    points a difference below 2 says nothing.
    """
    columns = ["form", "parameters", "aic", "delta", "b_noise"]
    found = exponent(cells, mode=mode)
    if len(found.batch_sizes) < LEAST_BATCH_SIZES + 1:
        return pd.DataFrame(columns=columns)
    table = ridge_interval(cells, mode=mode).set_index("batch_size")
    b = np.array(found.batch_sizes, dtype=float)
    y = np.log(table.loc[list(found.batch_sizes), "vertex"].to_numpy())
    rows = []

    def add(form: str, residuals: NDArray[np.float64], parameters: int, b_noise: float) -> None:
        # A floor of a thousandth of log lr: a perfect fit is a coincidence of few points.
        variance = max(float((residuals**2).mean()), 1e-6)
        rows.append((form, parameters, len(b) * np.log(variance) + 2 * (parameters + 1), b_noise))

    for a in RULES.values():
        add(f"a={a:g}", y - a * np.log(b) - (y - a * np.log(b)).mean(), 1, np.nan)
    slope, intercept = _line(np.log(b), y, np.ones_like(b))
    add("power", y - intercept - slope * np.log(b), 2, np.nan)
    shapes: Mapping[str, Callable[[float], NDArray[np.float64]]] = {
        "saturating": lambda n: -np.log1p(n / b),
        "surge": lambda n: -np.log((np.sqrt(n / b) + np.sqrt(b / n)) / 2),
    }
    for form, shape in shapes.items():

        def rss(log_n: float, shape: Callable[[float], NDArray[np.float64]] = shape) -> float:
            left = y - shape(np.exp(log_n))
            return float(((left - left.mean()) ** 2).sum())

        bounds = (np.log(b.min()) - 5, np.log(b.max()) + 5)
        starts = np.linspace(*bounds, 60)
        start = starts[int(np.argmin([rss(s) for s in starts]))]
        step = starts[1] - starts[0]
        best = optimize.minimize_scalar(
            rss, bounds=(start - step, start + step), method="bounded"
        ).x
        left = y - shape(np.exp(best))
        add(form, left - left.mean(), 2, float(np.exp(best)))
    out = pd.DataFrame(rows, columns=["form", "parameters", "aic", "b_noise"]).sort_values("aic")
    out["delta"] = out["aic"] - out["aic"].min()
    return out.reset_index(drop=True)[columns]


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """The a at which all cells lie best on one parabola in log lr - a log B; `r2_at` maps a to R2.

    NaN and empty where there are fewer than five cells with scores or a constant metric.
    """

    exponent: float
    r2: float
    r2_at: Mapping[float, float]


def collapse(cells: pd.DataFrame) -> Collapse:
    """Scan a in [0, 2] by 0.01: cell means as a quadratic in log10 lr - a log10 B."""
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
        left = y - fit @ np.linalg.lstsq(fit, y, rcond=None)[0]
        r2_at[float(a)] = float(1 - (left**2).sum() / total)
    best = max(r2_at, key=lambda a: r2_at[a])
    return Collapse(exponent=best, r2=r2_at[best], r2_at=r2_at)
