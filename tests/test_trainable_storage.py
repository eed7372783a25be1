import os
from pathlib import Path

import pytest

from trainable.host import storage
from trainable.host.storage import Folder, NoSpaceError


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
