"""Which setting to use for which goal, at which learning rate; which trials would tell more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.best_set import seeds_for
from search.analysis.chance import nothing_beat_chance
from search.analysis.humps.by_model import ByModel, is_worth
from search.analysis.scaling.exponent import flat_p
from search.analysis.surface import SIGNIFICANT, best_cell, contenders, usable

SCORE, TIME, COST, LARGEST = "score", "time", "cost", "largest"
FASTER = 0.95  # of the time of the best scoring setting: less is no gain
MOST_SEEDS = 30  # more of each setting are not worth their time

# Why nothing can be recommended.
NO_SCORE, CHANCE, ALONE, FLAT = "no score", "chance", "one setting", "flat"
SCATTERED = "scattered"  # of batch sizes: the runs differ in other settings as well


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A batch size, the learning rate to use there, and the goals that it serves best.

    `lr` is what the optimizer gets at its peak, with its 95 % interval from `low` to `high` (NaN if
    unknown), and `grid_lr` what the study sets for it. `mean` is the best mean score of the batch
    size, `seconds` the median time of its trials (NaN if unknown).
    """

    goals: tuple[str, ...]
    batch_size: int
    lr: float
    low: float
    high: float
    grid_lr: float
    mean: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class More:
    """Trials that would tell more. `kind`: seeds (of each setting, in all), widen, or model.

    `seconds` is their time one after the other, NaN if unknown. Of kind `model` it is one trial
    at a batch size and a peak lr.
    """

    kind: str
    trials: int
    seconds: float = math.nan
    seeds: int = 0
    batch_size: int = 0
    lr: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to use, the best scoring setting first, or `why` nothing can be recommended.

    `equal` are the batch sizes whose best setting cannot be told from the best; without repeats
    nobody knows, and the best score is the only goal. `rule` is (c, a) of the peak lr = c B^a, over
    batch sizes `rule_from` to `rule_to`, with the 95 % interval of a from `rule_low` to
    `rule_high`; NaN if unknown. `at_edge`: the best lr of the first setting may lie outside of what
    was tried. `beside` are columns in which the runs differ as well: then no batch size is
    recommended, and the settings are the best lrs of all batch sizes.
    """

    settings: tuple[Setting, ...] = ()
    equal: tuple[int, ...] = ()
    rule: tuple[float, float] = (math.nan, math.nan)
    rule_low: float = math.nan
    rule_high: float = math.nan
    rule_from: int = 0
    rule_to: int = 0
    at_edge: bool = False
    beside: tuple[str, ...] = ()
    why: str = ""
    more: tuple[More, ...] = ()


def advice(analysis: Analysis, model: ByModel | None = None) -> Advice:
    """From the best surface; `model` is its ridge by the model, where there is one."""
    cells = analysis.cells
    if not cells["mean"].notna().any():
        return Advice(why=NO_SCORE)
    if nothing_beat_chance(analysis.trials, metric=analysis.metric):
        return Advice(why=CHANCE)
    if len(contenders(cells)) == 1:
        return Advice(why=ALONE)
    if model is None and _is_flat(analysis):
        return Advice(why=FLAT, more=_seeds(analysis, least=3))
    best = int(best_cell(cells, mode=analysis.mode)["batch_size"])
    equal = sorted({int(size) for size in analysis.best_set["batch_size"]} | {best})
    named = {best: [SCORE]}
    seconds, costs = _medians(analysis, "train_wall_s"), _costs(analysis)
    if not analysis.best_set.empty:
        for goal, spent in ((TIME, seconds), (COST, costs)):
            if spent and (cheapest := _cheapest(equal, spent, best)) is not None:
                named.setdefault(cheapest, []).append(goal)
        named.setdefault(max(equal), []).append(LARGEST)
    settings = [_setting(analysis, model, size, goals, seconds) for size, goals in named.items()]
    rule = _rule(analysis, model)
    edges = analysis.ridge.set_index("batch_size")["edge"]
    at_edge = bool(edges.get(best, ""))
    return Advice(
        settings=tuple(settings),
        equal=tuple(equal),
        **rule,
        at_edge=at_edge,
        more=(*_widen(analysis, at_edge), *(_model(model) or _seeds(analysis))),
    )


def scattered_advice(model: ByModel | None, beside: Sequence[str]) -> Advice:
    """Of runs that differ in other columns as well: the best lrs that lie inside of what was tried.

    `model` has taken these columns in.
    """
    if model is None:
        return Advice(why=SCATTERED, beside=tuple(beside))
    rows = model.tried[~model.tried["at_edge"].astype(bool)]
    settings = [
        Setting(
            goals=(),
            batch_size=int(row["batch_size"]),
            lr=float(row["lr"]),
            low=float(row["low"]),
            high=float(row["high"]),
            grid_lr=float(row["lr"]),
            mean=math.nan,
            seconds=math.nan,
        )
        for row in rows.to_dict("records")
    ]
    return Advice(why=SCATTERED, beside=tuple(beside), settings=tuple(settings), **_rule_of(model))


def _is_flat(analysis: Analysis) -> bool:
    """Whether scores with one seed a setting look like noise."""
    if analysis.noise.freedom:
        return False
    return flat_p(analysis.cells, mode=analysis.mode) > SIGNIFICANT


def _medians(analysis: Analysis, column: str) -> dict[int, float]:
    """The median of each batch size's trials; empty where their times cannot be compared.

    They were trained on different hardware, or with others in one process, which share the time.
    """
    rows = usable(analysis.trials, metric=analysis.metric)
    alike = [name for name in ("device", "pack_size") if name in rows]
    if column not in rows or any(rows[name].nunique() > 1 for name in alike):
        return {}
    medians = rows.groupby("batch_size")[column].median()
    return {int(size): float(value) for size, value in medians.items() if math.isfinite(value)}


def _costs(analysis: Analysis) -> dict[int, float]:
    """GPU-seconds of a trial at each batch size; empty where they are all on as many GPUs."""
    rows = analysis.trials
    if "num_gpus" not in rows or rows["num_gpus"].nunique() < 2 or not rows["num_gpus"].min() > 0:
        return {}
    seconds, gpus = _medians(analysis, "train_wall_s"), _medians(analysis, "num_gpus")
    return {size: seconds[size] * gpus[size] for size in seconds if size in gpus}


def _cheapest(equal: Sequence[int], spent: dict[int, float], best: int) -> int | None:
    """The batch size that takes the least; `best` where no other takes clearly less."""
    known = [size for size in equal if size in spent]
    if not known:
        return None
    cheapest = min(known, key=lambda size: spent[size])
    return cheapest if spent[cheapest] < FASTER * spent.get(best, math.inf) else best


def _setting(
    analysis: Analysis,
    model: ByModel | None,
    batch_size: int,
    goals: Sequence[str],
    seconds: dict[int, float],
) -> Setting:
    mine = analysis.ridge[analysis.ridge["batch_size"] == batch_size].iloc[0]
    lr, low, high = _best_lr(analysis, model, batch_size)
    cells = analysis.cells[analysis.cells["batch_size"] == batch_size]
    return Setting(
        goals=tuple(goals),
        batch_size=batch_size,
        lr=lr,
        low=low,
        high=high,
        grid_lr=lr * float((cells["grid_lr"] / cells["lr"]).median()),
        mean=float(mine["mean"]),
        seconds=seconds.get(batch_size, math.nan),
    )


def _best_lr(
    analysis: Analysis, model: ByModel | None, batch_size: int
) -> tuple[float, float, float]:
    """The best peak lr of a batch size and its 95 % interval, by what knows it best.

    The model of humps; the line through all batch sizes, if the size is one of those it was fitted
    to; its own curve.
    """
    if model is not None:
        rows = model.rows[model.rows["batch_size"] == batch_size]
        if len(rows):
            return _three(rows.iloc[0], ("lr", "low", "high"))
    line = analysis.lr_to_use
    if len(line) and batch_size in analysis.exponent.batch_sizes:
        return _three(line[line["batch_size"] == batch_size].iloc[0], ("lr", "low", "high"))
    mine = analysis.ridge[analysis.ridge["batch_size"] == batch_size].iloc[0]
    if not mine["bracketed"]:
        return float(mine["lr"]), math.nan, math.nan
    return _three(mine, ("vertex", "lr_low", "lr_high"))


def _three(row: "pd.Series[Any]", names: Sequence[str]) -> tuple[float, float, float]:
    first, second, third = (float(row[name]) for name in names)
    return first, second, third


def _rule(analysis: Analysis, model: ByModel | None) -> dict[str, Any]:
    """The peak lr as a power of the batch size, from the model or the exponent's line."""
    if model is not None and math.isfinite(model.exponent[0]):
        return _rule_of(model)
    fit = analysis.exponent
    return _power_law(fit.log_c, (fit.value, fit.low, fit.high), fit.batch_sizes)


