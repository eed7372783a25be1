"""What a study's source reports against what was measured: tables and study.json in, verdicts out.

An effect is reproduced if its 95 % interval excludes zero on the right side, not reproduced if it
excludes zero on the other side, and else not resolved by the noise. Seeds are blocks: only scores
of one seed are compared with each other.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.chance import nothing_beat_chance
from search.analysis.chosen import chosen, column_of, is_value, no_pairs, no_trial, resolved
from search.analysis.effects import Effect, holm, paired, rank_test
from search.analysis.groups import STEP, exploration_of, with_steps
from search.analysis.interaction import whole_grid
from search.analysis.own_best import OwnBest, in_words, own_best
from search.analysis.reported import beside
from search.analysis.scaling import exponent as scaling
from search.analysis.surface import SIGNIFICANT, surface

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNRESOLVED, NOT_MEASURED = "not resolved by the noise", "not measured"
LEAST_VALUES = 3  # of which an order can rise or fall
NEEDED = {  # of what study.json has of each kind
    "Exponent": {"low", "high", "where"},
    "Better": {"field", "value", "than", "where"},
    "Order": {"field", "values", "where"},
    "Trend": {"field", "direction", "where"},
    "Reported": {"metric", "rows"},
}
ONE_SEED = "one seed gives no noise"

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One expectation, as study.json has it, beside what was measured.

    `value` with its 95 % interval `low` and `high` is the exponent, or how much better the value is
    than the other one; of a trend, a table or an order, `value` is the rank correlation. More than
    zero agrees with the source. `where` has the values that "lowest" and "highest" stand for, and
    `of` says which of several surfaces it is. `rows` are the parts: settings, steps, or cells,
    and `order` the measured one. `left_out` says what was lost, and `why` what is missing.
    """

    expected: Entry
    outcome: str
    metric: str
    mode: str
    where: Mapping[str, Any] = field(default_factory=dict)
    of: Mapping[str, Any] = field(default_factory=dict)
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    seeds: int = 0
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    order: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why: str = ""

    @property
    def kind(self) -> str:
        """`Exponent`, `Better`, `Order`, `Trend` or `Reported`."""
        return str(self.expected.get("kind"))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What an expectation is held against."""

    trials: pd.DataFrame
    about: Mapping[str, Any]
    metric: str
    mode: str
    analyses: Sequence[Analysis]


def verdicts(
    trials: pd.DataFrame,
    about: Mapping[str, Any],
    analyses: Sequence[Analysis],
    *,
    metric: str,
    mode: str,
) -> list[Verdict]:
    """A verdict on each expectation of study.json, and of an exponent one for each surface."""
    entries = about.get("expect") or []
    if not isinstance(entries, list):
        return []
    if exploration_of(about).steps:
        trials = with_steps(trials, about)
    trials = trials.reset_index(drop=True)  # a trial of two steps is in two rows
    known: dict[str, Any] = {"metric": metric, "mode": mode}
    measured = _Measured(trials=trials, about=about, analyses=analyses, **known)
    verdicts: list[Verdict] = []
    is_noise = nothing_beat_chance(trials, metric=metric)
    for entry in entries:
        start = Verdict(
            expected=entry if isinstance(entry, Mapping) else {}, outcome=NOT_MEASURED, **known
        )
        judge = _JUDGES.get(start.kind)
        if is_noise:
            verdicts.append(replace(start, why="no trial beat chance"))
        elif judge is None or not NEEDED[start.kind] <= set(start.expected):
            verdicts.append(replace(start, why="its entry in study.json cannot be read"))
        else:
            verdicts += judge(start, measured)
    return verdicts


# --- the scaling of the best lr ---------------------------------------------------------------


def _exponent(start: Verdict, measured: _Measured) -> list[Verdict]:
    """One verdict for each surface."""
    verdicts, why = [], "there are no trials over batch sizes and learning rates"
    for analysis in measured.analyses:
        named = analysis.of.items()
        trials = analysis.trials.assign(**{n: v for n, v in named if n not in analysis.trials})
        rows, where, why_not = chosen(trials, start.expected["where"], measured.about)
        if rows.empty:
            why = why_not or why
            continue
        fit = analysis.exponent
        if len(rows) < len(analysis.trials):
            cells = surface(rows, metric=analysis.metric, lr="peak")
            fit = scaling.exponent(cells, mode=analysis.mode)
        of = analysis.of if len(measured.analyses) > 1 else {}
        of = {name: value for name, value in of.items() if name not in start.expected["where"]}
        seeds = int(rows["seed"].nunique()) if "seed" in rows else 0
        verdicts.append(_of_exponent(replace(start, where=where, of=of, seeds=seeds), fit))
    return verdicts or [replace(start, why=why)]


def _of_exponent(start: Verdict, fit: scaling.Exponent) -> Verdict:
    """The verdict on one exponent.

    An interval is too wide to tell if it contains zero, or, where zero is what is expected, also
    the power of the nearest other rule.
    """
    verdict = replace(start, value=fit.value, low=fit.low, high=fit.high)
    if not math.isfinite(fit.value):
        noisy = scaling.EDGE_WITHIN_NOISE in fit.left_out.values()
        if fit.looks_flat or noisy:
            why = "the scores look like noise" if fit.looks_flat else scaling.EDGE_WITHIN_NOISE
            return replace(verdict, outcome=UNRESOLVED, why=why)
        num = len(fit.batch_sizes)
        return replace(
            verdict, why=f"this needs three batch sizes with a bracketed best rate, there are {num}"
        )
    if not math.isfinite(fit.low):
        return replace(verdict, outcome=UNRESOLVED, why="there is no interval")
    low, high = float(start.expected["low"]), float(start.expected["high"])
    if fit.high < low or high < fit.low:
        return replace(verdict, outcome=NOT_REPRODUCED)
    outside = [power for power in scaling.RULES.values() if not low <= power <= high]
    rival = min(outside, key=abs, default=0.0)
    if fit.low <= rival <= fit.high:
        why = f"the interval also contains {rival:g}, so it cannot tell"
        return replace(verdict, outcome=UNRESOLVED, why=why)
    return replace(verdict, outcome=REPRODUCED)


# --- effects, in pairs of seeds ---------------------------------------------------------------


def _outcome(value: float, p_value: float) -> str:
    """Of an effect that the source says is more than zero."""
    if not p_value <= SIGNIFICANT:
        return UNRESOLVED
    return REPRODUCED if value > 0 else NOT_REPRODUCED


def _groups(
    start: Verdict, measured: _Measured, values: Sequence[object]
) -> tuple[Verdict, pd.DataFrame, list[Any], list["pd.Series[bool]"]]:
    """The trials of each value of a field; the verdict says why if there are none."""
    about, name = measured.about, str(start.expected["field"])
    if why := no_pairs(about):
        return replace(start, why=why), measured.trials.iloc[:0], [], []
    rows, where, why = chosen(measured.trials, start.expected["where"], about)
    start, column = replace(start, where=where, why=why), column_of(name)
    if why or column not in rows:
        return replace(start, why=why or f"the trials have no {name}"), rows.iloc[:0], [], []
    known = [resolved(value, column, rows, about) for value in values]
    return start, rows, known, [is_value(rows[column], value) for value in known]


def _better(start: Verdict, measured: _Measured) -> list[Verdict]:
    expected, name = start.expected, str(start.expected["field"])
    if start.metric != measured.about.get("metric", start.metric):
        start = replace(start, expected={**expected, "by": None})  # of another metric
    start, rows, values, groups = _groups(start, measured, [expected["value"], expected["than"]])
    missing = [v for v, group in zip(values, groups, strict=True) if not group.any()]
    if missing:
        why = no_trial(name, missing[0], rows[column_of(name)])
        return [replace(start, why=why)]
    if start.why:
        return [start]
    best = own_best(rows, groups, metric=start.metric, mode=start.mode)
    effect = paired(best.scores[0] - best.scores[1])
    verdict = _with_effect(start, effect)
    verdict = replace(verdict, left_out=_lost(best, name, values), rows=_by_setting(effect))
    if not verdict.seeds:
        why = f"no setting has scores with {name}={in_words(values[0])} and {in_words(values[1])}"
        return [replace(verdict, why=why)]
    why = ONE_SEED if verdict.seeds < 2 else ""
    return [replace(verdict, outcome=_outcome(verdict.value, verdict.p_value), why=why)]


def _with_effect(start: Verdict, effect: Effect) -> Verdict:
    known = {name: getattr(effect, name) for name in ("value", "low", "high", "p_value", "seeds")}
    return replace(start, **known)


def _by_setting(effect: Effect) -> pd.DataFrame:
    """The mean difference at each setting of the other fields, if there are several."""
    means = effect.by_setting
    if len(means) < 2:
        return pd.DataFrame()
    return pd.DataFrame({"setting": means.index, "value": means.to_numpy()})


def _lost(best: OwnBest, name: str, values: Sequence[object]) -> tuple[str, ...]:
    """The settings at which a value has no score."""
    return tuple(
        f"{name}={in_words(values[group])}{f' at {setting}' if setting else ''}"
        for setting, group in best.lost
    )


def _order(start: Verdict, measured: _Measured) -> list[Verdict]:
    """A chain of comparisons, each value with the next, by Holm's correction."""
    name = str(start.expected["field"])
    start, rows, values, groups = _groups(start, measured, start.expected["values"])
    if start.why:
        return [start]
    tried = [(v, group) for v, group in zip(values, groups, strict=True) if group.any()]
    missing = [in_words(v) for v, group in zip(values, groups, strict=True) if not group.any()]
    if len(tried) < 2:
        return [replace(start, why=f"fewer than two of the values of {name} were tried")]
    values, groups = [v for v, _ in tried], [group for _, group in tried]
    best = own_best(rows, groups, metric=start.metric, mode=start.mode)
    steps = _steps(best, [in_words(value) for value in values])
    verdict = replace(
        start,
        rows=steps,
        order=_by_mean(best, values),
        seeds=int(steps["seeds"].min()),
        left_out=_lost(best, name, values),
        notes=tuple(f"no trial has {name}={value}" for value in missing),
    )
    if (steps["seeds"] == 0).all():
        return [replace(verdict, why="no two of the values have scores at the same setting")]
    outcomes = set(steps["outcome"])
    outcome = UNRESOLVED
    if NOT_REPRODUCED in outcomes:
        outcome = NOT_REPRODUCED
    elif outcomes == {REPRODUCED}:
        outcome = REPRODUCED
    why = ONE_SEED if verdict.seeds == 1 else ""
    return [replace(verdict, outcome=outcome, why=why)]


