"""The noise of a surface: what other seeds could have given.

The model of a score is cell + seed + residual. What a seed does to all cells alike, by the order of
the images for example, cancels where two cells have the same seeds.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import lsmr

from search.analysis.surface import DRAWS, SEED

OWN_SEEDS = 10  # with as many a cell's own standard deviation is used alone

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Two parts of the noise of C cells over S seeds.

    `std` is that of the residuals with `freedom` degrees of freedom, NaN and 0 without replicates.
    `seed_std` is that of what seeds do to all cells alike. `own` (C,) has each cell's own standard
    deviation of residuals, NaN with one seed. `weights` (C, S) is each seed's part of a cell mean.
    """

    std: float
    freedom: int
    seed_std: float
    own: Array
    counts: Array
    weights: sparse.csr_array

    def of_difference(self) -> Array:
        """(C, C): the standard error of the difference between each two cell means."""
        overlap = (self.weights @ self.weights.T).toarray()
        alone = np.diag(overlap)
        unshared = np.maximum(alone[:, None] + alone[None, :] - 2 * overlap, 0.0)
        of_residuals = 1 / self.counts[:, None] + 1 / self.counts[None, :]
        error: Array = np.sqrt(self.std**2 * of_residuals + self.seed_std**2 * unshared)
        return error


def noise_of(cells: pd.DataFrame, *, mode: str) -> Noise:
    """The noise of these cells, pooled over the better half of those with replicates.

    Scores near the edge of stability vary much more, and say nothing about the noise of the best
    cells. Analysis of variance of cell + seed; the variance of seeds is what the pooled variance
    within cells has above that of the residuals (Henderson 1953, method 3).

    Many statements about a surface need it, so that of the last few is kept.
    """
    means = cells["mean"].to_numpy(dtype=float).tobytes()  # in which NaN equals NaN
    members = tuple(tuple(cells[name]) for name in ("n", "seeds", "scores"))
    return _noise(mode, tuple(cells.index), means, *members)


