"""Which trials an expectation is of: those with its values, of which some are ends of a range."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from search.analysis.groups import STEP, exploration_of
from search.analysis.own_best import in_words

STEPS = ("step", "variant")  # how an expectation names the column of steps


def is_value(column: "pd.Series[Any]", value: object) -> "pd.Series[bool]":
    """Which entries are that value; numbers as far as a float tells."""
    if value is None:
        return column.isna()
    if isinstance(value, bool | str):
        return (column == value).fillna(False).astype(bool)
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    return pd.Series(np.isclose(numbers, float(value), rtol=1e-9, atol=0), column.index)  # type: ignore[arg-type]


def column_of(name: str) -> str:
    """The column of a field that an expectation names."""
    return STEP if name in STEPS else name


def resolved(
    value: object, name: str, rows: pd.DataFrame, about: Mapping[str, Any], step: object = None
) -> Any:
    """What "lowest" and "highest" stand for: of the values that the study declares, or tried.

    `step` is the variant that it is of: one may have values of its own.
    """
    if value not in ("lowest", "highest"):
        return value
    declared = _declared(name, about, step)
    numbers = pd.to_numeric(pd.Series(declared) if declared else rows[name], errors="coerce")
    end = numbers.min() if value == "lowest" else numbers.max()
    return end.item() if isinstance(end, np.generic) else end


def _declared(name: str, about: Mapping[str, Any], step: object) -> list[Any]:
    """The values of a field in study.json; none where variants have different ones."""
    domain = about.get("vary", {}).get(name)
    changes = {s: more.get(name) for s, more in exploration_of(about).steps.items()}
    own = {s: values for s, values in changes.items() if isinstance(values, dict)}
    if own and step not in changes:
        return []
    domain = own.get(str(step), domain)
    return list(domain.get("grid_search", [])) if isinstance(domain, dict) else []


def chosen(
    rows: pd.DataFrame, where: Mapping[str, object], about: Mapping[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """The trials with these values, what the values are, and why there is none."""
    values: dict[str, Any] = {}
    step = where.get("step", where.get("variant"))
    for name in sorted(where, key=lambda name: where[name] in ("lowest", "highest")):
        column = column_of(name)
        if column not in rows:
            return rows.iloc[:0], values, f"the trials have no {name}"
        values[name] = resolved(where[name], column, rows, about, step)
        having = rows[is_value(rows[column], values[name])]
        if having.empty:
            return having, values, no_trial(name, values[name], rows[column])
        rows = having
    return rows, values, ""


def no_trial(name: str, value: object, column: "pd.Series[Any]") -> str:
    """That no trial has the value of a field, and which there are."""
    tried = sorted(column.dropna().unique().tolist(), key=lambda v: (isinstance(v, str), v))
    words = ", ".join(map(in_words, tried[:9]))
    return f"no trial has {name}={in_words(value)}" + (f" (there is {words})" if tried else "")


def no_pairs(about: Mapping[str, Any]) -> str:
    """Why trials cannot be compared in pairs; empty where they can."""
    if not exploration_of(about).is_search:
        return ""
    return "the trials of a search differ in every field that it draws; a grid is needed"
