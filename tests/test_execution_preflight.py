"""What is checked before anything is trained, and what a study does without its data or weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, SMALL, Run
from PIL import Image
from ray import tune
from rich.console import Console

import trainable.networks.models
from search.execution.preflight import Ready, check_networks, check_precision, prepare
from search.study.space_file import SpaceFileError, load_study
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.data.sources import DataError

FLAGSHIP = ROOT / "spaces" / "pcam_grid.py"
OWN = """
from ray import tune
from search.study import Study
from trainable.config import TrialConfig

study = Study(name="mine", base=TrialConfig({}), vary={{"base_lr": tune.grid_search([0.1, 0.2])}})
"""


def digits(**changes: Any) -> Study:
    base = TrialConfig(dataset="digits", model="plain", pretrained="none", precision="fp32")
    return Study(
        name="s", base=replace(base, **changes), vary={"base_lr": tune.grid_search([0.1, 0.2])}
    )


def prepared(study: Study, out: Path, **changes: Any) -> Ready:
    given: dict[str, Any] = {"data": None, "preview": False, "settings": [], "console": Console()}
    return prepare(study, out=str(out), **(given | changes))


def test_each_different_network_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[int, str]] = []

    def check_model(config: TrialConfig, **_: int) -> None:
        built.append((config.width, config.norm))

    monkeypatch.setattr(trainable.networks.models, "check_model", check_model)
    study = replace(
        digits(),
        vary={
            "batch_size": tune.grid_search([16, 32]),
            "base_lr": tune.grid_search([0.1, 1.0]),
            "weight_decay": tune.grid_search([0.0, 1e-4]),
            "width": tune.grid_search([4, 8]),
            "norm": tune.grid_search(["batch", "none"]),
        },
        seeds=2,
    )
    check_networks(prepared(study, tmp_path))
    assert sorted(built) == [(4, "batch"), (4, "none"), (8, "batch"), (8, "none")]


def test_our_own_space_without_data_is_a_preview(
    tmp_path: Path, drawn_patches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(record=True, width=300)
    ready = prepared(load_study(FLAGSHIP), tmp_path, space_file=FLAGSHIP, console=console)
    assert (ready.study.base.dataset, ready.study.base.model) == ("synthetic", "plain")
    assert "this is a preview on the embedded synthetic patches" in console.export_text()


def test_fp16_without_a_gpu_is_refused_before_ray_is_started(
    tmp_path: Path, run_here: Run, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("search.session._connected", lambda address, _: started.append(address))
    done = run_here(SMALL, tmp_path, "--set", "precision=fp16")
    assert (done.returncode, started) == (2, [])
    assert "precision=fp16 needs a GPU, and there is none: take bf16 or fp32" in done.stderr
    assert done.stderr.count("\n") == 1
    check_precision(digits(precision="fp16"), address="auto")  # a cluster may have one
    check_precision(digits(), address="local")
    monkeypatch.setattr("trainable.host.device.pick_device", lambda: torch.device("cuda"))
    check_precision(digits(precision="fp16"), address="local")


@pytest.mark.parametrize("base", ["", 'dataset="moles"'])
def test_anothers_space_without_data_is_refused(
    base: str, tmp_path: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer about the wrong images under the study's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN.format(base))
    done = run_here(tmp_path / "mine.py", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no recognised data set in data" in done.stderr
    assert "--preview" in done.stderr
    assert not (tmp_path / "mine").exists()


def test_our_own_space_on_other_data_that_is_not_there_is_refused(
    tmp_path: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here(FLAGSHIP, tmp_path, "--set", "dataset=moles")
    assert (done.returncode, "no recognised data set" in done.stderr) == (2, True)


def write_lesions(folder: Path) -> None:
    """Two classes of 30 images each, of five patients."""
    for name, label in (("benign", 0), ("melanoma", 1)):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            image = Image.new("RGB", (12, 12), (40 * (i % 5), 8 * i, 255 * label))
            image.save(folder / name / f"p{i % 5}_{i}.png")


def test_the_screen_names_what_was_read(
    tmp_path: Path, run_here: Run, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space file names no data set, so its study is one of pcam."""

    def enough(ready: Ready) -> None:
        raise SpaceFileError("the first line is there")

    monkeypatch.setattr("search.execution.preflight.check_images", enough)
    write_lesions(tmp_path / "moles")
    (tmp_path / "mine.py").write_text(OWN.format('model="plain", pretrained="none", batch_size=8'))
    done = run_here(tmp_path / "mine.py", tmp_path, "--data", str(tmp_path / "moles"))
    assert "mine: 2 trials on dataset=moles, 0 done before" in done.stdout
    ready = prepared(load_study(tmp_path / "mine.py"), tmp_path, data=tmp_path / "moles")
    assert ready.study.base.dataset == "pcam"  # so its trials' keys are those of before


