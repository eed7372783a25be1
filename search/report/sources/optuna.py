"""Optuna's storages: a database or a journal of studies; a trial is a row."""

from pathlib import Path
from typing import TYPE_CHECKING

from search.analysis.columns import TableError
from search.report.sources.source import Source, chosen, origin

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

TABLES = frozenset({"studies", "trials", "trial_params"})
BEST = {"MAXIMIZE": "max", "MINIMIZE": "min"}


def read_database(url: str, where: str, study: str | None) -> Source:
    """The trials of a study in a database; nothing is written to it.

    Raises:
        TableError: it cannot be read, has no studies, or several.
    """
    from optuna.exceptions import OptunaError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError  # Optuna brings it

    try:
        if not _tables(url) >= TABLES:
            raise TableError(f"{where} has no tables of Optuna: give the database of a study")
        return _read(RDBStorage(url, skip_table_creation=True), where, study)
    except TableError:
        raise
    except (SQLAlchemyError, OptunaError, ImportError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise TableError(
            f"{where} cannot be read as a storage of Optuna ({why}): check the address, and "
            f"whether the driver of its database is installed"
        ) from error


def read_journal(file: Path, study: str | None) -> Source:
    """The trials of a study in the file of a JournalFileBackend.

    Raises:
        TableError: it cannot be read, has no studies, or several.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return _read(JournalStorage(JournalFileBackend(str(file))), str(file), study)
    except TableError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{file} cannot be read as a journal of Optuna ({error}): give a whole one"
        ) from error


def is_journal(file: Path) -> bool:
    """Whether the file begins as a journal does."""
    with open(file, "rb") as lines:
        return lines.readline(4096).startswith(b'{"op_code":')


def _tables(url: str) -> set[str]:
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _read(storage: "BaseStorage", where: str, study: str | None) -> Source:
    import optuna

    names = sorted(summary.study_name for summary in storage.get_all_studies())
    name = chosen(names, study, kind="studies of Optuna", where=where)
    loaded = optuna.load_study(study_name=name, storage=storage)
    rows = loaded.trials_dataframe(attrs=("number", "value", "params", "user_attrs", "state"))
    if rows.empty:
        raise TableError(f"{where}: the study {name} of Optuna has no trials")
    return Source(
        rows=rows,
        name=name,
        where=where,
        origin=origin(len(rows), f"Optuna's study {name}", where),
        runs=("number",),
        modes=_modes(loaded),
    )


def _modes(study: "Study") -> dict[str, str]:
    """Which values of each objective are best, by its column's name and by the user's for it."""
    is_single, names = len(study.directions) == 1, study.metric_names
    prefix = "value" if is_single else "values"
    modes: dict[str, str] = {}
    for index, direction in enumerate(study.directions):
        name = names[index] if names else "" if is_single else str(index)
        known = [f"{prefix}_{name}" if name else prefix, *([name] if names else [])]
        modes |= dict.fromkeys(known, BEST[direction.name]) if direction.name in BEST else {}
    return modes
