"""The best lr of each batch size with its interval, by the model: of few trials, or of one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from search.analysis.humps.columns import Column, columns_of
from search.analysis.humps.gain import next_cells
from search.analysis.humps.model import PRIOR
from search.analysis.humps.posterior import (
    LEAST_LRS,
    WIDER,
    Posterior,
    best_lrs,
    fit,
    frame_of,
    intervals,
    moments,
    noise_variance,
)
from search.analysis.humps.scored import is_forecast, scored_trials

Array = NDArray[np.float64]

LRS = 31  # of a batch size, between which the best lr is sought
DRAWS = 384
ENDS = (0.025, 0.5, 0.975)
LEAST_SIZES, LEAST_SCORES = 2, 3
MOST_TRIALS = 500  # whose covariances fit into memory
LITTLE = 0.1  # of the noise of a trial: a smaller gain is not worth training one more
OPEN = 0.25  # of the draws at an end of the range: the best lr may be outside
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
    (the interval reaches the smallest or largest lr tried), and the number of `trials`. A row
    of no trials is a prediction: of a batch size that the study did not come to, or beside its
    range.
    `exponent` is that of lr* = c B^a, over batch sizes whose best lr is inside of the range: the
    median and the ends of its 95 % interval, or NaN. `noise_std` is of one training. `num_best` of
    the `num_cells` tried cannot be told from the best (95 %). `columns` has a row for each other
    column that was taken in: `column`, the value `at` which the best lrs hold, and by which
    `factor` (95 %: `low` to `high`) the best lr changes as the column goes from `below` to `above`,
    one standard deviation on either side of its mean.
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


def is_worth(answer: ByModel) -> bool:
    """Whether the next trial is expected to tell enough to be trained."""
    return answer.next_trial.gain >= LITTLE * answer.noise_std


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
    as worse than all others; what failed or was interrupted is left out. So is a surface without
    two batch sizes, three lrs and three scores, and one with stopped trials that have no forecast:
    their scores are missing where they are low. Of a very large one, 500 trials are used.
    `batch_sizes` are those that may have no trial yet. `columns` differ from trial to trial, as
    where all was drawn at random: what they explain is no noise.
    """
    answers = []
    for values, group in trials.groupby(list(others), dropna=False) if others else [((), trials)]:
        name = ", ".join(f"{n}={v}" for n, v in zip(others, values, strict=True))
        scored = scored_trials(group, metric=metric, mode=mode, columns=columns)
        if _is_enough(scored) and not ((group["status"] == "stopped") & ~is_forecast(group)).any():
            few = scored.sample(min(MOST_TRIALS, len(scored)), random_state=0).sort_index()
            answers.append(_answer(name, few, batch_sizes, columns_of(few, columns)))
    return answers


def _is_enough(scored: pd.DataFrame) -> bool:
    """Whether there is a surface: over two batch sizes and three lrs, with some scores."""
    cells = len(scored[["batch_size", "lr"]].drop_duplicates())
    num_sizes = _octave(scored["batch_size"]).nunique()
    return bool(
        num_sizes >= LEAST_SIZES
        and scored["lr"].nunique() >= LEAST_LRS
        and cells >= num_sizes + LEAST_SIZES
        and np.isfinite(scored["score"]).sum() >= LEAST_SCORES
    )


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
    lrs = [_lrs(scored, size) for size in sizes]
    draws = best_lrs(posterior, sizes, lrs)
    cells = np.log2(scored[["batch_size", "lr"]].drop_duplicates().to_numpy())
    slope_low, slope, slope_high = _exponent(sizes, draws, lrs)
    return ByModel(
        of=name,
        rows=_with_predictions(posterior, scored, sizes, lrs, draws),
        exponent=(slope, slope_low, slope_high),
        noise_std=math.sqrt(noise_variance(posterior)) * posterior.std,
        num_best=_num_best(posterior, cells),
        num_cells=len(cells),
        next_trial=_next_trial(posterior, sizes, lrs),
        columns=_columns(posterior, columns),
    )


