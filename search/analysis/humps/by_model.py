"""The best lr of each batch size with its interval, by the model: of few trials, or of one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from search.analysis.chance import collapsed
from search.analysis.humps.columns import Column, columns_of
from search.analysis.humps.gain import next_cells
from search.analysis.humps.model import PRIOR
from search.analysis.humps.posterior import (
    WIDER,
    Posterior,
    best_lrs,
    fit,
    frame_of,
    intervals,
    moments,
    noise_variance,
)

Array = NDArray[np.float64]

LRS = 31  # of a batch size, between which the best lr is sought
DRAWS = 384
ENDS = (0.025, 0.5, 0.975)
LEAST_TRIALS = 4
MANY, DRAWS_OF_MANY = 150, 128  # trials, whose covariances take long
MOST_SIZES = 12  # batch sizes that an answer has


@dataclass(frozen=True, kw_only=True)
class NextTrial:
    """The training that is expected to tell most.

    `gain` is how much better, on average over batch sizes, the score of the lr that is then chosen
    is expected to be; `lr` is the peak lr.
    """

    batch_size: int
    lr: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class ByModel:
    """What the model says of one surface.

    `rows` has `batch_size`, the best peak `lr` with its 95 % interval `low` to `high`, `at_edge`
    (the interval reaches the smallest or largest lr tried), and the number of `trials`. Those with
    none are predictions: batch sizes that the study did not come to, and those beside its range.
    `exponent` is that of lr* = c B^a: the median and the ends of its 95 % interval. `noise_std` is
    of one training. `num_best` of the `num_cells` tried cannot be told from the best (95 %).
    `columns` has a row for each other column that was taken in: `column`, the value `at` which the
    best lrs hold, and by which `factor` (95 %: `low` to `high`) the best lr changes as the column
    goes from `below` to `above`, one standard deviation on either side of its mean.
    """

    of: str
    rows: pd.DataFrame
    exponent: tuple[float, float, float]
    noise_std: float
    num_best: int
    num_cells: int
    next_trial: NextTrial
    columns: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tried(self) -> pd.DataFrame:
        """The rows of batch sizes that have trials."""
        return self.rows[self.rows["trials"] > 0]

    @property
    def predicted(self) -> pd.DataFrame:
        """The rows of batch sizes that have none."""
        return self.rows[self.rows["trials"] == 0]


def by_model(
    trials: pd.DataFrame,
    *,
    others: Sequence[str],
    metric: str,
    mode: str,
    batch_sizes: Sequence[int] = (),
    columns: Sequence[str] = (),
) -> list[ByModel]:
    """One for each combination of the `others`, the fields that vary beside batch size and lr.

    Trials have `batch_size`, `peak_lr`, `status` and the metric. What diverged or collapsed counts
    as worse than all others; what was stopped, failed or interrupted is left out. A surface of
    fewer than four trials, or of one batch size, is left out. `batch_sizes` are those that may have
    no trial yet. `columns` differ from trial to trial, as where all was drawn at random: what they
    explain is no noise.
    """
    answers = []
    for values, group in trials.groupby(list(others), dropna=False) if others else [((), trials)]:
        name = ", ".join(f"{n}={v}" for n, v in zip(others, values, strict=True))
        scored = scored_trials(group, metric=metric, mode=mode, columns=columns)
        enough = len(scored) >= LEAST_TRIALS and np.isfinite(scored["score"]).any()
        if enough and scored["batch_size"].nunique() > 1:
            answers.append(_answer(name, scored, batch_sizes, columns_of(scored, columns)))
    return answers


def scored_trials(
    trials: pd.DataFrame, *, metric: str, mode: str, columns: Sequence[str] = ()
) -> pd.DataFrame:
    """`batch_size`, `lr`, `columns`, and `score`: more is better; -inf where the lr was too high.

    A trial without a value in one of the columns is left out.
    """
    sign = 1.0 if mode == "max" else -1.0
    score = sign * trials[metric].astype(float)
    lost = (trials["status"] == "diverged") | collapsed(trials)
    ended = trials["status"].isin(("completed", "diverged"))
    rows = trials.assign(score=score.mask(lost, -math.inf), lr=trials["peak_lr"].astype(float))
    rows = rows[ended & rows["score"].notna()]
    rows = rows[["batch_size", "lr", *columns, "score"]].astype(float)
    return rows.dropna(ignore_index=True)


def _answer(
    name: str, scored: pd.DataFrame, batch_sizes: Sequence[int], columns: Sequence[Column]
) -> ByModel:
    b, x = (np.log2(scored[column].to_numpy()) for column in ("batch_size", "lr"))
    standardised = {c.name: c.standardised(scored[c.name].to_numpy()) for c in columns}
    posterior = fit(
        scored.assign(**standardised),
        frame_of(b, x),
        others=[column.name for column in columns],
        num=DRAWS_OF_MANY if len(scored) > MANY else DRAWS,
    )
    sizes = sorted({*_sizes(scored["batch_size"]), *map(float, batch_sizes)})
    lrs = np.geomspace(scored["lr"].min(), scored["lr"].max(), LRS)
    draws = best_lrs(posterior, sizes, [lrs] * len(sizes))
    slopes = np.polyfit(np.log2(sizes), np.log2(draws).T, 1)[0]
    beside = _beside(sizes)
    more = best_lrs(posterior, beside, [lrs] * len(beside))
    low, middle, high = intervals(np.concatenate([draws, more], axis=1))
    trials = scored.groupby("batch_size").size()
    rows = pd.DataFrame(
        {
            "batch_size": np.asarray([*sizes, *beside]).astype(int),
            "lr": middle,
            "low": low,
            "high": high,
            "at_edge": (low <= lrs[0]) | (high >= lrs[-1]),
            "trials": [int(trials.get(size, 0)) for size in (*sizes, *beside)],
        }
    )
    slope_low, slope, slope_high = np.quantile(slopes, ENDS)
    return ByModel(
        of=name,
        rows=rows.sort_values("batch_size", ignore_index=True),
        exponent=(float(slope), float(slope_low), float(slope_high)),
        noise_std=math.sqrt(noise_variance(posterior)) * posterior.std,
        num_best=_num_best(posterior),
        num_cells=len(posterior.points.b),
        next_trial=_next_trial(posterior, sizes, lrs),
        columns=_columns(posterior, columns),
    )


def _sizes(batch_sizes: "pd.Series[float]") -> list[float]:
    """Those tried; of many, as where they were drawn, powers of two between the ends."""
    sizes = sorted(batch_sizes.unique())
    if len(sizes) <= MOST_SIZES:
        return sizes
    low, high = np.log2(sizes[0]), np.log2(sizes[-1])
    return [float(2**b) for b in range(math.ceil(low), math.floor(high) + 1)]


def _columns(posterior: Posterior, columns: Sequence[Column]) -> pd.DataFrame:
    shifts = posterior.shapes_PD[:, len(PRIOR) :]
    rows = []
    for column, z, octaves in zip(columns, posterior.others_at, shifts.T, strict=True):
        low, factor, high = 2 ** np.quantile(2 * octaves, ENDS)
        rows.append(
            {
                "column": column.name,
                "at": column.value(float(z)),
                "below": column.value(-1.0),
                "above": column.value(1.0),
                "factor": float(factor),
                "low": float(low),
                "high": float(high),
            }
        )
    return pd.DataFrame(rows)


def _num_best(posterior: Posterior) -> int:
    """How many of the cells tried are not shown to be worse than the one with the best mean."""
    mean, covariance = moments(posterior, posterior.points.b, posterior.points.x)
    best = mean.argmax()
    variance = covariance[best, best] + covariance.diagonal() - 2 * covariance[best]
    margin = WIDER * norm.ppf(ENDS[-1]) * np.sqrt(np.clip(variance, 0, None))
    return int((mean[best] - mean <= margin).sum())


def has_repeats(trials: pd.DataFrame, lr: str) -> bool:
    """Whether any batch size and lr was trained more than once."""
    return bool(trials.duplicated(["batch_size", lr]).any())


def _beside(sizes: Sequence[float]) -> list[float]:
    """Half of the smallest batch size, twice the largest."""
    return [*([sizes[0] / 2] if sizes[0] % 2 == 0 else []), sizes[-1] * 2]


def _next_trial(posterior: Posterior, sizes: Sequence[float], lrs: Array) -> NextTrial:
    b, x = np.repeat(np.log2(sizes), len(lrs)), np.tile(np.log2(lrs), len(sizes))
    ((cell, gain),) = next_cells(posterior, b, x, pending=[], refused=[], num=1)
    return NextTrial(batch_size=round(2 ** b[cell]), lr=float(2 ** x[cell]), gain=gain / len(sizes))
