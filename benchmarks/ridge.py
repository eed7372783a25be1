"""How much of a grid the search for the ridge needs, replayed on recorded grids: no training.

    uv run python -m benchmarks.ridge [--data ../shared/data/curves] [--repetitions 3]
    uv run python -m benchmarks.ridge --table FILE --batch-size COL --lr COL --metric COL \
        --mode max|min [--seed-column COL] [--share 0.25] [--slots 4]

Each method asks for one training after the other, `--slots` of them under way at a time, until the
share of the table's trainings is spent, and then recommends an lr for each batch size. Regret: how
much worse the recommended lr's score is than the best of its batch size, both as means over seeds,
on average over batch sizes; and how much worse the best of these is than the best of all cells.
Without `--table`: the surfaces of `steplaw_moe.csv`, and that of benchmarks/surface.py, with a
plain Gaussian process, a walk along the ridge, two of Optuna's samplers and random choice beside
it. Last line: one JSON object.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from benchmarks.efficiency import mean_interval, printed
from benchmarks.grids import Grid, grid_of, preview_surface, step_law
from search.analysis.foreign_table import read_own_table
from search.analysis.humps.gain import choose
from search.analysis.humps.posterior import best_lrs, fit, frame_of, moments
from search.report.numbers import plain

Array = NDArray[np.float64]
SHARES = (0.15, 0.25, 0.33)
FINE = 31  # lrs of a batch size, where its best is between those of the table
MOST_ASKED = 5  # times as many trials as trainings: of a sampler that repeats itself
FIRST = 3  # cells at random before a Gaussian process begins


# What a method returns: the cells that it asked for, in order, and one for each batch size.
Outcome = tuple[list[int], list[int]]
Method = Callable[[Grid, int, int, int], Outcome]  # grid, trainings, slots, seed


def in_slots(grid: Grid, num: int, slots: int, ask: Callable[[list[int], list[int]], int]) -> Any:
    """The cells in the order of being asked; each is known when `slots` more were asked for."""
    asked: list[int] = []
    while len(asked) < num:
        known = max(0, len(asked) - slots + 1)
        asked.append(ask(asked[:known], asked[known:]))
    return asked


def ours(grid: Grid, num: int, slots: int, seed: int) -> Outcome:
    """The model of humps on a ridge."""
    frame = frame_of(grid.b, grid.x)

    def ask(known: list[int], pending: list[int]) -> int:
        refused = grid.spent([*known, *pending])
        trials = grid.trials(known)
        how: dict[str, Any] = {"pending": pending, "refused": refused, "num": 1, "seed": seed}
        return choose(trials, frame, grid.b, grid.x, **how)[0]

    asked = in_slots(grid, num, slots, ask)
    mean, _ = moments(fit(grid.trials(asked), frame, seed=seed), grid.b, grid.x)
    return asked, [int(row[mean[row].argmax()]) for row in grid.rows]


def plain_gp(grid: Grid, num: int, slots: int, seed: int) -> Outcome:
    """A Gaussian process as scikit-learn has it; next is the largest expected improvement."""
    rng = np.random.default_rng(seed)

    def ask(known: list[int], pending: list[int]) -> int:
        refused = [*grid.spent([*known, *pending]), *pending]
        left = np.setdiff1d(np.arange(len(grid.x)), refused)
        if len(known) < FIRST:
            return int(rng.choice(left))
        mean, std = gp_scores(grid, known)
        best = np.array([mean[grid.batch_size == size].max() for size in grid.batch_size[left]])
        z = (mean[left] - best) / std[left]
        return int(left[(std[left] * (z * norm.cdf(z) + norm.pdf(z))).argmax()])

    asked = in_slots(grid, num, slots, ask)
    mean, _ = gp_scores(grid, asked)
    return asked, [int(row[mean[row].argmax()]) for row in grid.rows]


def gp_scores(grid: Grid, asked: Sequence[int]) -> tuple[Array, Array]:
    """Mean and standard deviation (M,) of all cells."""
    score = grid.trials(asked)["score"].to_numpy(float)
    finite = score[np.isfinite(score)]
    score = np.where(np.isfinite(score), score, finite.min() if len(finite) else 0.0)
    kernel = ConstantKernel() * Matern([1.0, 1.0], (0.1, 10), nu=2.5) + WhiteKernel(1e-2)
    places = np.stack([grid.b - grid.b.mean(), grid.x - grid.x.mean()], axis=1) / 2
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bound of the kernel is reached
        model.fit(places[list(asked)], score)
    mean, std = model.predict(places, return_std=True)
    return mean, np.maximum(std, 1e-12)


def walk(grid: Grid, num: int, slots: int, seed: int) -> Outcome:
    """Each batch size from its neighbour's best lr, up or down until it is bracketed; one slot."""
    asked: list[int] = []
    chosen: list[int] = []
    lr = float(np.median(np.unique(grid.lr)))
    for row in grid.rows:
        best, bracketed = int(np.abs(grid.x[row] - np.log2(lr)).argmin()), False
        while not bracketed and len(asked) < num:
            window = [k for k in (best, best + 1, best - 1) if 0 <= k < len(row)]
            new = [int(row[k]) for k in window if row[k] not in asked]
            if not new:
                bracketed = True
            asked += new[:1]
            seen = [k for k in range(len(row)) if row[k] in asked]
            best = max(seen, key=lambda k: grid.scores[row[k]][0])
        chosen.append(int(row[best]))
        lr = float(grid.lr[row[best]])
    return asked, chosen


