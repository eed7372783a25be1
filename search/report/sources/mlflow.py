"""MLflow's runs: of a file store (`mlruns`), or of a SQLite database (`mlflow.db`)."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from search.analysis.columns import TableError
from search.report.sources.source import NAME, RUN, VALUE, Source, chosen, joined, origin

TABLES = frozenset({"experiments", "runs", "params", "metrics"})
ABOUT = "meta.yaml"  # of an experiment, and of a run
STATUS = {"1": "RUNNING", "2": "SCHEDULED", "3": "FINISHED", "4": "FAILED", "5": "KILLED"}
PARENT = "mlflow.parentRunId"
KIND = "experiments of MLflow"
RUNS_OF = """SELECT run_uuid AS run, status FROM runs
    WHERE experiment_id = ? AND lifecycle_stage = 'active'"""
EXPERIMENTS = """SELECT name, experiment_id FROM experiments AS e WHERE EXISTS
    (SELECT * FROM runs WHERE experiment_id = e.experiment_id AND lifecycle_stage = 'active')"""
OF_RUNS = "WHERE run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ?)"


def read_database(file: Path, study: str | None) -> Source:
    """The runs of an experiment in a SQLite database, which is opened for reading only.

    Raises:
        TableError: it cannot be read, or has several experiments.
    """
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            experiments = dict(database.execute(EXPERIMENTS).fetchall())
            name = chosen(sorted(experiments), study, kind=KIND, where=str(file))
            runs, settings, scores, parents = (
                pd.read_sql_query(query, database, params=(experiments[name],))
                for query in (
                    RUNS_OF,
                    f"SELECT run_uuid AS run, key AS name, value FROM params {OF_RUNS}",
                    f"SELECT run_uuid AS run, key AS name, value, is_nan FROM metrics {OF_RUNS} "
                    f"ORDER BY step, timestamp",
                    f"SELECT value FROM tags {OF_RUNS} AND key = '{PARENT}'",
                )
            )
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise TableError(f"{file} cannot be read as a database of MLflow ({error})") from error
    value = scores[VALUE].astype(float)
    infinite = value.abs() >= sys.float_info.max  # as MLflow writes it
    scores[VALUE] = value.mask(infinite, np.sign(value) * np.inf).mask(scores.pop("is_nan") != 0)
    return _source(name, str(file), runs, settings, scores, set(parents[VALUE]))


def is_store(folder: Path) -> bool:
    """Whether the folder is a file store, or one of its experiments."""
    return bool(_experiments(folder))


def read_store(folder: Path, study: str | None) -> Source:
    """The runs of an experiment in a file store.

    Raises:
        TableError: a file cannot be read, or there are several experiments.
    """
    experiments = {name: place for name, place in _experiments(folder).items() if _runs(place)}
    name = chosen(sorted(experiments), study, kind=KIND, where=str(folder))
    runs, settings, scores, parents = [], [], [], set()
    for run in _runs(experiments[name]):
        about = _about(run)
        key = about.get("run_id", run.name)
        runs.append((key, STATUS.get(about.get("status", ""), about.get("status", ""))))
        settings += [(key, *entry) for entry in _entries(run / "params")]
        for metric, lines in _entries(run / "metrics"):
            scores += [(key, metric, value) for value in _logged(run, metric, lines)]
        parents |= {text for tag, text in _entries(run / "tags") if tag == PARENT}
    three = [RUN, NAME, VALUE]
    return _source(
        name,
        str(folder),
        pd.DataFrame(runs, columns=[RUN, "status"]),
        pd.DataFrame(settings, columns=three),
        pd.DataFrame(scores, columns=three),
        parents,
    )


def _source(
    name: str,
    where: str,
    runs: pd.DataFrame,
    settings: pd.DataFrame,
    scores: pd.DataFrame,
    parents: set[str],
) -> Source:
    """With the names of `search_runs`; parents of nested runs are no trainings of their own."""
    runs = runs[~runs[RUN].isin(parents) & runs[RUN].isin(settings[RUN])]
    if runs.empty:
        raise TableError(f"{where}: no run of the experiment {name} has params: log them")
    of_settings, of_scores = (
        rows[rows[RUN].isin(runs[RUN])].assign(**{NAME: before + rows[NAME].astype(str)})
        for before, rows in (("params.", settings), ("metrics.", scores))
    )
    return Source(
        rows=joined(runs, of_settings, of_scores).rename(columns={RUN: "run_id"}),
        name=name,
        where=where,
        origin=origin(len(runs), f"MLflow's experiment {name}", where),
        runs=("run_id",),
    )


def _experiments(folder: Path) -> dict[str, Path]:
    """The folders of experiments by name."""
    places = [folder, *(file.parent for file in sorted(folder.glob(f"*/{ABOUT}")))]
    about = {place: _about(place) for place in places if (place / ABOUT).is_file()}
    return {
        entries.get("name", place.name): place
        for place, entries in about.items()
        if "artifact_location" in entries and entries.get("lifecycle_stage") == "active"
    }


def _runs(experiment: Path) -> list[Path]:
    """The folders of runs that were not deleted."""
    folders = [file.parent for file in sorted(experiment.glob(f"*/{ABOUT}"))]
    return [run for run in folders if _about(run).get("lifecycle_stage") == "active"]


def _about(folder: Path) -> dict[str, str]:
    """The plain entries of meta.yaml."""
    lines = (folder / ABOUT).read_text(errors="replace").splitlines()
    entries = (line.partition(":") for line in lines if not line.startswith((" ", "-")))
    return {name: value.strip().strip("'\"") for name, _, value in entries}


def _entries(folder: Path) -> list[tuple[str, str]]:
    """Names and contents of the files; names may have a / in them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file.relative_to(folder).as_posix(), file.read_text().strip()) for file in files]


def _logged(run: Path, metric: str, lines: str) -> list[float]:
    """The values of a metric in order of their steps: lines of time, value and step."""
    try:
        words = [(*line.split(), "0")[:3] for line in lines.splitlines()]
        return [float(value) for _, value, _ in sorted(words, key=lambda logged: int(logged[2]))]
    except (IndexError, ValueError) as error:
        raise TableError(
            f"{run / 'metrics' / metric} is damaged ({error}): move it away"
        ) from error
