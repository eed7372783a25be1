"""The largest lr of each batch size at which few trials diverge."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.surface import lr_step

Array = NDArray[np.float64]

FEW = 0.1  # of the trials at an lr that is called stable
HALF = 0.5
# The penalty's inverse weight, chosen in simulations (docs/statistics.md).
C = 5.0


def stable_lr(cells: pd.DataFrame) -> pd.DataFrame:
    """The largest stable lr of each batch size: batch_size, stable_lr, diverges_at.

    `stable_lr` is the largest lr that was tried at which fewer than a tenth of the trials diverge
    or collapse, `diverges_at` the smallest at which at least half do, both by a penalized logistic
    regression on log lr with one slope for all batch sizes. NaN if there is none. Stopped and
    failed trials are left out. If no trial diverged, `stable_lr` is the largest lr, a lower bound.
    """
    lost = (cells["diverged"] + cells["collapsed"]).to_numpy(dtype=float)
    kept = (cells["n"] - cells["collapsed"]).to_numpy(dtype=float)
    is_known = lost + kept > 0
    chance = pd.Series(np.nan, cells.index)
    chance[is_known] = _chance(cells[is_known], lost[is_known], kept[is_known])
    rows = []
    for batch_size, group in cells.assign(chance=chance).sort_values("lr").groupby("batch_size"):
        up_to = group["chance"].cummax()  # nothing counts above an lr that is not stable
        stable, unstable = group.loc[up_to < FEW, "lr"], group.loc[up_to >= HALF, "lr"]
        rows.append((batch_size, stable.max(), unstable.min()))
    return pd.DataFrame(rows, columns=["batch_size", "stable_lr", "diverges_at"])


def _chance(cells: pd.DataFrame, lost: Array, kept: Array) -> Array:
    """(C,): the chance of a trial of each cell to be lost.

    The penalty keeps the slope finite where one lr separates all lost trials from all kept ones,
    and draws the batch sizes to a common line.
    """
    from sklearn.linear_model import LogisticRegression

    if not lost.sum() or not kept.sum():
        return np.full(len(cells), float(lost.sum() > 0))
    log_lr, log_b = np.log(cells["lr"]), np.log2(cells["batch_size"].astype(float))
    is_of = cells["batch_size"].to_numpy()[:, None] == cells["batch_size"].unique()
    features = np.column_stack(
        [
            (log_lr - log_lr.mean()) / (lr_step(cells) or 1.0),
            (log_b - log_b.mean()) / 2,
            is_of / 2,
        ]
    )
    twice = np.concatenate([features, features])
    is_lost = np.repeat([1, 0], len(cells))
    counts = np.concatenate([lost, kept])
    used = counts > 0
    model = LogisticRegression(C=C, max_iter=1000)
    model.fit(twice[used], is_lost[used], sample_weight=counts[used])
    chance: Array = model.predict_proba(features)[:, 1]
    return chance