def _by_mean(best: OwnBest, values: Sequence[object]) -> tuple[str, ...]:
    """The values from best to worst, in the blocks that all of them have."""
    means = whole_grid(best.scores).mean().sort_values(ascending=False)
    return tuple(in_words(values[k]) for k in means.index)


def _steps(best: OwnBest, values: Sequence[str]) -> pd.DataFrame:
    """Each value against the next one, with p values by Holm's correction."""
    effects = [paired(best.scores[k] - best.scores[k + 1]) for k in range(len(values) - 1)]
    p_values = holm([effect.p_value for effect in effects])
    known = zip(itertools.pairwise(values), effects, p_values, strict=True)
    return pd.DataFrame(
        [
            {
                "value": value,
                "than": than,
                "difference": effect.value,
                "low": effect.low,
                "high": effect.high,
                "p_value": p_value,
                "seeds": effect.seeds,
                "outcome": _outcome(effect.value, p_value),
            }
            for (value, than), effect, p_value in known
        ]
    )


# --- orders along a field, and tables ---------------------------------------------------------


def _trend(start: Verdict, measured: _Measured) -> list[Verdict]:
    name, column = str(start.expected["field"]), column_of(str(start.expected["field"]))
    rows, _, _ = chosen(measured.trials, start.expected["where"], measured.about)
    tried: list[Any] = []
    if column in rows:
        tried = sorted(rows[column].dropna().unique().tolist())
    if column == STEP:
        tried = [step for step in exploration_of(measured.about).steps if step in set(tried)]
    start, rows, values, groups = _groups(start, measured, tried)
    if start.why:
        return [start]
    best = own_best(rows, groups, metric=start.metric, mode=start.mode)
    grid = whole_grid(best.scores)
    verdict = replace(
        start,
        seeds=grid.index.get_level_values("seed").nunique() if grid.size else 0,
        left_out=_lost(best, name, values),
    )
    if grid.shape[1] < LEAST_VALUES:
        why = f"this needs scores at {LEAST_VALUES} values of {name}, there are {grid.shape[1]}"
        return [replace(verdict, why=why)]
    scores = grid.to_numpy(dtype=float)
    if (scores == scores[:, :1]).all():
        return [replace(verdict, outcome=UNRESOLVED, why="all scores of a seed are the same")]
    rho, p_value = rank_test(list(grid.columns), scores)
    sign = 1.0 if start.mode == "max" else -1.0
    shown = {name: [values[k] for k in grid.columns], "measured": sign * grid.mean().to_numpy()}
    value = rho if start.expected["direction"] == "rises" else -rho
    verdict = replace(verdict, value=value, p_value=p_value, rows=pd.DataFrame(shown))
    return [replace(verdict, outcome=_outcome(value, p_value))]


