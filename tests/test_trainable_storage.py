import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainable.host import storage
from trainable.host.storage import Folder, NoSpaceError, UnavailableError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    storage.write(folder, "a.bin", b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(NoSpaceError, match=f"no space left in {tmp_path}"):
            storage.write(folder, "a.bin", b"new")
    assert storage.read(folder, "a.bin") == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]  # noqa: PTH208


def test_hidden_and_other_files_are_not_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for name in ("b.parquet", "a.parquet", ".c.parquet", "_d.parquet", "e.json"):
        (tmp_path / name).write_bytes(b"x")
    assert storage.names(folder, ".parquet") == ["a.parquet", "b.parquet"]
    assert storage.names(folder / "nowhere", ".parquet") == []


def test_a_uri_is_a_folder_too(tmp_path: Path) -> None:
    folder = storage.folder_at(f"file://{tmp_path}/x")
    storage.folder_at(str(tmp_path))
    (tmp_path / "x").mkdir()
    storage.write(folder, "a.bin", b"content")
    assert storage.read(folder, "a.bin") == b"content"
    assert storage.names(folder, ".bin") == ["a.bin"]
    storage.delete(folder)
    assert not (tmp_path / "x").exists()
    storage.delete(folder)


def test_an_unknown_uri_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the folder .* cannot be opened"):
        storage.folder_at("gopher://x/y")


def failing(times: int, error: OSError) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function fail so many times, then work."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        left = [error] * times

        def flaky(*args: Any, **kwargs: Any) -> Any:
            if left:
                raise left.pop()
            return call(*args, **kwargs)

        return flaky

    return wrap


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited, in seconds that pass at once."""
    waited: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    monkeypatch.setattr(storage.time, "monotonic", lambda: sum(waited))
    return waited


STALE = OSError(errno.ESTALE, "Stale file handle")
SLOW_DOWN = OSError("When uploading part: AWS Error SLOW_DOWN during UploadPart: reduce your rate")


@pytest.mark.parametrize("error", [STALE, SLOW_DOWN], ids=["ESTALE", "503"])
def test_storage_that_fails_for_a_moment_is_asked_again(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    folder = Folder(str(tmp_path))
    monkeypatch.setattr(os, "fsync", failing(3, error)(os.fsync))
    storage.write(folder, "a.bin", b"content")
    assert len(waits) == 3
    assert waits[2] > waits[0]
    assert storage.read(folder, "a.bin") == b"content"
    assert os.listdir(tmp_path) == ["a.bin"]  # noqa: PTH208
    monkeypatch.setattr(Path, "read_bytes", failing(2, error)(Path.read_bytes))
    assert storage.read(folder, "a.bin") == b"content"
    assert len(waits) == 5


def test_storage_that_does_not_come_back_is_given_up_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    folder = Folder(str(tmp_path))
    storage.write(folder, "a.bin", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(1000, STALE)(os.fsync))
        with pytest.raises(UnavailableError, match=f"{tmp_path} did not answer for [45]. s "):
            storage.write(folder, "a.bin", b"new")
        assert storage.RETRY_S - storage.LONGEST_WAIT_S <= sum(waits) <= storage.RETRY_S
        waits.clear()
        with pytest.raises(UnavailableError):  # as a study ends it does not wait as long again
            storage.write(folder, "b.bin", b"new")
        assert sum(waits) <= storage.UNKNOWN_S
    assert storage.read(folder, "a.bin") == b"old"


def test_a_store_that_never_answered_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    folder = Folder("s3://nowhere/study")
    monkeypatch.setattr(Folder, "opened", failing(1000, SLOW_DOWN)(Folder.opened))
    with pytest.raises(UnavailableError, match="s3://nowhere/study did not answer"):
        storage.read(folder, "a.bin")
    assert sum(waits) <= storage.UNKNOWN_S


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "denied"),
        OSError(errno.EIO, "of one sector"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation"),
    ],
)
def test_what_another_attempt_does_not_change_is_told_at_once(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(os, "fsync", failing(1, error)(os.fsync))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        storage.write(Folder(str(tmp_path)), "a.bin", b"content")
    assert caught.value is error
    assert waits == []
    with pytest.raises(FileNotFoundError):
        storage.read(Folder(str(tmp_path)), "missing")
    assert waits == []


def test_all_folders_of_a_bucket_share_a_client() -> None:
    """A study has a folder of checkpoints for each trial."""
    options = "?region=us-east-1"
    study = Folder(f"s3://bucket/out/study{options}")
    opened = [(study / "checkpoints" / key).opened() for key in ("a", "b")]
    assert opened[0][0] is opened[1][0] is study.opened()[0]
    assert [path for _, path in opened] == [f"bucket/out/study/checkpoints/{k}" for k in "ab"]
    assert Folder(f"s3://bucket{options}").opened() == (study.opened()[0], "bucket")
    for other in (f"s3://other/out{options}", "s3://bucket/out?region=eu-west-1"):
        assert Folder(other).opened()[0] is not study.opened()[0]
