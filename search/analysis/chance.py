"""Trials that learnt nothing: constant predictions, and scores that guessing reaches as well."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from search.analysis.metric_name import is_auroc
from trainable.record import CHANCE

ONE_SIDED = 1.645  # standard errors: one study in twenty that guesses does better


def collapsed(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a completed trial predicts the same for every image.

    Its column says so. In tables without the column, an AUROC of exactly 0.5 counts as that.
    """
    nothing = pd.Series(None, index=trials.index, dtype=object)
    is_half = trials.get("val_auroc", nothing) == CHANCE
    noted = trials.get("collapsed", nothing)
    return (trials["status"] == "completed") & noted.where(noted.notna(), is_half).astype(bool)


def auroc_column(trials: pd.DataFrame, *, metric: str) -> str | None:
    """The column with an AUROC: the metric if it is one, else `val_auroc`; None without it."""
    column = metric if is_auroc(metric) else "val_auroc"
    return column if column in trials else None


def best_auroc(trials: pd.DataFrame, *, metric: str) -> float:
    """The best AUROC of all completed trials, whatever the metric is; NaN where none is known."""
    column = auroc_column(trials, metric=metric)
    if column is None:
        return float("nan")
    return float(trials.loc[trials["status"] == "completed", column].astype(float).max())


def nothing_beat_chance(trials: pd.DataFrame, *, metric: str) -> bool:
    """Whether no completed trial has an AUROC that guessing would not reach."""
    return best_auroc(trials, metric=metric) <= reached_by_guessing(trials)


def reached_by_guessing(trials: pd.DataFrame) -> float:
    """The AUROC that 19 of 20 guesses do not exceed.

    Beyond 0.5 guesses vary with the number of images: of n, half of them positive, by a standard
    error of sqrt(1 / 3n) (Mann & Whitney 1947). Where n is not known, 0.5 is the bound.
    """
    images = trials["eval_images"].astype(float).min() if "eval_images" in trials else np.nan
    margin = ONE_SIDED * math.sqrt(1 / (3 * images)) if np.isfinite(images) else 0.0
    return CHANCE + margin


def cells_near_chance(trials: pd.DataFrame, *, metric: str, by: Sequence[str]) -> "pd.Series[bool]":
    """Whether guessing reaches a cell's mean AUROC, or that of at least half of its trials.

    The mean of a cell whose trials learnt nothing in part tells how many they were. False for all
    where no AUROC is known.
    """
    column = auroc_column(trials, metric=metric)
    if column is None:
        return trials.groupby(list(by)).size() < 0
    auroc = trials[column].astype(float)
    auroc = auroc / 100 if auroc.max() > 2 else auroc  # in percent
    bound = reached_by_guessing(trials)
    cells = trials.assign(auroc=auroc, guessed=auroc <= bound).groupby(list(by))
    near: pd.Series[bool] = (cells["auroc"].mean() <= bound) | (cells["guessed"].mean() >= 0.5)
    return near
