"""Forms of lr*(B) other than a power, compared by AICc."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from search.analysis.scaling.exponent import RULES, Exponent

LEAST_BATCH_SIZES = 6
AHEAD = 4.0  # in AICc: with less between them, two forms are not told apart

Shape = Callable[[float], NDArray[np.float64]]


def rival_forms(fit: Exponent, ridge: pd.DataFrame) -> pd.DataFrame:
    """Forms of lr*(B) fitted to the ridge, best AICc first: form, parameters, aicc, delta, b_noise.

    `a=0`, `a=0.5`, `a=1` and a free power of B; `saturating`, lr_max / (1 + B_noise / B)
    (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.13); `surge`, lr_max / ((sqrt(B_noise / B) +
    sqrt(B / B_noise)) / 2) (Li et al. 2024, arXiv:2405.14578). AICc = n log(RSS / n) +
    2 k n / (n - k - 1) of log lr*, where k includes the variance (Hurvich & Tsai 1989). Empty with
    fewer than six bracketed batch sizes.
    """
    columns = ["form", "parameters", "aicc", "delta", "b_noise"]
    if len(fit.batch_sizes) < LEAST_BATCH_SIZES or fit.looks_flat:
        return pd.DataFrame(columns=columns)
    b = np.array(fit.batch_sizes, dtype=float)
    y = np.log(ridge.set_index("batch_size").loc[list(fit.batch_sizes), "vertex"].to_numpy())
    rows = []

    def add(form: str, residuals: NDArray[np.float64], parameters: int, b_noise: float) -> None:
        # At least a thousandth in log lr: a perfect fit of so few points is a coincidence.
        variance = max(float((residuals**2).mean()), 1e-6)
        n, k = len(b), parameters + 1
        rows.append((form, parameters, n * np.log(variance) + 2 * k * n / (n - k - 1), b_noise))

    for a in RULES.values():
        add(f"a={a:g}", y - a * np.log(b) - (y - a * np.log(b)).mean(), 1, np.nan)
    slope, intercept = np.polyfit(np.log(b), y, 1)
    add("power", y - intercept - slope * np.log(b), 2, np.nan)
    shapes: Mapping[str, Shape] = {
        "saturating": lambda n: -np.log1p(n / b),
        "surge": lambda n: -np.log((np.sqrt(n / b) + np.sqrt(b / n)) / 2),
    }
    for form, shape in shapes.items():
        b_noise = _best_b_noise(shape, b, y)
        residuals = y - shape(b_noise)
        add(form, residuals - residuals.mean(), 2, b_noise)
    forms = pd.DataFrame(rows, columns=["form", "parameters", "aicc", "b_noise"]).sort_values(
        "aicc"
    )
    forms["delta"] = forms["aicc"] - forms["aicc"].min()
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
