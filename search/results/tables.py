"""The Parquet tables of a study: commit, read, verify, compact.

Each trial has one file in `trials/` and one in `epochs/`, which is always replaced as a whole: even
after a crash a reader finds each (trial_key, epoch) once. The driver is the only writer, and holds
the study's lock.
"""

import json
import logging
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import pyarrow as pa

from search.results import files, lock
from trainable.config import TrialConfig
from trainable.host import credentials, storage
from trainable.host.storage import Folder
from trainable.record import EpochResult, TrialResult

logger = logging.getLogger(__name__)

STATUSES = ("completed", "stopped", "diverged", "failed", "interrupted")
ENDED = STATUSES[:-1]  # an interrupted trial goes on
# Beside a study's metric.
WEIGHED = (
    *("train_wall_s", "peak_memory_gib", "examples_seen", "val_auroc", "collapsed"),
    *("forecast", "forecast_std"),
)

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_ID = [
    ("study", pa.string()),
    ("trial_key", pa.string()),
    ("seed", pa.int64()),
    ("attempt", pa.int64()),
]


def _columns(dataclass_type: type, *, leave_out: Sequence[str] = ()) -> list[tuple[str, Any]]:
    columns = []
    for field in fields(dataclass_type):
        kind: Any = next(iter(typing.get_args(field.type)), field.type)
        if field.name not in leave_out:
            columns.append((field.name, _ARROW[kind]))
    return columns


_UTC = pa.timestamp("us", tz="UTC")
TRIALS = pa.schema(
    [
        *_ID,
        ("status", pa.string()),
        ("reason", pa.string()),
        *_columns(TrialConfig, leave_out=["seed", "microbatch_size"]),
        *_columns(TrialResult, leave_out=["status", "reason"]),
        ("forecast", pa.float64()),
        ("forecast_std", pa.float64()),
        ("num_gpus", pa.float64()),
        ("gpu_shared", pa.bool_()),
        ("host", pa.string()),
        ("started_at", _UTC),
        ("ended_at", _UTC),
        ("data_fingerprint", pa.string()),
        ("split", pa.string()),
        ("code_version", pa.string()),
    ]
)
EPOCHS = pa.schema([*_ID, *_columns(EpochResult)])
TABLES = {"trials": TRIALS, "epochs": EPOCHS}
# What tells whether a trial has all its epochs.
COUNTED = {
    "trials": ["trial_key", "status", "epochs_completed"],
    "epochs": ["trial_key", "epoch"],
}


class ResultsError(ValueError):
    """A results folder cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class Results:
    """A study's folder."""

    study: str
    folder: Folder

    def __truediv__(self, name: str) -> Folder:
        """A subfolder."""
        return self.folder / name


def open_results(out: str, study: str) -> Results:
    """The folder `OUT/<study>`, created if necessary.

    Raises:
        ResultsError: it cannot be created, or is not writable.
    """
    try:
        folder = storage.folder_at(out) / study
        storage.write(folder, ".writable", b"")
    except (OSError, ValueError) as error:
        name = "that URI" if credentials.in_uri(out) else out
        raise ResultsError(f"cannot write to --out {name}: {error}") from error
    return Results(study, folder)


def commit_study(results: Results, about: Mapping[str, Any]) -> None:
    """Write study.json: the study as it was last run."""
    lock.check(results.folder)
    content = json.dumps(about, indent=1, default=str) + "\n"
    storage.write(results.folder, "study.json", content.encode())


