"""Which exponent lays the curves of all batch sizes on one parabola."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

EXPONENTS = np.round(np.arange(0.0, 2.0001, 0.01), 2)


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
    for a in EXPONENTS:
        x = (log_lr - a * log_b).to_numpy()
        x = x - x.mean()
        fit = np.vander(x, 3)
        residuals = y - fit @ np.linalg.lstsq(fit, y, rcond=None)[0]
        r2_at[float(a)] = float(1 - (residuals**2).sum() / total)
    best = max(r2_at, key=lambda a: r2_at[a])
    return Collapse(exponent=best, r2=r2_at[best], r2_at=r2_at)
