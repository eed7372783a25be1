"""A table of results from any tool -> the trials that an analysis reads.

Ray Tune's `result_grid.get_dataframe()`, Optuna's `study.trials_dataframe()`, an export of Weights
& Biases or of MLflow, or any CSV or Parquet file with one row per training run, or one per epoch,
and columns for batch size, learning rate and score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_numeric_dtype

from search.analysis.columns import OF_SETTINGS, alike, column_of
from search.analysis.columns import TableError as TableError
from search.analysis.histories import curves_of_runs, one_row_per_run, runs_of

READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".pq": pd.read_parquet}
# The words of other tools for how a run ended, in lower case.
STATUS_COLUMNS = ("status", "state", "State")
STATUS_OF = {
    **dict.fromkeys(("complete", "completed", "finished", "terminated", "done"), "completed"),
    **dict.fromkeys(("pruned", "stopped"), "stopped"),
    **dict.fromkeys(("fail", "failed", "crashed", "killed", "error", "preempted"), "failed"),
    "diverged": "diverged",
    **dict.fromkeys(("running", "waiting", "pending", "paused", "interrupted"), "under way"),
    **dict.fromkeys(("scheduled", "preempting"), "under way"),
}
# Columns that `analyse` and leaderboards use: a metric with such a name is renamed.
TAKEN = (
    *("batch_size", "lr", "grid_lr", "peak", "status", "seed", "trial_key"),
    *("mean", "std", "n", "low", "high"),
)
TAKEN_BY_THE_MODEL = ("score", "peak_lr", "collapsed")
SEED = "seed"  # a column of this name tells which rows are pairs
LEAST_BATCH_SIZES, LEAST_LRS = 2, 3
LARGEST_WHOLE = 2**53  # up to here floats represent every integer
FEW = 12  # a text column with more different values contains names, not choices


@dataclass(frozen=True, kw_only=True)
class OwnTable:
    """Trials with batch_size, lr, status, the metric's column and `fields`, and cautions.

    Where runs have several rows, `epochs` has a row for each score: trial_key, which the trials
    then have too, epoch and the metric's column.
    """

    trials: pd.DataFrame
    epochs: pd.DataFrame | None
    metric: str
    fields: tuple[str, ...]
    cautions: tuple[str, ...]


def read_own_table(
    file: Path,
    *,
    batch_size: str,
    lr: str,
    metric: str,
    fields: Sequence[str] = (),
    seed: str = SEED,
) -> OwnTable:
    """The trials of a CSV or Parquet file; the other arguments are those of `own_table`.

    Raises:
        TableError: the file cannot be read, a column is missing or contains wrong values.
    """
    columns = {"batch_size": batch_size, "lr": lr, "metric": metric, "seed": seed}
    return own_table(read_file(file), **columns, file=str(file), fields=fields)


def own_table(
    table: pd.DataFrame,
    *,
    file: str,
    batch_size: str,
    lr: str,
    metric: str,
    fields: Sequence[str] = (),
    seed: str = SEED,
    runs: Sequence[str] = (),
    mode: str | None = None,
) -> OwnTable:
    """The trials of a table, which messages call `file`; the other arguments name its columns.

    `fields` are columns of numbers that differ from run to run as well, such as momentum.

    A row without a finite metric counts as diverged, unless a status column (`status`, `state`)
    says that it failed or was stopped. Rows of unfinished runs are left out. The column of seeds is
    kept, if there is one: rows with the same seed are then compared in pairs.

    Of several rows per run (`runs` tells them apart, or what looks like it) the best by `mode`
    counts.

    Raises:
        TableError: a column is missing or contains wrong values.
    """
    three = (batch_size, lr, metric)
    table = _named(table, file, three, fields, seed, runs)
    fields = list(dict.fromkeys(fields))
    _check_fields(fields, [*TAKEN, *TAKEN_BY_THE_MODEL, *three, seed])
    settings = [batch_size, lr, *fields, *([seed] if seed in table and seed not in three else [])]
    table, epochs, messages = _one_row_per_run(
        table, file, settings, metric, runs, mode, seeded=seed in settings
    )
    status, cautions = _statuses(table.drop(columns=[*three]))
    rows = table[status != "under way"]
    status = status[status != "under way"]
    if len(rows) < len(table):
        cautions.append(f"{len(table) - len(rows)} rows of unfinished runs are left out.")
    rows, status, without = _with_settings(rows, status, three)
    messages += [*cautions, *without]
    required = pd.Series(np.ones(len(rows), dtype=bool), index=rows.index)
    sizes = _numbers(rows[batch_size], file, required, above=0, whole=True)
    rates = _numbers(rows[lr], file, required, above=0)
    scores = _numbers(rows[metric], file, ~required)
    lost = ~np.isfinite(scores) & (status == "completed")
    if lost.any():
        messages.append(
            f"{lost.sum()} rows have no finite {metric} and count as diverged. This is wrong for "
            f"runs without a score for another reason."
        )
    name = f"{metric} score" if metric in TAKEN else metric
    trials = pd.DataFrame(
        {
            "batch_size": sizes.astype(int),
            "lr": rates,
            "status": status.mask(lost, "diverged"),
            name: scores,
            **{field: _numbers(rows[field], file, ~required) for field in fields},
            **_seeds(rows.drop(columns=[*three]), seed),
            **({"trial_key": rows.index} if epochs is not None else {}),
        }
    ).reset_index(drop=True)
    messages += _size_cautions(trials) + _pooled(rows, {*three, seed, *runs})
    messages += _without_a_value(trials, fields) if fields else _drawn(trials)
    return OwnTable(
        trials=trials,
        epochs=None if epochs is None else epochs.rename(columns={metric: name}),
        metric=name,
        fields=tuple(fields),
        cautions=tuple(messages),
    )


def _named(
    table: pd.DataFrame,
    file: str,
    three: tuple[str, str, str],
    fields: Sequence[str],
    seed: str,
    runs: Sequence[str],
) -> pd.DataFrame:
    """The table with its columns under the names that were typed: `params.lr` becomes lr.

    Raises:
        TableError: a column is missing, or one has two meanings.
    """
    named = list(zip(("--batch-size", "--lr", "--metric"), three, strict=True))
    if len(set(three)) == 3:
        named += [("--fields", name) for name in fields]
        named += [("--run-column", name) for name in runs]
        named += [("--seed-column", seed)] if seed != SEED else []
    columns = {name: column_of(table, name, flag=flag, file=file) for flag, name in named}
    if len({columns[name] for name in three}) < 3:
        raise TableError(
            f"--batch-size, --lr and --metric must name three different columns of {file}"
        )
    seeds = alike(list(table.columns), SEED, OF_SETTINGS)
    if seed == SEED and len(seeds) == 1 and seeds[0] not in columns.values():
        columns[SEED] = seeds[0]
    return table.rename(columns={column: name for name, column in columns.items()})


def _one_row_per_run(
    table: pd.DataFrame,
    file: str,
    settings: Sequence[str],
    metric: str,
    runs: Sequence[str],
    mode: str | None,
    *,
    seeded: bool,
) -> tuple[pd.DataFrame, pd.DataFrame | None, list[str]]:
    """The table itself, or the best row of each run where it has several; curves; and cautions."""
    messages: list[str] = []
    if not runs:
        runs, messages = runs_of(table, settings, seeded=seeded)
    if not runs:
        return table, None, messages
    any_value = pd.Series(np.zeros(len(table), dtype=bool), index=table.index)
    table = table.assign(**{metric: _numbers(table[metric], file, any_value)})
    rows, messages = one_row_per_run(table, runs=runs, settings=settings, metric=metric, mode=mode)
    epochs = curves_of_runs(table, runs=runs, metric=metric)
    return rows, None if epochs.empty else epochs, messages


def _with_settings(
    rows: pd.DataFrame, status: "pd.Series[str]", three: tuple[str, str, str]
) -> tuple[pd.DataFrame, "pd.Series[str]", list[str]]:
    """The rows and their statuses without runs that ended before they had settings; a caution."""
    batch_size, lr, metric = three
    without = rows[[batch_size, lr]].isna().any(axis=1)
    without &= (status == "failed") | rows[metric].isna()
    if not without.any():
        return rows, status, []
    caution = (
        f"{without.sum()} rows without a score lack {batch_size} or {lr} as well: they are left "
        f"out."
    )
    return rows[~without], status[~without], [caution]


def _check_fields(fields: Sequence[str], others: Sequence[str]) -> None:
    """Raises TableError for a field that has another meaning already."""
    for name in fields:
        if name in others:
            raise TableError(
                f"--fields {name}: a column of this name has another meaning here; leave it out, "
                f"or rename it in the file"
            )


def _without_a_value(trials: pd.DataFrame, fields: Sequence[str]) -> list[str]:
    """A caution for each field that some runs have no value of."""
    missing = {name: int(trials[name].isna().sum()) for name in fields}
    return [
        f"{num} of {len(trials)} runs have no {name}: the model leaves them out."
        for name, num in missing.items()
        if num
    ]


def _drawn(trials: pd.DataFrame) -> list[str]:
    """A caution about runs whose learning rates were drawn at random."""
    if trials["lr"].nunique() <= max(FEW, len(trials) // 2):
        return []
    return [
        "The learning rates look as if they were drawn at random. If other columns were drawn as "
        "well, name them, as in --fields momentum weight_decay: what they explain is then not "
        "taken for noise."
    ]


def _seeds(rows: pd.DataFrame, seed: str) -> dict[str, "pd.Series[Any]"]:
    """The column of seeds, if there is one; names of seeds as text."""
    if seed not in rows:
        return {}
    seeds = rows[seed]
    return {SEED: seeds if is_numeric_dtype(seeds) else seeds.map(str, na_action="ignore")}


def read_file(file: Path) -> pd.DataFrame:
    """The table of a CSV or Parquet file.

    Raises:
        TableError: it does not exist, is empty or is not of that format.
    """
    if file.suffix.lower() not in READERS:
        raise TableError(f"--table must be a .csv or .parquet file, got {file}")
    _check_separator(file)
    try:
        table = READERS[file.suffix.lower()](file)
    except FileNotFoundError as error:
        raise TableError(f"--table {file} does not exist") from error
    except pd.errors.EmptyDataError as error:
        raise TableError(f"{file} is empty: it must have a header and one row per run") from error
    except (OSError, ValueError, pa.ArrowException, pd.errors.ParserError) as error:
        why = str(error).strip().splitlines()[0]
        raise TableError(
            f"{file} cannot be read as {file.suffix[1:].upper()} ({why}): export it again"
        ) from error
    table.columns = [str(name) for name in table.columns]
    if table.empty:
        raise TableError(f"{file} has no rows: it must have one row per run")
    return table


def _check_separator(file: Path) -> None:
    """Raises TableError for a CSV file whose columns are not separated by commas."""
    if file.suffix.lower() != ".csv" or not file.is_file():
        return
    with open(file, encoding="utf-8", errors="replace") as lines:
        header = lines.readline()
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if separator in header and "," not in header:
            decimal = ", decimal=','" if separator == ";" else ""
            raise TableError(
                f"{file} separates its columns by {name}: export it with commas, or convert it "
                f"with pandas.read_csv({str(file)!r}, sep={separator!r}{decimal})"
                f".to_csv('table.csv', index=False)"
            )


def _statuses(table: pd.DataFrame) -> tuple["pd.Series[str]", list[str]]:
    """Each row's status in our words, `under way` if it has not ended; and cautions."""
    column = next((name for name in STATUS_COLUMNS if name in table), None)
    if column is None:
        return pd.Series("completed", index=table.index), _depth_cautions(table)
    # Optuna writes COMPLETE, or TrialState.COMPLETE for its enum.
    words = table[column].astype(str).str.rpartition(".")[2].str.lower()
    unknown = sorted(set(words) - set(STATUS_OF))
    messages = []
    if unknown:
        messages.append(
            f"The column {column} contains unknown statuses ({', '.join(unknown[:5])}): these rows "
            f"count as completed."
        )
    return words.map(STATUS_OF).fillna("completed"), messages