def test_groups_come_from_the_study_or_from_a_setting(tmp_path: Path, run_here: Run) -> None:
    write_lesions(tmp_path / "moles")
    by_patient = digits(dataset="pcam", split_by="prefix")
    for study, settings, split in (
        (digits(dataset="pcam"), [], "by_image"),
        (digits(dataset="pcam"), ["split_by=prefix"], "by_prefix"),
        (by_patient, [], "by_prefix"),
        (by_patient, ["split_by=None"], "by_image"),
    ):
        ready = prepared(study, tmp_path, data=tmp_path / "moles", settings=settings)
        assert ready.data.split == split
    (tmp_path / "mine.py").write_text(OWN.format('model="plain", pretrained="none", batch_size=8'))
    more = ("--data", str(tmp_path / "moles"), "--set", "split_by=slide")
    done = run_here(tmp_path / "mine.py", tmp_path, *more)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "split_by=slide names a column, but there is no" in done.stderr


def test_a_preview_on_drawn_patches_has_no_groups(
    tmp_path: Path, drawn_patches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = digits(dataset="pcam", split_by="slide")
    for settings in ([], ["split_by=patient"]):
        ready = prepared(study, tmp_path, preview=True, settings=settings)
        assert (ready.data.name, ready.study.base.split_by) == ("synthetic", None)


def test_a_study_from_python_without_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no recognised data set"):
        prepared(digits(dataset="pcam"), tmp_path)
    assert prepared(digits(dataset="pcam"), tmp_path, preview=True).data.name == "synthetic"
    with pytest.raises(DataError, match="no recognised data set"):  # a folder was named
        prepared(digits(dataset="pcam"), tmp_path, preview=True, data=tmp_path)


@pytest.mark.parametrize(("field", "num_images"), [("train_images", 1077), ("eval_images", 360)])
def test_fewer_images_than_a_study_asks_for_are_refused_but_in_a_preview(
    field: str, num_images: int, tmp_path: Path
) -> None:
    with pytest.raises(
        SpaceFileError, match=rf"{field}=5000, but digits has {num_images} such images: take --set"
    ):
        prepared(digits(**{field: 5000}), tmp_path)
    varied = {field: tune.grid_search([100, 5000])}
    with pytest.raises(SpaceFileError, match=f"{field}=5000"):
        prepared(replace(digits(), vary=varied), tmp_path)
    prepared(digits(**{field: num_images}), tmp_path)
    prepared(digits(), tmp_path, preview=True)


def test_missing_weights_are_refused_but_in_a_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained from scratch, the study would answer another question."""
    monkeypatch.setattr(trainable.networks.models, "available_weights", lambda *_: "none")
    study = digits(model="resnet18", pretrained="imagenet")
    with pytest.raises(
        SpaceFileError, match=r"weights of resnet18 are not in torch's cache.*--set"
    ):
        prepared(study, tmp_path)
    study = replace(study, preview={"model": "resnet18", "pretrained": "imagenet"})
    console = Console(record=True, width=300)
    ready = prepared(study, tmp_path, preview=True, console=console)
    assert ready.study.base.pretrained == "none"
    assert "training from scratch (pretrained=none)" in console.export_text()


def test_a_command_from_python_is_told_with_its_own_arguments(
    tmp_path: Path, run_here: Run, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.session.run", interrupted)
    monkeypatch.setattr("sys.argv", ["a notebook", "--of", "its own"])
    done = run_here(SMALL, tmp_path)
    assert done.returncode == 75
    assert f"python -m search.run {SMALL} --out {tmp_path}" in done.stdout
