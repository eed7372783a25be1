"""Trials that learnt nothing: constant predictions, and scores that guessing reaches as well."""

import math

import numpy as np
import pandas as pd

from search.analysis.metric_name import is_auroc

CHANCE = 0.5  # the AUROC of guessing
ONE_SIDED = 1.645  # standard errors: one study in twenty that guesses does better


def collapsed(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a completed trial predicts the same for every image: its AUROC is exactly 0.5."""
    if "val_auroc" not in trials:
        return pd.Series(False, index=trials.index)
    return (trials["status"] == "completed") & (trials["val_auroc"] == CHANCE)


def best_auroc(trials: pd.DataFrame, *, metric: str) -> float:
    """The best AUROC of all completed trials, whatever the metric is; NaN where none is known."""
    column = metric if is_auroc(metric) else "val_auroc"
    if column not in trials:
        return float("nan")
    return float(trials.loc[trials["status"] == "completed", column].astype(float).max())


def nothing_beat_chance(trials: pd.DataFrame, *, metric: str) -> bool:
    """Whether no completed trial has an AUROC that guessing would not reach.

    Beyond 0.5 guesses vary with the number of images: of n, half of them positive, by a standard
    error of sqrt(1 / 3n) (Mann & Whitney 1947). Where n is not known, 0.5 is the bound.
    """
    images = trials["eval_images"].astype(float).min() if "eval_images" in trials else np.nan
    margin = ONE_SIDED * math.sqrt(1 / (3 * images)) if np.isfinite(images) else 0.0
    return best_auroc(trials, metric=metric) <= CHANCE + margin
