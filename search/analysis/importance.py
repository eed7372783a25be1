"""The importance of a search's fields."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.surface import LEVEL, LOG_RATIO, SEED
from trainable.config import WORST

LEAST_TRIALS = 20
BEST_SHARE, BEST_TRIALS = 0.1, 10  # compare the best tenth, or at least ten, with all trials
COLUMNS = ["field", "importance", "by_chance", "stands_out"]
# A shuffle of 2,000 trials takes 0.03 s, so that these are shuffled 39 times, and 400 199 times.
SHUFFLED_TRIALS, LEAST_SHUFFLES, MOST_SHUFFLES = 80_000, 39, 199
COMPARED = ("completed", "stopped", "diverged")


def importance(
    trials: pd.DataFrame, *, fields: Sequence[str], metric: str, mode: str
) -> pd.DataFrame:
    """How much each field distinguishes the best trials: `COLUMNS`; largest importance first.

    PED-ANOVA (Watanabe, Bansal & Hutter 2023, arXiv:2304.10255) from Optuna. It only uses which
    trials are among the best. So stopped trials count with their last score, because they were
    stopped for being worse, and diverged ones with the worst score. Empty with fewer than twenty
    trials, or if fewer than two fields differ.

    Importances add up to one, on pure noise as well. `by_chance` is what shuffled scores reach, on
    the same scale: without any effect no field is above it in 95 of 100 searches (`stands_out`).
    """
    rows = trials[trials["status"].isin(COMPARED)]
    values = _scores(rows, metric=metric, mode=mode)
    rows, values = rows[values.notna()], values.dropna()
    if len(rows) < LEAST_TRIALS or len(fields) < 2 or values.nunique() < 2:
        return pd.DataFrame(columns=COLUMNS)
    domains = {name: _domain(rows[name]) for name in fields}
    domains = {name: domain for name, domain in domains.items() if domain is not None}
    if not domains:
        return pd.DataFrame(columns=COLUMNS)
    observed, shuffled = _divergences(rows, values.to_numpy(dtype=float), domains)
    total = observed.sum()
    share = observed / total if total else observed * 0 + 1 / len(observed)
    table = pd.DataFrame({"field": [*domains], "importance": share})
    table["by_chance"] = by_chance(shuffled) / total if total else math.nan
    table["stands_out"] = table["importance"] > table["by_chance"]
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _divergences(
    rows: pd.DataFrame, scores: NDArray[np.float64], domains: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each field's values among the best are from those of all: (F,), shuffled (K, F).

    The trials of one configuration are shuffled together: their scores are alike.
    """
    import optuna

    params = [{name: value_of(row[name]) for name in domains} for row in rows.to_dict("records")]
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    for chosen in params:
        trial = optuna.trial.create_trial(params=chosen, distributions=dict(domains), value=0.0)
        study.add_trial(trial)
    best = max(BEST_SHARE, BEST_TRIALS / len(rows))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)

    def divergences(of: NDArray[np.float64]) -> list[float]:
        importances = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -of[trial.number], normalize=False
        )
        return [importances[name] for name in domains]

    config = pd.factorize(pd.Series([repr(chosen) for chosen in params]))[0]
    try:
        with warnings.catch_warnings():
            # `normalize` is experimental, and lower targets are better.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)
            shuffles = [divergences(order) for order in _shuffled(scores, config)]
            return np.array(divergences(scores)), np.array(shuffles)
    finally:
        optuna.logging.set_verbosity(quiet)


def _shuffled(scores: NDArray[np.float64], config: NDArray[np.int_]) -> list[NDArray[np.float64]]:
    """The scores, dealt to other configurations; fewer times where there are many trials."""
    times = min(max(SHUFFLED_TRIALS // len(scores), LEAST_SHUFFLES), MOST_SHUFFLES)
    rng = np.random.default_rng(SEED)
    place = np.argsort(config, kind="stable")
    groups = [place[config[place] == number] for number in range(config.max() + 1)]
    dealt = []
    for _ in range(times):
        order = rng.permutation(len(groups))
        new = np.empty_like(scores)
        new[place] = scores[np.concatenate([rng.permutation(groups[number]) for number in order])]
        dealt.append(new)
    return dealt


def by_chance(shuffled: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of each of F fields that none of them exceeds in 95 of 100 shuffles (K, F).

    The cube roots of the divergences, which are nearly normal as those of a chi-square (Wilson &
    Hilferty 1931), are compared in units of their standard deviation: so each field has its part
    in the 5 of 100, whatever its number of values.
    """
    times, roots = len(shuffled), np.cbrt(shuffled)
    mean, std = roots.mean(axis=0), roots.std(axis=0, ddof=1)
    # Each shuffle is compared with the others, as the search itself is with all of them.
    beyond = (roots - mean) * times / (times - 1)
    squares = (times - 1) * std**2 - (roots - mean) * beyond
    spread = np.sqrt(np.maximum(squares, 0) / (times - 2))
    largest = np.sort((beyond / np.where(spread > 0, spread, np.inf)).max(axis=1))
    limit = largest[math.ceil(LEVEL * (times + 1)) - 1]
    highest: NDArray[np.float64] = (mean + limit * std) ** 3
    return highest


def _scores(rows: pd.DataFrame, *, metric: str, mode: str) -> "pd.Series[float]":
    """Each trial's score, where more is better; diverged trials get the worst score."""
    scores = rows[metric].astype(float).replace([np.inf, -np.inf], np.nan)
    scores = scores if mode == "max" else -scores
    worst = min(WORST.get(metric, 0.0), scores.min() if scores.notna().any() else 0.0)
    return scores.mask(rows["status"] == "diverged", worst)


def value_of(value: Any) -> Any:
    """The value in a form that Optuna's distributions accept."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return value.item() if isinstance(value, np.generic) else value


def is_numeric(column: "pd.Series[Any]") -> bool:
    """Whether a field's values are numbers, none of them missing."""
    kinds = pd.api.types
    is_number = kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column)
    return bool(is_number and column.notna().all())


def is_log(column: "pd.Series[float]") -> bool:
    """Whether the values span so much that their axis should be logarithmic."""
    return bool(column.min() > 0 and column.max() / column.min() >= LOG_RATIO)


def _domain(column: "pd.Series[Any]") -> Any:
    """The range or choices of a field, inferred from its values; None if it has one value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if column.nunique(dropna=False) < 2:
        return None
    if not is_numeric(column) or column.nunique() <= 8:
        choices = sorted({value_of(value) for value in column}, key=lambda v: (str(type(v)), v))
        return CategoricalDistribution(choices)
    low, high = column.min().item(), column.max().item()
    if pd.api.types.is_integer_dtype(column):
        return IntDistribution(low, high, log=is_log(column))
    return FloatDistribution(low, high, log=is_log(column))
