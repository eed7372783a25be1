"""Whether batch size and lr interact: analysis of variance, permutations, rank correlations.

Pure functions of the `trials` table, or of any frame with batch_size, an lr, status and a metric.
Use the lr whose values form a grid with the batch sizes.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import linalg, sparse, stats

from search.analysis.chance import cells_near_chance
from search.analysis.surface import SEED, usable

PERMUTATIONS = 999

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The parts of the variance between settings, and whether the interaction is more than noise.

    The shares add up to one. With replicates the noise's part of the variance is subtracted from
    each (omega squared, Hays 1963); without, they include it. `p_value` is of a permutation test
    with the statistic `f`, and `p_flat` of one for any difference between the settings; all are NaN
    without replicates, because interaction and noise cannot be separated then. `replicates` is the
    smallest number of trials in a cell. `why` explains missing values. `batch_sizes` and `lrs` are
    the complete grid that was used; `left_out` counts the scored cells outside it. Of these,
    `near_chance` are (batch size, lr) of cells that learnt no more than guesses.
    """

    share_batch_size: float = float("nan")
    share_lr: float = float("nan")
    share_interaction: float = float("nan")
    p_value: float = float("nan")
    p_flat: float = float("nan")
    f: float = float("nan")
    replicates: int = 0
    batch_sizes: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    left_out: int = 0
    near_chance: tuple[tuple[float, float], ...] = ()
    why: str = ""


def interaction(trials: pd.DataFrame, *, metric: str, lr: str = "base_lr") -> Interaction:
    """Two-way analysis of variance of a metric over batch size and lr, with seeds as blocks.

    The p values are from permutations of residuals under the null hypothesis (Freedman & Lane
    1983). Noise may differ between lrs, as it does near the edge of stability: cells are weighted
    by the variance of their lr, residuals are permuted after division by its root, and each
    permutation estimates the variances anew. What a seed does in all cells alike, by the order of
    the images for example, is an effect of its own and not noise. Cells near chance are left out:
    how far the others are above them is no effect of batch size or lr.
    """
    rows = usable(trials, metric=metric)
    means = rows.pivot_table(index="batch_size", columns=lr, values=metric)
    near = cells_near_chance(rows, metric=metric, by=["batch_size", lr])
    grid = whole_grid(means.mask(near.unstack(fill_value=False).astype(bool)))
    result = Interaction(
        near_chance=tuple((float(b), float(rate)) for b, rate in near.index[near]),
        batch_sizes=tuple(grid.index),
        lrs=tuple(grid.columns),
        left_out=int(means.notna().to_numpy().sum()) - grid.size,
    )
    if min(grid.shape, default=0) < 2:
        above = " above chance" if result.near_chance else ""
        why = f"there are no scores{above} for a grid of two batch sizes and two lrs"
        return replace(result, why=why)
    if np.ptp(grid.to_numpy()) <= 1e-12:
        return replace(result, why="the metric is the same in every cell")
    inside = rows[rows["batch_size"].isin(grid.index) & rows[lr].isin(grid.columns)]
    seeds = inside.groupby(["batch_size", lr])[metric]
    result = replace(result, replicates=int(seeds.size().min()))
    if len(inside) == grid.size:
        why = "with one seed per setting, interaction and noise cannot be separated"
        return replace(_with_shares(result, grid.to_numpy(), 0.0), why=why)
    if np.allclose(seeds.transform("std").fillna(0.0), 0):
        why = "all seeds of a setting have the same score"
        return replace(_with_shares(result, grid.to_numpy(), 0.0), why=why)
    layout = _layout(inside, lr)
    scores = inside[metric].to_numpy(dtype=float)
    if np.allclose(scores, scores - _residuals(layout, scores), atol=1e-9):
        why = "the seeds differ by the same amount in every setting"
        return replace(_with_shares(result, grid.to_numpy(), 0.0), why=why)
    fit = _fits(layout, scores[:, None], layout.additive)
    noise = float((fit.variances[layout.lr_of_cell, 0] / layout.counts).mean())
    f, p_value = _permutation_test(layout, scores, layout.additive)
    _, p_flat = _permutation_test(layout, scores, np.ones((len(layout.counts), 1)))
    result = _with_shares(result, grid.to_numpy(), noise)
    return replace(result, f=f, p_value=p_value, p_flat=p_flat)


def whole_grid(means: pd.DataFrame) -> pd.DataFrame:
    """Drop the row or column with the most holes until the table has none."""
    grid = means
    while grid.isna().to_numpy().any():
        holes_row, holes_column = grid.isna().mean(axis=1), grid.isna().mean(axis=0)
        if holes_row.max() > holes_column.max():
            grid = grid.drop(index=holes_row.idxmax())
        else:
            grid = grid.drop(columns=holes_column.idxmax())
    return grid


