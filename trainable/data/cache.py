"""A data set as memory-mapped uint8 arrays: decoded once a node, shared by all trials on it."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from trainable.data.hdf5 import find_hdf5
from trainable.data.sources import (
    DataError,
    Images,
    Labels,
    Source,
    SplitSource,
    find_folders,
    find_kaggle,
    find_parquet,
)
from trainable.data.standard import digits_source, find_torchvision
from trainable.data.synthetic import synthetic_source

CACHE_VERSION = 1
LINE_S = 5.0  # between two lines about a cache that is being built
LAYOUTS = (find_hdf5, find_kaggle, find_parquet, find_torchvision, find_folders)
EMBEDDED = {"synthetic": synthetic_source, "digits": digits_source}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images (N, H, W, 3) and their class numbers (N,), both mapped from disk, read-only."""

    images_NHWC: Images
    labels_N: Labels


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set ready to train on. `test` is None where its labels are not to be had.

    `fingerprint` is the SHA-256 of all images and labels. `mean` and `std` are those of the
    training images' channels, on the scale 0..1.
    """

    name: str
    layout: str
    classes: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: Split
    val: Split
    test: Split | None


def default_cache_dir() -> Path:
    """`$DATA_CACHE_DIR`, else a folder of the user's cache."""
    if named := os.environ.get("DATA_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "batch-lr-search"


def locate(name: str, folder: Path) -> Source | None:
    """The data set in `folder`'s subfolder of its name, else in `folder`; None if in neither.

    Raises:
        DataError: there is one, and it is broken.
    """
    for candidate in (folder / name, folder):
        for look in LAYOUTS:
            source = look(candidate)
            if source is not None:
                return source
    return None


def open_data(name: str, folder: Path | None = None, *, cache_dir: Path | None = None) -> Dataset:
    """The data set `name`, decoding it into the node's cache if this is the first time.

    `folder` None means `$DATA_DIR`, else `data/`; `synthetic` and `digits` need no folder.

    Raises:
        DataError: there is no such data, or it is broken.
    """
    if name in EMBEDDED:
        source, origin = EMBEDDED[name](), "embedded"
    else:
        folder = folder or Path(os.environ.get("DATA_DIR", "data"))
        found = locate(name, folder)
        if found is None:
            raise DataError(
                f"no data set in {folder}: wanted PatchCamelyon's camelyonpatch_*.h5, Kaggle's "
                f"train_labels.csv with train/*.tif, train*.parquet, or folders of images by class"
            )
        source, origin = found, str(folder.resolve())
    cache_dir = cache_dir or default_cache_dir()
    entry = cache_dir / f"{name}-{_source_key(source, origin)}"
    if (ready := _open(entry)) is not None:
        return ready
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_suffix(".lock")):
            # Another process may have built it while we waited.
            if (ready := _open(entry)) is not None:
                return ready
            shutil.rmtree(entry, ignore_errors=True)  # files lost or cut short since
            try:
                _build(name, source, entry)
            finally:
                shutil.rmtree(entry.with_suffix(".building"), ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {entry}: {error}; set DATA_CACHE_DIR to a folder "
            f"with room"
        ) from error
    built = _open(entry)
    assert built is not None  # noqa: S101 - it was written whole
    return built


def _source_key(source: Source, origin: str) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    said = json.dumps([CACHE_VERSION, source.layout, origin, stats])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go by the kernel if this process dies
        yield


