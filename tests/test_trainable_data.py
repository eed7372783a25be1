"""The layouts of image data on disk, each read as the same images and labels."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_data import (
    IMAGES,
    LABELS,
    SIZES,
    WRITERS,
    images_by_label,
    write_folders,
    write_hdf5,
    write_kaggle,
    write_mnist,
    write_parquet,
    written,
)
from PIL import Image
from torchvision.datasets import PCAM

from trainable.data.cache import LAYOUTS, open_data
from trainable.data.folders import find_folders
from trainable.data.hdf5 import find_hdf5
from trainable.data.kaggle import find_kaggle
from trainable.data.parquet import find_parquet
from trainable.data.sources import DataError, Source
from trainable.data.standard import find_torchvision


@pytest.mark.parametrize("layout", ["hdf5", "parquet", "folder"])
def test_layouts_give_the_same_images_and_labels(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    data = open_data("pcam", tmp_path)
    assert data.layout == layout
    for split in SIZES:
        expected = zip(IMAGES[split], LABELS[split], strict=True)
        assert images_by_label(data, split) == sorted((int(y), x.tobytes()) for x, y in expected)
    pixels = IMAGES["train"].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(pixels.mean(0), rel=1e-5)
    assert data.std == pytest.approx(pixels.std(0), rel=1e-5)


def test_kaggle_is_split_once_and_for_all_each_class_alike(tmp_path: Path) -> None:
    write_kaggle(tmp_path / "a")
    first = open_data("pcam", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    second = open_data("pcam", tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert np.bincount(first.val.labels_N).tolist() == [4, 4]
    assert np.bincount(first.train.labels_N).tolist() == [16, 16]
    assert first.test is None
    both = images_by_label(first, "train") + images_by_label(first, "val")
    expected = zip(IMAGES["train"], LABELS["train"], strict=True)
    assert sorted(both) == sorted((int(y), x.tobytes()) for x, y in expected)


def test_gzipped_hdf5_is_the_same_data(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "plain")
    write_hdf5(tmp_path / "packed")
    for path in list((tmp_path / "packed").iterdir()):
        with gzip.open(f"{path}.gz", "wb") as packed:
            packed.write(path.read_bytes())
        path.unlink()
    plain, packed_data = (open_data("pcam", tmp_path / name) for name in ("plain", "packed"))
    assert plain.fingerprint == packed_data.fingerprint


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_torchvision_reads_the_same_from_the_hdf5_files(split: str, tmp_path: Path) -> None:
    # torchvision looks in ROOT/pcam, and so does --data ROOT.
    write_hdf5(tmp_path / "pcam")
    ours, theirs = open_data("pcam", tmp_path), PCAM(str(tmp_path), split=split)
    part = getattr(ours, split)
    assert len(theirs) == len(part.labels_N)
    for i in range(len(theirs)):
        image, label = theirs[i]
        assert np.array_equal(np.asarray(image), part.images_NHWC[i])
        assert label == part.labels_N[i]


def test_images_of_several_sizes_are_made_square_and_alike(tmp_path: Path) -> None:
    write_folders(tmp_path)
    Image.new("RGB", (300, 500), "red").save(tmp_path / "train" / "normal" / "big.png")
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    data = open_data("pcam", tmp_path)
    assert data.val.images_NHWC.shape == (20, 224, 224, 3)  # all splits alike, one odd image or not
    assert data.train.images_NHWC.shape == (41, 224, 224, 3)


def test_the_named_subfolder_comes_before_the_folder_itself(tmp_path: Path) -> None:
    write_folders(tmp_path / "lesions")
    write_folders(tmp_path / "other")
    assert open_data("lesions", tmp_path).classes == ("normal", "tumour")
    with pytest.raises(DataError, match="no recognised data set in"):
        open_data("nothing", tmp_path)  # folders of data sets are not classes


def write_plain_folders(folder: Path) -> list[tuple[int, bytes]]:
    write_folders(folder)
    return written("train", "val", "test")


def written_mnist(folder: Path) -> list[tuple[int, bytes]]:
    images = write_mnist(folder)
    grey = [(i % 10, each) for part in images.values() for i, each in enumerate(part)]
    return sorted((label, np.stack([each] * 3, -1).tobytes()) for label, each in grey)


# What each reader of a layout reads, with the images that are written for it.
READ_BY = {
    find_hdf5: lambda d: (write_hdf5(d), written("train", "val", "test"))[1],
    find_kaggle: lambda d: (write_kaggle(d), written("train"))[1],
    find_parquet: lambda d: (write_parquet(d), written("train", "val", "test"))[1],
    find_torchvision: written_mnist,
    find_folders: write_plain_folders,
}


@pytest.mark.parametrize("look", LAYOUTS)
def test_every_layout_has_one_reader_that_reads_all_of_it(
    look: Callable[[Path], Source | None], tmp_path: Path
) -> None:
    expected = READ_BY[look](tmp_path)
    assert next(each for each in LAYOUTS if each(tmp_path) is not None) is look
    data = open_data("any", tmp_path)
    found = [
        each
        for split in ("train", "val", "test")
        if getattr(data, split) is not None
        for each in images_by_label(data, split)
    ]
    assert sorted(found) == expected
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert look(nothing) is None


@pytest.mark.data
def test_real_patches(shared_data: Path) -> None:
    data = open_data("pcam", shared_data / "pcam_small")
    assert [len(getattr(data, s).labels_N) for s in SIZES] == [4000, 1000, 1000]
    assert data.train.images_NHWC.shape == (4000, 96, 96, 3)
    assert data.train.labels_N.mean() == 0.5
