"""Whether batch size and lr act together: analysis of variance, permutations, rank correlations.

Pure functions over the `trials` table, or over any frame with batch_size, an lr, status and a
metric; the lr should be the one whose values cross with the batch sizes in a grid.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from search.analysis.surface import SEED, usable

PERMUTATIONS = 999


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """How the variance between cells divides, and whether the interaction is more than noise.

    The shares are of the sum of squares of the cell means and add up to one. `p_value` is by
    permutation, `f` its statistic, NaN without replicates, as then interaction and noise cannot be
    told apart; `p_robust` is of the F test with HC3 errors, NaN unless each cell has two seeds.
    `replicates` are the fewest of a cell. `why` says what cannot be said; `batch_sizes` and `lrs`
    are the grid that was used, the largest without a hole, and `left_out` counts the scored cells
    that are not in it.
    """

    share_batch_size: float = float("nan")
    share_lr: float = float("nan")
    share_interaction: float = float("nan")
    p_value: float = float("nan")
    p_robust: float = float("nan")
    f: float = float("nan")
    replicates: int = 0
    batch_sizes: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    left_out: int = 0
    why: str = ""


def interaction(trials: pd.DataFrame, *, metric: str, lr: str = "base_lr") -> Interaction:
    """Two-way analysis of variance of a metric over batch size and lr.

    Type II sums of squares; the p value by permuting the residuals of the additive model (Freedman
    & Lane 1983), which asks nothing of the noise's shape but that it is alike in all cells; the
    robust one by statsmodels with HC3 errors, which does not ask that either, but with three seeds
    rejects about one true hypothesis in ten at 5 %. Where they disagree, believe neither yet.
    """
    rows = usable(trials, metric=metric)
    means = rows.pivot_table(index="batch_size", columns=lr, values=metric)
    grid = _whole_grid(means)
    found = Interaction(
        batch_sizes=tuple(grid.index),
        lrs=tuple(grid.columns),
        left_out=int(means.notna().to_numpy().sum()) - grid.size,
    )
    if min(grid.shape, default=0) < 2:
        return replace(found, why="no grid of two batch sizes and two lrs has scores")
    y = grid.to_numpy()
    if np.ptp(y) <= 1e-12:
        return replace(found, why="the metric is the same in every cell")
    main_b = y.mean(axis=1, keepdims=True) - y.mean()
    main_lr = y.mean(axis=0, keepdims=True) - y.mean()
    both = y - y.mean() - main_b - main_lr
    squares = [(main_b**2).sum() * y.shape[1], (main_lr**2).sum() * y.shape[0], (both**2).sum()]
    share_b, share_lr, share_both = (float(each / sum(squares)) for each in squares)
    inside = rows[rows["batch_size"].isin(grid.index) & rows[lr].isin(grid.columns)]
    seeds = inside.groupby(["batch_size", lr])[metric]
    found = replace(
        found,
        share_batch_size=share_b,
        share_lr=share_lr,
        share_interaction=share_both,
        replicates=int(seeds.size().min()),
    )
    if len(inside) == grid.size:
        why = "no replicates: with one seed in a cell, interaction and noise cannot be told apart"
        return replace(found, why=why)
    if np.allclose(seeds.transform("std").fillna(0.0), 0):
        return replace(found, why="the seeds of each cell have equal scores")
    values = inside[metric].to_numpy(dtype=float)
    codes_b = pd.Categorical(inside["batch_size"]).codes.astype(int)
    codes_lr = pd.Categorical(inside[lr]).codes.astype(int)
    f, p_value = _freedman_lane(values, codes_b, codes_lr)
    known = found.replicates > 1
    robust = _robust_p(values, codes_b, codes_lr) if known else float("nan")
    return replace(found, f=f, p_value=p_value, p_robust=robust)


def _whole_grid(means: pd.DataFrame) -> pd.DataFrame:
    """The part of a table without a hole that dropping rows and columns one by one leaves."""
    grid = means
    while grid.isna().to_numpy().any():
        holes_row, holes_column = grid.isna().mean(axis=1), grid.isna().mean(axis=0)
        if holes_row.max() > holes_column.max():
            grid = grid.drop(index=holes_row.idxmax())
        else:
            grid = grid.drop(columns=holes_column.idxmax())
    return grid


def _bases(
    codes_b: NDArray[np.int_], codes_lr: NDArray[np.int_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal columns that span the additive model, and those of one mean a cell."""
    b, lr = np.eye(codes_b.max() + 1)[codes_b], np.eye(codes_lr.max() + 1)[codes_lr]
    cell = np.eye((codes_b.max() + 1) * (codes_lr.max() + 1))[codes_b * lr.shape[1] + codes_lr]
    additive = np.linalg.qr(np.hstack([b, lr[:, 1:]]))[0]
    return additive, cell / np.sqrt(cell.sum(axis=0))


def _freedman_lane(
    y: NDArray[np.float64], codes_b: NDArray[np.int_], codes_lr: NDArray[np.int_]
) -> tuple[float, float]:
    """F of the interaction and its permutation p value, the observed order counted among them."""
    additive, cells = _bases(codes_b, codes_lr)
    between = cells.shape[1] - additive.shape[1]
    within = len(y) - cells.shape[1]

    def f_of(many: NDArray[np.float64]) -> NDArray[np.float64]:
        total = (many**2).sum(axis=0)
        rss_additive = total - ((additive.T @ many) ** 2).sum(axis=0)
        rss_cells = total - ((cells.T @ many) ** 2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):  # an order may make the seeds equal
            out: NDArray[np.float64] = (rss_additive - rss_cells) / between / (rss_cells / within)
        return out

    # What the additive model fits adds to neither sum, so the residuals stand for the scores.
    residuals = y - additive @ (additive.T @ y)
    rng = np.random.default_rng(SEED)
    permuted = rng.permuted(np.tile(residuals[:, None], PERMUTATIONS), axis=0)
    observed = f_of(residuals[:, None])[0]
    others = f_of(permuted)
    return float(observed), float((1 + (others >= observed).sum()) / (1 + PERMUTATIONS))


def _robust_p(
    y: NDArray[np.float64], codes_b: NDArray[np.int_], codes_lr: NDArray[np.int_]
) -> float:
    """The interaction's p value by statsmodels' analysis of variance, typ 2, with HC3 errors."""
    import warnings

    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    frame = pd.DataFrame({"y": y, "b": codes_b, "lr": codes_lr})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a covariance that is not of full rank
        table = anova_lm(ols("y ~ C(b) * C(lr)", frame).fit(), typ=2, robust="hc3")
    return float(table.loc["C(b):C(lr)", "PR(>F)"])


def spearman(cells: pd.DataFrame) -> dict[float, float]:
    """Rank correlation of batch size and the cell means at each lr; NaN below three batch sizes.

    A sign that turns from one lr to another is the crossed interaction that Kandel & Castelli 2020
    report: large batches do better at high rates, small ones at low rates.
    """
    found = {}
    for lr, group in cells[cells["mean"].notna()].groupby("lr"):
        many = len(group) >= 3 and group["mean"].nunique() > 1
        rho = stats.spearmanr(group["batch_size"], group["mean"]).statistic if many else np.nan
        found[float(lr)] = float(rho)
    return found
