"""The layouts of image data on disk, each read as splits of uint8 images and labels.

PIL, pyarrow's Parquet and scikit-learn are imported when a layout needs them: the driver imports
this file for its error alone.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainable.host.storage import is_name

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Images = NDArray[np.uint8]  # (N, H, W, 3)
Labels = NDArray[np.int64]  # (N,)

CHUNK_IMAGES = 2048
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SPLIT_NAMES = {"train": ("train",), "val": ("valid", "validation", "val"), "test": ("test",)}
VAL_SHARE = 0.2  # of train, if a layout has no validation split
MAX_CLASSES = 100_000  # a label in a broken file could require any number of class names
MAX_PIXELS = 50_000_000  # of one image: the header of a small file can claim any size
TOO_LARGE = f"are more than {MAX_PIXELS / 1e6:g} million pixels each: make them smaller"
UNEQUAL_SIDE_PX = 224  # images of different sizes: resize the short side to this, crop the centre
RESIZED = (
    f"The images differ in size: their short side is resized to {UNEQUAL_SIDE_PX} px and the "
    f"centre of {UNEQUAL_SIDE_PX}x{UNEQUAL_SIDE_PX} px is taken."
)
DRAWN_VAL = (
    f"There is no validation split: {VAL_SHARE:.0%} of the training images are taken for it, at "
    f"random by class. Images of one slide or patient may be in both, which makes scores too good."
)


class DataError(ValueError):
    """The data cannot be used; the message names the file, what is expected and what it has."""


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """One split before decoding: its labels, and its images in chunks (N, H, W, 3) in order."""

    labels_N: Labels
    read: Callable[[], Iterator[Images]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised data set: its layout, files, classes and splits."""

    layout: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    splits: dict[str, SplitSource]
    changes: Callable[[], Sequence[str]] = tuple  # what is done to it, in sentences


# --- Kaggle's histopathologic-cancer-detection: a folder of .tif ---------------------------------


def find_kaggle(folder: Path) -> Source | None:
    """Kaggle's `train_labels.csv` with `train/ID.tif`; a part of train becomes validation."""
    table = folder / "train_labels.csv"
    if not table.is_file():
        return None
    try:
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as CSV: {error}") from error
    if not rows or not {"id", "label"} <= set(rows[0]):
        raise DataError(f"{table} must have the columns id,label and one row per image")
    if unsafe := [row["id"] for row in rows if not is_name(row["id"])]:
        raise DataError(f"{table}: id must be the name of a file in train/, got {unsafe[0]!r}")
    paths = [folder / "train" / f"{row['id']}.tif" for row in rows]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{table} lists {len(missing)} images that do not exist; the first is {missing[0]}"
        )
    labels = as_labels([row["label"] for row in rows], table)
    # Kaggle's test labels are not public: no test split.
    splits = _train_and_val(paths, labels, table)
    return Source(
        layout="kaggle",
        files=(table, *paths),
        classes=classes_of(splits),
        splits=splits,
        changes=lambda: [DRAWN_VAL],
    )


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
            f"{folder} has Parquet files such as {files[0].name}, but no train*.parquet; expected "
            f"train*, valid* and test*"
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
            f"{folder} has no valid*.parquet: add one. It is not taken from train, because patches "
            f"of the same slide must not be in both splits"
        )
    used = tuple(path for paths in parts.values() for path in paths)
    return Source(layout="parquet", files=used, classes=classes_of(splits), splits=splits)