def _with_predictions(
    posterior: Posterior,
    scored: pd.DataFrame,
    sizes: Sequence[float],
    lrs: Sequence[Array],
    draws_PK: Array,
) -> pd.DataFrame:
    """The rows of an answer: of the sizes, and of those beside them."""
    beside = _beside(sizes)
    of_beside = [_lrs(scored, size) for size in beside]
    more = best_lrs(posterior, beside, of_beside)
    low, middle, high = intervals(np.concatenate([draws_PK, more], axis=1))
    ranges = np.array([(x[0], x[-1]) for x in (*lrs, *of_beside)])
    num_trials = _octave(scored["batch_size"]).value_counts()
    rows = pd.DataFrame(
        {
            "batch_size": np.asarray([*sizes, *beside]).astype(int),
            "lr": middle,
            "low": low,
            "high": high,
            "at_edge": (low <= ranges[:, 0]) | (high >= ranges[:, 1]),
            "trials": [int(num_trials.get(size, 0)) for size in (*sizes, *beside)],
        }
    )
    return rows.sort_values("batch_size", ignore_index=True)


def _sizes(batch_sizes: "pd.Series[float]") -> list[float]:
    """Those tried; of many, as where they were drawn, powers of two."""
    return sorted(_octave(batch_sizes).unique())


def _octave(batch_sizes: "pd.Series[float]") -> "pd.Series[float]":
    """The sizes as they are; of many, the power of two that is nearest to each."""
    if batch_sizes.nunique() <= MOST_SIZES:
        return batch_sizes
    return 2.0 ** np.log2(batch_sizes).round()


def _lrs(scored: pd.DataFrame, size: float) -> Array:
    """Where the best lr of a batch size is sought: in its own range, if it has one, else in all."""
    own = scored.loc[scored["batch_size"] == size, "lr"]
    lrs = own if own.nunique() >= LEAST_LRS else scored["lr"]
    return np.geomspace(lrs.min(), lrs.max(), LRS)


def _exponent(
    sizes: Sequence[float], draws_PK: Array, lrs: Sequence[Array]
) -> tuple[float, float, float]:
    """The ends of the 95 % interval with the median between them; NaN of fewer than two sizes.

    Over batch sizes whose best lr is inside of the range.
    """
    first, last = np.array([x[0] for x in lrs]), np.array([x[-1] for x in lrs])
    inside = ((draws_PK <= first) | (draws_PK >= last)).mean(0) <= OPEN
    if inside.sum() < LEAST_SIZES:
        return math.nan, math.nan, math.nan
    slopes = np.polyfit(np.log2(sizes)[inside], np.log2(draws_PK[:, inside]).T, 1)[0]
    low, middle, high = np.quantile(slopes, ENDS)
    return float(low), float(middle), float(high)


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


def _num_best(posterior: Posterior, cells_M2: Array) -> int:
    """How many of the cells tried are not shown to be worse than the one with the best mean.

    Not of the posterior's points: these have shadows above what diverged.
    """
    mean, covariance = moments(posterior, cells_M2[:, 0], cells_M2[:, 1])
    best = mean.argmax()
    variance = covariance[best, best] + covariance.diagonal() - 2 * covariance[best]
    margin = WIDER * norm.ppf(ENDS[-1]) * np.sqrt(np.clip(variance, 0, None))
    return int((mean[best] - mean <= margin).sum())


def _beside(sizes: Sequence[float]) -> list[float]:
    """Half of the smallest batch size, if it has a half, and twice the largest."""
    return [*([sizes[0] / 2] if sizes[0] % 2 == 0 else []), sizes[-1] * 2]


def _next_trial(posterior: Posterior, sizes: Sequence[float], lrs: Sequence[Array]) -> NextTrial:
    b, x = np.repeat(np.log2(sizes), LRS), np.log2(np.concatenate(lrs))
    ((cell, gain),) = next_cells(posterior, b, x, pending=[], refused=[], num=1)
    return NextTrial(batch_size=round(2 ** b[cell]), lr=float(2 ** x[cell]), gain=gain / len(sizes))