def _reported(start: Verdict, measured: _Measured) -> list[Verdict]:
    """A table of the source beside ours, row by row."""
    expected = start.expected
    metric, about, trials = str(expected["metric"]), measured.about, measured.trials
    start = replace(start, metric=metric, mode="min" if metric.endswith("loss") else "max")
    if why := no_pairs(about):
        return [replace(start, why=why)]
    names = {name for row in expected["rows"] for name in row} - {metric}
    if absent := sorted(name for name in names if column_of(name) not in trials):
        return [replace(start, why=f"the trials have no {absent[0]}")]
    if metric not in trials or trials[metric].isna().all():
        return [replace(start, why=f"no trial has {metric}")]
    table, notes = beside(expected["rows"], trials, about, metric=metric, mode=start.mode)
    start = replace(start, rows=table, notes=notes)
    both = table[table["measured"].notna()]
    if len(both) < LEAST_VALUES:
        why = f"of {len(table)} settings of the source {len(both)} have scores here"
        return [replace(start, why=why)]
    scores = both["measured"].to_numpy(dtype=float)
    rho, p_value = rank_test(list(both["expected"]), scores[None])
    verdict = replace(start, value=rho, p_value=p_value, seeds=int(both["seeds"].min()))
    return [replace(verdict, outcome=_outcome(rho, p_value))]


_JUDGES: Mapping[str, Callable[[Verdict, _Measured], list[Verdict]]] = {
    "Exponent": _exponent,
    "Better": _better,
    "Order": _order,
    "Trend": _trend,
    "Reported": _reported,
}
