"""The official PatchCamelyon files in HDF5, read without following links or loading plug-ins."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainable.data.groups import IMAGE, Groups, column_of, groups_in, read_rows
from trainable.data.images import MAX_PIXELS, TOO_LARGE
from trainable.data.sources import (
    CHUNK_IMAGES,
    DataError,
    Images,
    Labels,
    Source,
    SplitSource,
    as_labels,
    classes_of,
)
from trainable.data.splits import given

if TYPE_CHECKING:
    import h5py

STEM = "camelyonpatch_level_2_split_"
OFFICIAL = {"train": "train", "val": "valid", "test": "test"}
MAX_LABELS = 100_000_000
# The filters that are part of h5py. Others would be loaded as code from a plug-in folder.
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


def find_hdf5(folder: Path, split_by: str | None = None) -> Source | None:
    """PatchCamelyon's official files, gzipped or not; the test split is optional.

    Its `*_meta.csv` name each patch's slide: no slide may be in two splits.
    """
    files: dict[str, dict[str, Path]] = {}
    for split, official in OFFICIAL.items():
        for key in "xy":
            name = f"{STEM}{official}_{key}.h5"
            path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
            if path is not None:
                files.setdefault(split, {})[key] = path
    if not files:
        return None
    for split, official in OFFICIAL.items():
        for key in "xy":
            is_required = split != "test" or split in files
            if is_required and key not in files.get(split, {}):
                raise DataError(
                    f"{folder} has no {STEM}{official}_{key}.h5 (or .h5.gz): put it next to the "
                    f"other files"
                )
    splits = {}
    for split, paths in files.items():
        labels = _hdf5_labels(paths["y"])
        splits[split] = SplitSource(
            labels_N=labels, read=_hdf5_reader(paths["x"], labels_file=paths["y"], n=len(labels))
        )
    return Source(
        layout="hdf5",
        files=tuple(path for paths in files.values() for path in paths.values()),
        classes=classes_of(splits),
        splits=splits,
        division=given(list(splits), _slides(folder, splits, split_by), folder),
    )


def _slides(
    folder: Path, splits: Mapping[str, SplitSource], split_by: str | None
) -> dict[str, Groups]:
    """The slide of each patch, of the splits that have a table of it.

    Raises:
        DataError: `split_by` names no column of theirs, or a table is of other patches.
    """
    tables = {split: folder / f"{STEM}{OFFICIAL[split]}_meta.csv" for split in splits}
    groups = {}
    for split, table in tables.items():
        if split_by == IMAGE or (split_by is None and not table.is_file()):
            continue
        if not table.is_file():
            raise DataError(
                f"split_by={split_by} names a column of {table}, which does not exist: put it next "
                f"to the other files, or leave split_by out, for the splits are PatchCamelyon's"
            )
        rows = read_rows(table)
        num_images = len(splits[split].labels_N)
        if len(rows) != num_images:
            raise DataError(f"{table} has {len(rows)} rows, but there are {num_images} images")
        column = column_of(split_by, rows[0], table)
        if column is not None:
            names = [f"that of row {i + 1}" for i in range(num_images)]
            groups[split] = groups_in(column, [r[column] for r in rows], table, names=names)
    return groups


@contextmanager
def _open_hdf5(path: Path, key: str) -> Iterator[h5py.Dataset]:
    """The array `key` of an HDF5 file, gzipped or not."""
    import h5py

    with tempfile.TemporaryDirectory() as scratch:
        plain = path
        try:
            if path.suffix == ".gz":
                plain = Path(scratch) / path.stem
                with gzip.open(path) as packed, open(plain, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 24)
            file = h5py.File(plain, "r")
        except (OSError, EOFError, RuntimeError, zlib.error) as error:
            raise DataError(f"{path} cannot be read as HDF5: {error}; download it again") from error
        with file:
            try:
                array = _own_array(file, key, path)
            except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(f"{path} is damaged: {error}; download it again") from error
            yield array


def _own_array(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """The array `key` stored in the file itself, with h5py's own filters.

    Raises:
        DataError: it is missing, is stored in another file, or uses another filter.
    """
    import h5py

    link = file.get(key, getlink=True)
    if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
        raise DataError(
            f"{path}: {key} is a link, and links are not followed: copy the array into the file"
        )
    array = file.get(key)
    if not isinstance(array, h5py.Dataset):
        raise DataError(f"{path} must contain an array {key!r}, it contains {sorted(file)}")
    if array.is_virtual or array.external:
        raise DataError(
            f"{path}: {key} has its data in other files, which are not opened: copy it into the "
            f"file, for example with h5repack"
        )
    properties = array.id.get_create_plist()
    codes = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if unknown := [str(code) for code in codes if code not in FILTERS]:
        raise DataError(
            f"{path}: {key} uses HDF5 filter {', '.join(unknown)}, which is not loaded: write it "
            f"with {', '.join(FILTERS.values())} or without a filter"
        )
    return array


def _hdf5_labels(path: Path) -> Labels:
    with _open_hdf5(path, "y") as y:
        if y.dtype.kind not in "iuf" or y.size is None or not 0 < y.size <= MAX_LABELS:
            raise DataError(
                f"{path}: y must be 1 to {MAX_LABELS:,} integers, got {y.dtype} {y.shape}"
            )
        try:
            return as_labels(np.asarray(y).reshape(-1), path)
        except (OSError, RuntimeError, MemoryError) as error:
            raise DataError(f"{path} is damaged: {error}; download it again") from error


def _hdf5_reader(path: Path, *, labels_file: Path, n: int) -> Callable[[], Iterator[Images]]:
    def read() -> Iterator[Images]:
        with _open_hdf5(path, "x") as x:
            if x.ndim != 4 or x.shape[-1] != 3 or x.dtype != np.uint8:
                raise DataError(
                    f"{path}: x must be uint8 of shape (N, height, width, 3), "
                    f"got {x.dtype} {x.shape}"
                )
            if x.shape[1] * x.shape[2] > MAX_PIXELS:
                raise DataError(f"{path}: images of {x.shape[1]}x{x.shape[2]} px {TOO_LARGE}")
            if len(x) != n:
                raise DataError(f"{path} has {len(x)} images, but {labels_file} has {n} labels")
            for start in range(0, n, CHUNK_IMAGES):
                try:
                    chunk = x[start : start + CHUNK_IMAGES]
                except (OSError, RuntimeError, MemoryError) as error:
                    raise DataError(f"{path} is damaged: {error}; download it again") from error
                yield chunk

    return read