@lru_cache(8)
def _noise(mode: str, index: tuple[Any, ...], means: bytes, *members: tuple[Any, ...]) -> Noise:
    columns = dict(zip(("n", "seeds", "scores"), map(list, members), strict=True))
    cells = pd.DataFrame({"mean": np.frombuffer(means), **columns}, index=list(index))
    scores = _scores(cells)
    known = cells[cells["n"] > 1].sort_values("mean", ascending=mode == "min")
    half = known.head((len(known) + 1) // 2).index
    within = scores.loc[scores["cell"].isin(half)]
    effects, std, freedom, total = _fit(within)
    effect = scores["seed"].map(effects).fillna(0.0)
    unexplained = scores["score"] - effect
    residuals = unexplained - unexplained.groupby(scores["cell"]).transform("mean")
    squares = (residuals**2).groupby(scores["cell"]).sum().reindex(cells.index)
    counts = cells["n"].clip(lower=1).to_numpy(dtype=float)
    seed_std = float(np.sqrt(max(0.0, total**2 - std**2)))
    used = scores[scores["seed"].notna()] if seed_std else scores.iloc[:0]
    in_cell = _one_hot(cells.index.get_indexer(used["cell"]), len(cells)).T @ _by_seed(used)
    return Noise(
        std=std,
        freedom=freedom,
        seed_std=seed_std,
        own=np.sqrt(squares / (cells["n"] - 1).where(cells["n"] > 1)).to_numpy(dtype=float),
        counts=counts,
        weights=in_cell.multiply(1 / counts[:, None]).tocsr(),
    )


def _one_hot(codes: NDArray[np.int_], num: int) -> sparse.csr_array:
    """(N, num): one where a row has the code; none has it at -1."""
    has_code = codes >= 0
    where = (np.flatnonzero(has_code), codes[has_code])
    return sparse.csr_array((np.ones(len(where[0])), where), (len(codes), num))


def _by_seed(scores: pd.DataFrame) -> sparse.csr_array:
    """(N, S): which score is of which seed, in their order."""
    seeds = pd.Categorical(scores["seed"])
    return _one_hot(seeds.codes.astype(int), len(seeds.categories))


def _scores(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per score: its cell, its seed and the score."""
    rows = [
        (cell, seed, score)
        for cell, seeds, scores in zip(cells.index, cells["seeds"], cells["scores"], strict=True)
        for seed, score in zip(seeds, scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["cell", "seed", "score"]).astype({"score": float})


def _fit(scores: pd.DataFrame) -> tuple["pd.Series[float]", float, int, float]:
    """The effects of seeds, std and freedom of the residuals, and the std within cells.

    Only seeds that several cells have can have an effect, and only if residuals are left.
    """
    nothing = pd.Series(dtype=float)
    if scores.empty:
        return nothing, float("nan"), 0, float("nan")
    by_cell = scores.groupby("cell")["score"]
    centred = (scores["score"] - by_cell.transform("mean")).to_numpy()
    freedom = len(scores) - by_cell.ngroups
    total = float(np.sqrt((centred**2).sum() / freedom))
    shared = scores.groupby("seed")["cell"].nunique()
    seeds = shared.index[shared > 1]
    if not len(seeds):
        return nothing, total, freedom, total
    of_seed = _one_hot(seeds.get_indexer(scores["seed"]), len(seeds))
    cells = pd.factorize(scores["cell"])[0]
    in_cell = _one_hot(cells, cells.max() + 1)
    sizes = in_cell.sum(axis=0)
    columns = of_seed - in_cell @ (in_cell.T @ of_seed).multiply(1 / sizes[:, None]).tocsr()
    # The shortest of the best solutions, as they differ by what cells without a link do not tell.
    effects = lsmr(columns, centred, atol=1e-15, btol=1e-15, conlim=0, maxiter=10_000)[0]
    rank = len(seeds) - _num_loose(of_seed, in_cell)
    if not rank or rank >= freedom:
        return nothing, total, freedom, total
    residuals = centred - columns @ effects
    std = float(np.sqrt((residuals**2).sum() / (freedom - rank)))
    return pd.Series(effects, index=seeds), std, int(freedom - rank), total


def _num_loose(of_seed: sparse.csr_array, in_cell: sparse.csr_array) -> int:
    """Groups of seeds, linked by cells, to whose effects a constant can be added.

    A cell with a score of another seed, which has no effect, fixes the constant of its group.
    """
    others = sparse.csr_array((of_seed.sum(axis=1) == 0)[:, None].astype(float))
    in_group = sparse.hstack([in_cell.T @ of_seed, in_cell.T @ others]).tocsr()
    num_groups, _ = csgraph.connected_components(in_group.T @ in_group, directed=False)
    return int(num_groups) - 1


def standard_errors(cells: pd.DataFrame, noise: Noise) -> Array:
    """(C,): each cell mean's standard error but for what its seeds do to all cells alike.

    From the cell's own standard deviation if it has ten seeds or more; else from the pooled one or
    its own, whichever is larger.
    """
    has_own = (cells["n"].to_numpy() >= OWN_SEEDS) & np.isfinite(noise.own)
    error: Array = np.where(has_own, noise.own, np.fmax(noise.own, noise.std)) / np.sqrt(
        noise.counts
    )
    return error


def redrawn(cells: pd.DataFrame, *, mode: str, draws: int = DRAWS) -> Array | None:
    """Cell means as other seeds could have given them, (draws, cells); None without replicates.

    A parametric bootstrap: each mean plus noise of its own standard error, and the effects of the
    seeds. The noise has Student's t distribution, because the standard deviation is an estimate.
    """
    noise = noise_of(cells, mode=mode)
    if not noise.freedom:
        return None
    error = standard_errors(cells, noise)
    rng = np.random.default_rng(SEED)
    # One scale for all cells of a draw: the pooled estimate is off by the same factor everywhere.
    scale = np.sqrt(noise.freedom / rng.chisquare(noise.freedom, size=(draws, 1)))
    of_cells = rng.standard_normal((draws, len(cells))) * error
    of_seeds = (noise.weights @ rng.standard_normal((draws, noise.weights.shape[1])).T).T
    means: Array = cells["mean"].to_numpy(dtype=float) + scale * of_cells
    means += noise.seed_std * of_seeds
    return means
