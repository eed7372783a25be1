"""A data set as memory-mapped uint8 arrays: decoded once per node, shared by its trials."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainable.config import CLASSIFICATION, DETECTION, SEGMENTATION
from trainable.data.folders import find_folders, subfolders
from trainable.data.groups import FOLDER
from trainable.data.hdf5 import find_hdf5
from trainable.data.images import IMAGE_SUFFIXES
from trainable.data.kaggle import find_kaggle
from trainable.data.parquet import find_parquet
from trainable.data.sources import (
    DataError,
    Images,
    Labels,
    Source,
    SplitSource,
    Targets,
    labels_of,
)
from trainable.data.splits import BY_IMAGE, GIVEN
from trainable.data.standard import check_ungrouped, digits_source, find_torchvision
from trainable.data.synthetic import synthetic_source
from trainable.data.voc import IMAGES, KINDS, LISTS, find_voc_boxes, find_voc_masks, is_voc
from trainable.host.pulse import tick
from trainable.host.storage import user_cache_dir

CACHE_VERSION = 1
NESTED, MOST_LOOKED_AT = 3, 200  # levels of subfolders, and folders of a level, for a hint
LINE_S = 5.0  # between two progress lines while the cache is built
LAYOUTS = (find_hdf5, find_kaggle, find_parquet, find_torchvision, find_folders)
LAYOUTS_OF = {
    CLASSIFICATION: LAYOUTS,
    SEGMENTATION: (find_voc_masks,),
    DETECTION: (find_voc_boxes,),
}
EMBEDDED = {"synthetic": synthetic_source, "digits": digits_source}
PCAM = "pcam"  # the data set of the shipped studies, and of those that do not name theirs
NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")  # what a data set's name cannot contain


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images (N, H, W, 3) and their class numbers (N,), mapped from disk, read-only.

    `targets_N` are masks or boxes, where the task is to find these; `labels_N` then say which class
    has most of an image.
    """

    images_NHWC: Images
    labels_N: Labels
    targets_N: Targets | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that is ready for training. `test` is None if its labels are not available.

    `name` is that of what was read: the folder's, where a study of `pcam` reads another data set.
    `fingerprint` is the SHA-256 of all images, targets and labels, split by split. `mean` and `std`
    are those of the training images' channels, on a scale from 0 to 1. `split` says how validation
    was made: `given`, `by_image`, or `by_` and what its groups are of.
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
    split: str = GIVEN
    task: str = CLASSIFICATION


def default_cache_dir() -> Path:
    """`$DATA_CACHE_DIR`, or a folder in the user's cache."""
    if named := os.environ.get("DATA_CACHE_DIR"):
        return Path(named)
    return user_cache_dir()


def locate(
    name: str, folder: Path, *, split_by: str | None = None, task: str = CLASSIFICATION
) -> Source | None:
    """The data set in `folder/name` or in `folder`; None if neither contains one for the task.

    Raises:
        DataError: there is a data set, but it is broken, or has no such groups.
    """
    found = _found(name, folder, split_by, task)
    return found and found[0]


def _found(name: str, folder: Path, split_by: str | None, task: str) -> tuple[Source, Path] | None:
    """The data set, and the folder that it is in."""
    for candidate in (folder / name, folder):
        if task == CLASSIFICATION and is_voc(candidate):  # its folders are no classes
            continue
        for find in LAYOUTS_OF[task]:
            source = find(candidate, split_by)
            if source is not None:
                return source, candidate
    return None


def open_data(
    name: str,
    folder: Path | None = None,
    *,
    split_by: str | None = None,
    task: str = CLASSIFICATION,
    cache_dir: Path | None = None,
) -> Dataset:
    """The data set `name`; the first call on a node decodes it into the node's cache.

    `folder` None means `$DATA_DIR` or `data/`; `synthetic` and `digits` need no folder. `split_by`
    and `task` are the trial's fields.

    Raises:
        DataError: there is no data set, it is broken, or has no such groups.
    """
    source, origin, real_name = _source_of(name, folder, split_by, task)
    cache_dir = cache_dir or default_cache_dir()
    entry = cache_dir / f"{name}-{_source_key(source, origin)}"
    if (ready := _open(entry, source, real_name)) is not None:
        return ready
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_suffix(".lock")):
            # Another process may have built it while this one waited.
            if (ready := _open(entry, source, real_name)) is not None:
                return ready
            shutil.rmtree(entry, ignore_errors=True)  # its files were lost or truncated
            try:
                _build(real_name, source, entry)
            finally:
                shutil.rmtree(entry.with_suffix(".building"), ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {entry}: {error}; set DATA_CACHE_DIR to a folder with "
            f"enough free space"
        ) from error
    built = _open(entry, source, real_name)
    assert built is not None  # noqa: S101 - it was written completely
    return built


