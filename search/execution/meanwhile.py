"""The report of a running study, written anew every minute, or less often where it takes long."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.results.tables import Results
from trainable.host.storage import TakenOverError

INTERVAL_S = 60.0
REST = 9.0  # times what the last one took, before the next: a tenth of a core at most


@contextmanager
def report_written(results: Results, before: Callable[[], None]) -> Iterator[None]:
    """Write the report once a minute or less often in the block, each time in another process.

    `before` is called before each: it writes what the report reads of the study.

    A thread of the driver would block it, and its imports would delay the first trials. The
    processes have a low priority, and their errors are ignored: the report at the end shows them.
    """
    over = threading.Event()

    def write_each_minute() -> None:
        took_s = 0.0
        while not over.wait(max(INTERVAL_S, REST * took_s)):
            began = time.monotonic()
            try:
                with suppress(OSError):  # at the end it is written again: then an error counts
                    before()
            except TakenOverError:  # as the driver finds out before its next row
                return
            command = [sys.executable, "-m", "search.report", results.folder.uri]
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the study, not for the report
                cwd=Path(__file__).parents[2],
            ) as writing:
                _lower_priority(writing.pid)
                while writing.poll() is None:
                    if over.wait(0.2):
                        writing.terminate()
            took_s = time.monotonic() - began

    thread = threading.Thread(target=write_each_minute, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lower_priority(process: int) -> None:
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, process, 19)
        except OSError:  # it ended already
            return
