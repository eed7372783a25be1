"""Whole files in a folder that is local or in an object store: a file is there complete, or not."""

import errno
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

SETTLE_S = 2.0  # after which a writer in an object store sees whether it was the last


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
        """The folder `name` in this one."""
        return Folder(f"{self.uri}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine's file system."""
        return "://" not in self.uri

    def opened(self) -> tuple[fs.FileSystem, str]:
        """The file system and the folder's path in it."""
        filesystem, path = fs.FileSystem.from_uri(self.uri)
        return filesystem, path


def folder_at(where: str) -> Folder:
    """A folder from what a user types: a path, relative ones to here, or a URI.

    Raises:
        ValueError: a URI that no file system takes.
    """
    if "://" not in where:
        return Folder(str(Path(where).resolve()))
    folder = Folder(where.rstrip("/"))
    try:
        folder.opened()
    except (ValueError, OSError) as error:
        raise ValueError(f"{where} is not a folder that can be opened: {error}") from error
    return folder


def write(folder: Folder, name: str, content: bytes) -> None:
    """Put a file there, in place of an older one; a reader sees the one or the other, whole."""
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

    Sure on a local disk and on NFS. An object store of pyarrow's has no such call: there it is
    written and read again after a moment, and of two at once the later one stays.
    """
    if not folder.is_local:
        filesystem, path = folder.opened()
        if filesystem.get_file_info(f"{path}/{name}").type != fs.FileType.NotFound:
            return False
        write(folder, name, content)
        time.sleep(SETTLE_S)
        return read(folder, name) == content
    directory = Path(folder.uri)
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


def read(folder: Folder, name: str) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: it is not there.
    """
    if folder.is_local:
        return (Path(folder.uri) / name).read_bytes()
    filesystem, path = folder.opened()
    with filesystem.open_input_stream(f"{path}/{name}") as stream:
        content: bytes = stream.read()
    return content


def names(folder: Folder, suffix: str) -> list[str]:
    """The files of a folder that end so and are not hidden, sorted; empty where there is none."""
    filesystem, path = fs.FileSystem.from_uri(folder.uri)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    files = [each.base_name for each in found if each.type == fs.FileType.File]
    return sorted(n for n in files if n.endswith(suffix) and n[0] not in "._")


def delete_file(folder: Folder, name: str) -> None:
    """Remove a file if it is there, and its folder if that is local and empty then."""
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
