"""Writes a study's rows beside the driver: whoever commits does not wait for a disk or a store.

Of a trial that reports faster than its file is written, several commits become one write.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.results import tables
from search.results.tables import Results

Row = Mapping[str, Any]

REST = 9.0  # times what a write took, before the next one: a tenth of the driver's time at most
MOST_REST_S = 5.0
STORE_THREADS = 8  # of an object store, which answers each of them late
MOST_WAITING = 1000  # trials: then who reports an end waits too, for a storage that is behind
PACK_FROM = 1000  # trials that ended: their files are packed, for a folder of few files


@dataclass
class _Waiting:
    """What is to be written of a trial: its evaluations, then its end."""

    rows: Sequence[Row] | None = None
    ending: Callable[[], Row | None] | None = None


@dataclass
class Writer:
    """The rows that wait, and those that are being written.

    The first error ends all writing. Every later call raises it in its own thread.
    """

    results: Results
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    in_writing: dict[str, _Waiting] = field(default_factory=dict)
    ended: dict[str, Row] = field(default_factory=dict)
    to_pack: list[str] = field(default_factory=list)
    error: BaseException | None = None
    is_closing: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    threads: list[threading.Thread] = field(default_factory=list)

    def epochs(self, key: str, rows: Sequence[Row]) -> None:
        """Write all epoch rows of a trial soon; later ones replace those that still wait."""
        with self.changed:
            self._start()
            self.waiting.setdefault(key, _Waiting()).rows = rows
            self.changed.notify()

    def ending(self, key: str, commit: Callable[[], Row | None]) -> None:
        """Call `commit` soon, when all epoch rows of the trial are written.

        It returns the row of a trial that ended, and nothing of one that goes on.
        """
        with self.changed:
            self._start()
            self.changed.wait_for(lambda: self.error or len(self.waiting) < MOST_WAITING)
            self._raise_error()
            self.waiting.setdefault(key, _Waiting()).ending = commit
            self.changed.notify_all()  # one that rests may be the only one that is free

    def take_ended(self) -> dict[str, Row]:
        """The rows of trials whose end was written since the last call, by key."""
        with self.changed:
            self._raise_error()
            ended, self.ended = self.ended, {}
        return ended

    def settle(self) -> None:
        """Wait until the end of each trial is written that has ended."""

        def is_settled() -> bool:
            work = [*self.waiting.values(), *self.in_writing.values()]
            return self.error is not None or not any(to_write.ending for to_write in work)

        with self.changed:
            self.changed.wait_for(is_settled)
            self._raise_error()

    def close(self) -> None:
        """Write everything that waits, and end the threads."""
        with self.changed:
            self.is_closing = True
            self.changed.notify_all()
            threads, self.threads = self.threads, []
        for thread in threads:
            thread.join()
        with self.changed:
            self.is_closing = False
            self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _start(self) -> None:
        """Raises the error of an earlier write; else makes sure that someone writes."""
        self._raise_error()
        if not self.threads:
            num_threads = 1 if self.results.folder.is_local else STORE_THREADS
            for _ in range(num_threads):
                thread = threading.Thread(target=self._write_on, name="writer", daemon=True)
                self.threads.append(thread)
                thread.start()

    def _write_on(self) -> None:
        """Write until the end; after evaluations rest, unless a trial has ended meanwhile."""
        rested_at = 0.0
        while (taken := self._take(rested_at)) is not None:
            key, work = taken
            began = time.monotonic()
            try:
                if work.rows is not None:
                    tables.commit_epochs(self.results, key, work.rows)
                row = work.ending() if work.ending else None
                self._pack_many()
            except BaseException as error:
                with self.changed:
                    self.error = self.error or error
                    self.changed.notify_all()
                return
            rested_at = time.monotonic() + min(MOST_REST_S, REST * (time.monotonic() - began))
            with self.changed:
                del self.in_writing[key]
                if row is not None:
                    self.ended[key] = row
                    self.to_pack.append(key)
                self.changed.notify_all()

    def _pack_many(self) -> None:
        """Pack the files of trials that ended, once they are many; this thread alone does it."""
        with self.changed:
            if len(self.to_pack) < PACK_FROM:
                return
            keys, self.to_pack = self.to_pack, []
        tables.pack_ended(self.results, keys)

    def _take(self, rested_at: float) -> tuple[str, _Waiting] | None:
        """The next trial to write; None when there is nothing more, or writing has failed."""
        with self.changed:
            while True:
                free = [key for key in self.waiting if key not in self.in_writing]
                urgent = [key for key in free if self.waiting[key].ending]
                rest_s = 0.0 if self.is_closing else rested_at - time.monotonic()
                if self.error is not None or (self.is_closing and not self.waiting):
                    return None
                if urgent or (free and rest_s <= 0):
                    key = (urgent or free)[0]
                    self.in_writing[key] = self.waiting.pop(key)
                    return key, self.in_writing[key]
                self.changed.wait(max(rest_s, 0.0) or None)