def _rule_of(model: ByModel) -> dict[str, Any]:
    rows, power = model.tried[~model.tried["at_edge"].astype(bool)], model.exponent[0]
    logs = np.log(rows["lr"].astype(float)) - power * np.log(rows["batch_size"].astype(float))
    return _power_law(float(logs.mean()), model.exponent, rows["batch_size"].tolist())


def _power_law(
    log_c: float, exponent: tuple[float, float, float], batch_sizes: Sequence[float]
) -> dict[str, Any]:
    """The fields of an Advice about the rule; empty if it is not known over two batch sizes."""
    power, low, high = exponent
    if len(batch_sizes) < 2 or not math.isfinite(low):
        return {}
    ends = {"rule_from": int(min(batch_sizes)), "rule_to": int(max(batch_sizes))}
    return {"rule": (math.exp(log_c), power), "rule_low": low, "rule_high": high, **ends}


def _widen(analysis: Analysis, at_edge: bool) -> tuple[More, ...]:
    """One learning rate more beyond the edge, at each batch size whose best one is there."""
    if not at_edge:
        return ()
    num = int((analysis.ridge["edge"] != "").sum())
    num *= int(contenders(analysis.cells)["n"].median()) * analysis.surfaces
    return (More(kind="widen", trials=num, seconds=num * _seconds(analysis)),)


def _seeds(analysis: Analysis, least: int = 0) -> tuple[More, ...]:
    """More seeds of all settings, so many that the best can be told within the margin."""
    cells = contenders(analysis.cells)
    n = int(cells["n"].median())
    seeds = seeds_for(analysis.margin, analysis.cells, mode=analysis.mode) or (3 if n < 2 else 0)
    seeds = max(seeds, least)
    if analysis.binned or not n < seeds <= MOST_SEEDS or len(analysis.best_set) == 1:
        return ()
    trials = (seeds - n) * len(analysis.cells) * analysis.surfaces
    return (More(kind="seeds", seeds=seeds, trials=trials, seconds=trials * _seconds(analysis)),)


def _model(model: ByModel | None) -> tuple[More, ...]:
    """The next trial by the model, if it is worth training."""
    if model is None or not is_worth(model):
        return ()
    following = model.next_trial
    return (More(kind="model", trials=1, batch_size=following.batch_size, lr=following.lr),)


def _seconds(analysis: Analysis) -> float:
    """The mean time of a trial."""
    rows = analysis.trials
    return float(rows["train_wall_s"].mean()) if "train_wall_s" in rows else math.nan
