"""Data that cannot be used is named, with what is expected."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_data import (
    IMAGES,
    LABELS,
    OFFICIAL,
    STEM,
    WRITERS,
    truncate,
    write_cifar,
    write_hdf5,
    write_moles,
)
from PIL import Image

from trainable.data.cache import open_data
from trainable.data.sources import DataError


def test_splits_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    with h5py.File(tmp_path / f"{STEM}valid_x.h5", "w") as file:
        file["x"] = IMAGES["val"][:, :64, :64]
    with pytest.raises(DataError, match="the val images are 64x64 px, the others 96x96 px"):
        open_data("pcam", tmp_path)


def spoil_shape(folder: Path) -> None:
    with h5py.File(folder / f"{STEM}train_x.h5", "w") as file:
        file["x"] = IMAGES["train"][..., :2]


def spoil_dtype(folder: Path) -> None:
    with h5py.File(folder / f"{STEM}train_x.h5", "w") as file:
        file["x"] = IMAGES["train"].astype(np.float32)


def spoil_count(folder: Path) -> None:
    with h5py.File(folder / f"{STEM}valid_y.h5", "w") as file:
        file["y"] = LABELS["val"][:-1]


def spoil_classes(folder: Path) -> None:
    for official in OFFICIAL.values():
        with h5py.File(folder / f"{STEM}{official}_y.h5", "r+") as file:
            file["y"][:] = 0


def spoil_val_classes(folder: Path) -> None:
    with h5py.File(folder / f"{STEM}valid_y.h5", "r+") as file:
        file["y"][:] = 0


@pytest.mark.parametrize(
    ("layout", "spoil", "message"),
    [
        ("hdf5", lambda d: shutil.rmtree(d), "no recognised data set in"),
        ("hdf5", lambda d: truncate(d / f"{STEM}train_x.h5"), "cannot be read as HDF5"),
        ("hdf5", lambda d: (d / f"{STEM}valid_x.h5").unlink(), f"has no {STEM}valid_x.h5"),
        ("hdf5", spoil_shape, "x must be uint8 of shape (N, height, width, 3), got uint8"),
        ("hdf5", spoil_dtype, "x must be uint8 of shape (N, height, width, 3), got float32"),
        ("hdf5", spoil_count, "has 20 images, but"),
        ("hdf5", spoil_classes, "the data has only one class (0)"),
        ("hdf5", spoil_val_classes, "the val split has no images of class 1"),
        ("kaggle", lambda d: truncate(d / "train" / f"{3:040x}.tif"), "cannot be decoded"),
        (
            "kaggle",
            lambda d: (d / "train" / f"{3:040x}.tif").unlink(),
            "1 images that do not exist",
        ),
        ("kaggle", lambda d: (d / "train_labels.csv").write_text("a,b\n"), "must have the columns"),
        (
            "kaggle",
            lambda d: (d / "train_labels.csv").write_text(f"id,label\n{0:040x},yes\n"),
            "labels must be integers from 0",
        ),
        (
            "parquet",
            lambda d: truncate(d / "data" / "train-00000-of-00001.parquet"),
            "cannot be read as Parquet",
        ),
        (
            "parquet",
            lambda d: (d / "data" / "valid-00000-of-00001.parquet").unlink(),
            "has no valid*.parquet",
        ),
        (
            "parquet",
            lambda d: pq.write_table(
                pa.table({"img": [1]}), d / "data" / "train-00000-of-00001.parquet"
            ),
            "must have the columns image and label",
        ),
        ("folder", lambda d: (d / "val" / "extra").mkdir(), "has classes that"),
        (
            "folder",
            lambda d: (d / "train" / "normal" / "000.png").write_bytes(b"not an image"),
            "cannot be decoded",
        ),
    ],
)
def test_bad_data_is_named(layout: str, spoil, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "set"
    WRITERS[layout](folder)
    spoil(folder)
    with pytest.raises(DataError) as caught:
        open_data("pcam", folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_nested_folder_of_images_is_named(tmp_path: Path) -> None:
    nested = tmp_path / "archive" / "images"
    write_moles(nested)
    with pytest.raises(DataError) as refused:
        open_data("moles", tmp_path)
    assert f"2 classes (benign, melanoma) in {nested}: pass that folder" in str(refused.value)


def test_images_without_a_folder_per_class_are_counted(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.jpg")
    with pytest.raises(DataError, match="it has 3 images, but no folder per class"):
        open_data("moles", tmp_path)


def test_results_or_nothing_in_place_of_data_are_told(tmp_path: Path) -> None:
    (tmp_path / "pcam_grid").mkdir()
    (tmp_path / "pcam_grid" / "study.json").write_text("{}")
    with pytest.raises(DataError, match="which has results of studies"):
        open_data("pcam", tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        open_data("pcam", tmp_path / "nowhere")


def test_damaged_cifar_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)  # its checksums are wrong
    with pytest.raises(DataError, match="cifar-10-batches-py cannot be read"):
        open_data("cifar", tmp_path)
