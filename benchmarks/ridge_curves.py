"""What early stopping saves a search for the ridge, replayed on recorded curves: no training.

    uv run python -m benchmarks.ridge_curves [--repetitions 10] [--shares 0.125 0.25]

On the surface of benchmarks/surface.py, and on the part of it that is the flagship's grid in
preview (5 batch sizes, every second lr). Each way spends the same share of the grid's epochs; what
it then says is compared with what the model says of the whole grid: the exponent with its 95 %
interval, the scaling rules (constant, square root, linear) that the interval allows, and the best
set (cells that cannot be told from the best one; `same_set`: cells in both sets over cells in
either). Regret: how much worse the lr chosen for a batch size is than its best,
on average, in points of AUROC. Last line: one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from benchmarks.surface import RECORDED
from search.analysis.humps.gain import choose
from search.analysis.humps.posterior import WIDER, best_lrs, fit, frame_of, moments
from search.execution.forecast_stopping import ForecastStopping
from search.execution.schedulers import EarlyStopping
from search.explore import Asha, Forecast
from search.report.numbers import plain

Array = NDArray[np.float64]
FLAGSHIP = (16, 32, 64, 128, 256)
GRACE, SCALE = 1 / 5, 1000  # the first epoch warms up
FINE = 31  # lrs of a batch size, between which its best lr is sought


@dataclass(frozen=True)
class Cell:
    """One batch size and lr: for each seed the best score so far after each epoch."""

    batch_size: int
    lr: float
    curves: tuple[tuple[float, ...], ...]


Rows = list[dict[str, Any]]  # of trials: cell, batch_size, lr, score, std, epochs, status
Ask = Callable[[Rows], int | None]


def cells_of(recorded: pd.DataFrame) -> list[Cell]:
    """From the rows of benchmarks/surface.py; a trial that diverged has a shorter curve."""
    cells = []
    for (batch_size, lr), of_cell in recorded.groupby(["batch_size", "lr"]):
        curves = [
            tuple(seed.sort_values("epoch")["val_auroc"].dropna().cummax().tolist())
            for _, seed in of_cell.groupby("seed")
        ]
        cells.append(Cell(int(batch_size), float(lr), tuple(curves)))
    return cells


def epochs_of(cells: Sequence[Cell]) -> int:
    """Of a whole training: the longest curve."""
    return max(len(curve) for cell in cells for curve in cell.curves)


def play(cells: Sequence[Cell], ask: Ask, rule: Any, budget: float) -> Rows:
    """Train what is asked for, one trial after the other, until the epochs are spent."""
    rows: Rows = []
    whole = epochs_of(cells)
    while sum(row["epochs"] for row in rows) < budget:
        number = ask(rows)
        if number is None:
            break
        cell = cells[number]
        curve = cell.curves[sum(row["cell"] == number for row in rows)]
        row = {"cell": number, "batch_size": cell.batch_size, "lr": cell.lr, "std": 0.0}
        row |= {"status": "completed", "score": curve[-1], "epochs": len(curve)}
        if len(curve) < whole:
            row |= {"status": "diverged", "score": -np.inf, "epochs": len(curve) + 1}
        rows.append(row | (_stopped(rule, f"t{len(rows)}", cell, curve, whole) if rule else {}))
    return rows


def _stopped(
    rule: Any, name: str, cell: Cell, curve: Sequence[float], whole: int
) -> dict[str, Any]:
    """How a rule changes a trial's row: as Ray Tune would ask it, after each epoch."""
    size = cell.batch_size
    config = {"key": name, "batch_size": size, "total_images": SCALE, "whole": False}
    trial = SimpleNamespace(trial_id=name, config=config)
    rule.on_trial_add(None, trial)
    for epoch, score in enumerate(curve, 1):
        result = {"score": score, "examples_seen": SCALE * epoch // whole}
        if rule.on_trial_result(None, trial, result) == "STOP":
            row: dict[str, Any] = {"status": "stopped", "epochs": epoch}
            if isinstance(rule, ForecastStopping):
                predicted = rule.forecasts[name]
                return row | {"score": predicted.mean, "std": predicted.std}
            return row | {"score": np.nan}
    if isinstance(rule, ForecastStopping) and len(curve) == whole:
        ending = {"trial_row/status": "completed", "examples_seen": SCALE}
        rule.on_trial_result(None, trial, ending)
    return {}


def ridge(cells: Sequence[Cell], seed: int) -> Ask:
    """The next cell is the one that tells most."""
    b, x = places(cells)
    frame = frame_of(b, x)

    def ask(rows: Rows) -> int | None:
        count = [sum(row["cell"] == n for row in rows) for n in range(len(cells))]
        refused = [n for n, cell in enumerate(cells) if count[n] >= len(cell.curves)]
        trials = pd.DataFrame(rows, columns=["batch_size", "lr", "score", "std"])
        chosen = choose(trials, frame, b, x, pending=[], refused=refused, num=1, seed=seed)
        return chosen[0] if chosen else None

    return ask


def at_random(cells: Sequence[Cell], seed: int) -> Ask:
    """Trainings in a random order."""
    every = [n for n, cell in enumerate(cells) for _ in cell.curves]
    order = np.random.default_rng(seed).permutation(every).tolist()
    return lambda rows: order[len(rows)] if len(rows) < len(order) else None


def places(cells: Sequence[Cell]) -> tuple[Array, Array]:
    """Batch size and lr of each, in octaves."""
    b = np.log2([float(cell.batch_size) for cell in cells])
    return b, np.log2([cell.lr for cell in cells])


def answer(cells: Sequence[Cell], rows: Rows, seed: int = 0) -> dict[str, Any]:
    """What the model says: the exponent, the best set, and the cell it chooses of each size."""
    b, x = places(cells)
    trials = pd.DataFrame(rows)
    posterior = fit(trials[trials["score"].notna()], frame_of(b, x), seed=seed)
    sizes = sorted({cell.batch_size for cell in cells})
    of_sizes = [np.flatnonzero(b == np.log2(float(size))) for size in sizes]
    fine = [np.geomspace(2 ** x[row].min(), 2 ** x[row].max(), FINE) for row in of_sizes]
    slopes = np.polyfit(np.log2(sizes), np.log2(best_lrs(posterior, sizes, fine)).T, 1)[0]
    low, middle, high = np.quantile(slopes, (0.025, 0.5, 0.975))
    mean, covariance = moments(posterior, b, x)
    best = mean.argmax()
    variance = covariance[best, best] + covariance.diagonal() - 2 * covariance[best]
    margin = WIDER * norm.ppf(0.975) * np.sqrt(np.clip(variance, 0, None))
    return {
        "exponent": float(middle),
        "low": float(low),
        "high": float(high),
        "best_set": set(np.flatnonzero(mean[best] - mean <= margin).tolist()),
        "chosen": [int(row[mean[row].argmax()]) for row in of_sizes],
    }


def allowed(said: dict[str, Any]) -> list[float]:
    """The exponents of a constant rate, of square-root and of linear scaling in the interval."""
    return [rule for rule in (0.0, 0.5, 1.0) if said["low"] <= rule <= said["high"]]


def best_seen(cells: Sequence[Cell], rows: Rows) -> list[int]:
    """Of each batch size the best cell that was trained to its end, else the middle one."""
    trials = pd.DataFrame(rows)
    means = trials[trials["status"] != "stopped"].groupby("cell")["score"].mean()
    chosen = []
    for size in sorted({cell.batch_size for cell in cells}):
        row = [n for n, cell in enumerate(cells) if cell.batch_size == size]
        seen = means[means.index.isin(row)]
        chosen.append(int(seen.idxmax()) if len(seen) else row[len(row) // 2])
    return chosen


def regret(cells: Sequence[Cell], chosen: Sequence[int]) -> float:
    """In points: the mean over batch sizes of what is lost by the lr that was chosen."""
    whole = epochs_of(cells)
    scores = [
        np.mean([curve[-1] if len(curve) == whole else 0.0 for curve in cell.curves])
        for cell in cells
    ]
    best = {
        cell.batch_size: max(
            s for s, c in zip(scores, cells, strict=True) if c.batch_size == cell.batch_size
        )
        for cell in cells
    }
    return 100 * float(np.mean([best[cells[n].batch_size] - scores[n] for n in chosen]))


RULES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "ridge": (ridge, lambda: None),
    "ridge, Forecast": (ridge, lambda: ForecastStopping(Forecast(), grace=int(GRACE * SCALE))),
    "random": (at_random, lambda: None),
    "random, Forecast": (at_random, lambda: ForecastStopping(Forecast(), grace=int(GRACE * SCALE))),
    "random, Asha by batch size": (
        at_random,
        lambda: EarlyStopping(
            Asha(by_batch_size=True, grace_share=GRACE), grace=int(GRACE * SCALE), total=SCALE
        ),
    ),
}


def repetition(
    cells: Sequence[Cell], way: str, budget: float, seed: int, whole: dict[str, Any]
) -> dict[str, float]:
    """The figures of one way with one seed."""
    asks, rule = RULES[way]
    rows = play(cells, asks(cells, seed), rule(), budget)
    said = answer(cells, rows, seed)
    chosen = said["chosen"] if asks is ridge else best_seen(cells, rows)
    both, either = said["best_set"] & whole["best_set"], said["best_set"] | whole["best_set"]
    return {
        "trials": len(rows),
        "stopped": sum(row["status"] == "stopped" for row in rows),
        "regret": regret(cells, chosen),
        "exponent": said["exponent"],
        "low": said["low"],
        "high": said["high"],
        "holds_grids": float(said["low"] <= whole["exponent"] <= said["high"]),
        "same_rules": float(allowed(said) == allowed(whole)),
        "same_set": len(both) / len(either),
    }


def compare(
    name: str, cells: Sequence[Cell], repetitions: int, shares: Sequence[float], console: Console
) -> dict[str, Any]:
    """All ways at all shares: means over the repetitions."""
    every = [n for n, cell in enumerate(cells) for _ in cell.curves]
    grid_rows = play(
        cells, lambda rows: every[len(rows)] if len(rows) < len(every) else None, None, np.inf
    )
    epochs = sum(row["epochs"] for row in grid_rows)
    whole = answer(cells, grid_rows)
    title = (
        f"{name}: {len(every)} trainings, {epochs} epochs; exponent {whole['exponent']:.2f} "
        f"[{whole['low']:.2f}, {whole['high']:.2f}], best set {len(whole['best_set'])} cells"
    )
    heads = (
        "trials",
        "stopped",
        "regret",
        "exponent",
        "low",
        "high",
        "holds_grids",
        "same_rules",
        "same_set",
    )
    table = Table("share", "way", *heads, title=title)
    found: dict[str, Any] = {}
    for share in shares:
        for way in RULES:
            figures = pd.DataFrame(
                [repetition(cells, way, share * epochs, seed, whole) for seed in range(repetitions)]
            ).mean()
            found[f"{way} {share:g}"] = figures.round(4).to_dict()
            table.add_row(f"{share:.1%}", way, *(f"{figures[head]:.2f}" for head in heads))
    console.print(table)
    return found | {"grid": {k: whole[k] for k in ("exponent", "low", "high")}}


def main() -> None:
    """Replay the recorded surface and the flagship's part of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ridge_curves")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.125, 0.25])
    asked = parser.parse_args()
    cells = cells_of(pd.read_parquet(RECORDED))
    lrs = {s: sorted(c.lr for c in cells if c.batch_size == s)[::2] for s in FLAGSHIP}
    flagship = [cell for cell in cells if cell.lr in lrs.get(cell.batch_size, ())]
    console = Console()
    console.width = max(console.width, 120)
    found = {
        name: compare(name, of, asked.repetitions, asked.shares, console)
        for name, of in (("preview surface", cells), ("flagship's grid in preview", flagship))
    }
    print(json.dumps(plain(found)))


if __name__ == "__main__":
    main()
