"""A table of the source beside the same settings of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from search.analysis.chosen import column_of, is_value, resolved
from search.analysis.own_best import in_words, own_best

Rows = Sequence[Mapping[str, Any]]


def beside(
    rows: Rows, trials: pd.DataFrame, about: Mapping[str, Any], *, metric: str, mode: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows with `expected`, `measured` and `seeds`; and which values are others here.

    `measured` is the mean over seeds, at each row's own best lr where it names none; NaN where no
    trial has the row's fields, or none has finished.
    """
    known = [{name: value for name, value in row.items() if name != metric} for row in rows]
    stand_ins = _stand_ins(known, trials, about)
    groups = [_trials_of(row, stand_ins, trials, about) for row in known]
    best = own_best(trials, groups, metric=metric, mode=mode)
    seeds = best.scores.index.get_level_values("seed")
    table = pd.DataFrame(known, dtype=object).assign(
        expected=[float(row[metric]) for row in rows],
        measured=((1.0 if mode == "max" else -1.0) * best.scores.mean()).to_numpy(),
        seeds=[int(seeds[best.scores[k].notna()].nunique()) for k in best.scores],
    )
    notes = tuple(
        f"{name}: {', '.join(f'{in_words(a)} there is {in_words(b)} here' for a, b in pairs)}"
        for name, pairs in ((name, values.items()) for name, values in stand_ins.items())
    )
    return table, notes


def _stand_ins(
    rows: Rows, trials: pd.DataFrame, about: Mapping[str, Any]
) -> dict[str, dict[Any, Any]]:
    """For each field whose numbers are all others here than in the source, which stand for which.

    A preview tries other numbers: as many as in the source stand for these in their order.
    """
    stand_ins = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        column = column_of(name)
        values = {resolved(row[name], column, trials, about) for row in rows if name in row}
        theirs = sorted(v for v in values if isinstance(v, int | float))
        numbers = pd.to_numeric(trials[column], errors="coerce").dropna()
        tried = sorted(set(numbers.tolist()))
        if 1 < len(theirs) == len(values) == len(tried) and not set(tried) & set(theirs):
            stand_ins[name] = dict(zip(theirs, tried, strict=True))
    return stand_ins


def _trials_of(
    row: Mapping[str, Any],
    stand_ins: Mapping[str, Mapping[Any, Any]],
    trials: pd.DataFrame,
    about: Mapping[str, Any],
) -> "pd.Series[bool]":
    """Which trials have the fields of a row."""
    mine = pd.Series(True, index=trials.index)
    for name, value in row.items():
        ours = resolved(value, column_of(name), trials, about)
        mine &= is_value(trials[column_of(name)], stand_ins.get(name, {}).get(ours, ours))
    return mine