def commit_epochs(results: Results, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all epoch rows of a trial; replaces earlier ones."""
    lock.check(results.folder)
    files.write_part(results / "epochs", f"{key}.parquet", EPOCHS, rows)


def commit_trial(results: Results, row: Mapping[str, Any]) -> None:
    """Write a trial's row; missing columns become null."""
    lock.check(results.folder)
    files.write_part(results / "trials", f"{row['trial_key']}.parquet", TRIALS, [row])


def commit_traceback(results: Results, key: str, text: str) -> str:
    """Write a failed trial's traceback; returns its path."""
    lock.check(results.folder)
    storage.write(results / "errors", f"{key}.txt", text.encode())
    return f"{(results / 'errors').uri}/{key}.txt"


def trials(results: Results) -> pd.DataFrame:
    """One row per trial that ended or was interrupted; unreadable files are left out."""
    return named_alike(_read(results / "trials", TRIALS))


def named_alike(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with one name of each data set, the last one, in `dataset`.

    Its folder may have been renamed, and older versions wrote the name that the study has for it.
    """
    by_data = trials.sort_values("ended_at").groupby("data_fingerprint")["dataset"]
    if not (by_data.nunique() > 1).any():
        return trials
    last = trials["data_fingerprint"].map(by_data.last())
    return trials.assign(dataset=last.fillna(trials["dataset"]))


def epochs(
    results: Results, *, but: Collection[str] = (), columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """One row per evaluation, by trial and epoch; unreadable files are left out.

    Of all trials `but` these; all columns, or these.
    """
    return _read(results / "epochs", EPOCHS, but=but, columns=columns)


def _read(
    folder: Folder,
    schema: pa.Schema,
    *,
    but: Collection[str] = (),
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    if columns is not None:
        schema = _part(schema, columns)
    table, damaged = files.read_parts(folder, schema, but=but)
    for name, why in damaged.items():
        logger.warning("%s/%s cannot be read and is left out: %s", folder.uri, name, why)
    return table.to_pandas()


def ending_of(row: Mapping[str, Any], *, metric: str) -> dict[str, Any]:
    """The columns of an ended trial's row that explorers use."""
    return {name: row.get(name) for name in ("status", metric, *WEIGHED)}


def of_trials(table: pd.DataFrame, keys: Collection[str]) -> pd.DataFrame:
    """The rows of these trials: a results folder may also contain other trials."""
    return table[table["trial_key"].isin(keys)].reset_index(drop=True)


def damaged(results: Results) -> dict[str, str]:
    """The tables' files that cannot be read, as `epochs/NAME`, with the reasons."""
    return {
        f"{table}/{name}": why
        for table, schema in TABLES.items()
        for name, why in files.read_parts(results / table, schema)[1].items()
    }


def make_sound(results: Results) -> list[str]:
    """Repair the tables for their one writer; returns the files that were moved away.

    Cleans up after killed processes, and moves unreadable files to `damaged/`. If this loses a
    trial's epochs, the trial's row is moved too, so that it runs again.
    """
    aside = []
    counted = {}
    for table, columns in COUNTED.items():
        folder, schema = results / table, TABLES[table]
        files.recover(folder)
        counted[table], broken = files.read_parts(folder, _part(schema, columns))
        files.set_aside(folder, broken, into=results / "damaged" / table)
        files.pack_doubles(folder, schema)
        aside += [f"{table}/{name}" for name in broken]
    if short := _short_of_epochs(**{name: rows.to_pandas() for name, rows in counted.items()}):
        take_apart(results, short)
        names = [f"{key}.parquet" for key in short]
        files.set_aside(results / "trials", names, into=results / "damaged" / "trials")
        aside += [f"trials/{name}" for name in names]
    return aside


def _part(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns])


def take_apart(results: Results, keys: Collection[str]) -> None:
    """Move trials from packed files to their own, which are replaced when the trials run again."""
    lock.check(results.folder)
    if keys:
        for table, schema in TABLES.items():
            files.take_apart(results / table, schema, keys)


def packed(results: Results) -> set[str]:
    """The trials that are in packed files."""
    return {key for table in TABLES for key in files.packed_keys(results / table)}


def _short_of_epochs(trials: pd.DataFrame, epochs: pd.DataFrame) -> list[str]:
    """Trials that have fewer epochs in the table than they completed."""
    known = trials[trials["status"].isin(("completed", "stopped"))].set_index("trial_key")
    have = epochs.groupby("trial_key")["epoch"].nunique().reindex(known.index).fillna(0)
    return list(known.index[have < known["epochs_completed"].fillna(0)])


def num_files(results: Results) -> int:
    """Number of files of both tables."""
    return sum(len(storage.names(results / table, ".parquet")) for table in TABLES)


def compact(results: Results) -> int:
    """Pack each table into one file; returns how many files fewer there are.

    Raises:
        ResultsError: a file is damaged, or the disk is full.
    """
    lock.check(results.folder)
    try:
        return sum(files.pack(results / table, schema) for table, schema in TABLES.items())
    except OSError as error:
        raise ResultsError(f"cannot compact {results.folder.uri}: {error}") from error


def pack_ended(results: Results, keys: Collection[str]) -> int:
    """Pack the files of trials that ended into one more file; returns how many files fewer.

    Raises:
        StorageError: the disk is full.
    """
    lock.check(results.folder)
    return sum(files.pack_trials(results / table, schema, keys) for table, schema in TABLES.items())


def faults(results: Results) -> list[str]:
    """What is wrong with the tables, in sentences: damage, duplicate rows, gaps."""
    sentences = [f"{name} cannot be read: {why}" for name, why in damaged(results).items()]
    rows, ended = epochs(results), trials(results)
    for table, by, frame in (
        ("epochs", ["trial_key", "epoch"], rows),
        ("trials", ["trial_key"], ended),
    ):
        if doubles := int(frame.duplicated(by).sum()):
            sentences.append(f"{table}: {doubles} duplicate row{'' if doubles == 1 else 's'}")
    counts = rows.groupby("trial_key")["epoch"].agg(["min", "max", "nunique"])
    gaps = counts[(counts["min"] != 1) | (counts["max"] != counts["nunique"])]
    sentences += [f"the epochs of trial {key} are not 1, 2, 3, ..." for key in gaps.index]
    return sentences + [
        f"trial {key} has fewer epochs in the table than it completed"
        for key in _short_of_epochs(ended, rows)
    ]


def open_folder(path: str) -> Results:
    """The results in a study's folder, for example `results/pcam_grid`.

    Raises:
        ResultsError: the folder contains no tables.
    """
    try:
        folder = storage.folder_at(path.rstrip("/"))
    except ValueError as error:
        raise ResultsError(str(error)) from error
    results = Results(folder.name, folder)
    if not any(storage.names(results / table, ".parquet") for table in TABLES):
        raise ResultsError(
            f"{path} is not a study's results: it has no trials/ and epochs/ with Parquet files; "
            f"give a folder such as results/pcam_grid"
        )
    return results
