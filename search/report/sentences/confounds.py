"""What else than batch size and learning rate the scores of a study depend on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from search.report.sentences.wording import listed
from search.study.shown import show

DECOUPLED = ("adamw", "lamb", "schedulefree_adamw")  # their weight decay is no part of the gradient


def confounds(trials: pd.DataFrame, about: Mapping[str, Any], metric: str) -> list[str]:
    """A caution for each."""
    warnings = []
    select_by = about.get("base", {}).get("select_by")
    if select_by and select_by != metric:
        warnings.append(
            f"A trial's scores are those of its evaluation with the best {select_by}, while "
            f"{metric} ranks the trials."
        )
    if (trials.get("split", pd.Series(dtype=str)) == "by_image").any():
        warnings.append(
            "Validation was drawn from the training images one by one (split=by_image): images of "
            "one slide or patient may be in both, which makes scores too good. --set split_by=... "
            "keeps them together."
        )
    lagging = trials.get("precise_bn_images", pd.Series(dtype=float)) == 0
    if lagging.any() and trials["batch_size"].nunique() > 1:
        warnings.append(
            "BatchNorm's running averages lag where updates are few (precise_bn_images=0): at "
            "large batches losses and early evaluations look worse than the weights are."
        )
    return [*warnings, *_constant_decay(trials), *_constant_average(trials)]


def _constant_decay(trials: pd.DataFrame) -> list[str]:
    """Where decoupled weight decay averages over another part of the training at each batch size.

    It averages updates over 1 / (lr x weight_decay) of them (Wang & Aitchison 2024). Under the
    linear rule that is the same number of epochs at every batch size.
    """
    rows = _with_constant(trials, "weight_decay", "weight_decay_scaling")
    rows = rows[rows.get("optimizer", pd.Series(dtype=str)).isin(DECOUPLED)]
    if rows.empty or "peak_lr" not in rows:
        return []
    in_updates = bool(rows["updates"].notna().any()) if "updates" in rows else False
    images = 1.0 if in_updates else rows["batch_size"]
    span = (images * rows["base_lr"] / rows["peak_lr"]).groupby(rows["batch_size"]).median()
    unit, cure = ("updates", "inverse_lr") if in_updates else ("epochs", "timescale")
    return [
        f"weight_decay is the same at every batch size (weight_decay_scaling=constant). At one "
        f"base_lr the weights of {listed(sorted(set(rows['optimizer'])))} then average over "
        f"{times}: part of the difference between batch sizes may be that of the decay. "
        f"weight_decay_scaling={cure} keeps the number of {unit}."
        for times in _times_as_many(span, unit)
    ]


def _constant_average(trials: pd.DataFrame) -> list[str]:
    """Where the average of weights covers another part of the training at each batch size."""
    rows = _with_constant(trials, "ema_decay", "ema_scaling")
    if rows.empty or ("updates" in rows and rows["updates"].notna().any()):
        return []  # as many updates are then the same part of every trial
    span = rows["batch_size"].astype(float).groupby(rows["batch_size"]).median()
    return [
        f"ema_decay averages the weights of as many updates at every batch size "
        f"(ema_scaling=constant), and so over {times}. ema_scaling=half_life keeps the number of "
        f"images."
        for times in _times_as_many(span, "images")
    ]


def _with_constant(trials: pd.DataFrame, name: str, rule: str) -> pd.DataFrame:
    """The trials in which a field is above 0 and does not follow the batch size."""
    if name not in trials or "batch_size" not in trials:
        return trials.iloc[:0]
    follows = trials[rule].fillna("constant") != "constant" if rule in trials else False
    return trials[(trials[name].astype(float) > 0) & ~(trials["batch_size"].isna() | follows)]


def _times_as_many(span: "pd.Series[float]", unit: str) -> list[str]:
    """`16 times as many UNIT at batch size 256 as at 16`; nothing where they hardly differ."""
    span = span[np.isfinite(span)]
    if len(span) < 2 or span.max() < 1.05 * span.min():
        return []
    most, least = span.idxmax(), span.idxmin()
    return [
        f"{show(span.max() / span.min())} times as many {unit} at batch size {most:.0f} as at "
        f"{least:.0f}"
    ]
