"""The configurations that a search chose, as files beside the tables.

They are what a later command goes on with: each is written before its first trial starts. Each
search has a folder of its own under `choices/`, so that no search goes on with those of another.
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

from search.results import lock
from search.study.study import Study
from trainable.config import RECIPE_VERSION
from trainable.host import storage
from trainable.host.storage import Folder

logger = logging.getLogger(__name__)

PACKED = "packed.json"
PACK_FROM = 100  # files: from there on reading them one after the other takes seconds in a store
READERS = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One configuration of a search: the fields that it changes, and the sampler's own parameters.

    Both are the same but for a define-by-run space. `distributions` are Optuna's, as JSON.
    """

    changes: Mapping[str, Any]
    params: Mapping[str, Any]
    distributions: Mapping[str, str]


def folder_of(
    results: Folder,
    study: Study,
    *,
    space: Mapping[str, str] | Callable[[Any], Any],
    objectives: list[str],
    data_fingerprint: str,
) -> Folder:
    """Where the choices are of searches with this base, space, objectives and data.

    More seeds, more configurations and another sampler go on with them. `space` is Optuna's
    distributions as JSON, or the function that defines it.
    """
    base = {name: value for name, value in asdict(study.base).items() if name != "seed"}
    of = {
        "base": base,
        "space": _source(space) if callable(space) else dict(space),
        "objectives": [study.metric, *objectives],
        "data_fingerprint": data_fingerprint,
        "recipe_version": RECIPE_VERSION,
    }
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    return results / "choices" / digest


def _source(space: Callable[[Any], Any]) -> str:
    """What tells one define-by-run function from another."""
    try:
        return inspect.getsource(space)
    except (OSError, TypeError):  # defined where there is no file, or not a function
        return getattr(space, "__qualname__", type(space).__qualname__)


def read(folder: Folder) -> dict[int, Choice]:
    """All choices by number, in order. A file that cannot be read counts as lost."""
    with ThreadPoolExecutor(READERS) as threads:
        read_rows = list(threads.map(lambda name: _rows(folder, name), _files(folder)))
    by_number = {row["number"]: row for rows in read_rows for row in rows}
    names = [choice_field.name for choice_field in fields(Choice)]
    return {
        number: Choice(**{name: by_number[number][name] for name in names})
        for number in sorted(by_number)
    }


def _rows(folder: Folder, name: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(storage.read(folder, name))
    except ValueError as error:  # the search goes on with the others
        logger.warning("%s/%s cannot be read and is left out: %s", folder.uri, name, error)
        return []
    return rows


def add(folder: Folder, number: int, choice: Choice) -> None:
    """Write the choice `number`, from 0."""
    _write(folder, f"{number:06d}.json", {number: choice})


def pack(folder: Folder, choices: Mapping[int, Choice]) -> None:
    """Write all choices, which `read` returned, into one file, where they are many."""
    names = [name for name in _files(folder) if name != PACKED]
    if len(names) < PACK_FROM:
        return
    _write(folder, PACKED, choices)
    for name in names:
        storage.delete_file(folder, name)


def _files(folder: Folder) -> list[str]:
    return storage.names(folder, ".json")


def _write(folder: Folder, name: str, choices: Mapping[int, Choice]) -> None:
    rows = [{"number": number, **asdict(choice)} for number, choice in choices.items()]
    lock.check(folder)
    storage.write(folder, name, json.dumps(rows).encode())
