"""The importance of a search's fields."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from trainable.config import WORST

LEAST_TRIALS = 20
BEST_SHARE, BEST_TRIALS = 0.1, 10  # compare the best tenth, or at least ten, with all trials
COMPARED = ("completed", "stopped", "diverged")
LOG_RATIO = 30.0  # if largest / smallest value is at least this, the axis is logarithmic


def importance(
    trials: pd.DataFrame, *, fields: Sequence[str], metric: str, mode: str
) -> pd.DataFrame:
    """How much each field distinguishes the best trials: field, importance; largest first.

    PED-ANOVA (Watanabe, Bansal & Hutter 2023, arXiv:2304.10255) from Optuna. It only uses which
    trials are among the best. So stopped trials count with their last score, because they were
    stopped for being worse, and diverged ones with the worst score. Empty with fewer than twenty
    trials, or if fewer than two fields differ.
    """
    columns = ["field", "importance"]
    rows = trials[trials["status"].isin(COMPARED)]
    values = _scores(rows, metric=metric, mode=mode)
    rows, values = rows[values.notna()], values.dropna()
    if len(rows) < LEAST_TRIALS or len(fields) < 2 or values.nunique() < 2:
        return pd.DataFrame(columns=columns)
    import optuna

    domains = {name: _domain(rows[name]) for name in fields}
    domains = {name: domain for name, domain in domains.items() if domain is not None}
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for row, score in zip(rows.to_dict("records"), values, strict=True):
            params = {name: value_of(row[name]) for name in domains}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=domains, value=float(score))
            )
        importances = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(
                target_quantile=max(BEST_SHARE, BEST_TRIALS / len(rows))
            ),
        )
    finally:
        optuna.logging.set_verbosity(quiet)
    return pd.DataFrame(list(importances.items()), columns=columns)


def _scores(rows: pd.DataFrame, *, metric: str, mode: str) -> "pd.Series[float]":
    """Each trial's score, where more is better; diverged trials get the worst score."""
    scores = rows[metric].astype(float).replace([np.inf, -np.inf], np.nan)
    scores = scores if mode == "max" else -scores
    worst = min(WORST.get(metric, 0.0), scores.min() if scores.notna().any() else 0.0)
    return scores.mask(rows["status"] == "diverged", worst)


def value_of(value: Any) -> Any:
    """The value in a form that Optuna's distributions accept."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return value.item() if isinstance(value, np.generic) else value


def is_numeric(column: "pd.Series[Any]") -> bool:
    """Whether a field's values are numbers, none of them missing."""
    kinds = pd.api.types
    is_number = kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column)
    return bool(is_number and column.notna().all())


def is_log(column: "pd.Series[float]") -> bool:
    """Whether the values span so much that their axis should be logarithmic."""
    return bool(column.min() > 0 and column.max() / column.min() >= LOG_RATIO)


def _domain(column: "pd.Series[Any]") -> Any:
    """The range or choices of a field, inferred from its values; None if it has one value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if column.nunique(dropna=False) < 2:
        return None
    if not is_numeric(column) or column.nunique() <= 8:
        choices = sorted({value_of(value) for value in column}, key=lambda v: (str(type(v)), v))
        return CategoricalDistribution(choices)
    low, high = column.min().item(), column.max().item()
    if pd.api.types.is_integer_dtype(column):
        return IntDistribution(low, high, log=is_log(column))
    return FloatDistribution(low, high, log=is_log(column))
