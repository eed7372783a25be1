"""A study's tables -> the numbers of one surface and all that is computed of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.interaction import Interaction, interaction, spearman
from search.analysis.ridge import ridge_interval
from search.analysis.scaling import Collapse, Exponent, collapse, exponent, rival_forms
from search.analysis.surface import best_set, noise_of, optimism, stable_lr, surface
from search.analysis.time_to_target import (
    NO_FRONT,
    Front,
    at_equal,
    common_target,
    front,
    noise_scales,
    throughput,
    to_target,
)

MANY_BATCH_SIZES = 12  # above which they are drawn, and not a grid's
LEAST_DRAWN = 6  # different lrs that can be called scattered
SHARED = 0.1  # of the lrs that two batch sizes have in common: a grid has more
UNEVEN = 2.0  # how many times as wide as the narrowest a grid's widest step in log lr may be
BINS_PER_DECADE = 3
EXPONENT_OF = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0, "malladi": 0.5}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One surface and all that is said of it.

    `lr_name` is the column that crosses with the batch sizes (`base_lr` in our tables), `cells` is
    the surface over the lr that the optimizer gets at its peak, with `grid_lr` beside it; ridge,
    exponent, collapse and stable lr are of that peak. `of` says which surface of several this is.
    """

    of: Mapping[str, Any]
    metric: str
    mode: str
    lr_name: str
    binned: bool
    trials: pd.DataFrame
    cells: pd.DataFrame
    noise: float
    freedom: int
    ridge: pd.DataFrame
    exponent: Exponent
    forms: pd.DataFrame
    collapse: Collapse
    interaction: Interaction
    spearman: Mapping[float, float]
    best_set: pd.DataFrame
    optimism: float
    stable: pd.DataFrame
    target: float
    needed: pd.DataFrame
    front: Front
    noise_scales: pd.DataFrame
    equal: Mapping[str, pd.DataFrame]
    throughput: pd.DataFrame


def analyse(
    trials: pd.DataFrame,
    epochs: pd.DataFrame | None = None,
    *,
    metric: str,
    mode: str,
    lr: str = "base_lr",
    of: Mapping[str, Any] | None = None,
) -> Analysis:
    """Everything about one surface, from its trials and, where there are any, their evaluations.

    `trials` needs batch_size, `lr`, status and the metric; with `lr_scaling` and
    `reference_batch_size` the peak lr is made from `lr`, else `lr` is it.
    """
    rows = _with_peak(trials, lr)
    rows, binned = in_bins(rows)
    cells = surface(rows, metric=metric, lr="peak")
    grid_lr = rows.groupby(["batch_size", "peak"])["grid_lr"].first()
    cells["grid_lr"] = grid_lr.reindex(pd.MultiIndex.from_frame(cells[["batch_size", "lr"]])).array
    noise, freedom = noise_of(cells, mode=mode)
    target = common_target(cells, mode=mode)
    known = epochs is not None and not epochs.empty and math.isfinite(target)
    settings: dict[str, Any] = {"metric": metric, "mode": mode, "lr": "peak"}
    needed = pd.DataFrame(columns=["batch_size", "lr", "updates"])
    equal: dict[str, pd.DataFrame] = {}
    if known and epochs is not None:
        needed = to_target(rows, epochs, target=target, **settings)
        equal = at_equal(rows, epochs, **settings)
    measured = {"noise_scale", "images_per_s"} <= set(rows)
    nothing = pd.DataFrame(columns=["batch_size", "noise_scale", "images_per_s", "n"])
    found: dict[str, Any] = {
        "of": dict(of or {}),
        "metric": metric,
        "mode": mode,
        "lr_name": lr,
        "binned": binned,
        "trials": rows,
        "cells": cells,
        "noise": noise,
        "freedom": freedom,
        "ridge": ridge_interval(cells, mode=mode),
        "exponent": exponent(cells, mode=mode),
        "forms": rival_forms(cells, mode=mode),
        "collapse": collapse(cells),
        "interaction": interaction(rows, metric=metric, lr="grid_lr"),
        "spearman": spearman(surface(rows, metric=metric, lr="grid_lr")),
        "best_set": best_set(cells, mode=mode),
        "optimism": optimism(cells, mode=mode),
        "stable": stable_lr(cells),
        "target": target,
        "needed": needed,
        "front": NO_FRONT if epochs is None or epochs.empty else front(needed),
        "noise_scales": noise_scales(rows, metric=metric) if measured else nothing,
        "equal": equal,
        "throughput": throughput(rows, metric=metric) if measured else nothing,
    }
    return Analysis(**found)


def _with_peak(trials: pd.DataFrame, lr: str) -> pd.DataFrame:
    """The trials with `grid_lr`, the lr that varies, and `peak`, what the optimizer gets of it."""
    rows = trials.assign(grid_lr=trials[lr].astype(float))
    if not {"lr_scaling", "reference_batch_size"} <= set(rows):
        return rows.assign(peak=rows["grid_lr"])
    k = rows["batch_size"] / rows["reference_batch_size"]
    peak = rows["grid_lr"] * k ** rows["lr_scaling"].map(EXPONENT_OF).astype(float)
    return rows.assign(peak=peak.map(lambda value: float(f"{value:.6g}")))


def in_bins(trials: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Scattered lrs put in bins of a third of a decade, batch sizes at the nearest power of two.

    A search draws each lr once: then the trials of a bin stand for seeds, and their spread holds
    all else that differs between them. Grids stay as they are.
    """
    if not _scattered(trials):
        return trials, False
    step = 1 / BINS_PER_DECADE

    def snapped(lr: "pd.Series[float]") -> "pd.Series[float]":
        return (10 ** ((np.log10(lr) / step).round() * step)).map(lambda v: float(f"{v:.3g}"))

    rows = trials.assign(
        grid_lr=snapped(trials["grid_lr"]),
        peak=snapped(trials["peak"]),
        batch_size=(2 ** np.log2(trials["batch_size"].astype(float)).round()).astype(int),
    )
    return rows, True


def _scattered(trials: pd.DataFrame) -> bool:
    """Whether lrs were drawn: each used once, of many digits, in steps of all sizes."""
    if trials["batch_size"].nunique() > MANY_BATCH_SIZES:
        return True
    each_once = trials.groupby(["batch_size", "grid_lr"]).size().median() == 1
    shared = (trials.groupby("grid_lr")["batch_size"].nunique() > 1).mean()
    if not each_once or shared > SHARED or trials["grid_lr"].nunique() < LEAST_DRAWN:
        return False
    known = trials[trials["grid_lr"] > 0]
    if np.mean([math.isclose(lr, float(f"{lr:.2g}")) for lr in known["grid_lr"]]) > 0.5:
        return False
    lrs = [np.unique(group) for _, group in known.groupby("batch_size")["grid_lr"]]
    lrs = [each for each in lrs if len(each) > 2] or [np.unique(known["grid_lr"])]
    steps = [np.diff(np.log(each)) for each in lrs]
    return bool(np.mean([each.max() > UNEVEN * each.min() for each in steps]) > 0.5)