def _depth_cautions(table: pd.DataFrame) -> list[str]:
    """Ray does not record which trials its scheduler stopped, only how many iterations they ran."""
    if "training_iteration" not in table or table["training_iteration"].nunique() < 2:
        return []
    short = int((table["training_iteration"] < table["training_iteration"].max()).sum())
    return [
        f"{short} of {len(table)} runs have fewer iterations than the longest one. If a scheduler "
        f"stopped them, add a column status with `stopped` in their rows; otherwise they count as "
        f"completed."
    ]


def _numbers(
    column: "pd.Series[object]",
    file: str,
    needed: "pd.Series[bool]",
    *,
    above: float | None = None,
    whole: bool = False,
) -> "pd.Series[float]":
    """The column as numbers; an error names the first wrong row. `needed` rows need a value."""
    kind = f"{'positive ' if above is not None else ''}{'integers' if whole else 'numbers'}"
    values = pd.to_numeric(column, errors="coerce").astype(float)
    text = values.isna() & column.notna()
    # pandas reads nan, NaN and inf; some tools write them differently.
    words = column[text].astype(str).str.strip().str.lower()
    text[text] = ~words.isin(["nan", "inf", "-inf", "infinity", "-infinity", "none", "null", ""])
    wrong = text | (needed & ~np.isfinite(values))
    if above is not None:
        wrong |= needed & (values <= above)
    if whole:
        wrong |= needed & ((values != values.round()) | (values > LARGEST_WHOLE))
    if wrong.any():
        first = int(np.flatnonzero(wrong.to_numpy())[0])
        raise TableError(
            f"{file}, column {column.name!r} must contain {kind}, got {column.tolist()[first]!r} "
            f"in row {column.index[first] + 1} ({int(wrong.sum())} such rows): correct or remove "
            f"them"
        )
    return values


def _size_cautions(trials: pd.DataFrame) -> list[str]:
    messages = []
    for name, least, words, purpose in (
        ("batch_size", LEAST_BATCH_SIZES, "batch size", "to see how the two interact"),
        ("lr", LEAST_LRS, "learning rate", "to see how the best one scales"),
    ):
        count = trials[name].nunique()
        if count < least:
            plural = "" if count == 1 else "s"
            messages.append(
                f"The table has {count} {words}{plural}; at least {least} are needed {purpose}."
            )
    return messages


def _pooled(rows: pd.DataFrame, used: set[str]) -> list[str]:
    """Cautions about text columns with few different values: rows may differ in more than seeds."""
    messages = []
    for name in rows.columns.difference([*used, *STATUS_COLUMNS]):
        column = rows[name].dropna()
        is_text = all(isinstance(value, str) for value in column.head(100))
        if is_text and 2 <= column.nunique() <= min(FEW, len(rows) // 2):
            values = ", ".join(sorted(column.unique())[:4])
            messages.append(
                f"Rows also differ in {name} ({values}) and are pooled: make a separate table of "
                f"each if this matters."
            )
    return messages