def best_seen(grid: Grid, asked: Sequence[int]) -> list[int]:
    """The best cell of each batch size that was asked; its middle one if none was."""
    trials = grid.trials(asked).assign(cell=list(asked))
    means = trials.groupby("cell")["score"].mean()
    chosen = []
    for row in grid.rows:
        of_row = means[means.index.isin(row)]
        chosen.append(int(of_row.idxmax()) if len(of_row) else int(row[len(row) // 2]))
    return chosen


def at_random(grid: Grid, num: int, slots: int, seed: int) -> Outcome:
    """Trainings drawn at random."""
    trainings = np.repeat(np.arange(len(grid.x)), [len(scores) for scores in grid.scores])
    asked = np.random.default_rng(seed).permutation(trainings)[:num].tolist()
    return asked, best_seen(grid, asked)


def by_optuna(make: Callable[[int], optuna.samplers.BaseSampler]) -> Method:
    """A sampler of Optuna's over all cells, which looks for the best of them."""

    def method(grid: Grid, num: int, slots: int, seed: int) -> Outcome:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize", sampler=make(seed))
        sizes, lrs = np.unique(grid.batch_size).tolist(), np.unique(grid.lr).tolist()
        worst = min(score for scores in grid.scores for score in scores if math.isfinite(score))
        asked: list[int] = []
        while len(asked) < num:
            trial = study.ask()
            row = grid.rows[trial.suggest_int("batch_size", 0, len(sizes) - 1)]
            lr = trial.suggest_float("lr", lrs[0], lrs[-1], log=True)
            cell = int(row[np.abs(grid.x[row] - np.log2(lr)).argmin()])
            of_cell, used = grid.scores[cell], asked.count(cell)
            if used < len(of_cell):  # what is asked for again costs nothing
                asked.append(cell)
            score = of_cell[min(used, len(of_cell) - 1)]
            study.tell(trial, score if math.isfinite(score) else worst)
            if len(study.trials) > MOST_ASKED * num:
                break  # it asks for the same cells again and again
        return asked, best_seen(grid, asked)

    return method


METHODS: dict[str, Method] = {
    "ridge": ours,
    "plain Gaussian process": plain_gp,
    "walk": walk,
    "Optuna's GPSampler": by_optuna(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "Optuna's TPESampler": by_optuna(
        lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True)
    ),
    "random": at_random,
}


def ridge_regret(grid: Grid, chosen: Sequence[int]) -> float:
    """The mean over batch sizes of how much worse the recommended lr is than the best."""
    means = grid.means
    lost = [means[row].max() - means[cell] for row, cell in zip(grid.rows, chosen, strict=True)]
    return float(np.mean(lost))


def best_regret(grid: Grid, chosen: Sequence[int]) -> float:
    """How much worse the best of the recommended cells is than the best of all."""
    means = grid.means
    return float(means.max() - means[list(chosen)].max())


def figures(grid: Grid, share: float, slots: int, seed: int) -> dict[str, Any]:
    """What `--table` prints as JSON."""
    asked, chosen = ours(grid, grid.num(share), slots, seed)
    everything = [cell for cell, scores in enumerate(grid.scores) for _ in scores]
    return {
        "asked": [[int(grid.batch_size[c]), float(grid.lr[c])] for c in asked],
        "best_lr": {str(grid.batch_size[c]): float(grid.lr[c]) for c in chosen},
        "share": len(asked) / len(everything),
        "ridge_regret": ridge_regret(grid, chosen),
        "best_regret": best_regret(grid, chosen),
        "exponent": exponent(grid, asked, seed),
        "exponent_full": exponent(grid, everything, seed),
    }


def exponent(grid: Grid, asked: Sequence[int], seed: int) -> float:
    """The slope of log best lr over log batch size: the median of the model's draws."""
    sizes = np.unique(grid.batch_size).tolist()
    fine = [np.geomspace(grid.lr[row].min(), grid.lr[row].max(), FINE) for row in grid.rows]
    posterior = fit(grid.trials(asked), frame_of(grid.b, grid.x), seed=seed)
    slopes = np.polyfit(np.log2(sizes), np.log2(best_lrs(posterior, sizes, fine)).T, 1)[0]
    return float(np.median(slopes))


def compare(
    grids: Sequence[Grid], name_of_grids: str, repetitions: int, slots: int, console: Console
) -> Any:
    """Every method at every share; returns the mean regrets of ridges, and of best cells.

    The table has 95 % intervals: a bootstrap over grids and repetitions.
    """
    regrets = {"ridge": ridge_regret, "best": best_regret}
    found: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {w: {} for w in regrets}
    for name, method in METHODS.items():
        for share in SHARES:
            chosen = [
                (grid, method(grid, grid.num(share), slots, seed)[1])
                for grid in grids
                for seed in range(repetitions)
            ]
            for what, regret in regrets.items():
                lost = np.array([regret(*outcome) for outcome in chosen])
                found[what].setdefault(name, {})[f"{share:g}"] = mean_interval(lost)
    for what, rows in found.items():
        title = f"{name_of_grids}: {what} regret, mean"
        table = Table("method", *(f"{share:.0%}" for share in SHARES), title=title)
        for name, values in rows.items():
            table.add_row(name, *(printed(value, 5) for value in values.values()))
        console.print(table)
    return {
        what: {name: {share: mean for share, (mean, *_) in v.items()} for name, v in rows.items()}
        for what, rows in found.items()
    }


def main() -> None:
    """Replay one table, or compare all methods on the recorded surfaces."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ridge", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/curves"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--table", type=Path, metavar="FILE")
    parser.add_argument("--batch-size", metavar="COL")
    parser.add_argument("--lr", metavar="COL")
    parser.add_argument("--metric", metavar="COL")
    parser.add_argument("--mode", choices=("max", "min"), default="max")
    parser.add_argument("--seed-column", metavar="COL", default="seed")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--slots", type=int, default=1)
    asked = parser.parse_args()
    console = Console()
    console.width = max(console.width, 120)  # in a pipe too, a method is one line
    if asked.table:
        columns = {"batch_size": asked.batch_size, "lr": asked.lr, "metric": asked.metric}
        own = read_own_table(asked.table, **columns, seed=asked.seed_column)
        grid = grid_of(own.trials, metric=own.metric, mode=asked.mode)
        console.print(f"{len(grid.x)} cells, {sum(map(len, grid.scores))} trainings")
        found = figures(grid, asked.share, asked.slots, seed=0)
    else:
        known = {"steplaw_moe": step_law(asked.data), "preview_surface": preview_surface()}
        found = {
            name: compare(grids, name, asked.repetitions, asked.slots, console)
            for name, grids in known.items()
        }
    print(json.dumps(plain(found)))


if __name__ == "__main__":
    main()
