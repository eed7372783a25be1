"""A table of results from any tool -> the trials that an analysis reads.

Ray Tune's `result_grid.get_dataframe()`, Optuna's `study.trials_dataframe()`, an export of Weights
& Biases, or any CSV or Parquet file with a row a training: a batch size, a learning rate, a score.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".pq": pd.read_parquet}
# How tools say that a training ended, in lower case; of other words nothing is known.
STATUS_COLUMNS = ("status", "state", "State")
STATUS_OF = {
    **dict.fromkeys(("complete", "completed", "finished", "terminated", "done"), "completed"),
    **dict.fromkeys(("pruned", "stopped"), "stopped"),
    **dict.fromkeys(("fail", "failed", "crashed", "killed", "error"), "failed"),
    "diverged": "diverged",
    **dict.fromkeys(("running", "waiting", "pending", "paused", "interrupted"), "under way"),
}
# Columns of a table for `analyse` or of a leaderboard: a metric of such a name is called otherwise.
TAKEN = (
    *("batch_size", "lr", "grid_lr", "peak", "status", "seed", "trial_key"),
    *("mean", "std", "n", "low", "high"),
)
LEAST_BATCH_SIZES, LEAST_LRS = 2, 3
LARGEST_WHOLE = 2**53  # that a float can count to
FEW = 12  # values of a text column that may be a choice, and not a name


class TableError(ValueError):
    """The table cannot be read as results; the message says why and what to type."""


@dataclass(frozen=True, kw_only=True)
class OwnTable:
    """Trials with batch_size, lr, status and the metric's column, and what to know of them."""

    trials: pd.DataFrame
    metric: str
    cautions: tuple[str, ...]


def read_own_table(file: Path, *, batch_size: str, lr: str, metric: str) -> OwnTable:
    """The trials of a CSV or Parquet file; the three words name its columns.

    A row whose metric is not finite counts as diverged, unless a status column (`status`, `state`)
    says that it failed or was stopped; rows of trainings still under way are left out.

    Raises:
        TableError: the file cannot be read, a column is not there or holds what it should not.
    """
    table = _read(file)
    if len({batch_size, lr, metric}) < 3:
        raise TableError(
            f"--batch-size, --lr and --metric name the same column of {file}: give three columns"
        )
    for flag, name in (("--batch-size", batch_size), ("--lr", lr), ("--metric", metric)):
        _check_there(table, file, flag, name)
    status, said = _statuses(table.drop(columns=[batch_size, lr, metric]))
    rows = table[status != "under way"]
    status = status[status != "under way"]
    if len(rows) < len(table):
        said.append(f"{len(table) - len(rows)} rows of trainings that have not ended are left out.")
    known = pd.Series(np.ones(len(rows), dtype=bool), index=rows.index)
    sizes = _numbers(rows[batch_size], file, known, above=0, whole=True)
    rates = _numbers(rows[lr], file, known, above=0)
    scores = _numbers(rows[metric], file, ~known)
    lost = ~np.isfinite(scores) & (status == "completed")
    status = status.mask(lost, "diverged")
    if lost.any():
        said.append(
            f"{lost.sum()} rows have no finite {metric}: they count as diverged, which a training "
            f"that was never scored for another reason is not."
        )
    name = f"{metric} score" if metric in TAKEN else metric
    trials = pd.DataFrame(
        {
            "batch_size": sizes.astype(int),
            "lr": rates,
            "status": status,
            name: scores,
        }
    ).reset_index(drop=True)
    said += _size_cautions(trials) + _pooled(rows, {batch_size, lr, metric})
    return OwnTable(trials=trials, metric=name, cautions=tuple(said))


def _read(file: Path) -> pd.DataFrame:
    if file.suffix.lower() not in READERS:
        raise TableError(f"--table wants a .csv or .parquet file, got {file}")
    try:
        table = READERS[file.suffix.lower()](file)
    except FileNotFoundError as error:
        raise TableError(f"--table {file} is not there") from error
    except pd.errors.EmptyDataError as error:
        raise TableError(f"{file} is empty: it wants a header and a row a training") from error
    except (OSError, ValueError, pa.ArrowException, pd.errors.ParserError) as error:
        why = str(error).strip().splitlines()[0]
        raise TableError(
            f"{file} cannot be read as {file.suffix[1:].upper()} ({why}): export it anew"
        ) from error
    table.columns = [str(name) for name in table.columns]
    if table.empty:
        raise TableError(f"{file} has no rows: it wants a row a training")
    return table


