"""What is going on in a running study, as a file in its folder for `search.report --serve`."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from search.results.running import NAME
from search.results.tables import Results
from trainable.host import storage
from trainable.host.storage import TakenOverError

if TYPE_CHECKING:
    from search.execution.progress import Progress

INTERVAL_S, REMOTE_INTERVAL_S = 2.0, 10.0


@contextmanager
def progress_kept(progress: "Progress", results: Results) -> Iterator[None]:
    """Write the file every other second while the block runs, where something changed.

    A thread does it, so that a slow folder holds no trial up. What goes wrong is not told: the
    writer of the tables reports what is wrong with the folder.
    """
    over = threading.Event()
    interval_s = INTERVAL_S if results.folder.is_local else REMOTE_INTERVAL_S

    def write_changes() -> None:
        written: dict[str, Any] = {}
        while not over.wait(interval_s):
            content = progress.as_json()
            if content == written:
                continue
            try:
                with suppress(OSError):
                    data = json.dumps(content, default=str)
                    storage.write_once(results.folder, NAME, data.encode(), is_lasting=False)
                    written = content
            except TakenOverError:  # as the driver finds out before its next row
                return

    thread = threading.Thread(target=write_changes, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError, TakenOverError):
            storage.delete_file(results.folder, NAME)