def _build(name: str, source: Source, entry: Path) -> None:
    """Decode into a folder beside `entry`, then rename: a half-built cache is never seen."""
    building = entry.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    content = hashlib.sha256()
    stats = {}
    shape: tuple[int, ...] | None = None
    total = sum(len(split.labels_N) for split in source.splits.values())
    with _progress(f"decoding {name} ({source.layout})", total) as advance:
        for split_name, split in source.splits.items():
            _check_classes(split_name, split, source)
            mean, std, of_split = _write_split(building, split_name, split, content, advance)
            if shape not in (None, of_split):
                raise DataError(
                    f"the {split_name} images are {of_split[0]}x{of_split[1]} px and the others "
                    f"{shape[0]}x{shape[1]}: give all splits one size"
                )
            shape, stats[split_name] = of_split, (mean, std)
    mean, std = stats["train"]
    about = {
        "name": name,
        "layout": source.layout,
        "classes": source.classes,
        "fingerprint": content.hexdigest(),
        "mean": mean,
        "std": std,
        "splits": list(source.splits),
    }
    (building / "about.json").write_text(json.dumps(about, indent=1))
    for path in building.iterdir():  # whole on the disk before it has its name
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    os.replace(building, entry)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, elsewhere a line now and then; call it with how many more are done."""
    if sys.stderr.isatty():
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda n: progress.advance(task, n)
        return
    done, said = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, said
        done += n
        if time.monotonic() - said >= LINE_S:
            said = time.monotonic()
            sys.stderr.write(f"{title}: {done:,} of {total:,} images\n")

    yield advance


def _check_classes(name: str, split: SplitSource, source: Source) -> None:
    present = np.unique(split.labels_N)
    if len(source.classes) < 2:
        raise DataError(
            f"the data has a single class ({source.classes[0]}): a classifier needs two or more"
        )
    if len(present) < len(source.classes):
        missing = [c for i, c in enumerate(source.classes) if i not in present]
        raise DataError(f"the {name} split has no image of class {', '.join(missing)}")


def _write_split(
    building: Path,
    name: str,
    split: SplitSource,
    content: "hashlib._Hash",
    advance: Callable[[int], None],
) -> tuple[list[float], list[float], tuple[int, ...]]:
    """Write one split's arrays; returns the channels' mean and deviation, and an image's shape."""
    images = None
    done = 0
    total_C, squares_C, pixels = np.zeros(3), np.zeros(3), 0
    for chunk in split.read():
        if images is None:
            shape = (len(split.labels_N), *chunk.shape[1:])
            images = np.lib.format.open_memmap(
                building / f"{name}_images.npy", mode="w+", dtype=np.uint8, shape=shape
            )
        if chunk.shape[1:] != images.shape[1:]:
            raise DataError(
                f"the {name} split mixes images of {images.shape[1:]} and {chunk.shape[1:]}: "
                f"resize them to one size"
            )
        if done + len(chunk) > len(images):
            raise DataError(f"the {name} split has {len(images)} labels but more images")
        images[done : done + len(chunk)] = chunk
        content.update(np.ascontiguousarray(chunk).data)
        values = chunk.reshape(-1, 3).astype(np.float32) / 255
        total_C += values.sum(0, dtype=np.float64)
        squares_C += np.square(values).sum(0, dtype=np.float64)
        pixels += len(values)
        done += len(chunk)
        advance(len(chunk))
    if images is None or done != len(images):
        raise DataError(f"the {name} split has {len(split.labels_N)} labels but {done} images")
    images.flush()
    np.save(building / f"{name}_labels.npy", split.labels_N)
    content.update(np.ascontiguousarray(split.labels_N).data)
    mean_C = total_C / pixels
    std_C = np.sqrt(np.maximum(squares_C / pixels - mean_C**2, 1e-12))
    return mean_C.tolist(), std_C.tolist(), images.shape[1:]


def _open(entry: Path) -> Dataset | None:
    """The cached data set; None where there is none, or a file of it is missing or cut short."""
    try:
        about = json.loads((entry / "about.json").read_text())
        splits = {
            name: Split(
                images_NHWC=np.load(entry / f"{name}_images.npy", mmap_mode="r"),
                labels_N=np.load(entry / f"{name}_labels.npy"),
            )
            for name in about["splits"]
        }
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError, KeyError):
        return None
    if any(len(split.images_NHWC) != len(split.labels_N) for split in splits.values()):
        return None
    return Dataset(
        name=about["name"],
        layout=about["layout"],
        classes=tuple(about["classes"]),
        fingerprint=about["fingerprint"],
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        train=splits["train"],
        val=splits["val"],
        test=splits.get("test"),
    )