def _check_there(table: pd.DataFrame, file: Path, flag: str, name: str) -> None:
    names = list(table.columns)
    if names.count(name) > 1:
        raise TableError(f"{file} has {names.count(name)} columns {name!r}: rename all but one")
    if name in names:
        return
    lower = {each.lower(): each for each in names}
    tails = [n for n in names if n.lower().replace("/", "_").endswith("_" + name.lower())]
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)]
    hint = next(iter([*tails, *near]), None)
    cure = f"did you mean {flag} {hint}?" if hint else f"it has {', '.join(names[:20])}"
    raise TableError(f"{file} has no column {name!r} for {flag}: {cure}")


def _statuses(table: pd.DataFrame) -> tuple["pd.Series[str]", list[str]]:
    """Each row's status in our words, `under way` where it has not ended, and cautions."""
    column = next((name for name in STATUS_COLUMNS if name in table), None)
    if column is None:
        return pd.Series("completed", index=table.index), _depth_cautions(table)
    # Optuna writes COMPLETE, its enum as text TrialState.COMPLETE.
    words = table[column].astype(str).str.rpartition(".")[2].str.lower()
    unknown = sorted(set(words) - set(STATUS_OF))
    said = []
    if unknown:
        said.append(
            f"the column {column} says {', '.join(unknown[:5])}, which is no status known here: "
            f"such rows count as completed."
        )
    return words.map(STATUS_OF).fillna("completed"), said


def _depth_cautions(table: pd.DataFrame) -> list[str]:
    """Ray says nowhere which trials its scheduler stopped, but how far they got."""
    if "training_iteration" not in table or table["training_iteration"].nunique() < 2:
        return []
    short = int((table["training_iteration"] < table["training_iteration"].max()).sum())
    return [
        f"{short} of {len(table)} trainings have fewer iterations than the longest: if a scheduler "
        f"stopped them, add a column status with `stopped` in their rows, else they count in full."
    ]


def _numbers(
    column: "pd.Series[object]",
    file: Path,
    needed: "pd.Series[bool]",
    *,
    above: float | None = None,
    whole: bool = False,
) -> "pd.Series[float]":
    """The column as numbers, its first wrong row named; a `needed` one must be there."""
    wanted = " > 0" if above is not None else ""
    wanted = f"{'whole ' if whole else ''}numbers{wanted}"
    values = pd.to_numeric(column, errors="coerce").astype(float)
    text = values.isna() & column.notna()
    # pandas reads nan, NaN and inf; a few tools write them otherwise.
    words = column[text].astype(str).str.strip().str.lower()
    text[text] = ~words.isin(["nan", "inf", "-inf", "infinity", "-infinity", "none", "null", ""])
    wrong = text | (needed & ~np.isfinite(values))
    if above is not None:
        wrong |= needed & (values <= above)
    if whole:
        wrong |= needed & ((values != values.round()) | (values > LARGEST_WHOLE))
    if wrong.any():
        at = int(np.flatnonzero(wrong.to_numpy())[0])
        raise TableError(
            f"{file}, column {column.name!r}: wants {wanted}, got {column.tolist()[at]!r} in row "
            f"{column.index[at] + 1} ({int(wrong.sum())} such rows): correct or remove them"
        )
    return values


def _size_cautions(trials: pd.DataFrame) -> list[str]:
    said = []
    for name, least, words in (
        ("batch_size", LEAST_BATCH_SIZES, "batch sizes: how the two act together"),
        ("lr", LEAST_LRS, "learning rates: how the best of them scales"),
    ):
        have = trials[name].nunique()
        if have < least:
            said.append(f"The table has {have} {words} cannot be said below {least}.")
    return said


def _pooled(rows: pd.DataFrame, used: set[str]) -> list[str]:
    """Text columns that differ within a batch size and lr look like more than seeds."""
    said = []
    for name in rows.columns.difference([*used, *STATUS_COLUMNS]):
        column = rows[name].dropna()
        is_text = all(isinstance(value, str) for value in column.head(100))
        if is_text and 2 <= column.nunique() <= min(FEW, len(rows) // 2):
            values = ", ".join(sorted(column.unique())[:4])
            said.append(
                f"Rows differ in {name} ({values}) too and are taken together: make a table of "
                f"each if it matters."
            )
    return said
