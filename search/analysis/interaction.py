"""Whether batch size and lr interact: analysis of variance, permutations, rank correlations.

Pure functions of the `trials` table, or of any frame with batch_size, an lr, status and a metric.
Use the lr whose values form a grid with the batch sizes.
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
    """The parts of the variance between cells, and whether the interaction is more than noise.

    The shares are parts of the sum of squares of the cell means and add up to one. `p_value` is of
    a permutation test with the statistic `f`; both are NaN without replicates, because interaction
    and noise cannot be separated then. `p_robust` is of the F test with HC3 errors, NaN unless each
    cell has two seeds. `replicates` is the smallest number of trials in a cell. `why` explains
    missing values. `batch_sizes` and `lrs` are the complete grid that was used; `left_out` counts
    the scored cells outside it.
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

    Type II sums of squares. The p value is from permutations of the residuals of the additive model
    (Freedman & Lane 1983): it only assumes that the noise has the same distribution in all cells.
    The robust p value is from statsmodels with HC3 errors: it does not assume equal noise, but with
    three seeds it rejects about one true hypothesis in ten at the 5 % level. If the two disagree,
    trust neither.
    """
    rows = usable(trials, metric=metric)
    means = rows.pivot_table(index="batch_size", columns=lr, values=metric)
    grid = _whole_grid(means)
    result = Interaction(
        batch_sizes=tuple(grid.index),
        lrs=tuple(grid.columns),
        left_out=int(means.notna().to_numpy().sum()) - grid.size,
    )
    if min(grid.shape, default=0) < 2:
        return replace(result, why="there are no scores for a grid of two batch sizes and two lrs")
    y = grid.to_numpy()
    if np.ptp(y) <= 1e-12:
        return replace(result, why="the metric is the same in every cell")
    main_b = y.mean(axis=1, keepdims=True) - y.mean()
    main_lr = y.mean(axis=0, keepdims=True) - y.mean()
    both = y - y.mean() - main_b - main_lr
    squares = [(main_b**2).sum() * y.shape[1], (main_lr**2).sum() * y.shape[0], (both**2).sum()]
    share_b, share_lr, share_both = (float(part / sum(squares)) for part in squares)
    inside = rows[rows["batch_size"].isin(grid.index) & rows[lr].isin(grid.columns)]
    seeds = inside.groupby(["batch_size", lr])[metric]
    result = replace(
        result,
        share_batch_size=share_b,
        share_lr=share_lr,
        share_interaction=share_both,
        replicates=int(seeds.size().min()),
    )
    if len(inside) == grid.size:
        why = "with one seed per cell, interaction and noise cannot be separated"
        return replace(result, why=why)
    if np.allclose(seeds.transform("std").fillna(0.0), 0):
        return replace(result, why="all seeds of a cell have the same score")
    values = inside[metric].to_numpy(dtype=float)
    codes_b = pd.Categorical(inside["batch_size"]).codes.astype(int)
    codes_lr = pd.Categorical(inside[lr]).codes.astype(int)
    f, p_value = _freedman_lane(values, codes_b, codes_lr)
    is_replicated = result.replicates > 1
    robust = _robust_p(values, codes_b, codes_lr) if is_replicated else float("nan")
    return replace(result, f=f, p_value=p_value, p_robust=robust)


def _whole_grid(means: pd.DataFrame) -> pd.DataFrame:
    """Drop the row or column with the most holes until the table has none."""
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
    """Orthonormal columns that span the additive model, and the model of one mean per cell."""
    b, lr = np.eye(codes_b.max() + 1)[codes_b], np.eye(codes_lr.max() + 1)[codes_lr]
    cell = np.eye((codes_b.max() + 1) * (codes_lr.max() + 1))[codes_b * lr.shape[1] + codes_lr]
    additive = np.linalg.qr(np.hstack([b, lr[:, 1:]]))[0]
    return additive, cell / np.sqrt(cell.sum(axis=0))


def _freedman_lane(
    y: NDArray[np.float64], codes_b: NDArray[np.int_], codes_lr: NDArray[np.int_]
) -> tuple[float, float]:
    """F of the interaction and its permutation p value, which counts the observed order too."""
    additive, cells = _bases(codes_b, codes_lr)
    between = cells.shape[1] - additive.shape[1]
    within = len(y) - cells.shape[1]

    def f_of(many: NDArray[np.float64]) -> NDArray[np.float64]:
        total = (many**2).sum(axis=0)
        rss_additive = total - ((additive.T @ many) ** 2).sum(axis=0)
        rss_cells = total - ((cells.T @ many) ** 2).sum(axis=0)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a permutation can make all seeds of a cell equal
            out: NDArray[np.float64] = (rss_additive - rss_cells) / between / (rss_cells / within)
        return out

    # The fit of the additive model changes neither sum, so permute only the residuals.
    residuals = y - additive @ (additive.T @ y)
    rng = np.random.default_rng(SEED)
    permuted = rng.permuted(np.tile(residuals[:, None], PERMUTATIONS), axis=0)
    observed = f_of(residuals[:, None])[0]
    others = f_of(permuted)
    return float(observed), float((1 + (others >= observed).sum()) / (1 + PERMUTATIONS))


def _robust_p(
    y: NDArray[np.float64], codes_b: NDArray[np.int_], codes_lr: NDArray[np.int_]
) -> float:
    """The interaction's p value from statsmodels' analysis of variance, type 2, HC3 errors."""
    import warnings

    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    frame = pd.DataFrame({"y": y, "b": codes_b, "lr": codes_lr})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a covariance matrix without full rank
        table = anova_lm(ols("y ~ C(b) * C(lr)", frame).fit(), typ=2, robust="hc3")
    return float(table.loc["C(b):C(lr)", "PR(>F)"])


def spearman(cells: pd.DataFrame) -> dict[float, float]:
    """Rank correlation of batch size and cell mean at each lr; NaN with only two batch sizes.

    If its sign changes between lrs, the interaction is crossed, as Kandel & Castelli 2020 report:
    large batches are better at high rates, small ones at low rates.
    """
    correlations = {}
    for lr, group in cells[cells["mean"].notna()].groupby("lr"):
        is_enough = len(group) >= 3 and group["mean"].nunique() > 1
        rho = stats.spearmanr(group["batch_size"], group["mean"]).statistic if is_enough else np.nan
        correlations[float(lr)] = float(rho)
    return correlations
