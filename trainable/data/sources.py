"""The layouts in which people have image data, each read as splits of uint8 images and labels."""

import csv
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split

from trainable.host.storage import is_name

Images = NDArray[np.uint8]  # (N, H, W, 3)
Labels = NDArray[np.int64]  # (N,)

CHUNK_IMAGES = 2048
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SPLIT_NAMES = {"train": ("train",), "val": ("valid", "validation", "val"), "test": ("test",)}
VAL_SHARE = 0.2  # of train, where a layout brings no validation split
MAX_CLASSES = 100_000  # a label of a broken file would ask for as many names
MAX_PIXELS = 50_000_000  # of one image: a file of a few bytes can claim to be larger than memory
TOO_LARGE = f"are more than {MAX_PIXELS / 1e6:g} million pixels each: make them smaller"
UNEQUAL_SIDE_PX = 224  # images of different sizes: short side resized to this, centre kept


class DataError(ValueError):
    """The data cannot be used; the message names the file, what was wanted and what was found."""


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """One split, not decoded yet: its labels, and its images in chunks (N, H, W, 3), in order."""

    labels_N: Labels
    read: Callable[[], Iterator[Images]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found: which layout, made of which files, with which classes and splits."""

    layout: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    splits: dict[str, SplitSource]


# --- Kaggle's histopathologic-cancer-detection: a folder of .tif ---------------------------------


def find_kaggle(folder: Path) -> Source | None:
    """Kaggle's `train_labels.csv` with `train/ID.tif`; validation is drawn from train."""
    table = folder / "train_labels.csv"
    if not table.is_file():
        return None
    try:
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as CSV: {error}") from error
    if not rows or not {"id", "label"} <= set(rows[0]):
        raise DataError(f"{table} must have columns id,label and a row an image")
    if led_out := [row["id"] for row in rows if not is_name(row["id"])]:
        raise DataError(f"{table}: id must name a file of train/, got {led_out[0]!r}")
    paths = [folder / "train" / f"{row['id']}.tif" for row in rows]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{table} names {len(missing)} images that are not there, the first is {missing[0]}"
        )
    labels = as_labels([row["label"] for row in rows], table)
    # Kaggle's test labels are not public: no test split.
    splits = _train_and_val(paths, labels, table)
    return Source(layout="kaggle", files=(table, *paths), classes=classes_of(splits), splits=splits)


# --- Parquet with image bytes and label, as on Hugging Face --------------------------------------


def find_parquet(folder: Path) -> Source | None:
    """Files `train*`, `valid*` and `test*` with columns image and label, here or in `data/`."""
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if not files:
        return None
    parts = {
        split: [f for f in files if f.name.startswith(names)]
        for split, names in SPLIT_NAMES.items()
    }
    if not parts["train"]:
        raise DataError(
            f"{folder} has Parquet files but none named train*.parquet "
            f"(wanted: train*, valid*, test*), the first is {files[0].name}"
        )
    splits = {}
    for split, paths in parts.items():
        if paths:
            labels = as_labels(
                [x for path in paths for x in _parquet_column(path, "label")], paths[0]
            )
            splits[split] = SplitSource(labels_N=labels, read=_parquet_reader(paths))
    if "val" not in splits:
        raise DataError(
            f"{folder} has no valid*.parquet: patches of one slide must not be in both splits, "
            f"so it is not drawn from train; add one"
        )
    used = tuple(path for paths in parts.values() for path in paths)
    return Source(layout="parquet", files=used, classes=classes_of(splits), splits=splits)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; fetch it again") from error
    missing = {"image", "label"} - set(file.schema_arrow.names)
    if missing:
        raise DataError(
            f"{path} must have columns image and label, it has {file.schema_arrow.names}"
        )
    return file


def _parquet_column(path: Path, column: str) -> list[object]:
    try:
        values: list[object] = _open_parquet(path).read(columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}; fetch it again") from error
    return values


def _parquet_reader(paths: Sequence[Path]) -> Callable[[], Iterator[Images]]:
    def read() -> Iterator[Images]:
        for path in paths:
            try:
                for batch in _open_parquet(path).iter_batches(CHUNK_IMAGES, columns=["image"]):
                    cells = batch.column(0).to_pylist()
                    packed = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
                    yield _decode([(f"image of {path}", data) for data in packed])
            except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
                raise DataError(f"{path} is damaged: {error}; fetch it again") from error

    return read


# --- torchvision's image folders -----------------------------------------------------------------


