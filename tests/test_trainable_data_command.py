"""`python -m trainable.data`: what is in a folder, and what is done to it."""

import subprocess
import sys
from pathlib import Path

import pytest
from made_data import write_folders, write_hdf5, write_moles
from PIL import Image
from test_trainable_data_voc import write_voc
from test_trainable_detection import write_boxes

from trainable.data.__main__ import main


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


def test_the_sheet_has_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten classes a row each: the images of each are drawn in one grey of their own."""
    for label in range(10):
        for split in ("train", "val", "test"):
            place = tmp_path / "greys" / split / f"class_{label}"
            place.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (25 * label + number,) * 3).save(place / f"{number}.png")
    sheet = tmp_path / "sheet.png"
    assert look_at(tmp_path / "greys", monkeypatch, "--out", str(sheet)) == 0
    with Image.open(sheet) as drawn:
        colours = {colour for _, colour in drawn.getcolors(1 << 16) or []}
    assert {(25 * label,) * 3 for label in range(10)} <= colours


def look_at(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "argv", ["trainable.data", str(folder), *more])
    return main()


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


def test_groups_are_told_and_kept_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_moles(tmp_path / "moles", sides=(40, 40))
    for path in (tmp_path / "moles").rglob("*.png"):
        path.rename(path.with_name(f"p{int(path.stem) % 5}_{path.name}"))
    assert look_at(tmp_path / "moles", monkeypatch) == 0
    assert "split=by_image: There is no validation split" in capsys.readouterr().out
    assert look_at(tmp_path / "moles", monkeypatch, "--split-by", "prefix") == 0
    assert (
        "split=by_prefix: There is no validation split: 1 of the 5 groups of split_by=prefix are "
        "taken for it, with 20% of the training images. No group is in both."
    ) in capsys.readouterr().out
    assert look_at(tmp_path / "moles", monkeypatch, "--split-by", "slide") == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert "split_by=slide names a column, but there is no" in refused


def test_a_folder_without_data_ends_the_command_with_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainable.data", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "no recognised data set in" in refused.stderr


def test_many_classes_fit_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in range(25):
        for number in range(5 + label):
            path = tmp_path / "birds" / f"species_{label:02}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (label, number, 0)).save(path)
    monkeypatch.setenv("COLUMNS", "80")
    assert look_at(tmp_path / "birds", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "class species_19 " in shown
    assert "species_20" not in shown
    assert "5 more classes, each" in shown
    assert "20 to 23" in shown  # of 25 to 29 images, 80 %
    assert "…" not in shown
    assert "no test split" in shown


@pytest.mark.parametrize("augment", [(), ("--augment", "hflip+vflip")])
@pytest.mark.parametrize(
    ("task", "line"), [("segmentation", "pixels of dog"), ("detection", "boxes of dog")]
)
def test_masks_and_boxes_are_counted_and_drawn(
    task: str,
    line: str,
    augment: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = (
        write_voc(tmp_path / "pets") if task == "segmentation" else write_boxes(tmp_path / "pets")
    )
    sheet = tmp_path / "sheet.png"
    assert look_at(folder, monkeypatch, "--task", task, "--out", str(sheet), *augment) == 0
    said = capsys.readouterr().out
    assert f"dataset=pets layout=voc_{task}" in said
    assert line in said
    with Image.open(sheet) as drawn:
        assert len(drawn.getcolors(drawn.width * drawn.height)) > 20
    assert look_at(folder, monkeypatch) == 2
    assert "Pascal VOC's layout: take task=segmentation or" in capsys.readouterr().err
