"""benchmarks/ridge.py: replays of recorded grids."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import ridge, surface
from benchmarks.grids import grid_of, preview_surface


def recorded(seeds: int = 1) -> pd.DataFrame:
    """A loss over five batch sizes and nine lrs, lowest at 0.1 (B / 64)^0.5; one cell diverged."""
    rng = np.random.default_rng(0)
    rows = [
        (size, lr, seed, 2 + 0.01 * np.log2(lr / (0.1 * (size / 64) ** 0.5)) ** 2)
        for size in (16, 32, 64, 128, 256)
        for lr in np.geomspace(0.0063, 1.6, 9)
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows, columns=["bs", "rate", "run", "loss"])
    table["loss"] += 0.001 * rng.standard_normal(len(table))
    table.loc[(table["bs"] == 16) & (table["rate"] > 1), "loss"] = np.nan
    return table


def replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    file = tmp_path / "grid.csv"
    recorded(seeds=2 if "--seed-column" in more else 1).to_csv(file, index=False)
    columns = ["--batch-size", "bs", "--lr", "rate", "--metric", "loss", "--mode", "min"]
    monkeypatch.setattr(sys, "argv", ["ridge", "--table", str(file), *columns, *more])
    ridge.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_table_is_replayed_and_judged_by_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replayed(tmp_path, monkeypatch, capsys, "--share", "0.25", "--slots", "4")
    asked = [tuple(cell) for cell in found["asked"]]
    assert len(asked) == len(set(asked)) == round(0.25 * 45)
    assert found["share"] == pytest.approx(11 / 45)
    table = recorded()
    by_size = table.set_index(["bs", "rate"])["loss"]
    lost = [
        by_size[int(size), lr] - table.loc[table["bs"] == int(size), "loss"].min()
        for size, lr in found["best_lr"].items()
    ]
    assert list(found["best_lr"]) == ["16", "32", "64", "128", "256"]
    assert found["ridge_regret"] == pytest.approx(np.mean(lost))
    assert found["ridge_regret"] < 0.005  # an octave beside the best costs 0.01
    chosen = [by_size[int(size), lr] for size, lr in found["best_lr"].items()]
    assert found["best_regret"] == pytest.approx(min(chosen) - table["loss"].min())
    assert found["exponent"] == pytest.approx(0.5, abs=0.25)
    assert found["exponent_full"] == pytest.approx(0.5, abs=0.1)


def test_seeds_are_asked_for_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replayed(tmp_path, monkeypatch, capsys, "--seed-column", "run", "--share", "0.3")
    asked = [tuple(cell) for cell in found["asked"]]
    assert len(asked) == round(0.3 * 90)
    assert max(map(asked.count, asked)) == 2  # where noise hides the best; there are no more
    assert found["ridge_regret"] < 0.005


@pytest.mark.parametrize("name", ridge.METHODS)
def test_every_method_spends_its_share_and_no_training_twice(name: str) -> None:
    grid = grid_of(
        recorded(2).rename(columns={"bs": "batch_size", "rate": "lr", "run": "seed"}),
        metric="loss",
        mode="min",
    )
    asked, chosen = ridge.METHODS[name](grid, 18, 1, 0)
    assert len(asked) <= 18  # the walk may end before
    assert len(asked) == 18 or name == "walk"
    assert all(asked.count(cell) <= 2 for cell in asked)
    assert [grid.batch_size[cell] for cell in chosen] == [16, 32, 64, 128, 256]


def test_what_diverged_is_below_all() -> None:
    grid = grid_of(
        pd.DataFrame({"batch_size": [16, 16], "lr": [0.1, 9.0], "loss": [2.0, np.nan]}),
        metric="loss",
        mode="min",
    )
    assert [list(scores) for scores in grid.scores] == [[-2.0], [-np.inf]]


def test_stopped_and_failed_runs_of_a_table_do_not_count() -> None:
    table = pd.DataFrame({"batch_size": 16, "lr": [0.1, 0.2, 0.3], "loss": [2.0, 1.0, np.nan]})
    grid = grid_of(
        table.assign(status=["completed", "stopped", "failed"]), metric="loss", mode="min"
    )
    assert list(grid.lr) == [0.1]


def test_curves_of_the_recorded_surface() -> None:
    trials = pd.DataFrame(
        {
            "trial_key": ["a", "b", "c"],
            "batch_size": [16, 32, 64],
            "seed": 0,
            "peak_lr": 0.1,
            "status": ["completed", "diverged", "failed"],
            "epochs_completed": [2, 1, 1],
        }
    )
    epochs = pd.DataFrame(
        {
            "trial_key": ["a", "a", "b", "c"],
            "epoch": [1, 2, 1, 1],
            "val_auroc": [0.6, 0.7, 0.5, 0.5],
        }
    )
    table = surface.curves(trials, epochs)
    assert list(table["batch_size"]) == [16, 16, 32, 32]
    assert list(table["epoch"]) == [1, 2, 1, 2]
    assert table["val_auroc"].tolist()[:3] == pytest.approx([0.6, 0.7, 0.5])
    assert np.isnan(table["val_auroc"].iloc[-1])


def test_the_recorded_surface_is_whole() -> None:
    (grid,) = preview_surface()
    assert sorted(set(grid.batch_size)) == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert len(grid.x) == 8 * 13
    assert all(len(scores) == 3 for scores in grid.scores)
    assert surface.RECORDED.stat().st_size < 300_000
