import gzip
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from made_data import (
    IMAGES,
    LABELS,
    OFFICIAL,
    SIZES,
    STEM,
    write_cifar,
    write_folders,
    write_hdf5,
    write_kaggle,
    write_parquet,
)
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import PCAM

from trainable.data.__main__ import main
from trainable.data.cache import EMBEDDED, LAYOUTS, Dataset, default_cache_dir, open_data
from trainable.data.folders import find_folders
from trainable.data.hdf5 import find_hdf5
from trainable.data.kaggle import find_kaggle
from trainable.data.parquet import find_parquet
from trainable.data.sources import DataError, Source
from trainable.data.standard import find_torchvision
from trainable.data.synthetic import CENTRE_PX, draw_patches


def images_by_label(data: Dataset, split: str) -> list[tuple[int, bytes]]:
    part = getattr(data, split)
    return sorted(
        (int(y), x.tobytes()) for x, y in zip(part.images_NHWC, part.labels_N, strict=True)
    )


WRITERS = {
    "hdf5": write_hdf5,
    "kaggle": write_kaggle,
    "parquet": write_parquet,
    "folder": write_folders,
}


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


def test_splits_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    with h5py.File(tmp_path / f"{STEM}valid_x.h5", "w") as file:
        file["x"] = IMAGES["val"][:, :64, :64]
    with pytest.raises(DataError, match="the val images are 64x64 px, the others 96x96 px"):
        open_data("pcam", tmp_path)