def find_folders(folder: Path) -> Source | None:
    """`train/CLASS/x.png`, with `val/` and `test/` beside it where they are, or `CLASS/x.png`."""
    if not folder.is_dir():
        return None
    roots = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_NAMES.items()
    }
    train = roots["train"] or folder
    classes = tuple(sorted(d.name for d in _subfolders(train) if _image_files(d)))
    if not classes:
        return None
    listed: dict[str, tuple[list[Path], Labels]] = {}
    for split, root in {**roots, "train": train}.items():
        if root is None or (roots["train"] is None and split != "train"):
            continue
        unknown = {d.name for d in _subfolders(root)} - set(classes)
        if unknown and split != "train":
            raise DataError(f"{root} has classes that {train} lacks: {', '.join(sorted(unknown))}")
        paths = [(p, i) for i, name in enumerate(classes) for p in _image_files(root / name)]
        listed[split] = [p for p, _ in paths], np.array([i for _, i in paths], np.int64)
    files = tuple(path for paths, _ in listed.values() for path in paths)

    @functools.cache
    def unequal() -> bool:
        """Whether images differ in size, over all splits, from their headers alone."""
        with ThreadPoolExecutor() as pool:
            return len(set(pool.map(_size_of, files))) > 1

    splits = {
        s: SplitSource(labels_N=y, read=_file_reader(p, unequal)) for s, (p, y) in listed.items()
    }
    if "val" not in listed:
        splits |= _train_and_val(*listed["train"], train, unequal)
    return Source(layout="folder", files=files, classes=classes, splits=splits)


def _subfolders(folder: Path) -> list[Path]:
    return [d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "_"))]


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            _check_size(str(path), image.size)
            return image.size
    except DataError:
        raise
    except Exception as error:  # rubbish makes decoders fail in many ways
        raise DataError(f"{path} cannot be decoded: {error}") from error


# --- shared --------------------------------------------------------------------------------------


def _train_and_val(
    paths: Sequence[Path],
    labels_N: Labels,
    where: Path,
    unequal: Callable[[], bool] = lambda: False,
) -> dict[str, SplitSource]:
    """80 % train and 20 % validation, each class alike, the same in every run."""
    train, val = stratified(labels_N, VAL_SHARE, where)
    return {
        split: SplitSource(
            labels_N=labels_N[index], read=_file_reader([paths[i] for i in index], unequal)
        )
        for split, index in (("train", train), ("val", val))
    }


def stratified(labels_N: Labels, share: float, where: Path) -> tuple[Labels, Labels]:
    """Indices of the larger and of the smaller part, each in ascending order."""
    try:
        larger, smaller = train_test_split(
            np.arange(len(labels_N)), test_size=share, stratify=labels_N, random_state=0
        )
    except ValueError as error:
        raise DataError(f"{where} cannot be split into train and validation: {error}") from error
    return np.sort(larger), np.sort(smaller)


def _file_reader(
    paths: Sequence[Path], unequal: Callable[[], bool]
) -> Callable[[], Iterator[Images]]:
    def read() -> Iterator[Images]:
        for start in range(0, len(paths), CHUNK_IMAGES):
            some = [(str(path), path.read_bytes()) for path in paths[start : start + CHUNK_IMAGES]]
            yield _decode(some, square=unequal())

    return read


def _decode(packed: Sequence[tuple[str, bytes]], *, square: bool = False) -> Images:
    """(N, H, W, 3) from encoded images; with `square` each is resized and cut to one size.

    Raises:
        DataError: one cannot be decoded, or they differ in size.
    """

    def one(item: tuple[str, bytes]) -> Images:
        name, data = item
        try:
            with Image.open(io.BytesIO(data)) as image:
                _check_size(name, image.size)
                pixels = np.asarray(image.convert("RGB"))
        except DataError:
            raise
        except Exception as error:  # rubbish makes decoders fail in many ways
            raise DataError(f"{name} cannot be decoded: {error}") from error
        return _square(pixels) if square else pixels

    with ThreadPoolExecutor() as pool:  # PIL decodes without the interpreter's lock
        images = list(pool.map(one, packed))
    if not square and len(sizes := {image.shape for image in images}) > 1:
        raise DataError(
            f"images beside {packed[0][0]} differ in size ({sorted(sizes)}): make them alike"
        )
    return np.stack(images)


def _check_size(name: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{name}: images of {size[0]}x{size[1]} px {TOO_LARGE}")


def _square(image: Images) -> Images:
    height, width, _ = image.shape
    scale = UNEQUAL_SIDE_PX / min(height, width)
    size = max(UNEQUAL_SIDE_PX, round(width * scale)), max(UNEQUAL_SIDE_PX, round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - UNEQUAL_SIDE_PX) // 2, (size[1] - UNEQUAL_SIDE_PX) // 2
    box = (left, top, left + UNEQUAL_SIDE_PX, top + UNEQUAL_SIDE_PX)
    return np.asarray(resized.crop(box))


def as_labels(values: Sequence[object] | NDArray[np.generic], where: Path) -> Labels:
    """Class numbers (N,), or DataError."""
    wanted = f"labels must be whole numbers from 0 to {MAX_CLASSES - 1:,}"
    given = np.asarray(values)
    if given.dtype.kind == "f" and not (
        np.isfinite(given).all() and (given == np.round(given)).all()
    ):
        raise DataError(f"{where}: {wanted}, got a part of one or none")
    try:
        labels = given.astype(np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: {wanted}, {error}") from error
    if labels.ndim != 1 or len(labels) == 0:
        raise DataError(f"{where}: {wanted}, one an image")
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise DataError(f"{where}: {wanted}, got {labels.min()} to {labels.max()}")
    return labels


def classes_of(splits: dict[str, SplitSource]) -> tuple[str, ...]:
    """Names of classes that have only numbers."""
    highest = max(int(split.labels_N.max()) for split in splits.values())
    return tuple(str(label) for label in range(highest + 1))