def nothing_in(folder: Path, task: str = CLASSIFICATION) -> str:
    """What is wrong with a folder without a data set: what it has instead, and what to pass."""
    if task != CLASSIFICATION:
        return (
            f"no data for task={task} in {folder}: expected Pascal VOC's layout, the folders "
            f"{IMAGES}, {KINDS[task][0]} and {LISTS}; dataset=synthetic needs no files"
        )
    if (folder / IMAGES).is_dir():
        return (
            f"no recognised data set in {folder} for task={task}, but images in Pascal VOC's "
            f"layout: take task={SEGMENTATION} or task={DETECTION}"
        )
    expected = (
        "Expected one of: PatchCamelyon's camelyonpatch_*.h5, Kaggle's train_labels.csv with "
        "train/*.tif, train*.parquet, or one folder of images per class"
    )
    if not folder.is_dir():
        return f"no recognised data set in {folder}: there is no such folder. {expected}"
    if (folder / "study.json").is_file() or next(folder.glob("*/study.json"), None):
        return f"no recognised data set in {folder}, which has results of studies. {expected}"
    grouped = _if_grouped(folder)
    level = [folder]
    for _ in range(NESTED):
        level = [sub for parent in level for sub in sorted(subfolders(parent))][:MOST_LOOKED_AT]
        for sub in level:
            if (source := _source_in(sub)) is not None and len(source.classes) > 1:
                return (
                    f"no recognised data set in {folder} itself, but one of {len(source.classes)} "
                    f"classes ({', '.join(source.classes[:4])}) in {sub}: pass that folder"
                    f"{grouped and '; or, ' + grouped}"
                )
    if grouped:
        return f"no recognised data set in {folder} itself: {grouped}"
    if images := sum(1 for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES):
        return (
            f"no recognised data set in {folder}: it has {images} images, but no folder per class; "
            f"move them into one folder for each class"
        )
    return f"no recognised data set in {folder}. {expected}"


def _if_grouped(folder: Path) -> str:
    """What to pass if folders of folders of images are classes of slides; else nothing."""
    try:
        source = find_folders(folder, FOLDER)
    except DataError:  # such as too few groups
        source = None
    if source is None or len(source.classes) < 2:
        return ""
    return (
        f"if {', '.join(source.classes[:4])} are the classes and the folders in them slides or "
        f"patients, take split_by={FOLDER}"
    )


def _source_in(folder: Path) -> Source | None:
    """A data set in the folder itself that can be read; one that is broken is none."""
    for find in LAYOUTS:
        try:
            if (source := find(folder)) is not None:
                return source
        except (DataError, OSError):
            continue
    return None


def embedded(name: str, task: str = CLASSIFICATION) -> Source:
    """A data set that needs no files.

    Raises:
        DataError: it has nothing of the kind that the task learns.
    """
    if task == CLASSIFICATION:
        return EMBEDDED[name]()
    if name != "synthetic":
        raise DataError(f"{name} has classes alone: take dataset=synthetic for task={task}")
    return synthetic_source(task)


def _source_of(
    name: str, folder: Path | None, split_by: str | None, task: str
) -> tuple[Source, str, str]:
    """The data set before decoding, where it is from, and its name."""
    if name in EMBEDDED:
        check_ungrouped(name, split_by)
        return embedded(name, task), "embedded", name
    folder = folder or Path(os.environ.get("DATA_DIR", "data"))
    found = _found(name, folder, split_by, task)
    if found is None:
        raise DataError(nothing_in(folder, task))
    source, where = found
    return source, str(folder.resolve()), _real_name(name, source, where)


def _real_name(name: str, source: Source, where: Path) -> str:
    """What was read: `pcam` is what a study is on if nobody named its data set."""
    if name != PCAM or source.layout == "hdf5":
        return name
    of_folder = NO_NAME.sub("-", where.resolve().name).strip("-.")
    return name if of_folder in ("", *EMBEDDED) else of_folder


