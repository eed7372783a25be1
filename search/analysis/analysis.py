"""Everything that is computed from one surface: a study's tables in, numbers out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.best_set import compared, default_margin, optimism
from search.analysis.costs.critical_batch import NO_FRONT, Front, decays, front
from search.analysis.costs.noise_scale import noise_scales
from search.analysis.costs.time_to_target import (
    at_equal,
    common_target,
    throughput,
    to_target,
)
from search.analysis.interaction import Interaction, crossing_p, interaction, spearman
from search.analysis.noise import Noise, noise_of
from search.analysis.scaling.collapse import Collapse, collapse
from search.analysis.scaling.exponent import Exponent, exponent, lr_to_use
from search.analysis.scaling.forms import rival_forms
from search.analysis.scaling.ridge import ridge_interval
from search.analysis.scaling.stability import stable_lr
from search.analysis.surface import lr_step, surface

MANY_BATCH_SIZES = 12  # more of them are random draws, unless they are crossed with the lrs
CROSSED = 0.5  # of all pairs of batch size and lr: so many are a grid
LEAST_DRAWN = 6  # fewer different lrs are never called scattered
SHARED = 0.1  # in a grid, two batch sizes share more than this part of their lrs
UNEVEN = 2.0  # a grid's widest step in log lr is at most this many times its narrowest
BINS_PER_DECADE = 3
EXPONENT_OF = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0, "malladi": 0.5}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One surface and all numbers that are computed from it.

    `lr_name` is the column that forms a grid with the batch sizes (`base_lr` in our tables).
    `cells` is the surface over the peak lr, which the optimizer gets, with `grid_lr` as a column;
    ridge, exponent, collapse and stable lr refer to the peak lr. `of` says which of several
    surfaces this is. `optimism` is that of the best cell of all `surfaces`.
    """

    of: Mapping[str, Any]
    metric: str
    mode: str
    lr_name: str
    binned: bool
    trials: pd.DataFrame
    cells: pd.DataFrame
    noise: Noise
    ridge: pd.DataFrame
    exponent: Exponent
    lr_to_use: pd.DataFrame
    forms: pd.DataFrame
    collapse: Collapse
    interaction: Interaction
    spearman: Mapping[float, float]
    crossing_p: float
    compared: pd.DataFrame
    margin: float
    optimism: float
    surfaces: int = 1
    stable: pd.DataFrame
    target: float
    needed: pd.DataFrame
    front: Front
    noise_scales: pd.DataFrame
    equal: Mapping[str, pd.DataFrame]
    throughput: pd.DataFrame

    @property
    def best_set(self) -> pd.DataFrame:
        """The cells that cannot be told from the best one."""
        return self.compared[self.compared["in_best_set"].astype(bool)]

    @property
    def near(self) -> pd.DataFrame:
        """The cells that are surely within the margin of the best one."""
        return self.compared[self.compared["behind"] <= self.margin]


def analyse(
    trials: pd.DataFrame,
    epochs: pd.DataFrame | None = None,
    *,
    metric: str,
    mode: str,
    lr: str = "base_lr",
    of: Mapping[str, Any] | None = None,
    margin: float | None = None,
) -> Analysis:
    """All numbers of one surface, from its trials and, if given, their evaluations.

    `trials` needs batch_size, `lr`, status and the metric. With the columns `lr_scaling` and
    `reference_batch_size` the peak lr is computed from `lr`; without them `lr` is the peak lr.
    """
    rows = _with_peak(trials, lr)
    rows, is_binned = in_bins(rows)
    cells = surface(rows, metric=metric, lr="peak")
    grid_lr = rows.groupby(["batch_size", "peak"])["grid_lr"].first()
    cells["grid_lr"] = grid_lr.reindex(pd.MultiIndex.from_frame(cells[["batch_size", "lr"]])).array
    ridge, fit = ridge_interval(cells, mode=mode), exponent(cells, mode=mode)
    by_grid_lr = surface(rows, metric=metric, lr="grid_lr")
    return Analysis(
        of=dict(of or {}),
        metric=metric,
        mode=mode,
        lr_name=lr,
        binned=is_binned,
        trials=rows,
        cells=cells,
        noise=noise_of(cells, mode=mode),
        ridge=ridge,
        exponent=fit,
        lr_to_use=lr_to_use(fit, cells),
        forms=rival_forms(fit, ridge),
        collapse=collapse(cells),
        interaction=interaction(rows, metric=metric, lr="grid_lr"),
        spearman=spearman(by_grid_lr),
        crossing_p=crossing_p(by_grid_lr),
        compared=compared(cells, mode=mode),
        margin=default_margin(cells, metric=metric) if margin is None else margin,
        optimism=optimism(cells, mode=mode),
        stable=stable_lr(cells),
        **_costs(rows, epochs, metric=metric, mode=mode),
    )


