"""Rows are written beside the driver: soon, in order, few times; and an error ends the study."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from search.results import tables, writer
from search.results.tables import Results
from search.results.writer import Writer
from trainable.host.storage import NoSpaceError, TakenOverError


def rows_of(key: str, num: int) -> list[dict[str, Any]]:
    return [{"study": "s", "trial_key": key, "epoch": epoch} for epoch in range(1, num + 1)]


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    return tables.open_results(str(tmp_path), "s")


class Slow:
    """Commits that wait until they are let go, and what was committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_go = threading.Semaphore(0), threading.Semaphore(0)
        self.committed: list[tuple[str, int]] = []
        commit = tables.commit_epochs

        def slowly(results: Results, key: str, rows: Any) -> None:
            self.begun.release()
            assert self.let_go.acquire(timeout=30)
            commit(results, key, rows)
            self.committed.append((key, len(rows)))

        monkeypatch.setattr(tables, "commit_epochs", slowly)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


def end_of(opened: Results, key: str) -> Callable[[], dict[str, Any]]:
    def commit() -> dict[str, Any]:
        row = {"study": "s", "trial_key": key, "status": "completed", "epochs_completed": 2}
        tables.commit_trial(opened, row)
        return row

    return commit


def test_evaluations_that_come_during_a_write_become_one_write(opened: Results, slow: Slow) -> None:
    write = Writer(opened)
    write.epochs("a", rows_of("a", 1))
    assert slow.begun.acquire(timeout=30)
    began = time.monotonic()
    for num in (2, 3, 4, 5):
        write.epochs("a", rows_of("a", num))
    write.epochs("b", rows_of("b", 1))
    assert time.monotonic() - began < 1  # who commits does not wait
    for _ in range(3):
        slow.let_go.release()
    write.close()
    assert slow.committed == [("a", 1), ("a", 5), ("b", 1)]
    assert tables.faults(opened) == []


def test_an_end_is_known_when_all_of_the_trial_is_written(opened: Results, slow: Slow) -> None:
    write = Writer(opened)
    write.epochs("a", rows_of("a", 2))
    write.ending("a", end_of(opened, "a"))
    assert slow.begun.acquire(timeout=30)
    assert write.take_ended() == {}
    assert tables.trials(opened).empty
    slow.let_go.release()
    write.settle()
    assert len(tables.epochs(opened)) == 2
    assert [*write.take_ended()] == ["a"]
    assert write.take_ended() == {}
    write.close()


def test_an_end_does_not_wait_while_the_writer_rests(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "REST", 1e9)
    monkeypatch.setattr(writer, "MOST_REST_S", 60.0)
    write = Writer(opened)
    write.epochs("a", rows_of("a", 1))
    while tables.epochs(opened).empty:
        time.sleep(0.01)
    write.epochs("a", rows_of("a", 2))
    write.epochs("b", rows_of("b", 1))
    began = time.monotonic()
    write.ending("a", end_of(opened, "a"))
    write.settle()
    assert tables.epochs(opened)["trial_key"].to_list() == ["a", "a"]
    write.close()  # nor does the end of the study
    assert time.monotonic() - began < 10
    assert tables.epochs(opened)["trial_key"].to_list() == ["a", "a", "b"]


@pytest.mark.parametrize(
    "error", [NoSpaceError(errno.ENOSPC, "full"), TakenOverError("another process writes")]
)
def test_an_error_reaches_the_driver_and_ends_all_writing(
    error: Exception, opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    write = Writer(opened)
    write.ending("b", end_of(opened, "b"))
    write.settle()
    monkeypatch.setattr(tables, "commit_epochs", fails)
    write.epochs("a", rows_of("a", 1))
    write.ending("a", end_of(opened, "a"))
    for raises in (write.settle, write.take_ended, write.close):
        with pytest.raises(type(error)):
            raises()
    with pytest.raises(type(error)):
        write.epochs("c", rows_of("c", 1))
    assert tables.trials(opened)["trial_key"].to_list() == ["b"]


def test_trials_that_ended_are_packed_on_the_way(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain reader of the folder sees each row once, at every moment."""
    monkeypatch.setattr(writer, "PACK_FROM", 5)
    write = Writer(opened)
    write.epochs("goes-on", rows_of("goes-on", 1))
    is_over, seen = threading.Event(), []

    def look() -> None:
        while not is_over.wait(0.02):
            try:
                epochs = pd.read_parquet(f"{opened.folder.uri}/epochs")
            except FileNotFoundError:
                continue  # between its listing and its reading
            seen.append(len(epochs))
            assert not epochs.duplicated(["trial_key", "epoch"]).any()

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(12):
        write.epochs(f"t{number}", rows_of(f"t{number}", 2))
        write.ending(f"t{number}", end_of(opened, f"t{number}"))
    write.settle()
    is_over.set()
    looking.join()
    write.epochs("goes-on", rows_of("goes-on", 2))
    write.close()
    assert seen == sorted(seen)
    assert len(tables.packed(opened)) == 10
    assert tables.num_files(opened) < 2 * 13
    assert len(tables.epochs(opened)) == 2 * 13
    assert tables.faults(opened) == []
    assert tables.make_sound(opened) == []


def test_an_object_store_is_written_by_several_at_once(
    opened: Results, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(opened.folder), "is_local", property(lambda folder: False))
    write = Writer(opened)
    for key in ("a", "b"):
        write.epochs(key, rows_of(key, 1))
    assert slow.begun.acquire(timeout=30)
    assert slow.begun.acquire(timeout=30)
    write.epochs("a", rows_of("a", 2))  # waits: a file has one writer
    assert not slow.begun.acquire(timeout=0.2)
    monkeypatch.undo()
    for _ in range(3):
        slow.let_go.release()
    write.close()
    assert tables.epochs(opened)["trial_key"].to_list() == ["a", "a", "b"]
