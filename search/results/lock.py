"""One writer per study: a lock file with its holder and a heartbeat, which can become stale."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainable.host import storage
from trainable.host.storage import Folder, TakenOverError

NAME = "lock.json"
BEAT_S = 5.0
STALE_BEATS = 4  # a holder elsewhere counts as dead after so many beats without a change
LATE_BEATS = 2  # after so many a holder asks the folder whether it still holds the lock


class LockedError(RuntimeError):
    """Another process writes to the study; the message names it."""


class _Hold:
    """A lock that this process holds, as far as it knows."""

    def __init__(self, folder: Folder, mine: dict[str, Any]) -> None:
        """It has just been taken."""
        self.folder, self.mine = folder, mine
        self.is_lost = False
        self.confirmed = _clocks()

    def beat(self) -> None:
        """Write the next beat, unless another process has taken the lock over.

        Raises:
            OSError: the folder does not answer; whether the lock is still held is unknown.
        """
        self._look()
        if not self.is_lost:
            self.mine["beat"] += 1
            storage.write_once(self.folder, NAME, json.dumps(self.mine).encode())
            self.confirmed = _clocks()

    def _look(self) -> None:
        holder = _read(self.folder) or {}
        self.is_lost = self.is_lost or holder.get("token") != self.mine["token"]

    def check(self) -> None:
        """Raises TakenOverError if the lock is lost; asks the folder if the last beat is late."""
        passed_s = max(now - then for now, then in zip(_clocks(), self.confirmed, strict=True))
        if passed_s > LATE_BEATS * BEAT_S:
            self._look()
        if self.is_lost:
            raise TakenOverError(
                f"another process writes to {self.folder.uri} now, which took this one for dead; "
                f"this one stops"
            )


_holds: dict[str, _Hold] = {}  # of this process, by folder


@contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Hold a study's lock. Others get an error, or take the lock over when this process is dead.

    A holder on this machine is dead if its process does not exist. A holder elsewhere is dead if
    its beat has not changed for twenty seconds by this process's clock: clocks need not agree. So a
    holder that stood still for that long (a paused machine) may have lost the lock: `check`.

    Raises:
        LockedError: a running process holds the lock.
    """
    mine: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "token": uuid.uuid4().hex,
        "beat": 0,
    }
    _take(folder, mine)
    hold = _holds[folder.uri] = _Hold(folder, mine)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S) and not hold.is_lost:
            with suppress(OSError):  # the writer of the tables reports what is wrong
                hold.beat()

    beater = threading.Thread(target=beat, name="lock", daemon=True)
    beater.start()
    try:
        yield
    finally:
        del _holds[folder.uri]
        stop.set()
        beater.join()
        if (_read(folder) or {}).get("token") == mine["token"]:
            storage.delete_file(folder, NAME)


def check(folder: Folder) -> None:
    """Before a file of a study is written: does this process still hold its lock, if it took it?

    `folder` is the study's, or one in it.

    Raises:
        TakenOverError: another process has taken it over.
        UnavailableError: the folder does not answer, so it is unknown.
    """
    path = folder.uri.partition("?")[0]
    for uri, hold in list(_holds.items()):
        if f"{path}/".startswith(f"{uri.partition('?')[0]}/"):
            hold.check()


def _clocks() -> tuple[float, float]:
    """Seconds by two clocks: the second one goes on while a virtual machine is paused."""
    return time.monotonic(), time.time()


def _take(folder: Folder, mine: dict[str, Any]) -> None:
    content = json.dumps(mine).encode()
    dead: bytes | None = None
    while True:
        if folder.is_local:
            put = storage.create(folder, NAME, content)
        else:
            put = storage.create_in_store(folder, NAME, content, instead_of=dead)
        if put:
            return
        try:
            dead = storage.read(folder, NAME)
        except FileNotFoundError:
            continue  # it was released between the two calls
        holder = _parsed(dead)
        if _is_alive(folder, holder):
            raise LockedError(
                f"process {holder.get('pid')} on {holder.get('host')} is writing to {folder.uri}: "
                f"wait for it, stop it, or use another --out"
            )
        if folder.is_local:
            _clear_away(folder, holder)


def _clear_away(folder: Folder, dead: dict[str, Any]) -> None:
    """Remove a dead holder's file, and not that of one who took it over in the meantime."""
    aside = f".{NAME}-{uuid.uuid4().hex}"
    path = Path(folder.uri)
    try:
        (path / NAME).rename(path / aside)
    except FileNotFoundError:
        return
    if (_read(folder, aside) or {}).get("token") != dead.get("token"):
        storage.create(folder, NAME, storage.read(folder, aside))  # a live one's: put it back
    (path / aside).unlink()


def _read(folder: Folder, name: str = NAME) -> dict[str, Any] | None:
    try:
        return _parsed(storage.read(folder, name))
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(folder: Folder, holder: dict[str, Any]) -> bool:
    if not holder:
        return False
    if holder.get("host") == socket.gethostname():
        pid = holder.get("pid")
        return isinstance(pid, int) and _start_of(pid) == holder.get("started") != ""
    deadline = time.monotonic() + STALE_BEATS * BEAT_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S, 1.0))
        now = _read(folder)
        if now is None:
            return False
        if now != holder:
            return True
    return False


def _start_of(pid: int) -> str:
    """When a process of this machine started, in kernel ticks; empty if it does not exist.

    A reused process number has another start time; after a reboot the boot id is different.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "?"  # it runs, on a system that does not tell its start time
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{boot}-{fields[19]}"
