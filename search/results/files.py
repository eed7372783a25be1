"""The Parquet files of a table: one per trial, or many trials packed in one; written atomically.

A table's folder contains `KEY.parquet` for one trial and `packed-*.parquet` for many. A trial is in
one of them; only while an object store is being packed it can be in two, with the same rows.
Readers of a folder ignore names that start with a dot.
"""

import ctypes
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainable.host import storage
from trainable.host.messages import one_line
from trainable.host.storage import Folder, UnavailableError

logger = logging.getLogger(__name__)

PACKED = "packed-"
RENAME_EXCHANGE = 2
DIGEST, UNSEALED = "content_sha256", "0" * 64  # in the footer: SHA-256 of the file with the zeros
SHA256 = re.compile(rb"[0-9a-f]{64}")
READERS = 8
LISTING_S = 0.2  # time for a reader that opened the replaced folder to list its files
RELISTS = 5


def write_part(
    folder: Folder, name: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write or replace a file of rows; its pages have checksums."""
    _write_table(folder, name, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))


def _write_table(folder: Folder, name: str, table: pa.Table) -> None:
    packed = io.BytesIO()
    options = {"compression": "zstd", "write_page_checksum": True}
    with pq.ParquetWriter(packed, table.schema, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({DIGEST: UNSEALED})
    content = packed.getvalue()
    place = content.rindex(UNSEALED.encode())
    digest = hashlib.sha256(content).hexdigest().encode()
    storage.write(folder, name, content[:place] + digest + content[place + len(digest) :])


def _check_digest(content: bytes) -> None:
    """Raise ValueError if a file has changed since this module wrote it.

    Pages have checksums, but the footer has none: one wrong bit in it can remove a column. Files
    that other programs wrote have no digest and are accepted.
    """
    place = content.rfind(DIGEST.encode())
    if place < 0:
        return
    stored = SHA256.search(content, place)
    if stored is None:
        raise ValueError("its SHA-256 cannot be read: it was changed or truncated")
    whole, digest = memoryview(content), hashlib.sha256()
    for part in (whole[: stored.start()], UNSEALED.encode(), whole[stored.end() :]):
        digest.update(part)
    if digest.hexdigest().encode() != stored.group():
        raise ValueError("its SHA-256 is not the one in its footer: it was changed or truncated")


def read_parts(folder: Folder, schema: pa.Schema) -> tuple[pa.Table, dict[str, str]]:
    """All rows of a folder; and the files that cannot be read, with the reasons.

    A file that is older than a column has nulls there. A trial's own file takes precedence over a
    packed file that contains the trial too.
    """
    for _ in range(RELISTS):
        try:
            return _read_listed(folder, storage.names(folder, ".parquet"), schema)
        except FileNotFoundError:  # packed after it was listed
            continue
    return _read_listed(folder, storage.names(folder, ".parquet"), schema)


def _read_listed(
    folder: Folder, names: Sequence[str], schema: pa.Schema
) -> tuple[pa.Table, dict[str, str]]:
    damaged: dict[str, str] = {}

    def read(name: str) -> pa.Table | None:
        try:
            return _read_part(folder, name, schema)
        except (FileNotFoundError, UnavailableError):
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            damaged[name] = one_line(error)
            return None

    own_first = sorted(names, key=lambda name: (name.startswith(PACKED), name))
    with ThreadPoolExecutor(READERS) as pool:
        tables = [table for table in pool.map(read, own_first) if table is not None]
    if len(names) > 1 and any(name.startswith(PACKED) for name in names):
        tables = _without_doubles(tables)
    return pa.concat_tables(tables) if tables else schema.empty_table(), damaged


def _without_doubles(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The tables without the rows of trials that an earlier table has."""
    seen: set[str] = set()
    kept = []
    for table in tables:
        keys = set(pa.compute.unique(table["trial_key"]).to_pylist())
        if again := keys & seen:
            twice = pa.compute.is_in(table["trial_key"], value_set=pa.array(sorted(again)))
            table = table.filter(pa.compute.invert(twice))
        seen |= keys
        kept.append(table)
    return kept


def _read_part(folder: Folder, name: str, schema: pa.Schema) -> pa.Table:
    content = storage.read(folder, name)
    _check_digest(content)
    table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    if "trial_key" not in table.column_names or table["trial_key"].null_count:
        raise ValueError("it has rows without a trial_key")
    if unsafe := [
        k for k in pa.compute.unique(table["trial_key"]).to_pylist() if not storage.is_name(k)
    ]:
        raise ValueError(f"{unsafe[0]!r} cannot be a trial_key: trial keys name files")
    if table.schema.equals(schema):
        return table.replace_schema_metadata(None)
    columns = [
        table[column.name].cast(column.type)
        if column.name in table.column_names
        else pa.nulls(len(table), column.type)
        for column in schema
    ]
    return pa.table(columns, schema=schema)


def set_aside(folder: Folder, names: Collection[str], *, into: Folder) -> None:
    """Move files that cannot be read to another folder; nothing is deleted."""
    for name in names:
        aside = f"{uuid.uuid4().hex[:8]}-{name}"
        storage.write(into, aside, storage.read(folder, name))
        storage.delete_file(folder, name)
        logger.warning(
            "%s/%s cannot be read and was moved to %s/%s", folder.uri, name, into.uri, aside
        )


def packed_keys(folder: Folder) -> set[str]:
    """The trials that are in packed files."""
    keys: set[str] = set()
    for name in storage.names(folder, ".parquet"):
        if name.startswith(PACKED):
            keys |= _keys_of(folder, name)
    return keys


def pack(folder: Folder, schema: pa.Schema, *, apart: Collection[str] = ()) -> int:
    """Pack the table's trials into one file, except those `apart`; returns how many files fewer.

    On a disk a new folder is written and then swapped with the old one atomically: even after a
    crash a reader sees one of them, complete. In an object store the new files are written first,
    then the old ones are deleted. In between a trial is in two files; readers here take it once,
    and `pack_doubles` cleans up after a crash.

    Raises:
        OSError: a file is damaged, or the disk is full.
    """
    before = storage.names(folder, ".parquet")
    table, damaged = read_parts(folder, schema)
    if damaged:
        raise OSError(
            errno.EIO, f"{', '.join(damaged)} cannot be read: run verify first", folder.uri
        )
    if not len(table):
        return 0
    table = (
        table.combine_chunks()
    )  # sorting would merge the chunks of thousands of files one by one
    if not folder.is_local:
        written = _write_packed(folder, table, apart)
        for name in before:
            if name not in written:
                storage.delete_file(folder, name)
    else:
        path = Path(folder.uri)
        fresh = Folder(str(path.with_name(f".{path.name}-packing-{uuid.uuid4().hex}")))
        try:
            written = _write_packed(fresh, table, apart)
            _exchange(Path(fresh.uri), path)
            time.sleep(LISTING_S)  # before the old folder is deleted
        finally:
            shutil.rmtree(fresh.uri, ignore_errors=True)
    return len(before) - len(written)


def _write_packed(folder: Folder, table: pa.Table, apart: Collection[str]) -> list[str]:
    """Write a table into a folder, packed except the trials `apart`; returns the files."""
    keys, written = table["trial_key"], []
    kept = pa.compute.is_in(keys, value_set=pa.array(sorted(apart), pa.string()))
    for key in sorted(pa.compute.unique(table.filter(kept)["trial_key"]).to_pylist()):
        own = table.filter(pa.compute.equal(keys, key)).sort_by(_order(table.schema))
        written.append(f"{key}.parquet")
        _write_table(folder, written[-1], own)
    together = table.filter(pa.compute.invert(kept)).sort_by(_order(table.schema))
    if len(together):
        written.append(f"{PACKED}{uuid.uuid4().hex}.parquet")
        _write_table(folder, written[-1], together)
    return written


def _order(schema: pa.Schema) -> list[tuple[str, str]]:
    names = [name for name in ("trial_key", "epoch") if name in schema.names]
    return [(name, "ascending") for name in names]


def _exchange(fresh: Path, path: Path) -> None:
    """Swap two folders, atomically if the system can; otherwise move old away, then new in."""
    here = -100  # AT_FDCWD, which absolute paths ignore
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    arguments = (here, os.fsencode(fresh), here, os.fsencode(path), RENAME_EXCHANGE)
    if swap is None or swap(*arguments) != 0:
        old = path.rename(path.with_name(f".{path.name}-old"))
        fresh.rename(path)
        old.rename(fresh)
    entry = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def recover(folder: Folder) -> None:
    """Clean up after a killed `pack`; only the study's one writer may call it."""
    if not folder.is_local:
        return
    path = Path(folder.uri)
    old = path.with_name(f".{path.name}-old")
    if old.is_dir() and not path.exists():
        old.rename(path)
    for leftover in (old, *path.parent.glob(f".{path.name}-packing-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if path.is_dir():
        for leftover in path.glob(".*.parquet-*"):  # a file whose writer was killed
            leftover.unlink(missing_ok=True)


def pack_doubles(folder: Folder, schema: pa.Schema) -> None:
    """Pack again if a `pack` in an object store was killed and left a trial in two files."""
    names = storage.names(folder, ".parquet")
    if folder.is_local or not any(name.startswith(PACKED) for name in names):
        return
    keys = [_keys_of(folder, name) for name in names]
    if sum(map(len, keys)) > len(set().union(*keys)):
        pack(folder, schema)


def _keys_of(folder: Folder, name: str) -> set[str]:
    content = io.BytesIO(storage.read(folder, name))
    return set(pq.read_table(content, columns=["trial_key"])["trial_key"].to_pylist())