def _open_parquet(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; download it again") from error
    missing = {"image", "label"} - set(file.schema_arrow.names)
    if missing:
        raise DataError(
            f"{path} must have the columns image and label, it has {file.schema_arrow.names}"
        )
    return file


def _parquet_column(path: Path, column: str) -> list[object]:
    try:
        values: list[object] = _open_parquet(path).read(columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}; download it again") from error
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
                raise DataError(f"{path} is damaged: {error}; download it again") from error

    return read


# --- torchvision's image folders -----------------------------------------------------------------


def find_folders(folder: Path) -> Source | None:
    """`train/CLASS/x.png` with optional `val/` and `test/` folders; or only `CLASS/x.png`."""
    if not folder.is_dir():
        return None
    roots = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_NAMES.items()
    }
    train = roots["train"] or folder
    classes = tuple(sorted(d.name for d in subfolders(train) if _image_files(d)))
    if not classes:
        return None
    listed: dict[str, tuple[list[Path], Labels]] = {}
    for split, root in {**roots, "train": train}.items():
        if root is None or (roots["train"] is None and split != "train"):
            continue
        unknown = {d.name for d in subfolders(root)} - set(classes)
        if unknown and split != "train":
            raise DataError(
                f"{root} has classes that {train} does not have: {', '.join(sorted(unknown))}"
            )
        paths = [(p, i) for i, name in enumerate(classes) for p in _image_files(root / name)]
        listed[split] = [p for p, _ in paths], np.array([i for _, i in paths], np.int64)
    files = tuple(path for paths, _ in listed.values() for path in paths)

    @functools.cache
    def unequal() -> bool:
        """Whether the images of all splits differ in size, by their headers."""
        with ThreadPoolExecutor() as pool:
            return len(set(pool.map(_size_of, files))) > 1

    splits = {
        s: SplitSource(labels_N=y, read=_file_reader(p, unequal)) for s, (p, y) in listed.items()
    }
    if "val" not in listed:
        splits |= _train_and_val(*listed["train"], train, unequal)
    drawn = [] if "val" in listed else [DRAWN_VAL]
    return Source(
        layout="folder",
        files=files,
        classes=classes,
        splits=splits,
        changes=lambda: [*drawn, *([RESIZED] if unequal() else [])],
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden."""
    return [d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "_"))]


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            _check_size(str(path), image.size)
            return image.size
    except DataError:
        raise
    except Exception as error:  # decoders fail on broken files in many ways
        raise DataError(f"{path} cannot be decoded: {error}") from error


# --- shared --------------------------------------------------------------------------------------


def _train_and_val(
    paths: Sequence[Path],
    labels_N: Labels,
    where: Path,
    unequal: Callable[[], bool] = lambda: False,
) -> dict[str, SplitSource]:
    """80 % train and 20 % validation, stratified by class and the same every time."""
    train, val = stratified(labels_N, VAL_SHARE, where)
    return {
        split: SplitSource(
            labels_N=labels_N[index], read=_file_reader([paths[i] for i in index], unequal)
        )
        for split, index in (("train", train), ("val", val))
    }


def stratified(labels_N: Labels, share: float, where: Path) -> tuple[Labels, Labels]:
    """Indices of the larger and of the smaller part, each in ascending order."""
    from sklearn.model_selection import train_test_split

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
            chunk = [(str(path), path.read_bytes()) for path in paths[start : start + CHUNK_IMAGES]]
            yield _decode(chunk, square=unequal())

    return read


def _decode(packed: Sequence[tuple[str, bytes]], *, square: bool = False) -> Images:
    """(N, H, W, 3) from encoded images; with `square` each is resized and cropped to one size.

    Raises:
        DataError: an image cannot be decoded, or they differ in size.
    """
    from PIL import Image

    def one(item: tuple[str, bytes]) -> Images:
        name, data = item
        try:
            with Image.open(io.BytesIO(data)) as image:
                _check_size(name, image.size)
                pixels = np.asarray(image.convert("RGB"))
        except DataError:
            raise
        except Exception as error:  # decoders fail on broken files in many ways
            raise DataError(f"{name} cannot be decoded: {error}") from error
        return _square(pixels) if square else pixels

    with ThreadPoolExecutor() as pool:  # PIL releases the interpreter's lock while it decodes
        images = list(pool.map(one, packed))
    if not square and len(sizes := {image.shape for image in images}) > 1:
        raise DataError(
            f"the images near {packed[0][0]} differ in size ({sorted(sizes)}): resize them to one "
            f"size"
        )
    return np.stack(images)


def _check_size(name: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{name}: images of {size[0]}x{size[1]} px {TOO_LARGE}")


def _square(image: Images) -> Images:
    from PIL import Image

    height, width, _ = image.shape
    scale = UNEQUAL_SIDE_PX / min(height, width)
    size = max(UNEQUAL_SIDE_PX, round(width * scale)), max(UNEQUAL_SIDE_PX, round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - UNEQUAL_SIDE_PX) // 2, (size[1] - UNEQUAL_SIDE_PX) // 2
    box = (left, top, left + UNEQUAL_SIDE_PX, top + UNEQUAL_SIDE_PX)
    return np.asarray(resized.crop(box))


def as_labels(values: Sequence[object] | NDArray[np.generic], where: Path) -> Labels:
    """Class numbers (N,).

    Raises:
        DataError: the values are not class numbers; the message names `where`.
    """
    rule = f"labels must be integers from 0 to {MAX_CLASSES - 1:,}"
    array = np.asarray(values)
    if array.dtype.kind == "f" and not (
        np.isfinite(array).all() and (array == np.round(array)).all()
    ):
        raise DataError(f"{where}: {rule}, got a fraction, infinity or NaN")
    try:
        labels = array.astype(np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: {rule}, {error}") from error
    if labels.ndim != 1 or len(labels) == 0:
        raise DataError(f"{where}: {rule}, one per image")
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise DataError(f"{where}: {rule}, got {labels.min()} to {labels.max()}")
    return labels


def classes_of(splits: dict[str, SplitSource]) -> tuple[str, ...]:
    """Class names for labels that are only numbers: `0`, `1`, ..."""
    highest = max(int(split.labels_N.max()) for split in splits.values())
    return tuple(str(label) for label in range(highest + 1))