def _with_shares(result: Interaction, means: Array, noise: float) -> Interaction:
    """The parts of the sum of squares of `means` (batch sizes, lrs), which have variance `noise`.

    A part below its share of the noise counts as zero; if all are, there is nothing to share.
    """
    rows, columns = means.shape
    main_b = means.mean(axis=1, keepdims=True) - means.mean()
    main_lr = means.mean(axis=0, keepdims=True) - means.mean()
    both = means - means.mean() - main_b - main_lr
    squares = np.array([(main_b**2).sum() * columns, (main_lr**2).sum() * rows, (both**2).sum()])
    freedom = np.array([rows - 1, columns - 1, (rows - 1) * (columns - 1)])
    parts = np.maximum(squares - freedom * noise, 0.0)
    if not parts.sum():
        return result
    share_b, share_lr, share_both = (float(part) for part in parts / parts.sum())
    return replace(
        result, share_batch_size=share_b, share_lr=share_lr, share_interaction=share_both
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which of N trials is in which of C cells, and what the models of their scores span.

    The full model has one mean per cell and one effect per common seed. Cells share no trials, so
    all that takes effort is the seeds' part within cells: `within` is an orthonormal basis of it.
    `seed_fit` maps scores to the effects of seeds, and `seeds` the effects to trials. `averages`
    maps scores to cell means. `additive` spans the cell means of the model without interaction.
    `at_lr` sums over the trials of each of L lrs, and `freedom` counts the degrees of freedom of
    the residuals there.
    """

    within: Array  # (N, R)
    seeds: Array  # (N, S)
    seed_fit: Array  # (S, N)
    averages: sparse.csr_array  # (C, N)
    additive: Array  # (C, B + L - 1)
    counts: Array  # (C,)
    cell: NDArray[np.int_]  # (N,)
    lr_of_cell: NDArray[np.int_]  # (C,)
    at_lr: sparse.csr_array  # (L, N)
    freedom: Array  # (L,)


def _layout(trials: pd.DataFrame, lr: str) -> _Layout:
    b, lr_of_trial = (pd.Categorical(trials[n]).codes.astype(int) for n in ("batch_size", lr))
    num_b, num_lr = b.max() + 1, lr_of_trial.max() + 1
    cell = b * num_lr + lr_of_trial
    counts = np.bincount(cell, minlength=num_b * num_lr).astype(float)
    averages = _sums(cell, len(counts)).multiply(1 / counts[:, None]).tocsr()
    seeds = _common_seeds(trials, cell)
    centred = seeds - (averages @ seeds)[cell]
    left, sizes, right = linalg.svd(centred, full_matrices=False)
    # Cells and seeds may span the same constant: what is not of full rank is left out.
    is_spanned = sizes > 1e-9 * np.sqrt(max(counts.max(), *seeds.sum(axis=0), 1.0))
    within = left[:, is_spanned]
    if seeds.size and len(counts) + within.shape[1] == len(trials):
        return _layout(trials.drop(columns="seed"), lr)  # seeds cannot be told from noise
    lr_of_cell = np.arange(num_b * num_lr) % num_lr
    b_of_cell = np.arange(num_b * num_lr) // num_lr
    at_lr = _sums(lr_of_trial, num_lr)
    return _Layout(
        within=within,
        seeds=seeds,
        seed_fit=(right[is_spanned].T / sizes[is_spanned]) @ within.T,
        averages=averages,
        additive=np.hstack([np.eye(num_b)[b_of_cell], np.eye(num_lr)[lr_of_cell][:, 1:]]),
        counts=counts,
        cell=cell,
        lr_of_cell=lr_of_cell,
        at_lr=at_lr,
        freedom=at_lr @ (1 - 1 / counts[cell] - (within**2).sum(axis=1)),
    )


def _sums(group: NDArray[np.int_], num_groups: int) -> sparse.csr_array:
    """(groups, N): maps values to their sums over groups."""
    ones = np.ones(len(group))
    return sparse.csr_array((ones, (group, np.arange(len(group)))), (num_groups, len(group)))


def _residuals(layout: _Layout, scores: Array) -> Array:
    """What the full model leaves of scores (N,) or (N, K)."""
    centred = scores - (layout.averages @ scores)[layout.cell]
    residuals: Array = centred - layout.within @ (layout.within.T @ centred)
    return residuals


def _common_seeds(trials: pd.DataFrame, cell: NDArray[np.int_]) -> Array:
    """(N, S): the trials of each seed that at least half of the cells have.

    Seeds that are drawn anew for each trial are shared by no cells, and so are no blocks.
    """
    if "seed" not in trials:
        return np.empty((len(trials), 0))
    seeds = trials["seed"].reset_index(drop=True)
    num_cells = pd.Series(cell).groupby(seeds).nunique()
    common = num_cells.index[2 * num_cells >= len(np.unique(cell))]
    has_seed: Array = (seeds.to_numpy()[:, None] == common.to_numpy()).astype(float)
    return has_seed


def _without_seeds(layout: _Layout, scores: Array) -> Array:
    """Scores (N,) or (N, K) without what their seeds add to them."""
    clean: Array = scores - layout.seeds @ (layout.seed_fit @ scores)
    return clean


@dataclass(frozen=True)
class _Fit:
    """Weighted fits of a null model to K sets of scores: F (K,), variances (L, K), means (C, K)."""

    f: Array
    variances: Array
    means: Array


def _fits(layout: _Layout, scores: Array, null: Array) -> _Fit:
    """Fit the null model of the cell means, `null` (C, P), to scores (N, K).

    Each cell mean is weighted by its number of trials over the variance of its lr, which is that of
    the residuals of the full model. An lr without replicates gets the pooled variance.
    """
    residuals = _residuals(layout, scores)
    pooled = (residuals**2).sum(axis=0) / layout.freedom.sum()
    has_replicates = layout.freedom[:, None] >= 1
    own = (layout.at_lr @ residuals**2) / np.maximum(layout.freedom, 1)[:, None]
    # Scores of few digits may agree by chance: no cell weighs more than 10^4 times as much.
    variances = np.maximum(np.where(has_replicates, own, pooled), 1e-4 * pooled)
    # Without any noise, nor more than rounding leaves, whatever differs does so for certain.
    variances = np.maximum(variances, 1e-24 * (scores**2).mean(axis=0) + 1e-200)
    means = layout.averages @ _without_seeds(layout, scores)
    weights = layout.counts[:, None] / variances[layout.lr_of_cell]
    of_lr = [layout.lr_of_cell == lr for lr in range(len(variances))]
    products = np.stack(  # (L, P, P)
        [(null[cells].T * layout.counts[cells]) @ null[cells] for cells in of_lr]
    )
    normal = np.tensordot((1 / variances).T, products, axes=1)
    moments = (weights * means).T @ null
    fitted = null @ np.linalg.solve(normal, moments[..., None])[..., 0].T
    freedom = len(means) - null.shape[1]
    f = (weights * (means - fitted) ** 2).sum(axis=0) / freedom
    return _Fit(f=f, variances=variances, means=fitted)


def _permutation_test(layout: _Layout, scores: Array, null: Array) -> tuple[float, float]:
    """F of what the null model leaves, and its p value, which counts the observed order too."""
    observed = _fits(layout, scores[:, None], null)
    scale = np.sqrt(observed.variances[layout.lr_of_cell[layout.cell], 0])
    standardized = (_without_seeds(layout, scores) - observed.means[layout.cell, 0]) / scale
    rng = np.random.default_rng(SEED)
    permuted = rng.permuted(np.tile(standardized[:, None], PERMUTATIONS), axis=0)
    # The null model's fit is left out: it changes neither residuals nor F.
    others = _fits(layout, permuted * scale[:, None], null).f
    p_value = (1 + (others >= observed.f[0]).sum()) / (1 + PERMUTATIONS)
    return float(observed.f[0]), float(p_value)


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


def crossing_p(cells: pd.DataFrame) -> float:
    """How often noise alone gives rank correlations as strong in both directions.

    Of several lrs one may always rise and another one fall. The p value is of the weaker of the
    strongest two, over permutations of the batch sizes at each lr; NaN if no lr has three.
    """
    ranks = []
    for _, group in cells[cells["mean"].notna()].groupby("lr"):
        if len(group) >= 3 and group["mean"].nunique() > 1:
            sizes, means = (stats.zscore(stats.rankdata(group[n])) for n in ("batch_size", "mean"))
            ranks.append((sizes / len(group), means))
    if not ranks:
        return float("nan")
    rng = np.random.default_rng(SEED)
    rho = np.array(
        [
            np.append(
                sizes @ rng.permuted(np.tile(means, (PERMUTATIONS, 1)), axis=1).T, sizes @ means
            )
            for sizes, means in ranks
        ]
    )
    both = np.minimum(rho.max(axis=0), -rho.min(axis=0))
    return float((both >= both[-1] - 1e-9).mean())
