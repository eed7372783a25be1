"""The surface while it fills, of made-up events: its numbers, its table, its file."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from rich.console import Console

from search.execution import progress_file
from search.execution.filling import Filling, filled, is_one_surface, text_of
from search.execution.progress import Progress
from search.execution.progress_file import progress_kept
from search.explore import Grid
from search.results import tables
from search.results.running import NAME, progress_of
from search.study import Study
from search.study.explorer import PlannedTrial, Tables
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=5)
LRS = tuple(0.01 * 2**k for k in range(10))


def trial(batch_size: int, lr: float, seed: int = 0) -> PlannedTrial:
    config = replace(BASE, batch_size=batch_size, base_lr=lr, seed=seed)
    return PlannedTrial(f"{batch_size}-{lr}-{seed}", config)


def completed(score: float) -> dict[str, Any]:
    return {"status": "completed", "val_auroc": score}


def made() -> Filling:
    """Two seeds of one setting, one that runs, one that diverged, one to come."""
    filling = Filling("val_auroc", "max")
    for seed, score in enumerate((0.8, 0.9)):
        filling.started(trial(16, 0.1, seed))
        filling.ended(trial(16, 0.1, seed), completed(score))
    filling.ended(trial(32, 0.1), completed(0.7))
    filling.started(trial(16, 0.2))
    filling.ended(trial(32, 0.2), {"status": "diverged", "val_auroc": None})
    filling.planned(trial(64, 0.2))
    return filling


def test_each_setting_has_its_mean_and_what_else_became_of_it() -> None:
    filling = made()
    found = {at: text_of(setting) for at, setting in filling.settings.items()}
    assert found == {
        (16, 0.1): "0.850",
        (32, 0.1): "0.700",
        (16, 0.2): "…",
        (32, 0.2): "div.",
        (64, 0.2): "·",
    }
    assert filling.best == pytest.approx(0.85)
    assert Filling("val_loss", "min", filling.settings).best == pytest.approx(0.7)
    assert math.isnan(Filling("val_auroc", "max").best)
    content = json.loads(json.dumps(filling.as_json()))
    assert content["batch_sizes"] == [16, 32, 64]
    assert content["lrs"] == [0.1, 0.2]
    behind = {(c["batch_size"], c["base_lr"]): c["behind"] for c in content["cells"]}
    assert behind[16, 0.1] == 0
    assert behind[32, 0.1] == pytest.approx(0.15)
    assert behind[16, 0.2] is None
    assert sum(c["running"] for c in content["cells"]) == 1


def test_ten_rates_fit_on_eighty_columns_and_more_are_left_out() -> None:
    filling = Filling("val_auroc", "max")
    for batch_size in (16, 4096):
        for lr in LRS:
            filling.ended(trial(batch_size, lr), completed(0.875))
    console = Console(file=io.StringIO(), width=80, record=True)
    table = filling.table()
    assert table is not None
    console.print(table)
    lines = console.export_text().splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["16", *["0.875"] * 10]
    assert "…" not in lines[0]
    filling.ended(trial(16, 99.0), completed(0.5))
    assert filling.table() is None


def test_the_live_screen_has_the_surface_on_eighty_columns() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    screen = Progress(
        console=console,
        varied=["batch_size", "base_lr"],
        metric="val_auroc",
        total=5,
        done_before=0,
        filling=Filling("val_auroc", "max"),
    )
    screen.trial_started(trial(16, 0.1))
    screen.trial_started(trial(32, 0.2))
    screen.trial_started(trial(16, 0.1))  # again, after its worker was lost
    screen.trial_ended(trial(16, 0.1), completed(0.8125))
    console.print(screen.render())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    at = next(number for number, line in enumerate(lines) if line.split()[:1] == ["batch"])
    assert lines[at].split() == ["batch", "0.1", "0.2"]
    assert lines[at + 1].split() == ["16", "0.812", "·"]
    assert lines[at + 2].split() == ["32", "·", "…"]


def test_only_a_study_of_batch_size_and_rate_is_one_surface() -> None:
    vary: dict[str, Any] = {
        "batch_size": tune.grid_search([16, 32]),
        "base_lr": tune.grid_search([0.1, 0.2]),
    }
    study = Study(name="made", base=BASE, vary=vary, explore=Grid())
    assert is_one_surface(study, [trial(16, 0.1)])
    assert not is_one_surface(study, [replace(trial(16, 0.1), variant="wide")])
    more = replace(study, vary={**vary, "momentum": tune.grid_search([0.8, 0.9])})
    assert not is_one_surface(more, [])


def test_what_earlier_commands_trained_is_filled_in(tmp_path: Path) -> None:
    known = Tables("", tables.open_results(str(tmp_path), "made").folder)
    known.asked += [trial(16, 0.1), trial(16, 0.2)]
    known.ended["16-0.1-0"] = completed(0.75)
    filling = filled(known, Filling("val_auroc", "max"))
    assert [text_of(setting) for setting in filling.settings.values()] == ["0.750", "·"]


def test_the_file_follows_the_screen_and_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "INTERVAL_S", 0.02)
    results = tables.open_results(str(tmp_path), "made")
    screen = Progress(Console(file=io.StringIO()), ["batch_size"], "val_auroc", 3, 1)
    assert progress_of(results) == {}

    def wait_for(ended: int) -> dict[str, Any]:
        for _ in range(500):
            content = progress_of(results)
            if content.get("ended") == ended:
                return content
            progress_file.threading.Event().wait(0.01)
        raise AssertionError(content)

    with progress_kept(screen, results):
        screen.trial_started(trial(16, 0.1))
        running = wait_for(1)["running"]
        assert [(row["batch_size"], row["status"]) for row in running] == [(16, "started")]
        screen.trial_ended(trial(16, 0.1), {"status": "failed", "reason": "no memory"})
        content = wait_for(2)
        assert content["running"] == []
        assert content["recent"][0]["reason"] == "no memory"
        assert content["total"] == 3
    assert not (tmp_path / "made" / NAME).exists()
    assert progress_of(results) == {}


def test_a_folder_that_refuses_the_file_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_file, "INTERVAL_S", 0.01)
    attempts: list[int] = []
    results = tables.open_results(str(tmp_path), "made")

    def refuse(*_: Any, **_options: Any) -> None:
        attempts.append(1)
        raise OSError("no space")

    monkeypatch.setattr("trainable.host.storage.write_once", refuse)
    screen = Progress(Console(file=io.StringIO()), ["batch_size"], "val_auroc", 3, 0)
    with progress_kept(screen, results):
        for _ in range(200):
            if len(attempts) > 1:
                break
            progress_file.threading.Event().wait(0.01)
    assert len(attempts) > 1
