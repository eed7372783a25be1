"""Recorded grids, on which searches are replayed without training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.surface import RECORDED

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A recorded grid: M cells with their trainings' scores, of which more is better.

    -inf is a training that diverged.
    """

    batch_size: NDArray[np.int64]
    lr: Array
    scores: Sequence[Sequence[float]]

    @property
    def b(self) -> Array:
        """Batch sizes in octaves."""
        return np.log2(self.batch_size.astype(float))

    @property
    def x(self) -> Array:
        """Learning rates in octaves."""
        return np.log2(self.lr)

    @property
    def means(self) -> Array:
        """(M,): the mean score of each cell; -inf if any training diverged."""
        return np.array([np.mean(scores) for scores in self.scores])

    @property
    def rows(self) -> list[NDArray[np.intp]]:
        """The cells of each batch size."""
        return [np.flatnonzero(self.batch_size == size) for size in np.unique(self.batch_size)]

    def trials(self, asked: Sequence[int]) -> pd.DataFrame:
        """The trainings that were asked for: the first, second ... of a cell are its seeds."""
        seeds = [list(asked[:i]).count(cell) for i, cell in enumerate(asked)]
        return pd.DataFrame(
            {
                "batch_size": self.batch_size[list(asked)],
                "lr": self.lr[list(asked)],
                "score": [self.scores[c][s] for c, s in zip(asked, seeds, strict=True)],
            }
        )

    def num(self, share: float) -> int:
        """How many trainings this share of all is; at least three."""
        return max(3, round(share * sum(map(len, self.scores))))

    def spent(self, asked: Sequence[int]) -> list[int]:
        """Cells of which every training was asked for."""
        return [c for c in set(asked) if list(asked).count(c) >= len(self.scores[c])]


def grid_of(trials: pd.DataFrame, *, metric: str, mode: str) -> Grid:
    """From a table with `batch_size`, `lr`, the metric and perhaps `seed`; NaN is divergence.

    With a column `status`, only runs that completed or diverged count.
    """
    sign = 1.0 if mode == "max" else -1.0
    if "status" in trials:
        trials = trials[trials["status"].isin(("completed", "diverged"))]
    rows = trials.assign(score=(sign * trials[metric].astype(float)).fillna(-math.inf))
    if "seed" in rows:
        rows = rows.sort_values("seed", kind="stable")
    cells = rows.groupby(["batch_size", "lr"])["score"].agg(list).reset_index()
    return Grid(cells["batch_size"].to_numpy(), cells["lr"].to_numpy(float), list(cells["score"]))


def step_law(folder: Path) -> list[Grid]:
    """The sixteen surfaces of steplaw_moe.csv: losses of language models, one seed a cell."""
    recorded = pd.read_csv(folder / "steplaw_moe.csv").dropna(subset="loss")
    return [grid_of(rows, metric="loss", mode="min") for _, rows in recorded.groupby("surface")]


def preview_surface() -> list[Grid]:
    """What benchmarks/surface.py recorded: the best score of each training, three seeds a cell."""
    curves = pd.read_parquet(RECORDED)
    names = ["batch_size", "lr", "seed", "status"]
    best = curves.groupby(names, as_index=False)["val_auroc"].max()
    scores = best["val_auroc"].mask(best["status"] == "diverged")
    return [grid_of(best.assign(val_auroc=scores), metric="val_auroc", mode="max")]
