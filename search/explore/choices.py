"""The configurations that a search chose, as files beside the tables.

They are what a later command goes on with: each is written before its first trial starts. Each
search has a folder of its own under `choices/`, so that no search goes on with those of another.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from search.study.study import Study
from trainable.config import RECIPE_VERSION
from trainable.host import storage
from trainable.host.storage import Folder

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


def read(folder: Folder) -> list[Choice]:
    """All choices in their order, up to the first that is missing."""
    with ThreadPoolExecutor(READERS) as threads:
        contents = threads.map(lambda name: storage.read(folder, name), _files(folder))
        rows = {int(row["number"]): row for content in contents for row in json.loads(content)}
    in_order: list[Choice] = []
    while len(in_order) in rows:
        row = rows[len(in_order)]
        in_order.append(
            Choice(**{name: row[name] for name in ("changes", "params", "distributions")})
        )
    return in_order


def add(folder: Folder, number: int, choice: Choice) -> None:
    """Write the choice `number`, from 0."""
    _write(folder, f"{number:06d}.json", [{"number": number, **asdict(choice)}])


def pack(folder: Folder, choices: list[Choice]) -> None:
    """Write all choices into one file, where they are many."""
    names = [name for name in _files(folder) if name != PACKED]
    if len(names) < PACK_FROM:
        return
    rows = [{"number": number, **asdict(choice)} for number, choice in enumerate(choices)]
    _write(folder, PACKED, rows)
    for name in names:
        storage.delete_file(folder, name)


def _files(folder: Folder) -> list[str]:
    return storage.names(folder, ".json")


def _write(folder: Folder, name: str, rows: list[dict[str, Any]]) -> None:
    storage.write(folder, name, json.dumps(rows).encode())
