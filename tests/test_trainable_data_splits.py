"""How validation is made: given, image by image, or with the groups of images kept together."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_data import (
    IMAGES,
    LABELS,
    OFFICIAL,
    STEM,
    png,
    write_folders,
    write_hdf5,
    write_kaggle,
    write_moles,
    write_parquet,
)
from PIL import Image

from trainable.config import TrialConfig, trial_key
from trainable.data.cache import Dataset, locate, open_data
from trainable.data.groups import Groups
from trainable.data.sources import DataError
from trainable.data.splits import draw

HERE = Path("here")


def slides_in(data: Dataset, split: str) -> set[int]:
    """Of patches whose pixels are all the number of their slide."""
    part = getattr(data, split)
    return set(part.images_NHWC[:, 0, 0, 0].tolist())


def patch_of(slide: int, number: int) -> Image.Image:
    image = Image.new("RGB", (16, 16), (slide, slide, slide))
    image.putpixel((15, 15), (number, 0, 0))
    return image


PATCHES = [(slide, number, (slide + number) % 2) for slide in range(10) for number in range(8)]


def write_kaggle_slides(folder: Path, *, column: str = "slide") -> None:
    """80 patches of ten slides, both classes on each."""
    (folder / "train").mkdir(parents=True)
    lines = [f"id,label,{column}"]
    for slide, number, label in PATCHES:
        patch_of(slide, number).save(folder / "train" / f"s{slide}_{number}.tif")
        lines.append(f"s{slide}_{number},{label},slide {slide}")
    (folder / "train_labels.csv").write_text("\n".join(lines) + "\n")


def write_named_slides(folder: Path) -> None:
    """The same as CLASS/SLIDE_NUMBER.png."""
    for slide, number, label in PATCHES:
        path = folder / ("tumour" if label else "normal") / f"s{slide}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        patch_of(slide, number).save(path)


def write_nested_slides(folder: Path) -> None:
    """The same as CLASS/SLIDE/NUMBER.png."""
    for slide, number, label in PATCHES:
        path = folder / ("tumour" if label else "normal") / f"s{slide}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        patch_of(slide, number).save(path)


def write_listed_slides(folder: Path) -> None:
    """The same with a metadata.csv, as Hugging Face's image folders have it."""
    write_named_slides(folder)
    lines = ["file_name,slide"]
    for slide, number, label in PATCHES:
        name = "tumour" if label else "normal"
        lines.append(f"{name}/s{slide}_{number}.png,{slide}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def write_parquet_slides(folder: Path) -> None:
    """The same in two Parquet files, without a validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate((PATCHES[:35], PATCHES[35:])):
        table = {
            "image": [{"bytes": png(np.asarray(patch_of(s, n))), "path": None} for s, n, _ in part],
            "label": [label for _, _, label in part],
            "slide": [slide for slide, _, _ in part],
        }
        pq.write_table(pa.table(table), folder / f"train-{i}.parquet")


@pytest.mark.parametrize(
    ("write", "split_by", "split"),
    [
        (write_kaggle_slides, None, "by_slide"),
        (write_kaggle_slides, "slide", "by_slide"),
        (write_kaggle_slides, "prefix", "by_prefix"),
        (write_named_slides, "prefix", "by_prefix"),
        (write_nested_slides, "folder", "by_folder"),
        (write_listed_slides, None, "by_slide"),
        (write_listed_slides, "slide", "by_slide"),
        (write_listed_slides, "prefix", "by_prefix"),
        (write_parquet_slides, None, "by_slide"),
        (write_parquet_slides, "slide", "by_slide"),
    ],
)
def test_a_group_is_in_one_split(
    write: Callable[[Path], None], split_by: str | None, split: str, tmp_path: Path
) -> None:
    write(tmp_path)
    data = open_data("pcam", tmp_path, split_by=split_by)
    assert data.split == split
    assert not slides_in(data, "train") & slides_in(data, "val")
    assert slides_in(data, "train") | slides_in(data, "val") == set(range(10))
    assert (len(data.train.labels_N), len(data.val.labels_N)) == (64, 16)
    assert np.bincount(data.val.labels_N).tolist() == [8, 8]
    source = locate("pcam", tmp_path, split_by=split_by)
    assert source is not None
    assert "2 of the 10 groups of split_by=" in source.division.note


@pytest.mark.parametrize(
    ("write", "split_by"),
    [
        (write_kaggle_slides, "image"),
        (write_listed_slides, "image"),
        (write_named_slides, None),
        (write_parquet_slides, "image"),
    ],
)
def test_without_groups_images_are_drawn_one_by_one(
    write: Callable[[Path], None], split_by: str | None, tmp_path: Path
) -> None:
    write(tmp_path)
    data = open_data("pcam", tmp_path, split_by=split_by)
    assert data.split == "by_image"
    assert slides_in(data, "train") & slides_in(data, "val")
    assert len(data.val.labels_N) == 16


def test_two_splits_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    """One after the other in one cache, and back: each is itself, in its trials' keys too."""
    write_named_slides(tmp_path / "data")
    first, grouped, again, grouped_again = (
        open_data("pcam", tmp_path / "data", split_by=split_by, cache_dir=tmp_path / "cache")
        for split_by in (None, "prefix", None, "prefix")
    )
    assert [data.split for data in (first, grouped, again)] == ["by_image", "by_prefix", "by_image"]
    assert first.fingerprint == again.fingerprint != grouped.fingerprint
    assert grouped.fingerprint == grouped_again.fingerprint
    assert np.array_equal(first.val.images_NHWC, again.val.images_NHWC)
    assert slides_in(first, "train") & slides_in(first, "val")
    assert not slides_in(grouped_again, "train") & slides_in(grouped_again, "val")
    assert len(list((tmp_path / "cache").glob("pcam-*/about.json"))) == 2
    plain = TrialConfig(model="plain", pretrained="none")
    by_prefix = TrialConfig(model="plain", pretrained="none", split_by="prefix")
    assert trial_key(plain, "d") != trial_key(by_prefix, "d")


def test_a_table_that_changes_makes_another_split(tmp_path: Path) -> None:
    write_listed_slides(tmp_path)
    before = open_data("pcam", tmp_path)
    rows = (tmp_path / "metadata.csv").read_text().replace(",0\n", ",1\n").replace(",2\n", ",3\n")
    (tmp_path / "metadata.csv").write_text(rows)
    after = open_data("pcam", tmp_path)
    assert before.fingerprint != after.fingerprint
    for pair in ({0, 1}, {2, 3}):
        assert len({name for name in ("train", "val") if pair & slides_in(after, name)}) == 1


def test_slides_of_very_different_sizes_still_give_a_fifth_of_each_class() -> None:
    draws = np.random.default_rng(0)
    sizes = draws.integers(5, 120, 30)
    groups = np.repeat([f"slide {i}" for i in range(30)], sizes)
    shares = np.repeat(draws.beta(0.4, 0.6, 30), sizes)  # mostly tumour, or mostly normal
    labels = (draws.random(len(groups)) < shares).astype(np.int64)
    drawn = draw(labels, HERE, groups=Groups(by="slide", of_images=groups.tolist()))
    assert sorted([*drawn.train, *drawn.val]) == list(range(len(labels)))
    assert not set(groups[drawn.train]) & set(groups[drawn.val])
    shares_of_class = np.bincount(labels[drawn.val]) / np.bincount(labels)
    assert shares_of_class == pytest.approx([0.2, 0.2], abs=0.04)
    again = draw(labels, HERE, groups=Groups(by="slide", of_images=groups.tolist()))
    assert np.array_equal(drawn.val, again.val)


def test_a_rare_class_is_in_both_or_nothing_is_drawn() -> None:
    """Three patches of it, on two slides."""
    groups = [f"s{i % 12}" for i in range(120)]
    labels = np.zeros(120, np.int64)
    labels[[0, 12, 1]] = 1  # slides s0, s0, s1
    drawn = draw(labels, HERE, groups=Groups(by="slide", of_images=groups))
    assert set(labels[drawn.val]) == set(labels[drawn.train]) == {0, 1}


# --- splits that the data set has ----------------------------------------------------------------


def write_meta(folder: Path, wsi: Mapping[str, Sequence[str]]) -> None:
    """PatchCamelyon's tables of where each patch is from, with their columns."""
    for split, slides in wsi.items():
        name = f"{STEM}{OFFICIAL[split]}_meta.csv"
        with open(folder / name, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
            rows.writerows([i, 0, 0, False, False, slide] for i, slide in enumerate(slides))


def own_slides(split: str) -> list[str]:
    return [f"camelyon16_{split}_{i % 4}" for i in range(len(LABELS[split]))]


def test_given_splits_say_so_and_their_slides_are_compared(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    plain = locate("pcam", tmp_path)
    assert plain is not None
    assert (plain.division.kind, plain.division.note) == (
        "given",
        "train, val, test are the data set's own.",
    )
    fingerprint = open_data("pcam", tmp_path).fingerprint
    write_meta(tmp_path, {split: own_slides(split) for split in OFFICIAL})
    for split_by in (None, "wsi"):
        source = locate("pcam", tmp_path, split_by=split_by)
        assert source is not None
        assert source.division.note == (
            "train, val, test are the data set's own, and no wsi is in two of them (train 4, "
            "val 4, test 4)."
        )
        assert open_data("pcam", tmp_path, split_by=split_by).fingerprint == fingerprint


def test_a_slide_in_two_given_splits_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    shared = {split: own_slides(split) for split in OFFICIAL}
    shared["test"][3] = shared["train"][0]
    write_meta(tmp_path, shared)
    with pytest.raises(DataError, match=r"train and test share 1 of wsi's groups \(camelyon16_tr"):
        open_data("pcam", tmp_path)
    assert open_data("pcam", tmp_path, split_by="image").split == "given"


def test_given_splits_of_folders_and_parquet_are_compared(tmp_path: Path) -> None:
    write_folders(tmp_path / "folders")
    assert open_data("pcam", tmp_path / "folders").split == "given"
    for path in (tmp_path / "folders").rglob("*.png"):
        path.rename(path.with_name(f"s{int(path.stem) % 3}_{path.name}"))
    with pytest.raises(DataError, match=r"train and val share 3 of prefix's groups \(s0, s1, s2\)"):
        open_data("pcam", tmp_path / "folders", split_by="prefix")
    write_parquet(tmp_path / "parquet")
    assert open_data("pcam", tmp_path / "parquet").split == "given"
    for split, official in OFFICIAL.items():
        path = tmp_path / "parquet" / "data" / f"{official}-00000-of-00001.parquet"
        slides = ["a" if i == 1 else f"{split} {i}" for i in range(len(LABELS[split]))]
        pq.write_table(pq.read_table(path).append_column("patient_id", [slides]), path)
    with pytest.raises(DataError, match=r"train and val share 1 of patient_id's groups \(a\)"):
        open_data("pcam", tmp_path / "parquet")


def test_a_drawn_validation_split_shares_no_slide_with_a_given_test_split(tmp_path: Path) -> None:
    write_named_slides(tmp_path / "train")
    for name in ("normal", "tumour"):
        (tmp_path / "test" / name).mkdir(parents=True)
        patch_of(11, 0).save(tmp_path / "test" / name / "s11_0.png")
    assert open_data("pcam", tmp_path, split_by="prefix").split == "by_prefix"
    patch_of(3, 9).save(tmp_path / "test" / "normal" / "s3_9.png")
    with pytest.raises(DataError, match=r"train and test share 1 of prefix's groups \(s3\)"):
        open_data("pcam", tmp_path, split_by="prefix")


# --- groups that cannot be used ------------------------------------------------------------------


def spoil_cell(folder: Path) -> None:
    table = folder / "train_labels.csv"
    table.write_text(table.read_text().replace(",slide 3\n", ",\n", 1))


def leave_slides(folder: Path, num_slides: int) -> None:
    table = folder / "train_labels.csv"
    lines = table.read_text().splitlines()
    kept = [line for line in lines[1:] if int(line.rpartition(" ")[2]) < num_slides]
    table.write_text("\n".join([lines[0], *kept]) + "\n")


def one_slide_a_class(folder: Path) -> None:
    table = folder / "train_labels.csv"
    lines = table.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    rows = [[i, "1" if slide == "slide 7" else "0", slide] for i, _, slide in rows]
    table.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n")


def drop_row(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")


def double_row(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text() + "normal/s0_0.png,9\n")


def name_alone(folder: Path) -> None:
    shutil.copy(folder / "normal" / "s0_0.png", folder / "tumour" / "s0_0.png")
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("normal/s0_0.png", "s0_0.png"))


def image_beside(folder: Path) -> None:
    patch_of(0, 9).save(folder / "tumour" / "alone.png")


def name_without(folder: Path) -> None:
    patch_of(0, 9).save(folder / "tumour" / "alone.png")


def nothing(folder: Path) -> None:
    """Leave it as it is."""


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("write", "spoil", "split_by", "message"),
    [
        (write_kaggle_slides, spoil_cell, None, "slide is empty for 1 of 80 images, the first is"),
        (write_kaggle_slides, nothing, "slyde", "no column slyde: take split_by=slide or split_by"),
        (write_kaggle_slides, nothing, "folder", "has no column folder: take split_by=slide or"),
        (
            write_kaggle_slides,
            lambda d: leave_slides(d, 4),
            None,
            "split_by=slide gives too few groups: slide 0, slide 1, slide 2, slide 3. At least",
        ),
        (
            write_kaggle_slides,
            one_slide_a_class,
            None,
            "all images of class 1 are in one group of split_by=slide (slide 7)",
        ),
        (write_named_slides, name_without, "prefix", "1 of 81 images in"),
        (write_named_slides, nothing, "slide", "write metadata.csv with the columns file_name,sl"),
        (write_named_slides, nothing, "folder", "are in the folder of their class itself"),
        (write_nested_slides, image_beside, "folder", "1 images of class tumour are in no group's"),
        (
            write_nested_slides,
            nothing,
            None,
            "in them slides or patients, take split_by=folder",
        ),
        (write_listed_slides, nothing, "patient", "no column patient: take split_by=slide or"),
        (write_listed_slides, drop_row, None, "has no row of 1 of 80 images, the first is normal"),
        (write_listed_slides, double_row, None, "has more than one row of normal/s0_0.png"),
        (write_listed_slides, name_alone, None, "names s0_0.png, and 2 images have that name"),
        (write_parquet_slides, nothing, "prefix", "no column prefix: take split_by=slide or"),
        (write_hdf5, nothing, "wsi", "train_meta.csv, which does not exist"),
        (
            write_hdf5,
            lambda d: write_meta(d, {"train": ["a"]}),
            None,
            "train_meta.csv has 1 rows, but there are 40 images",
        ),
    ],
)
def test_groups_that_cannot_be_used_are_told_in_a_sentence(
    write: Callable[[Path], None],
    spoil: Callable[[Path], None],
    split_by: str | None,
    message: str,
    tmp_path: Path,
) -> None:
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError) as refused:
        open_data("pcam", tmp_path, split_by=split_by)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["synthetic", "digits"])
def test_embedded_sets_have_no_groups(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no groups of images: leave split_by out"):
        open_data(name, split_by="slide")


def test_parquet_without_groups_is_still_not_split(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    (tmp_path / "data" / "valid-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no valid\*.parquet: add one, or take split_by=COLUMN"):
        open_data("pcam", tmp_path)


# --- what a data set is called -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "folder", "name"),
    [
        ("pcam", "moles", "moles"),
        ("pcam", "my moles (2)", "my-moles-2"),
        ("pcam", "synthetic", "pcam"),  # it is not drawn
        ("pcam", "pcam", "pcam"),
        ("lesions", "moles", "lesions"),  # as the study calls it
    ],
)
def test_what_a_study_of_pcam_reads_is_called_by_its_folder(
    asked: str, folder: str, name: str, tmp_path: Path
) -> None:
    write_moles(tmp_path / folder, sides=(8, 8))
    assert open_data(asked, tmp_path / folder).name == name


def test_pcam_is_called_pcam(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "downloads")
    write_kaggle(tmp_path / "kaggle" / "pcam")
    for folder in ("downloads", "kaggle"):
        assert open_data("pcam", tmp_path / folder).name == "pcam"
    assert len(IMAGES["train"]) == 40
