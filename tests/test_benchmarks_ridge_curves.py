"""benchmarks/ridge_curves.py: searches replayed on recorded learning curves."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ridge_curves
from benchmarks.ridge_curves import Cell, answer, at_random, best_seen, cells_of, play, regret
from search.execution.forecast_stopping import ForecastStopping
from search.explore import Forecast

EPOCHS = 5


def recorded(seeds: int = 2) -> pd.DataFrame:
    """Curves over six batch sizes and nine lrs, best at 0.1 (B / 64)^0.5; one cell diverges."""
    rng = np.random.default_rng(0)
    rows = []
    for size in (8, 16, 32, 64, 128, 256):
        for lr in np.geomspace(0.0063, 1.6, 9):
            for seed in range(seeds):
                diverged = size == 8 and lr > 1
                octaves = math.log2(lr / (0.1 * (size / 64) ** 0.5))
                final = 0.9 - 0.01 * octaves**2 + 0.001 * rng.standard_normal()
                gain = 0.05 + 0.002 * rng.standard_normal()
                about = {"batch_size": size, "lr": lr, "seed": seed}
                about["status"] = "diverged" if diverged else "completed"
                for epoch in range(1, 3 if diverged else EPOCHS + 1):
                    score = math.nan if diverged and epoch == 2 else final - gain / epoch
                    rows.append(about | {"epoch": epoch, "val_auroc": score})
    return pd.DataFrame(rows)


def test_a_budget_is_spent_in_epochs() -> None:
    cells = cells_of(recorded())
    assert len(cells) == 6 * 9
    lost = next(n for n, cell in enumerate(cells) if cell.batch_size == 8 and cell.lr > 1)
    rows = play(cells, lambda _: lost, None, budget=2)
    assert [(row["status"], row["epochs"]) for row in rows] == [("diverged", 2)]
    rows = play(cells, at_random(cells, 0), None, budget=50)
    epochs = [row["epochs"] for row in rows]
    assert sum(epochs) >= 50 > sum(epochs[:-1])
    every = play(cells, at_random(cells, 0), None, budget=math.inf)
    assert len(every) == 2 * len(cells)
    assert max(row["epochs"] for row in every) == EPOCHS


def test_a_rule_stops_and_leaves_a_forecast() -> None:
    cells = cells_of(recorded())
    rule = ForecastStopping(Forecast(), grace=200)
    rows = play(cells, at_random(cells, 0), rule, budget=math.inf)
    stopped = [row for row in rows if row["status"] == "stopped"]
    assert len(stopped) > 10
    for row in stopped:
        own = cells[row["cell"]].curves
        assert row["epochs"] < EPOCHS
        assert row["std"] > 0
        if len(own[0]) < EPOCHS:  # stopped before it would have diverged
            continue
        assert any(abs(row["score"] - curve[-1]) < 5 * row["std"] for curve in own)


def test_the_whole_grid_has_its_answer() -> None:
    cells = cells_of(recorded())
    rows = play(cells, at_random(cells, 0), None, budget=math.inf)
    said = answer(cells, rows)
    assert said["exponent"] == pytest.approx(0.5, abs=0.02)
    assert said["low"] < said["exponent"] < said["high"] < said["low"] + 0.1
    assert regret(cells, said["chosen"]) < 0.2  # points; a step beside the best costs one
    assert regret(cells, best_seen(cells, rows)) == pytest.approx(0.0, abs=1e-9)
    assert set(said["chosen"]) & said["best_set"]
    unknown = [Cell(8, 0.1, ((0.5,),)), Cell(8, 0.2, ((0.6,),)), Cell(8, 0.4, ((0.7,),))]
    assert best_seen(unknown, play(unknown, lambda _: 0, None, budget=1)) == [0]


def test_the_command_prints_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(seeds=1).to_parquet(tmp_path / "surface.parquet")
    monkeypatch.setattr(ridge_curves, "RECORDED", tmp_path / "surface.parquet")
    monkeypatch.setattr(ridge_curves, "FLAGSHIP", (16, 64, 256))
    monkeypatch.setattr(sys, "argv", ["x", "--repetitions", "1", "--shares", "0.3"])
    ridge_curves.main()
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert set(found) == {"preview surface", "flagship's grid in preview"}
    assert set(found["preview surface"]) == {"grid", *(f"{w} 0.3" for w in ridge_curves.RULES)}
    assert found["preview surface"]["ridge, Forecast 0.3"]["stopped"] > 0
    assert all(way in printed for way in ridge_curves.RULES)
