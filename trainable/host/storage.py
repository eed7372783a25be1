"""Files in a local folder or an object store; a file is written completely or not at all.

A store or a network file system that fails for a moment is asked again for up to `RETRY_S`.
"""

import errno
import functools
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from pyarrow import fs

from trainable.host import credentials

CLAIM_STALE_S = 20.0  # after this time the process of a claim in an object store counts as dead

FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_S = 60.0  # from the first failure to the last attempt
UNKNOWN_S = 10.0  # the same of a storage that never answered: its address may be wrong
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 8.0
# What network file systems say while a server or the way to it is down.
FOR_A_MOMENT = {
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
# Of an object store all errors may pass but these, which another attempt does not change.
LASTING = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")

_answered: set[str] = set()  # what this process has reached

P = ParamSpec("P")
T = TypeVar("T")


class StorageError(OSError):
    """Nothing can be stored now; the message says why. What was stored is whole."""


class NoSpaceError(StorageError):
    """The disk is full; the message names the folder. No file was truncated."""


class UnavailableError(StorageError):
    """The folder could not be read or written, however often it was tried."""


class TakenOverError(RuntimeError):
    """Another process writes to the folder now; this one must not write to it any more."""


@dataclass(frozen=True)
class Folder:
    """A folder, given by URI or absolute path. It can be pickled: workers open it themselves."""

    uri: str

    def __truediv__(self, name: str) -> "Folder":
        """The folder `name` in this one.

        Raises:
            ValueError: the name could lead outside this folder.
        """
        path, query, options = self.uri.partition("?")
        return Folder(f"{path}/{_checked(name)}{query}{options}")

    @property
    def is_local(self) -> bool:
        """Whether it is in this machine's file system."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.uri.partition("?")[0].rpartition("/")[2]

    def opened(self) -> tuple[fs.FileSystem, str]:
        """The file system and the folder's path in it."""
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        return _opened(self.uri)


@lru_cache(4096)
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """Cached, because opening a store may need a request for its region; one client a bucket."""
    path, query, options = uri.partition("?")
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in ("s3", "gs") or not key or "%" in path:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path
    filesystem, root = _opened(f"{scheme}://{bucket}{query}{options}")
    return filesystem, f"{root}/{key}"


def is_name(name: object) -> bool:
    """Whether it is the name of a file or folder, and cannot lead outside its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _checked(name: str) -> str:
    if not is_name(name):
        raise ValueError(
            f"{name!r} is not the name of a file or folder: it must not contain / or .."
        )
    return name


def folder_at(where: str) -> Folder:
    """The folder that a user names by a path or a URI.

    Raises:
        ValueError: no file system accepts the URI, or it contains a password.
    """
    if credentials.in_uri(where):
        raise ValueError(f"the part of the URI before the @, or its query, {credentials.REFUSED}")
    if "://" not in where:
        return Folder(str(Path(where).resolve()))
    path, query, options = where.partition("?")
    folder = Folder(f"{path.rstrip('/')}{query}{options}")
    try:
        folder.opened()
    except (ValueError, OSError) as error:
        raise ValueError(f"the folder {where} cannot be opened: {error}") from error
    return folder


def _passes(error: OSError) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, StorageError | FileNotFoundError | FileExistsError | PermissionError):
        return False
    if error.errno is None:  # of an object store
        return not any(word in str(error) for word in LASTING)
    return error.errno in FOR_A_MOMENT


def _retried(call: Callable[P, T]) -> Callable[P, T]:
    """Call again, after longer and longer waits, while the storage fails for a moment."""

    @functools.wraps(call)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        folder = cast("Folder", args[0])
        place = folder.uri.partition("://")[2].partition("/")[0]  # the bucket; empty if local
        began, wait = time.monotonic(), FIRST_WAIT_S
        while True:
            try:
                result = call(*args, **kwargs)
                _answered.add(place)
                return result
            except FileNotFoundError:
                _answered.add(place)
                raise
            except OSError as error:
                if not _passes(error):
                    raise
                tried_s = time.monotonic() - began
                if tried_s + wait > (RETRY_S if place in _answered else UNKNOWN_S):
                    _answered.discard(place)  # what ends now does not wait as long again
                    why = f"{folder.uri} did not answer for {tried_s:.0f} s ({error})"
                    raise UnavailableError(error.errno or errno.EIO, why) from error
            time.sleep(wait * random.uniform(0.5, 1.0))  # many workers do not ask at once
            wait = min(2 * wait, LONGEST_WAIT_S)

    return again


def user_cache_dir() -> Path:
    """This project's folder in the user's cache: what it holds can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "batch-lr-search"


@_retried
def write(folder: Folder, name: str, content: bytes, *, is_lasting: bool = True) -> None:
    """Write or replace a file; a reader sees either the old or the new one, complete.

    What can be made again need not be `is_lasting`: that is faster, and a failure of power may
    leave it empty.
    """
    write_once(folder, name, content, is_lasting=is_lasting)


def write_once(folder: Folder, name: str, content: bytes, *, is_lasting: bool = True) -> None:
    """`write` that fails at once, for what must not be written later."""
    _checked(name)
    if not folder.is_local:
        filesystem, path = folder.opened()
        if isinstance(filesystem, fs.LocalFileSystem):  # file://
            filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(content)  # a store shows an object when its upload has finished
        return
    directory = Path(folder.uri)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpaceError(error.errno, f"no space left in {folder.uri}: free some") from error
        raise
    # Readers of a folder of Parquet files ignore names that start with a dot.
    writing = directory / f".{name}-{uuid.uuid4().hex}"
    try:
        with open(writing, "wb") as file:
            file.write(content)
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        os.replace(writing, directory / name)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpaceError(error.errno, f"no space left in {folder.uri}: free some") from error
        raise
    finally:
        writing.unlink(missing_ok=True)
    if not is_lasting:
        return
    entry = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def free_bytes(folder: Folder) -> int | None:
    """Free bytes on the disk of an existing folder; None for an object store."""
    return shutil.disk_usage(folder.uri).free if folder.is_local else None


@_retried
def create(folder: Folder, name: str, content: bytes) -> bool:
    """Write a file unless it exists; returns whether it was written.

    For local disks and NFS; `create_in_store` is for object stores.
    """
    directory = Path(folder.uri) / _checked(name)
    directory, name = directory.parent, directory.name
    directory.mkdir(parents=True, exist_ok=True)
    writing = directory / f".{name}-{uuid.uuid4().hex}"
    try:
        writing.write_bytes(content)
        os.link(writing, directory / name)  # fails if the file exists, also on NFS
    except FileExistsError:
        return False
    finally:
        writing.unlink(missing_ok=True)
    return True


def create_in_store(
    folder: Folder, name: str, content: bytes, *, instead_of: bytes | None = None
) -> bool:
    """Write an object unless one other than `instead_of` exists; returns whether it was written.

    pyarrow's file systems have no conditional PUT. So each writer first writes a claim, lists the
    folder, and continues only if there is no other claim: of two simultaneous writers at least one
    sees the other's. This is safe if a listing shows every object that was written before (S3 since
    2020, GCS, Azure, MinIO), and no writer pauses for twenty seconds between listing and writing.
    """
    prefix = f".{_checked(name)}-claim-"
    own = f"{prefix}{uuid.uuid4().hex}"
    since: dict[str, float] = {}
    while True:
        write(folder, own, b"")
        try:
            claims = [claim for claim in _listed(folder) if claim.startswith(prefix)]
            others = [claim for claim in claims if claim != own]
            if not others:
                try:
                    if read(folder, name) != instead_of:
                        return False
                except FileNotFoundError:
                    pass
                write(folder, name, content)
                return own in _listed(folder)  # if not, another writer took this one for dead
        finally:
            delete_file(folder, own)
        now = time.monotonic()
        since = {claim: since.get(claim, now) for claim in others}
        for claim, first_seen in since.items():
            if now - first_seen > CLAIM_STALE_S:
                delete_file(folder, claim)
        time.sleep(random.uniform(0.05, 0.5))


@_retried
def read(folder: Folder, name: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: it does not exist.
    """
    _checked(name)
    if folder.is_local:
        return (Path(folder.uri) / name).read_bytes()
    filesystem, path = folder.opened()
    with filesystem.open_input_stream(f"{path}/{name}") as stream:
        content: bytes = stream.read()
    return content


def names(folder: Folder, suffix: str) -> list[str]:
    """The sorted names of a folder's visible files with this suffix; empty without the folder."""
    return list(sizes(folder, suffix))


def sizes(folder: Folder, suffix: str) -> dict[str, int]:
    """The bytes of a folder's visible files with this suffix, by sorted name."""
    listed = _listed(folder)
    return {n: listed[n] for n in sorted(listed) if n.endswith(suffix) and n[0] not in "._"}


@_retried
def _listed(folder: Folder) -> dict[str, int]:
    filesystem, path = folder.opened()
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {entry.base_name: entry.size for entry in entries if entry.type == fs.FileType.File}


@_retried
def delete_file(folder: Folder, name: str) -> None:
    """Delete a file if it exists; delete its local folder too if it is then empty."""
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


@_retried
def delete(folder: Folder) -> None:
    """Delete a folder and everything in it, if it exists."""
    filesystem, path = folder.opened()
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_dir(path)
