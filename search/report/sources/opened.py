"""What --table names -> its rows, recognised by what it is."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from search.analysis.columns import TableError
from search.analysis.foreign_table import READERS, read_file
from search.report.sources import mlflow, optuna, ray_tune, tensorboard
from search.report.sources.source import Source

SQLITE = b"SQLite format 3\0"
DATABASES = ("postgresql", "mysql", "mariadb", "mssql", "oracle", "cockroachdb")
WANTED = (
    "a folder of Ray Tune, MLflow or TensorBoard, or a storage of Optuna (sqlite:///study.db, or "
    "a journal)"
)


def open_source(where: str, *, study: str | None = None) -> Source:
    """The rows of a file, folder or database, with where they are from.

    Raises:
        TableError: it does not exist, or is of no kind that is known here.
    """
    scheme, is_url, rest = where.partition("://")
    if is_url and scheme.partition("+")[0] in DATABASES:
        return optuna.read_database(where, re.sub(r"://[^@/]*@", "://", where), study)
    if is_url and not scheme.startswith("sqlite"):
        raise TableError(f"--table cannot read {scheme}:// addresses: copy the results here first")
    # sqlite:///study.db is relative, sqlite:////data/study.db is absolute.
    path = Path(rest.removeprefix("/").partition("?")[0]) if is_url else Path(where)
    if path.is_dir():
        return _of_folder(path, study)
    if path.is_file():
        with open(path, "rb") as file:
            begins = file.read(len(SQLITE))
        if begins == SQLITE:
            return _of_database(path, study)
        if path.suffix.lower() not in READERS and optuna.is_journal(path):
            return optuna.read_journal(path, study)
    else:
        raise TableError(f"--table {path} does not exist")
    if path.suffix.lower() not in READERS:
        raise TableError(f"--table must be a .csv or .parquet file, {WANTED}; got {path}")
    if study is not None:
        raise TableError(f"--study is not for a file such as {path}: remove it")
    return Source(rows=read_file(path), name=path.name, where=where, origin=path.name)


def _of_folder(folder: Path, study: str | None) -> Source:
    if (folder / "study.json").is_file():
        raise TableError(f"{folder} is a study's folder: give it without --table")
    if ray_tune.is_results(folder):  # which also has event files
        return ray_tune.read(folder, study)
    if mlflow.is_store(folder):
        return mlflow.read_store(folder, study)
    if not tensorboard.is_logs(folder):
        raise TableError(
            f"{folder} has no results of Ray Tune (params.json), MLflow (meta.yaml) or TensorBoard "
            f"(events.out.tfevents): give their folder; of Weights & Biases, export the runs as CSV"
        )
    if study is not None:
        raise TableError(
            f"--study is not for event files: give the folder of the runs, not {folder}"
        )
    return tensorboard.read(folder)


def _of_database(file: Path, study: str | None) -> Source:
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in names}
    except sqlite3.Error as error:
        raise TableError(f"{file} cannot be read as a SQLite database ({error})") from error
    if tables >= mlflow.TABLES:
        return mlflow.read_database(file, study)
    if tables >= optuna.TABLES:
        address = f"sqlite:///{file.resolve().as_uri()}?mode=ro&uri=true".replace(
            "file://", "file:"
        )
        return optuna.read_database(address, str(file), study)
    raise TableError(
        f"{file} is neither a storage of Optuna nor a database of MLflow: it has the tables "
        f"{', '.join(sorted(tables)[:10]) or '(none)'}"
    )
