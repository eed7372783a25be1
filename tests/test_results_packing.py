"""Packing, step by step: whatever a reader sees, or a kill leaves, is each row once."""

import contextlib
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from search.results import files, tables
from search.results.tables import EPOCHS, TABLES, Results

KEYS = ["k1", "k2", "q1"]  # names before and after `packed-`
STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LISTING_S", 0.0)


def fill(opened: Results, keys: list[str], *, epochs: int = 3, status: str = "completed") -> None:
    for key in keys:
        own = {"study": "s", "trial_key": key, "seed": 0, "attempt": 1}
        rows = [own | {"epoch": epoch, "val_auroc": 0.5} for epoch in range(1, epochs + 1)]
        tables.commit_epochs(opened, key, rows)
        ended = {"epochs_completed": epochs, "ended_at": datetime.now(UTC)}
        tables.commit_trial(opened, own | {"status": status, "reason": ""} | ended)


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    found = tables.open_results(str(tmp_path), "s")
    fill(found, KEYS)
    return found


def rows_of(folder: Path) -> list[tuple[str, int]]:
    """Read by Parquet alone, as a user's script does."""
    table = pq.read_table(folder, columns=["trial_key", "epoch"])
    return sorted(zip(table["trial_key"].to_pylist(), table["epoch"].to_pylist(), strict=True))


WHOLE = [(key, epoch) for key in KEYS for epoch in (1, 2, 3)]


@contextlib.contextmanager
def after_each_step(look: Callable[[str], None]) -> Iterator[None]:
    """Look around before and after each change to the disk that is made from Python."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            plain = getattr(os, name)

            def step(*given: Any, name: str = name, plain: Any = plain, **more: Any) -> Any:
                look(name)
                answer = plain(*given, **more)
                look(name)
                return answer

            patch.setattr(os, name, step)
        yield


def test_a_reader_sees_each_row_once_at_every_step_of_a_pack(
    opened: Results, tmp_path: Path
) -> None:
    folder = tmp_path / "s" / "epochs"
    steps = []

    def look(step: str) -> None:
        steps.append(step)
        assert rows_of(folder) == WHOLE, step

    with after_each_step(look):
        assert files.pack(opened / "epochs", EPOCHS, apart=["k2"]) == 1
        assert sorted(p.name for p in folder.iterdir())[0] == "k2.parquet"
        assert files.pack(opened / "epochs", EPOCHS) == 1
    assert len(steps) > 10
    assert {"replace", "unlink", "rmdir"} <= set(steps)
    (packed,) = folder.iterdir()
    assert packed.name.startswith("packed-")


def test_who_opened_the_old_folder_has_time_to_list_it(
    opened: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    def wait(seconds: float) -> None:
        (old,) = (tmp_path / "s").glob(".epochs-packing-*")
        left.append((seconds, sorted(path.name for path in old.iterdir())))

    monkeypatch.setattr(files, "LISTING_S", 0.2)
    monkeypatch.setattr(files.time, "sleep", wait)
    files.pack(opened / "epochs", EPOCHS)
    assert left == [(0.2, [f"{key}.parquet" for key in KEYS])]


def test_a_pack_that_is_killed_at_any_step_is_cleared_up_with_nothing_lost(
    opened: Results, tmp_path: Path
) -> None:
    folder = tmp_path / "s" / "epochs"
    for last in range(100):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, at a fork
            child = os.fork()
        if not child:
            signal.alarm(60)  # a thread's lock that the fork left closed must not hang the suite
            left = iter(range(last))

            def die(_: str, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    os._exit(9)

            try:
                with after_each_step(die):
                    files.pack(opened / "epochs", EPOCHS, apart=["k1"] if last % 2 else [])
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert rows_of(folder) == WHOLE, last
        assert tables.make_sound(opened) == []
        assert [p.name for p in (tmp_path / "s").glob(".*") if p.name != ".writable"] == []
        assert list(folder.glob(".*")) == []
        assert tables.faults(opened) == []
        if status == 0:
            break
        assert status == 9
    else:
        raise AssertionError("a pack without end")
    assert last > 10


def test_without_an_exchange_in_one_step_the_folders_are_swapped_all_the_same(
    opened: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Without:
        """A system's library that cannot exchange, or fails to."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

    class Fails(Without):
        def renameat2(self, *_: Any) -> int:
            return -1

    for library, keys in ((Without, ["q1"]), (Fails, [])):
        monkeypatch.setattr(files.ctypes, "CDLL", library)
        files.pack(opened / "epochs", EPOCHS, apart=keys)
        assert rows_of(tmp_path / "s" / "epochs") == WHOLE
    assert len(list((tmp_path / "s" / "epochs").iterdir())) == 1
    assert [p.name for p in (tmp_path / "s").glob(".*")] == [".writable"]


