"""One trial as a worker of Ray's runs it, with what it reports to Ray kept here."""

import errno
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainable import ray_adaptor
from trainable.config import TrialConfig
from trainable.data.cache import open_data
from trainable.finetune import finetune
from trainable.host.storage import NoSpaceError, TakenOverError
from trainable.ray_adaptor import train_trial

CONFIG = TrialConfig(
    dataset="digits",
    model="plain",
    pretrained="none",
    width=4,
    batch_size=32,
    base_lr=0.3,
    train_images=128,
    eval_images=64,
    epochs=2,
    precision="fp32",
)
Reports = list[dict[str, Any]]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reports]:
    """What the worker reports, in a process that Ray did not start."""
    kept: Reports = []
    monkeypatch.setattr(ray_adaptor.tune, "report", kept.append)
    monkeypatch.setattr(ray_adaptor, "_num_gpus", lambda: 0.0)
    monkeypatch.setattr(ray_adaptor, "_end_with_parent", lambda: None)  # it ends this process
    monkeypatch.setattr(ray_adaptor, "_beat", lambda: None)
    monkeypatch.setattr(ray_adaptor, "_node", lambda: "the node")
    threads = torch.get_num_threads()
    yield kept
    torch.set_num_threads(threads)


def sent(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """What a worker is told of a trial."""
    trial = {
        "key": "k",
        "config": changes.pop("config", asdict(CONFIG)),
        "checkpoint_folder": str(tmp_path / "checkpoints"),
        "start_folder": None,
    }
    task = {
        "trials": [trial],
        "metric": "val_auroc",
        "data_folder": None,
        "data_fingerprint": open_data("digits").fingerprint,
        "keep_weights": False,
        "checkpoint_every_s": 0.0,
        "num_cpus": 1,
    }
    return {"key": "k", "resources": {"CPU": 1.0}, "task": json.dumps(task | changes)}


def test_a_trial_reports_its_evaluations_and_then_its_end(reports: Reports, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    train_trial(sent(tmp_path))
    ours = list(finetune(CONFIG))
    assert [set(row) - {"score", "examples_seen", "key"} for row in reports] == [
        {"epoch_row"},
        {"epoch_row"},
        {"trial_row"},
    ]
    for row, result in zip(reports, ours, strict=False):
        assert row["epoch_row"]["val_loss"] == result.val_loss
        assert row["score"] == result.val_auroc
        assert row["examples_seen"] == 128 * result.epoch
    end = reports[-1]["trial_row"]
    assert (end["status"], end["num_gpus"], end["gpu_shared"]) == ("completed", 0.0, False)
    assert end["host"] == socket.gethostname()
    assert timedelta(0) <= end["started_at"] - before <= end["ended_at"] - before
    assert reports[-1]["score"] == max(result.val_auroc for result in ours)


@contextmanager
def ends_its_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is called in the block ends this process, if it were a worker's."""

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit) as ended:
        yield
    assert ended.value.code == 1


def test_a_node_with_other_data_trains_nothing_and_says_whose_differ(
    reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, drivers = open_data("digits").fingerprint, "0123456789abcdef" * 4
    with ends_its_process(monkeypatch):
        train_trial(sent(tmp_path, data_fingerprint=drivers))
    (row,) = reports
    assert row["host_error"].pop("traceback").startswith("Traceback (most recent call last)")
    assert row["host_error"] == {
        "kind": "HostError",
        "reason": f"the data on {socket.gethostname()} ({here[:12]}) is not the driver's "
        f"(0123456789ab): give every node the same files",
        "node": "the node",
        "host": socket.gethostname(),
    }
    assert math.isfinite(row["score"])
    assert not (tmp_path / "checkpoints").exists()


def test_a_worker_keeps_the_groups_together_that_the_driver_did(
    reports: Reports, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 12, 12, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        path = tmp_path / "moles" / "ab"[i % 2] / f"p{i % 6}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    changes = {"dataset": "moles", "split_by": "prefix", "train_images": None, "epochs": 1}
    config = replace(CONFIG, **changes, batch_size=8)
    data = open_data("moles", tmp_path, split_by="prefix")
    task = {"config": asdict(config), "data_folder": str(tmp_path)}
    train_trial(sent(tmp_path, **task, data_fingerprint=data.fingerprint))
    assert reports[-1]["trial_row"]["status"] == "completed"


def test_a_full_disk_interrupts_and_any_other_error_fails(
    reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: Exception) -> Any:
        def outcomes(task: dict[str, Any]) -> Any:
            raise error
            yield

        return outcomes

    full = NoSpaceError(errno.ENOSPC, "the disk of r is full")
    monkeypatch.setattr(ray_adaptor, "_outcomes", raising(full))
    train_trial(sent(tmp_path))
    monkeypatch.setattr(ray_adaptor, "_outcomes", raising(ZeroDivisionError("of one's own")))
    train_trial(sent(tmp_path))
    interrupted, failed = (each["trial_row"] for each in reports)
    assert (interrupted["status"], interrupted["reason"]) == ("interrupted", full.strerror)
    assert (failed["status"], failed["reason"]) == ("failed", "ZeroDivisionError: of one's own")


def test_a_worker_whose_trial_goes_on_elsewhere_ends_and_reports_nothing(
    reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_over(task: dict[str, Any]) -> Any:
        raise TakenOverError("by another process")
        yield

    monkeypatch.setattr(ray_adaptor, "_outcomes", taken_over)
    with ends_its_process(monkeypatch):
        train_trial(sent(tmp_path))
    assert reports == []


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (OSError(errno.EIO, "Input/output error", "/data/train.h5"), True),
        (ModuleNotFoundError("No module named 'timm'"), True),
        (FileExistsError(errno.EEXIST, "File exists", "/out/checkpoints/k"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_a_worker_whose_host_cannot_train_says_so_and_ends(
    error: Exception,
    ends: bool,
    reports: Reports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else it would turn the whole queue into failed trials, one after the other."""

    def broken(task: dict[str, Any]) -> Any:
        raise error
        yield

    monkeypatch.setattr(ray_adaptor, "_outcomes", broken)
    if not ends:
        train_trial(sent(tmp_path))
        assert [row["trial_row"]["status"] for row in reports] == ["failed"]
        return
    with ends_its_process(monkeypatch):
        train_trial(sent(tmp_path))
    (row,) = reports
    assert row["host_error"]["kind"] == type(error).__name__
    assert row["host_error"]["reason"] == f"{type(error).__name__}: {error}"
    assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize(("share", "shared"), [(0.0, False), (0.25, True), (1.0, False)])
def test_a_part_of_a_gpu_is_shared(
    share: float,
    shared: bool,
    reports: Reports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_adaptor, "_num_gpus", lambda: share)

    def outcomes(task: dict[str, Any]) -> Any:
        yield 0, ValueError("nothing is trained")

    monkeypatch.setattr(ray_adaptor, "_outcomes", outcomes)
    train_trial(sent(tmp_path))
    end = reports[0]["trial_row"]
    assert (end["num_gpus"], end["gpu_shared"]) == (share, shared)


@pytest.mark.parametrize(
    ("metric", "good", "known"), [("val_auroc", 0.75, 0.75), ("val_loss", 0.25, -0.25)]
)
def test_what_schedulers_compare_is_finite_and_larger_is_better(
    metric: str, good: float, known: float, reports: Reports
) -> None:
    for value in (good, math.nan, math.inf):
        ray_adaptor._report(metric, "k", epoch_row={metric: value, "examples_seen": 7})
    ray_adaptor._report(metric, "k", trial_row={metric: good, "status": "diverged"})
    scores = [row["score"] for row in reports]
    assert scores[0] == known
    assert all(math.isfinite(score) and score < known for score in scores[1:])
    assert [row["examples_seen"] for row in reports] == [7, 7, 7, 0]


def test_a_trial_on_two_gpus_has_two_ranks_that_stay_for_the_next_one(
    reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first one is stopped, as Ray does it: where it reports."""
    monkeypatch.setattr(ray_adaptor, "_num_gpus", lambda: 2.0)
    config = replace(CONFIG, norm="none")
    ours = list(finetune(config))
    stopped = replace(config, seed=1)
    followers = ray_adaptor._followers(2)

    def stop(row: dict[str, Any]) -> None:
        raise SystemExit(0)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(ray_adaptor.tune, "report", stop)
            with pytest.raises(SystemExit):
                train_trial(sent(tmp_path, config=asdict(stopped)))
        (process,) = followers.processes
        train_trial(sent(tmp_path / "next", config=asdict(config)))
        assert followers.processes == [process]
    finally:
        followers.close()
        ray_adaptor._followers.cache_clear()
    end = reports[-1]["trial_row"]
    assert (end["status"], end["num_gpus"], end["gpu_shared"]) == ("completed", 2.0, False)
    assert end["microbatch_size"] == CONFIG.batch_size // 2
    for row, result in zip(reports, ours, strict=False):
        assert row["epoch_row"]["val_loss"] == pytest.approx(result.val_loss, rel=1e-4)