def _source_key(source: Source, origin: str) -> str:
    """What the decoded arrays depend on: the files, and which of them are validation."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    # Entries from before groups could be kept together are those of the other ways.
    grouped = [] if source.division.kind in (GIVEN, BY_IMAGE) else [source.division.kind]
    description = json.dumps([CACHE_VERSION, source.layout, origin, stats, *grouped])
    return hashlib.sha256(description.encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it if this process dies
        yield


def _build(name: str, source: Source, entry: Path) -> None:
    """Decode into a temporary folder, then rename it to `entry`: readers never see half of it."""
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
                    f"the {split_name} images are {of_split[0]}x{of_split[1]} px, the others "
                    f"{shape[0]}x{shape[1]} px: resize all splits to one size"
                )
            shape, stats[split_name] = of_split, (mean, std)
    mean, std = stats["train"]
    description = {
        "name": name,
        "layout": source.layout,
        "classes": source.classes,
        "fingerprint": content.hexdigest(),
        "mean": mean,
        "std": std,
        "splits": list(source.splits),
        "task": source.task,
    }
    (building / "about.json").write_text(json.dumps(description, indent=1))
    for path in building.iterdir():  # write everything to the disk before the rename
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    os.replace(building, entry)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, otherwise lines; call the result with each number of images."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda n: progress.advance(task, n)
        return
    done, printed = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, printed
        done += n
        if time.monotonic() - printed >= LINE_S:
            printed = time.monotonic()
            sys.stderr.write(f"{title}: {done:,} of {total:,} images\n")

    yield advance


def _check_classes(name: str, split: SplitSource, source: Source) -> None:
    if split.read_with_targets is not None:  # a mask or boxes need not have every class
        return
    present = np.unique(split.labels_N)
    if len(source.classes) < 2:
        raise DataError(
            f"the data has only one class ({source.classes[0]}): a classifier needs two or more"
        )
    if len(present) < len(source.classes):
        missing = [c for i, c in enumerate(source.classes) if i not in present]
        raise DataError(f"the {name} split has no images of class {', '.join(missing)}")


def _write_split(
    building: Path,
    name: str,
    split: SplitSource,
    content: "hashlib._Hash",
    advance: Callable[[int], None],
) -> tuple[list[float], list[float], tuple[int, ...]]:
    """Write the arrays of a split; return the channels' mean and std, and the images' shape."""
    images = targets = None
    labels_N, done = split.labels_N.copy(), 0
    total_C, squares_C, pixels = np.zeros(3), np.zeros(3), 0
    for chunk, of_chunk in _chunks(split):
        tick()
        if images is None:
            images = _new_array(building / f"{name}_images.npy", len(labels_N), chunk)
        if chunk.shape[1:] != images.shape[1:]:
            raise DataError(
                f"the {name} split has images of {images.shape[1:]} and of {chunk.shape[1:]}: "
                f"resize them to one size"
            )
        if done + len(chunk) > len(images):
            raise DataError(f"the {name} split has {len(images)} labels but more images")
        images[done : done + len(chunk)] = chunk
        content.update(np.ascontiguousarray(chunk).data)
        if of_chunk is not None:
            if targets is None:
                targets = _new_array(building / f"{name}_targets.npy", len(labels_N), of_chunk)
            targets[done : done + len(chunk)] = of_chunk
            labels_N[done : done + len(chunk)] = labels_of(of_chunk)
            content.update(np.ascontiguousarray(of_chunk).data)
        values = chunk.reshape(-1, 3).astype(np.float32) / 255
        total_C += values.sum(0, dtype=np.float64)
        squares_C += np.square(values).sum(0, dtype=np.float64)
        pixels += len(values)
        done += len(chunk)
        advance(len(chunk))
    if images is None or done != len(images):
        raise DataError(f"the {name} split has {len(labels_N)} labels but {done} images")
    for written in (images, targets):
        if written is not None:
            written.flush()
    np.save(building / f"{name}_labels.npy", labels_N)
    content.update(np.ascontiguousarray(labels_N).data)
    mean_C = total_C / pixels
    std_C = np.sqrt(np.maximum(squares_C / pixels - mean_C**2, 1e-12))
    return mean_C.tolist(), std_C.tolist(), images.shape[1:]


def _chunks(split: SplitSource) -> Iterator[tuple[Images, Targets | None]]:
    if split.read_with_targets is not None:
        yield from split.read_with_targets()
        return
    for images in split.read():
        yield images, None


def _new_array(path: Path, num_rows: int, like: Targets) -> "np.memmap[Any, np.dtype[Any]]":
    """An array on disk of so many rows such as those of `like`."""
    shape = (num_rows, *like.shape[1:])
    return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=shape)


def _open(entry: Path, source: Source, name: str) -> Dataset | None:
    """The cached data set; None if there is none, or a file of it is missing or truncated."""
    try:
        description = json.loads((entry / "about.json").read_text())
        splits = {
            name: Split(
                images_NHWC=np.load(entry / f"{name}_images.npy", mmap_mode="r"),
                labels_N=np.load(entry / f"{name}_labels.npy"),
                targets_N=(
                    np.load(entry / f"{name}_targets.npy", mmap_mode="r")
                    if source.task != CLASSIFICATION
                    else None
                ),
            )
            for name in description["splits"]
        }
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError, KeyError):
        return None
    if any(len(split.images_NHWC) != len(split.labels_N) for split in splits.values()):
        return None
    return Dataset(
        name=name,
        layout=description["layout"],
        classes=tuple(description["classes"]),
        fingerprint=description["fingerprint"],
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        train=splits["train"],
        val=splits["val"],
        test=splits.get("test"),
        split=source.division.kind,
        task=source.task,
    )