def _costs(
    rows: pd.DataFrame, epochs: pd.DataFrame | None, *, metric: str, mode: str
) -> dict[str, Any]:
    """The fields of an Analysis about costs; empty tables without `epochs` or the columns."""
    settings: dict[str, Any] = {"metric": metric, "mode": mode, "lr": "peak"}
    target = common_target(rows, **settings)
    needed = pd.DataFrame(columns=["batch_size", "lr", "updates"])
    equal: dict[str, pd.DataFrame] = {}
    has_epochs = epochs is not None and not epochs.empty
    if epochs is not None and has_epochs and math.isfinite(target):
        needed = to_target(rows, epochs, target=target, **settings)
        equal = at_equal(rows, epochs, **settings)
    fitted = front(needed, decaying=decays(rows), step=lr_step(rows, lr="peak"))
    is_measured = {"noise_scale", "images_per_s"} <= set(rows)
    columns = ["batch_size", "noise_scale", "least", "most", "images_per_s", "n"]
    nothing = pd.DataFrame(columns=columns)
    return {
        "target": target,
        "needed": needed,
        "front": fitted if has_epochs else NO_FRONT,
        "noise_scales": noise_scales(rows, metric=metric) if is_measured else nothing,
        "equal": equal,
        "throughput": throughput(rows, metric=metric) if is_measured else nothing,
    }


def _with_peak(trials: pd.DataFrame, lr: str) -> pd.DataFrame:
    """The trials with `grid_lr`, the lr that varies, and `peak`, the lr that the optimizer gets."""
    rows = trials.assign(grid_lr=trials[lr].astype(float))
    if not {"lr_scaling", "reference_batch_size"} <= set(rows):
        return rows.assign(peak=rows["grid_lr"])
    k = rows["batch_size"] / rows["reference_batch_size"]
    peak = rows["grid_lr"] * k ** rows["lr_scaling"].map(EXPONENT_OF).astype(float)
    return rows.assign(peak=peak.map(lambda value: float(f"{value:.6g}")))


def in_bins(trials: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Put scattered lrs into bins of a third of a decade; round batch sizes to powers of two.

    A search draws each lr once. The trials of a bin then serve as replicates, and their spread
    includes everything else that differs between them. Grids stay unchanged.
    """
    if not _scattered(trials):
        return trials, False
    step = 1 / BINS_PER_DECADE

    def binned(lr: "pd.Series[float]") -> "pd.Series[float]":
        return (10 ** ((np.log10(lr) / step).round() * step)).map(lambda v: float(f"{v:.3g}"))

    rows = trials.assign(
        grid_lr=binned(trials["grid_lr"]),
        peak=binned(trials["peak"]),
        batch_size=(2 ** np.log2(trials["batch_size"].astype(float)).round()).astype(int),
    )
    return rows, True


def _scattered(trials: pd.DataFrame) -> bool:
    """Whether lrs were drawn at random: each is used once, with many digits and uneven steps."""
    num_sizes, num_lrs = (trials[name].nunique() for name in ("batch_size", "grid_lr"))
    if num_sizes > MANY_BATCH_SIZES:
        num_cells = len(trials[["batch_size", "grid_lr"]].drop_duplicates())
        return bool(num_lrs < 2 or num_cells < CROSSED * num_sizes * num_lrs)
    used_once = trials.groupby(["batch_size", "grid_lr"]).size().median() == 1
    shared = (trials.groupby("grid_lr")["batch_size"].nunique() > 1).mean()
    if not used_once or shared > SHARED or trials["grid_lr"].nunique() < LEAST_DRAWN:
        return False
    known = trials[trials["grid_lr"] > 0]
    if np.mean([math.isclose(lr, float(f"{lr:.2g}")) for lr in known["grid_lr"]]) > 0.5:
        return False
    lrs = [np.unique(group) for _, group in known.groupby("batch_size")["grid_lr"]]
    lrs = [group for group in lrs if len(group) > 2] or [np.unique(known["grid_lr"])]
    steps = [np.diff(np.log(group)) for group in lrs]
    return bool(np.mean([group.max() > UNEVEN * group.min() for group in steps]) > 0.5)
