"""The trials of a table as the model of humps takes them: places, scores, how precise they are."""

import math
from collections.abc import Sequence

import pandas as pd

from search.analysis.chance import collapsed


def scored_trials(
    trials: pd.DataFrame, *, metric: str, mode: str, columns: Sequence[str] = ()
) -> pd.DataFrame:
    """`batch_size`, `lr`, `columns`, and `score`: more is better; -inf where the lr was too high.

    A stopped trial has the score that was forecast, with `std`, its standard deviation; of others
    it is 0. A trial without a value in one of the columns is left out.
    """
    sign = 1.0 if mode == "max" else -1.0
    forecast = is_forecast(trials)
    score, std = sign * trials[metric].astype(float), pd.Series(0.0, trials.index)
    if forecast.any():
        score = score.mask(forecast, sign * trials["forecast"].astype(float))
        std = std.mask(forecast, trials["forecast_std"].astype(float))
    lost = (trials["status"] == "diverged") | (collapsed(trials) & ~forecast)
    ended = trials["status"].isin(("completed", "diverged")) | forecast
    lr = trials["peak_lr"].astype(float)
    rows = trials.assign(score=score.mask(lost, -math.inf), std=std, lr=lr)
    rows = rows[ended & rows["score"].notna()]
    rows = rows[["batch_size", "lr", *columns, "score", "std"]].astype(float)
    return rows.dropna(ignore_index=True)


def is_forecast(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a trial was stopped with a forecast of its final score."""
    if "forecast" not in trials:
        return pd.Series(False, trials.index)
    return (trials["status"] == "stopped") & trials["forecast"].notna()


def has_repeats(trials: pd.DataFrame, lr: str) -> bool:
    """Whether more than half of the batch sizes and lrs were trained more than once."""
    ended = trials[trials["status"].isin(("completed", "diverged"))]
    return bool(ended.groupby(["batch_size", lr]).size().median() > 1)
