"""A report lists the files beside its page, so that the next one removes what it no longer has."""

import json
from collections.abc import Iterable

from search.report.drawing import KINDS
from trainable.host import storage
from trainable.host.storage import Folder

TABLE_KINDS = ("tex", "csv")


def chart_files(names: Iterable[str]) -> list[str]:
    """The files of these charts, as `charts/surface.png`."""
    return [f"charts/{name}.{kind}" for name in names for kind in KINDS]


def table_files(names: Iterable[str]) -> list[str]:
    """The files of these tables, as `tables/surface.tex`."""
    return [f"tables/{name}.{kind}" for name in names for kind in TABLE_KINDS]


def remove_earlier(into: Folder, numbers: str, wanted: Iterable[str]) -> None:
    """Delete the files listed in the folder's `numbers`, such as report.json, and not `wanted`.

    Files that no report listed stay: they are the user's.
    """
    try:
        listed = json.loads(storage.read(into, numbers)).get("files", [])
    except (FileNotFoundError, ValueError):
        return
    for path in set(listed) - set(wanted):
        part, _, name = path.partition("/")
        storage.delete_file(into / part, name)
