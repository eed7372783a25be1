"""What was read from another tool: a row per run, or one per evaluation of a run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from search.analysis.columns import TableError

MOST_NAMED = 20
RUN, NAME, VALUE = "run", "name", "value"  # the columns of settings and scores


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table, the name of what it is of, where it is, and a line that says so.

    `runs` are the columns that tell which run a row is of, none if that is to be recognised.
    `modes` has which values of a column are best, `max` or `min`, where the tool knows.
    """

    rows: pd.DataFrame
    name: str
    where: str
    origin: str
    runs: tuple[str, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)


def origin(num: int, tool: str, where: str) -> str:
    """Where runs were read from: `12 runs of Ray Tune in results/exp`."""
    return f"{num} run{'' if num == 1 else 's'} of {tool} in {where}"


def chosen(names: Sequence[str], study: str | None, *, kind: str, where: str) -> str:
    """The study that was asked for, or the only one.

    Raises:
        TableError: there is none of that name, or several to choose from.
    """
    listed_names = ", ".join(shlex.quote(name) for name in names[:MOST_NAMED])
    if not names:
        raise TableError(f"{where} has no {kind} with runs: there is nothing to report")
    if study is None and len(names) == 1:
        return names[0]
    if study is None:
        raise TableError(
            f"{where} has {len(names)} {kind}: choose one with --study NAME, of {listed_names}"
        )
    if study not in names:
        raise TableError(
            f"{where} has no {study!r} among its {kind}: --study must be of {listed_names}"
        )
    return study


def joined(runs: pd.DataFrame, settings: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """A row for the first score of each name that a run has, one for the second, and so on.

    `runs` has the column `run`, and others that are kept; `settings` and `scores` have run, name
    and value, scores in their order. A run without scores has one row; a score with the name of a
    setting is called `NAME (logged)`.
    """
    settings, scores = settings[settings[NAME] != RUN], scores[scores[NAME] != RUN]
    set_once = settings.pivot(index=RUN, columns=NAME, values=VALUE).apply(_numbers)
    nth = scores.groupby([RUN, NAME]).cumcount()
    logged = scores.assign(nth=nth).pivot(index=[RUN, "nth"], columns=NAME, values=VALUE)
    logged = logged.rename(columns={name: f"{name} (logged)" for name in set_once})
    return runs.set_index(RUN).join(set_once).join(logged.droplevel("nth")).reset_index(names=RUN)


def _numbers(column: "pd.Series[object]") -> "pd.Series[object]":
    """Numbers where the column has nothing else: some tools keep settings as text."""
    try:
        return pd.to_numeric(column)
    except (TypeError, ValueError):
        return column
