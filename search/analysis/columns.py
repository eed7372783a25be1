"""The columns that --batch-size, --lr and --metric name, also where a tool adds to their names.

MLflow writes `params.lr` for lr, Optuna `params_lr`, Ray Tune `config/lr`, Weights & Biases
`config.lr` or lr.
"""

import difflib
from collections.abc import Sequence

import pandas as pd

# What tools put before the name of a setting or of a score.
OF_SETTINGS = ("params.", "params_", "params/", "config.", "config/", "hparams.", "hparams/")
OF_SCORES = ("metrics.", "metrics/", "summary.", "summary/", "values_", "value_")
MOST_LISTED = 20


class TableError(ValueError):
    """The table cannot be read as results; the message gives the reason and what to type."""


def column_of(table: pd.DataFrame, name: str, *, flag: str, file: str) -> str:
    """The table's column of that name, or the only one that a tool named after it.

    Raises:
        TableError: there is none, or several.
    """
    names = list(table.columns)
    if names.count(name) > 1:
        raise TableError(f"{file} has {names.count(name)} columns {name!r}: rename all but one")
    if name in names:
        return name
    meant = alike(names, name, OF_SCORES if flag == "--metric" else OF_SETTINGS)
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise TableError(
            f"{file} has {len(meant)} columns that {flag} {name} could mean: give one of "
            f"{', '.join(meant)}"
        )
    raise TableError(f"{file} has no column {name!r} for {flag}: {_cure(names, name, flag)}")


def alike(names: Sequence[str], name: str, prefixes: Sequence[str]) -> list[str]:
    """The names that are this one but for what a tool puts before it."""
    return [column for column in names if _bare(column, prefixes) == _bare(name, prefixes)]


def _bare(name: str, prefixes: Sequence[str]) -> str:
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)


def _cure(names: Sequence[str], name: str, flag: str) -> str:
    prefixes = (*OF_SETTINGS, *OF_SCORES)
    lower = {_bare(column, prefixes).lower(): column for column in names}
    lower |= {column.lower(): column for column in names}
    tails = [n for n in names if n.lower().replace("/", "_").endswith("_" + name.lower())]
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)]
    hint = next(iter([*tails, *near]), None)
    others = [n for n in names if n != hint]
    more = ", ..." if len(others) > MOST_LISTED else ""
    listed = ", ".join(others[:MOST_LISTED]) + more
    if hint is None:
        return f"it has {listed}"
    return f"did you mean {flag} {hint}?" + (f" It also has {listed}" if others else "")