def test_a_swap_that_was_killed_half_way_is_taken_back(opened: Results, tmp_path: Path) -> None:
    """Where a system cannot exchange: the old folder is away, the new one not yet in its place."""
    folder = tmp_path / "s" / "epochs"
    shutil.copytree(folder, tmp_path / "s" / ".epochs-packing-0")
    folder.rename(tmp_path / "s" / ".epochs-old")
    assert tables.make_sound(opened) == []
    assert rows_of(folder) == WHOLE
    assert [p.name for p in (tmp_path / "s").glob(".*")] == [".writable"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(
    opened: Results, tmp_path: Path
) -> None:
    study = tmp_path / "s"
    for table in TABLES:
        (study / table / ".k1.parquet-0123").write_bytes(b"PAR1")
        (study / table / ".hidden").write_bytes(b"mine")
        for left in (f".{table}-packing-0123", f".{table}-old"):
            shutil.copytree(study / table, study / left)
    (study / ".elsewhere-old").mkdir()
    for table in TABLES:
        files.recover(opened / table)
        assert sorted(p.name for p in (study / table).iterdir()) == [
            ".hidden",
            *(f"{key}.parquet" for key in KEYS),
        ]
    kept = {p.name for p in study.glob(".*")}
    assert kept == {".writable", ".elsewhere-old"}
    assert rows_of(study / "epochs") == WHOLE
    files.recover(opened / "nowhere")


def test_a_trials_own_file_goes_before_a_packed_one(opened: Results, tmp_path: Path) -> None:
    tables.compact(opened)
    fill(opened, ["q1"], epochs=4)
    assert len(tables.epochs(opened)) == 3 + 3 + 4  # in two files
    fill(opened, ["q1", "k1"], epochs=5, status="stopped")
    ended = tables.trials(opened).set_index("trial_key")["status"].to_dict()
    assert ended == {"k1": "stopped", "k2": "completed", "q1": "stopped"}
    counts = tables.epochs(opened).groupby("trial_key").size().to_dict()
    assert counts == {"k1": 5, "k2": 3, "q1": 5}
    assert tables.compact(opened) == 4
    assert tables.epochs(opened).groupby("trial_key").size().to_dict() == counts
    assert tables.trials(opened).set_index("trial_key")["status"].to_dict() == ended
    assert rows_of(tmp_path / "s" / "epochs") == sorted(
        (key, epoch) for key, n in counts.items() for epoch in range(1, n + 1)
    )


def test_a_reader_lists_anew_where_a_table_is_packed_under_it(
    opened: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack comes between the listing and the reading, again and again; it gives up at last."""
    listed = files.storage.names
    packs = 0

    def names(folder: Any, suffix: str) -> list[str]:
        nonlocal packs
        found = listed(folder, suffix)
        if packs < limit:
            packs += 1
            with monkeypatch.context() as patch:
                patch.setattr(files.storage, "names", listed)
                files.pack(folder, EPOCHS)
        return found

    for limit in (1, files.RELISTS):
        packs = 0
        with monkeypatch.context() as patch:
            patch.setattr(files.storage, "names", names)
            table, damaged = files.read_parts(opened / "epochs", EPOCHS)
        assert damaged == {}
        assert (len(table), packs) == (9, limit)
    limit, packs = files.RELISTS + 1, 0
    monkeypatch.setattr(files.storage, "names", names)
    with pytest.raises(FileNotFoundError):
        files.read_parts(opened / "epochs", EPOCHS)


def test_a_pack_is_in_order_and_counts_the_files_that_it_saves(
    opened: Results, tmp_path: Path
) -> None:
    late = [{"trial_key": "a0", "epoch": epoch} for epoch in (3, 1, 2)]
    tables.commit_epochs(opened, "a0", late)
    assert files.packed_keys(opened / "epochs") == set()
    assert files.pack(opened / "epochs", EPOCHS, apart=["k2", "q1", "unknown"]) == 4 - 3
    names = sorted(p.name for p in (tmp_path / "s" / "epochs").iterdir())
    assert [names[0], names[2]] == ["k2.parquet", "q1.parquet"]
    assert files.packed_keys(opened / "epochs") == {"a0", "k1"}
    packed = pq.read_table(tmp_path / "s" / "epochs" / names[1])
    assert packed["trial_key"].to_pylist() == ["a0"] * 3 + ["k1"] * 3
    assert packed["epoch"].to_pylist() == [1, 2, 3, 1, 2, 3]
    assert files.pack(opened / "nowhere", EPOCHS) == 0
    assert not (tmp_path / "s" / "nowhere").exists()


def test_a_damaged_table_is_not_packed(opened: Results, tmp_path: Path) -> None:
    broken = tmp_path / "s" / "epochs" / "k2.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(tables.ResultsError, match=r"k2\.parquet cannot be read: run verify first"):
        tables.compact(opened)
    assert tables.num_files(opened) == 3 + 1  # the trials are packed, the epochs as they were


# --- in an object store, where folders cannot be swapped ------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Results:
    found = tables.open_results(f"file://{tmp_path}", "s")  # a URI is no local folder to us
    fill(found, KEYS)
    return found


def files_of(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


def test_in_a_store_the_new_files_come_before_the_old_ones_go(
    stored: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s" / "epochs"
    plain = {name: getattr(files.storage, name) for name in ("write", "delete_file")}
    steps = []

    def look(step: str) -> None:
        steps.append(step)
        assert set(rows_of(folder)) == set(WHOLE)  # a plain reader may see a row in two files
        table, damaged = files.read_parts(stored / "epochs", EPOCHS)
        assert (len(table), damaged) == (9, {})  # ours sees it once

    for name in plain:

        def step(*given: Any, name: str = name) -> None:
            plain[name](*given)
            look(name)

        monkeypatch.setattr(files.storage, name, step)
    assert files.pack(stored / "epochs", EPOCHS, apart=["k2"]) == 1
    assert steps == ["write"] * 2 + ["delete_file"] * 2
    assert files_of(folder) == ["k2.parquet", "packed"]
    assert files.pack(stored / "epochs", EPOCHS) == 1
    assert files_of(folder) == ["packed"]
    assert rows_of(folder) == WHOLE


def test_in_a_store_a_pack_that_was_killed_is_done_again(stored: Results, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "epochs"
    for apart in ([], ["k2"]):  # all were packed already, or all but one
        fill(stored, KEYS)
        shutil.copytree(folder, tmp_path / "own", dirs_exist_ok=True)
        files.pack(stored / "epochs", EPOCHS, apart=apart)
        (tmp_path / "own" / "k1.parquet").rename(folder / "k1.parquet")
        assert len(pq.read_table(folder)) == 12
        assert tables.make_sound(stored) == []
        assert rows_of(folder) == WHOLE
        assert files_of(folder) == ["packed"]
        shutil.rmtree(tmp_path / "own")


def test_in_a_store_nothing_is_packed_that_is_there_once(stored: Results, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "epochs"
    assert tables.make_sound(stored) == []
    assert files_of(folder) == [f"{key}.parquet" for key in KEYS]
    files.pack(stored / "epochs", EPOCHS, apart=["k2"])
    before = sorted(path.name for path in folder.iterdir())
    assert tables.make_sound(stored) == []
    assert sorted(path.name for path in folder.iterdir()) == before
    (folder / ".k1.parquet-0123").write_bytes(b"")
    files.recover(stored / "epochs")  # a store has no halves of files to clear up
    assert (folder / ".k1.parquet-0123").exists()
