"""The Parquet tables of a study: commit, read.

One file a trial in `trials/` and in `epochs/`, rewritten whole: whatever crashes, a reader finds
each (trial_key, epoch) once. The driver is the only writer.
"""

import io
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trainable import storage
from trainable.config import TrialConfig
from trainable.record import EpochResult, TrialResult
from trainable.storage import Folder

STATUSES = ("completed", "stopped", "diverged", "failed", "interrupted")

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_ID = [
    ("study", pa.string()),
    ("trial_key", pa.string()),
    ("seed", pa.int64()),
    ("attempt", pa.int64()),
]


def _columns(dataclass_type: type, *, leave_out: Sequence[str] = ()) -> list[tuple[str, Any]]:
    columns = []
    for each in fields(dataclass_type):
        kind: Any = next(iter(typing.get_args(each.type)), each.type)
        if each.name not in leave_out:
            columns.append((each.name, _ARROW[kind]))
    return columns


_UTC = pa.timestamp("us", tz="UTC")
TRIALS = pa.schema(
    [
        *_ID,
        ("status", pa.string()),
        ("reason", pa.string()),
        *_columns(TrialConfig, leave_out=["seed", "microbatch_size"]),
        *_columns(TrialResult, leave_out=["status", "reason"]),
        ("num_gpus", pa.float64()),
        ("host", pa.string()),
        ("started_at", _UTC),
        ("ended_at", _UTC),
        ("data_fingerprint", pa.string()),
    ]
)
EPOCHS = pa.schema([*_ID, *_columns(EpochResult)])


class ResultsError(ValueError):
    """The results' folder cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Results:
    """A study's folder."""

    study: str
    folder: Folder

    def __truediv__(self, name: str) -> Folder:
        """A folder of it."""
        return self.folder / name


def open_results(out: str, study: str) -> Results:
    """The folder `OUT/<study>`, made if need be, and found writable.

    Raises:
        ResultsError: it cannot be made or written to.
    """
    try:
        folder = storage.folder_at(out) / study
        storage.write(folder, ".writable", b"")
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot write to --out {out}: {error}") from error
    return Results(study, folder)


def commit_study(results: Results, about: Mapping[str, Any]) -> None:
    """Write study.json: what the study was when it was last run."""
    content = json.dumps(about, indent=1, default=str) + "\n"
    storage.write(results.folder, "study.json", content.encode())


def commit_epochs(results: Results, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all epoch rows of a trial in place of those it had."""
    _commit(results / "epochs", key, EPOCHS, rows)


def commit_trial(results: Results, row: Mapping[str, Any]) -> None:
    """Write a trial's row; what it does not say is null."""
    _commit(results / "trials", row["trial_key"], TRIALS, [row])


def commit_traceback(results: Results, key: str, text: str) -> str:
    """Keep a failed trial's traceback; returns where."""
    storage.write(results / "errors", f"{key}.txt", text.encode())
    return f"{results.folder.uri}/errors/{key}.txt"


def _commit(folder: Folder, key: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    content = io.BytesIO()
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    storage.write(folder, f"{key}.parquet", content.getvalue())


def trials(results: Results) -> pd.DataFrame:
    """One row a trial that ended or was interrupted."""
    return _read(results / "trials", TRIALS)


def epochs(results: Results) -> pd.DataFrame:
    """One row an evaluation, by trial and epoch."""
    return _read(results / "epochs", EPOCHS)


def _read(folder: Folder, schema: pa.Schema) -> pd.DataFrame:
    tables = [_read_part(folder, name, schema) for name in storage.names(folder, ".parquet")]
    whole = pa.concat_tables(tables) if tables else schema.empty_table()
    return whole.to_pandas()


def _read_part(folder: Folder, name: str, schema: pa.Schema) -> pa.Table:
    """A part's rows with the columns of today: one written before a column came has nulls."""
    try:
        table = pq.read_table(
            io.BytesIO(storage.read(folder, name)), page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(
            f"{folder.uri}/{name} is damaged ({error}): move it away and run the study again"
        ) from error
    columns = [
        table[each.name].cast(each.type)
        if each.name in table.column_names
        else pa.nulls(len(table), each.type)
        for each in schema
    ]
    return pa.table(columns, schema=schema)