def test_the_cache_is_built_once_and_mapped(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    first = open_data("pcam", tmp_path)
    entries = {path: path.stat().st_mtime_ns for path in default_cache_dir().glob("pcam-*/*")}
    second = open_data("pcam", tmp_path)
    assert isinstance(second.train.images_NHWC, np.memmap)
    assert first.fingerprint == second.fingerprint
    again = {path: path.stat().st_mtime_ns for path in default_cache_dir().glob("pcam-*/*")}
    assert entries == again


def fingerprint_of(folder: str) -> str:
    return open_data("pcam", Path(folder)).fingerprint


def test_two_builders_at_once_build_one_cache(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len(set(pool.map(fingerprint_of, [str(tmp_path)] * 4))) == 1
    assert not list(default_cache_dir().glob("*.building"))


def test_a_cache_left_half_built_is_built_anew(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    sound = open_data("pcam", tmp_path)
    entry = max(default_cache_dir().glob("pcam-????????????????"), key=lambda p: p.stat().st_mtime)
    entry.rename(entry.with_suffix(".building"))  # as a builder leaves it that is killed
    (entry.with_suffix(".building") / "train_images.npy").write_bytes(b"half")
    assert open_data("pcam", tmp_path).fingerprint == sound.fingerprint


@pytest.mark.parametrize("struck", ["train_images.npy", "val_labels.npy", "about.json"])
def test_a_cache_that_was_cut_short_is_built_anew(struck: str, tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    sound = open_data("pcam", tmp_path)
    entry = max(default_cache_dir().glob("pcam-????????????????"), key=lambda p: p.stat().st_mtime)
    truncate(entry / struck)
    again = open_data("pcam", tmp_path)
    assert again.fingerprint == sound.fingerprint
    assert len(again.train.images_NHWC) == len(sound.train.labels_N)


def test_a_builder_killed_at_any_moment_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    code = "import sys; from pathlib import Path; from trainable.data.cache import open_data; "
    code += "print('go', flush=True); open_data('pcam', Path(sys.argv[1]))"
    cache = tmp_path / "cache"
    environment = {**os.environ, "DATA_CACHE_DIR": str(cache)}
    for delay_s in (0.0, 0.005, 0.02):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE
        ) as builder:
            assert builder.stdout is not None
            builder.stdout.readline()
            time.sleep(delay_s)
            builder.kill()
    built = open_data("pcam", tmp_path, cache_dir=cache)
    assert built.fingerprint == open_data("pcam", tmp_path).fingerprint
    assert not list(cache.glob("*.building"))


def test_building_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hdf5(tmp_path)
    monkeypatch.setattr("trainable.data.cache.LINE_S", 0.0)
    data = open_data("pcam", tmp_path)
    assert data.test is not None
    total = sum(len(each.labels_N) for each in (data.train, data.val, data.test))
    assert f"decoding pcam (hdf5): {total} of {total} images" in capsys.readouterr().err


# --- bad data ------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


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


# --- the embedded set ----------------------------------------------------------------------------


def test_synthetic_patches_depend_on_the_seed_alone() -> None:
    labels = np.array([0, 1, 1, 0])
    first, second = (draw_patches(labels, np.random.default_rng(5)) for _ in range(2))
    other = draw_patches(labels, np.random.default_rng(6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.shape == (4, 96, 96, 3)


def test_synthetic_label_is_about_the_centre() -> None:
    n = 400
    low, high = CENTRE_PX
    darkness = {}
    for label in (0, 1):
        patches = draw_patches(np.full(n, label), np.random.default_rng(1)).astype(float)
        centre = patches[:, low:high, low:high].mean()
        corner = patches[:, :20, :20].mean()
        darkness[label] = centre, corner
    # Tumour nuclei are larger and darker: only the centre's mean tells the classes apart.
    assert darkness[0][0] - darkness[1][0] > 3.0
    assert abs(darkness[0][1] - darkness[1][1]) < 1.0


def test_command_says_what_is_there_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hdf5(tmp_path)
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["trainable.data", str(tmp_path), "--out", str(sheet)])
    assert main() == 0
    said = capsys.readouterr().out
    assert "layout=hdf5" in said
    assert "40" in said
    with Image.open(sheet) as drawn:
        assert drawn.size[0] > 500


def look_at(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "argv", ["trainable.data", str(folder), *more])
    return main()


def write_moles(folder: Path, *, sides: Sequence[int] = (40, 60)) -> None:
    """Two classes of ten images, without a validation split."""
    for name, side in zip(("benign", "melanoma"), sides, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (side, side), (20 * i, 90, 10)).save(folder / name / f"{i}.png")


def test_the_command_names_own_data_by_its_folder_and_says_what_is_done_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_moles(tmp_path / "moles")
    assert look_at(tmp_path / "moles", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "dataset=moles layout=folder" in shown
    assert "There is no validation split: 20% of the training images are taken for it" in shown
    assert "The images differ in size: their short side is resized to 224 px" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moles"]  # no picture unasked
    assert look_at(tmp_path / "moles", monkeypatch, "--augment", "hflip") == 2
    assert "--augment draws a picture: add --out FILE" in capsys.readouterr().err


def test_of_whole_splits_of_one_size_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path / "patches")
    assert look_at(tmp_path / "patches", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "validation split" not in shown
    assert "differ in size" not in shown


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


def test_a_folder_without_data_ends_the_command_with_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainable.data", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "no recognised data set in" in refused.stderr


def test_cifar10_is_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path)
    # torchvision knows the checksums of the real files, which these are not.
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_data("cifar", tmp_path)
    assert (data.layout, data.classes) == ("cifar-10-batches-py", tuple("abcdefghij"))
    assert data.train.images_NHWC.shape[1:] == (32, 32, 3)
    assert [len(s.labels_N) for s in (data.train, data.val)] == [180, 20]
    assert data.test is not None
    assert data.test.labels_N.tolist() == list(range(10)) * 4


def test_damaged_cifar_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)  # its checksums are wrong
    with pytest.raises(DataError, match="cifar-10-batches-py cannot be read"):
        open_data("cifar", tmp_path)


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


def test_mnist_is_read_through_torchvision(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    data = open_data("mnist", tmp_path)
    assert data.test is not None
    assert data.classes[0] == "0 - zero"
    assert np.array_equal(data.test.images_NHWC[..., 1], images["t10k"])
    assert data.test.labels_N.tolist() == [i % 10 for i in range(20)]
    assert np.bincount(data.val.labels_N).tolist() == [2] * 10


SPLITS = {"train": 200, "t10k": 20}


def write_plain_folders(folder: Path) -> list[tuple[int, bytes]]:
    write_folders(folder)
    return written("train", "val", "test")


def written(*splits: str) -> list[tuple[int, bytes]]:
    return sorted(
        (int(y), x.tobytes()) for s in splits for x, y in zip(IMAGES[s], LABELS[s], strict=True)
    )


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


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_set_needs_no_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = EMBEDDED[name]()
    for split in ("train", "val", "test"):
        labels = source.splits[split].labels_N
        assert set(labels.tolist()) == set(range(len(source.classes)))


def test_digits_are_scikit_learns() -> None:
    data = open_data("digits")
    assert data.test is not None
    parts = (data.train, data.val, data.test)
    assert [len(part.labels_N) for part in parts] == [1077, 360, 360]
    pixels = np.concatenate([part.images_NHWC[..., 0] for part in parts]).astype(float)
    assert (
        np.sort(pixels.sum((1, 2))).tolist()
        == np.sort(np.minimum(load_digits().images * 16, 255).sum((1, 2))).tolist()
    )
    assert len(data.classes) == 10


@pytest.mark.data
def test_real_patches(shared_data: Path) -> None:
    data = open_data("pcam", shared_data / "pcam_small")
    assert [len(getattr(data, s).labels_N) for s in SIZES] == [4000, 1000, 1000]
    assert data.train.images_NHWC.shape == (4000, 96, 96, 3)
    assert data.train.labels_N.mean() == 0.5
