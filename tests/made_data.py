"""Small data sets on disk, in each layout that is read, with the same images and labels."""

import csv
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainable.data.cache import Dataset

SIZES = {"train": 40, "val": 20, "test": 12}
IMAGES = {
    split: np.random.default_rng(n).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
    for split, n in SIZES.items()
}
LABELS = {s: np.arange(n, dtype=np.uint8) % 2 for s, n in SIZES.items()}
STEM = "camelyonpatch_level_2_split_"
OFFICIAL = {"train": "train", "val": "valid", "test": "test"}


def write_hdf5(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, official in OFFICIAL.items():
        with h5py.File(folder / f"{STEM}{official}_x.h5", "w") as file:
            file["x"] = IMAGES[split]
        with h5py.File(folder / f"{STEM}{official}_y.h5", "w") as file:
            file["y"] = LABELS[split].reshape(-1, 1, 1, 1)


def write_kaggle(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    with open(folder / "train_labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label"])
        for i, (image, label) in enumerate(zip(IMAGES["train"], LABELS["train"], strict=True)):
            Image.fromarray(image).save(folder / "train" / f"{i:040x}.tif")
            rows.writerow([f"{i:040x}", label])


def png(image: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG")
    return packed.getvalue()


def write_parquet(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for split, official in OFFICIAL.items():
        cells = [{"bytes": png(image), "path": None} for image in IMAGES[split]]
        table = pa.table({"image": cells, "label": LABELS[split].astype(np.int64)})
        pq.write_table(table, folder / "data" / f"{official}-00000-of-00001.parquet")


def write_folders(folder: Path) -> None:
    for split in SIZES:
        for i, (image, label) in enumerate(zip(IMAGES[split], LABELS[split], strict=True)):
            path = folder / split / ("tumour" if label else "normal")
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / f"{i:03}.png")


def write_cifar(folder: Path) -> None:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    flat = np.random.default_rng(0).integers(0, 256, (240, 3072), dtype=np.uint8)
    for i in range(6):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        part = {"data": flat[i * 40 : i * 40 + 40], "labels": list(range(10)) * 4}
        (batches / name).write_bytes(pickle.dumps(part))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


WRITERS = {
    "hdf5": write_hdf5,
    "kaggle": write_kaggle,
    "parquet": write_parquet,
    "folder": write_folders,
}


def images_by_label(data: Dataset, split: str) -> list[tuple[int, bytes]]:
    part = getattr(data, split)
    return sorted(
        (int(y), x.tobytes()) for x, y in zip(part.images_NHWC, part.labels_N, strict=True)
    )


def written(*splits: str) -> list[tuple[int, bytes]]:
    return sorted(
        (int(y), x.tobytes()) for s in splits for x, y in zip(IMAGES[s], LABELS[s], strict=True)
    )


def write_moles(folder: Path, *, sides: Sequence[int] = (40, 60)) -> None:
    """Two classes of ten images, without a validation split."""
    for name, side in zip(("benign", "melanoma"), sides, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (side, side), (20 * i, 90, 10)).save(folder / name / f"{i}.png")


SPLITS = {"train": 200, "t10k": 20}


def write_mnist(folder: Path) -> dict[str, np.ndarray]:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {n: rng.integers(0, 256, (k, 28, 28), dtype=np.uint8) for n, k in SPLITS.items()}
    for name, array in images.items():
        n = len(array)
        head = b"\0\0\x08\x03" + b"".join(x.to_bytes(4, "big") for x in (n, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + array.tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8)
        head = b"\0\0\x08\x01" + n.to_bytes(4, "big")
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return images


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
