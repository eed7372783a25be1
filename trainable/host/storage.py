"""Whole files in a folder that is local or in an object store: a file is there complete, or not."""

import errno
import os
import random
import shutil
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pyarrow import fs

from trainable.host import credentials

CLAIM_STALE_S = 20.0  # after which a claim in an object store is that of a dead process

FULL = (errno.ENOSPC, errno.EDQUOT)


class NoSpaceError(OSError):
    """There is no room for a file; the message names the folder. Nothing was truncated."""


class TakenOverError(RuntimeError):
    """Another process writes to the folder now: this one is an orphan, and must write no more."""


@dataclass(frozen=True)
class Folder:
    """A folder by its URI, or by its absolute path. Picklable: workers open it themselves."""

    uri: str

    def __truediv__(self, name: str) -> "Folder":
        """The folder `name` in this one.

        Raises:
            ValueError: the name could lead out of this folder.
        """
        path, query, options = self.uri.partition("?")
        return Folder(f"{path}/{_checked(name)}{query}{options}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine's file system."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """Its own name: the last part of its path."""
        return self.uri.partition("?")[0].rpartition("/")[2]

    def opened(self) -> tuple[fs.FileSystem, str]:
        """The file system and the folder's path in it."""
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        return _opened(self.uri)


@lru_cache(4096)
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """Kept, since a store's region may have to be asked for each time."""
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def is_name(name: object) -> bool:
    """Whether it names a file or folder in a folder, and cannot lead out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _checked(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"{name!r} is not a file's or folder's name: it may have no / and no ..")
    return name


def folder_at(where: str) -> Folder:
    """A folder from what a user types: a path, relative ones to here, or a URI.

    Raises:
        ValueError: a URI that no file system takes, or one with a password in it.
    """
    if credentials.in_uri(where):
        raise ValueError(f"the URI's part before the @, or its query, {credentials.REFUSED}")
    if "://" not in where:
        return Folder(str(Path(where).resolve()))
    path, query, options = where.partition("?")
    folder = Folder(f"{path.rstrip('/')}{query}{options}")
    try:
        folder.opened()
    except (ValueError, OSError) as error:
        raise ValueError(f"{where} is not a folder that can be opened: {error}") from error
    return folder


def write(folder: Folder, name: str, content: bytes) -> None:
    """Put a file there, in place of an older one; a reader sees the one or the other, whole."""
    _checked(name)
    if not folder.is_local:
        filesystem, path = folder.opened()
        if isinstance(filesystem, fs.LocalFileSystem):  # file://
            filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(content)  # a store makes an object visible when its upload ends
        return
    directory = Path(folder.uri)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpaceError(error.errno, f"no space left in {folder.uri}") from error
        raise
    # Readers of a folder of Parquet pass over names that begin with a dot.
    writing = directory / f".{name}-{uuid.uuid4().hex}"
    try:
        with open(writing, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(writing, directory / name)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpaceError(error.errno, f"no space left in {folder.uri}") from error
        raise
    finally:
        writing.unlink(missing_ok=True)
    entry = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def free_bytes(folder: Folder) -> int | None:
    """What is left on the disk of a folder that exists; None in an object store."""
    return shutil.disk_usage(folder.uri).free if folder.is_local else None


def create(folder: Folder, name: str, content: bytes) -> bool:
    """Put a file there unless one of that name is; returns whether it was put.

    On a local disk and on NFS; `create_in_store` is for object stores.
    """
    directory = Path(folder.uri) / _checked(name)
    directory, name = directory.parent, directory.name
    directory.mkdir(parents=True, exist_ok=True)
    writing = directory / f".{name}-{uuid.uuid4().hex}"
    try:
        writing.write_bytes(content)
        os.link(writing, directory / name)  # fails where there is one, on NFS too
    except FileExistsError:
        return False
    finally:
        writing.unlink(missing_ok=True)
    return True


def create_in_store(
    folder: Folder, name: str, content: bytes, *, instead_of: bytes | None = None
) -> bool:
    """Put an object there unless there is one, other than `instead_of`; returns whether it was put.

    pyarrow's file systems have no conditional PUT, so each writer puts a claim first, lists, and
    goes on only where it sees no other's: of two at once at least one sees the other. Sure where a
    listing shows every object that was put before it (S3 since 2020, GCS, Azure, MinIO), unless a
    writer stops for twenty seconds between its listing and its writing.
    """
    prefix = f".{_checked(name)}-claim-"
    own = f"{prefix}{uuid.uuid4().hex}"
    since: dict[str, float] = {}
    while True:
        write(folder, own, b"")
        try:
            others = [each for each in _listed(folder) if each.startswith(prefix) and each != own]
            if not others:
                try:
                    if read(folder, name) != instead_of:
                        return False
                except FileNotFoundError:
                    pass
                write(folder, name, content)
                return own in _listed(folder)  # else it was taken for dead, and another goes on
        finally:
            delete_file(folder, own)
        now = time.monotonic()
        since = {each: since.get(each, now) for each in others}
        for each, first_seen in since.items():
            if now - first_seen > CLAIM_STALE_S:
                delete_file(folder, each)
        time.sleep(random.uniform(0.05, 0.5))


def read(folder: Folder, name: str) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: it is not there.
    """
    _checked(name)
    if folder.is_local:
        return (Path(folder.uri) / name).read_bytes()
    filesystem, path = folder.opened()
    with filesystem.open_input_stream(f"{path}/{name}") as stream:
        content: bytes = stream.read()
    return content


def names(folder: Folder, suffix: str) -> list[str]:
    """The files of a folder that end so and are not hidden, sorted; empty where there is none."""
    return sorted(n for n in _listed(folder) if n.endswith(suffix) and n[0] not in "._")


def _listed(folder: Folder) -> list[str]:
    filesystem, path = folder.opened()
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [each.base_name for each in found if each.type == fs.FileType.File]


def delete_file(folder: Folder, name: str) -> None:
    """Remove a file if it is there, and its folder if that is local and empty then."""
    _checked(name)
    if folder.is_local:
        path = Path(folder.uri)
        (path / name).unlink(missing_ok=True)
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        return
    filesystem, path_in_store = folder.opened()
    if filesystem.get_file_info(f"{path_in_store}/{name}").type != fs.FileType.NotFound:
        filesystem.delete_file(f"{path_in_store}/{name}")


def delete(folder: Folder) -> None:
    """Remove a folder with all in it; nothing happens where there is none."""
    filesystem, path = folder.opened()
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_dir(path)
