"""The scores of several settings, each at its own best lr, by seed.

The best of several lrs looks better than it is, and the more so the more lrs there are. So each
seed is scored at the lr that is best by the next seed: no score takes part in its own selection,
and no two seeds share one, so that a bad choice of the lr is part of the noise between seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.groups import CHOICES, STEP
from search.analysis.surface import usable

LR = "base_lr"
Array = NDArray[np.float64]
BESIDE = ("batch_size", *CHOICES, "data_fingerprint", STEP)


@dataclass(frozen=True)
class OwnBest:
    """The scores of K groups of trials, each at its own best lr.

    `scores` has a row per block, which is a seed at one setting of the other fields, and a column
    per group; NaN where a group has none. `lost` has (setting, group) whose trials all ended
    without a score, because they diverged, were stopped or failed.
    """

    scores: pd.DataFrame
    lost: tuple[tuple[str, int], ...]


def own_best(
    trials: pd.DataFrame, groups: Sequence["pd.Series[bool]"], *, metric: str, mode: str
) -> OwnBest:
    """The scores of groups of trials at their own best lrs, where more is better.

    With one seed the lr is the best by that seed itself. With several, an lr that only one of them
    finished is left out.
    """
    sign = 1.0 if mode == "max" else -1.0
    parts = [trials[group].assign(group=k) for k, group in enumerate(groups)]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.assign(setting=_settings(rows, parts), score=sign * rows[metric].astype(float))
    rows = rows[rows["seed"].isin(_common_seeds(rows))]
    used = usable(rows, metric="score")
    table = used.pivot_table(index=["setting", "group", LR], columns="seed", values="score")
    cells = table.groupby(level=["setting", "group"])
    best = {key: _at_best_lr(cell.to_numpy(dtype=float)) for key, cell in cells}
    scored = {key for key, scores in best.items() if np.isfinite(scores).any()}
    ended = rows[rows["status"] != "interrupted"].groupby(["setting", "group"]).size()
    lost = tuple((str(s), int(g)) for s, g in ended.index if (s, g) not in scored)
    if not scored:
        return OwnBest(
            pd.DataFrame(columns=range(len(groups)), index=_NO_BLOCKS, dtype=float), lost
        )
    by_seed = pd.DataFrame(best, index=table.columns)
    by_seed.columns.names = ["setting", "group"]
    scores = by_seed.unstack().unstack("group").reindex(columns=range(len(groups)))
    return OwnBest(scores.dropna(how="all"), lost)


_NO_BLOCKS = pd.MultiIndex.from_arrays([[], []], names=["setting", "seed"])


def _settings(rows: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> "pd.Series[str]":
    """What else differs between the trials of a group, in words.

    A field that has one value in each group goes with the group, as the momentum may go with the
    optimizer, and is no setting of its own.
    """
    names = [
        name
        for name in BESIDE
        if name in rows and any(part[name].nunique(dropna=False) > 1 for part in parts)
    ]
    words = pd.Series("", index=rows.index)
    for name in names:
        start = words + ", " if name != names[0] else words
        words = start + rows[name].map(lambda value, name=name: f"{name}={in_words(value)}")
    return words


def in_words(value: object) -> str:
    """A value of a field: four significant digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _common_seeds(rows: pd.DataFrame) -> list[object]:
    """The seeds that at least half of the cells have: not those that only leaders got."""
    cell = rows.groupby(["group", "setting", LR], dropna=False).ngroup()
    num_cells = cell.groupby(rows["seed"]).nunique()
    return list(num_cells.index[2 * num_cells >= cell.nunique()])


def _at_best_lr(scores: Array) -> Array:
    """(S,): each seed's score at the lr that is best by the next seed; of (L, S).

    Where the next seed shares no lr with it, the one after that selects.
    """
    known, num_seeds = np.isfinite(scores), scores.shape[1]
    best = np.full(num_seeds, np.nan)
    for offset in range(1, num_seeds) if known.any(axis=0).sum() > 1 else [0]:
        judged = np.where(known, np.roll(scores, -offset, axis=1), np.nan)
        judged = np.where(np.isfinite(judged), judged, -np.inf)
        chosen = scores[judged.argmax(axis=0), np.arange(num_seeds)]
        is_new = np.isnan(best) & np.isfinite(judged).any(axis=0)
        best = np.where(is_new, chosen, best)
    return best
