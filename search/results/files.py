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
SMALL_BYTES = 8_000_000  # of a packed file: about a thousand trials of fifty evaluations
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


def _check_digest(content: bytes) -> bool:
    """Whether this module wrote the file; raise ValueError if it has changed since.

    Pages have checksums, but the footer has none: one wrong bit in it can remove a column. Files
    that other programs wrote have no digest and are accepted.
    """
    place = content.rfind(DIGEST.encode())
    if place < 0:
        return False
    stored = SHA256.search(content, place)
    if stored is None:
        raise ValueError("its SHA-256 cannot be read: it was changed or truncated")
    whole, digest = memoryview(content), hashlib.sha256()
    for part in (whole[: stored.start()], UNSEALED.encode(), whole[stored.end() :]):
        digest.update(part)
    if digest.hexdigest().encode() != stored.group():
        raise ValueError("its SHA-256 is not the one in its footer: it was changed or truncated")
    return True


def read_parts(
    folder: Folder, schema: pa.Schema, *, but: Collection[str] = ()
) -> tuple[pa.Table, dict[str, str]]:
    """The schema's columns of a folder's rows; and the files that cannot be read, with the reasons.

    A file that is older than a column has nulls there. A trial's own file takes precedence over a
    packed file that contains the trial too. The trials `but` are left out.
    """
    left_out = frozenset(f"{key}.parquet" for key in but)
    for attempt in range(RELISTS + 1):
        names = [name for name in storage.names(folder, ".parquet") if name not in left_out]
        try:
            table, damaged = _read_listed(folder, names, schema, but=frozenset(but))
            break
        except FileNotFoundError:  # packed after it was listed
            if attempt == RELISTS:
                raise
    return table, damaged


def _read_listed(
    folder: Folder,
    names: Sequence[str],
    schema: pa.Schema,
    *,
    but: Collection[str] = frozenset(),
) -> tuple[pa.Table, dict[str, str]]:
    damaged: dict[str, str] = {}

    def read(name: str) -> pa.Table | None:
        try:
            table = _read_part(folder, name, schema)
            return _without(table, but) if but and name.startswith(PACKED) else table
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
            table = _without(table, again)
        seen |= keys
        kept.append(table)
    return kept


def _without(table: pa.Table, keys: Collection[str]) -> pa.Table:
    """The rows of all trials but these."""
    is_one = pa.compute.is_in(table["trial_key"], value_set=pa.array(sorted(keys), pa.string()))
    return table.filter(pa.compute.invert(is_one))


def _read_part(folder: Folder, name: str, schema: pa.Schema) -> pa.Table:
    content = storage.read(folder, name)
    is_whole = _check_digest(content)
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    # The digest vouches for the other columns too; without it, each page is looked at.
    table = file.read(columns=schema.names if is_whole else None)
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
    packed = [n for n in storage.names(folder, ".parquet") if n.startswith(PACKED)]
    return set().union(*(_keys_of(folder, name) for name in packed))


def pack(folder: Folder, schema: pa.Schema, *, apart: Collection[str] = ()) -> int:
    """Pack the table's trials into one file, except those `apart`; returns how many files fewer.

    On a disk a new folder is written and then swapped with the old one atomically: even after a
    crash a reader sees one of them, complete. In an object store the new files are written first,
    then the old ones are deleted. In between a trial is in two files; readers here take it once,
    and `pack_doubles` cleans up after a crash.

    Raises:
        OSError: a file is damaged, or the disk is full.
    """
    names = storage.names(folder, ".parquet")
    return _repack(folder, schema, names, apart=apart, is_whole=True)


def pack_trials(folder: Folder, schema: pa.Schema, keys: Collection[str]) -> int:
    """As `pack`, for the files of these trials; all others stay as they are, and damaged ones too.

    Small packed files go along, so that they are few, and large ones are not written again.

    Raises:
        OSError: the disk is full.
    """
    wanted = frozenset(f"{key}.parquet" for key in keys)
    sizes = storage.sizes(folder, ".parquet")
    small = [name for name in sizes if name.startswith(PACKED) and sizes[name] < SMALL_BYTES]
    own = [name for name in sizes if name in wanted]
    return _repack(folder, schema, [*own, *small]) if own else 0


def take_apart(folder: Folder, schema: pa.Schema, keys: Collection[str]) -> None:
    """Give these trials of packed files their own ones again.

    Raises:
        OSError: a file is damaged, or the disk is full.
    """
    for name in storage.names(folder, ".parquet"):
        if name.startswith(PACKED) and (own := _keys_of(folder, name) & set(keys)):
            _repack(folder, schema, [name], apart=own, is_whole=True)


def _repack(
    folder: Folder,
    schema: pa.Schema,
    names: Sequence[str],
    *,
    apart: Collection[str] = (),
    is_whole: bool = False,
) -> int:
    """Replace these files by one, and one for each trial `apart`; returns how many files fewer."""
    table, damaged = _read_listed(folder, names, schema)
    if damaged and is_whole:
        raise OSError(
            errno.EIO, f"{', '.join(damaged)} cannot be read: run verify first", folder.uri
        )
    if not len(table):
        return 0
    before = [name for name in names if name not in damaged]
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
            for name in set(storage.names(folder, ".parquet")) - set(before) - set(written):
                os.link(path / name, Path(fresh.uri) / name)
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
