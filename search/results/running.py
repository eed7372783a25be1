"""Whether a study is running, and what it does: the files that its command keeps meanwhile."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from search.results.lock import BEAT_S, STALE_BEATS
from search.results.lock import NAME as LOCK
from search.results.tables import Results
from trainable.host import storage

NAME = "progress.json"


@dataclass
class Pulse:
    """When the lock of a study was last seen to change, by this process's clock."""

    content: bytes = b""
    changed_at: float = field(default_factory=lambda: -float("inf"))

    def is_running(self, results: Results) -> bool:
        """Whether a command works on the study: its lock is there and beats."""
        try:
            content = storage.read(results.folder, LOCK)
        except FileNotFoundError:
            return False
        if content != self.content:
            self.content, self.changed_at = content, time.monotonic()
        return time.monotonic() - self.changed_at < STALE_BEATS * BEAT_S


def progress_of(results: Results) -> dict[str, Any]:
    """What the command wrote last; empty if it wrote nothing yet."""
    try:
        content = json.loads(storage.read(results.folder, NAME))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def state_of(results: Results) -> list[tuple[str, object, object]]:
    """Names, times and sizes of the tables' files: they change when the tables change."""
    from pyarrow import fs

    state = []
    for folder in (results / "trials", results / "epochs"):
        system, path = (
            folder.opened() if not folder.is_local else (fs.LocalFileSystem(), folder.uri)
        )
        files = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        state += [(file.path, file.mtime_ns, file.size) for file in files]
    return sorted(state)
