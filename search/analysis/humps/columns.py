"""Other columns of a table, such as momentum, as the model of humps takes them in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.surface import LOG_RATIO

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column with the scale on which it has a mean of 0 and a standard deviation of 1.

    The scale is `linear`, `log`, or `momentum`: -log(1 - momentum), on which equal steps change the
    step that an optimizer takes in the end by equal factors.
    """

    name: str
    scale: str
    mean: float
    std: float
    lowest: float
    highest: float

    def standardised(self, values: Array) -> Array:
        """The values on that scale."""
        return (_on_scale(values, self.scale) - self.mean) / self.std

    def value(self, z: float) -> float:
        """The value that is at z on that scale; none beyond those of the column."""
        value = self.mean + z * self.std
        if self.scale != "linear":
            value = float(np.exp(value) if self.scale == "log" else 1 - np.exp(-value))
        return min(max(value, self.lowest), self.highest)


def columns_of(trials: pd.DataFrame, names: Sequence[str]) -> list[Column]:
    """Those of the columns that differ between trials."""
    columns = []
    for name in names:
        values = trials[name].to_numpy(float)
        low, high = values.min(), values.max()
        scale = "linear"
        if name.lower().endswith("momentum") and low >= 0 and high < 1:
            scale = "momentum"
        elif low > 0 and high >= LOG_RATIO * low:
            scale = "log"
        if low < high:
            on_scale = _on_scale(values, scale)
            ends = {"lowest": float(low), "highest": float(high)}
            mean, std = float(on_scale.mean()), float(on_scale.std())
            columns.append(Column(name=name, scale=scale, mean=mean, std=std, **ends))
    return columns


def _on_scale(values: Array, scale: str) -> Array:
    if scale == "linear":
        return values
    return np.asarray(np.log(values) if scale == "log" else -np.log1p(-values))
