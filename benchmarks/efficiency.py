"""What early stopping and sampling save, replayed on recorded learning curves: no training.

    uv run python -m benchmarks.efficiency [--data ../shared/data/curves] [--seeds 30]

512 recorded trainings of AlexNet on ImageNet (opda, CC BY-SA 4.0). In each repetition 81 of them
are drawn and run on 9 simulated workers, epoch by epoch, through our scheduler; Optuna's own pruner
is the peer. Cost is in epochs; regret is the best final top-1 of the 81 less that of the best which
was let to its end. Rungs are at shares of each configuration's own length. Last line: one JSON
object.
"""

import argparse
import heapq
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import altair as alt
import numpy as np
import optuna
import pandas as pd
from ray import tune
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from search.algorithms import EarlyStopping
from search.explore import Asha, Optuna
from search.study import Study
from search.suggestions import Suggestions
from trainable.config import TrialConfig

CONFIGS, WORKERS, SCALE = 81, 9, 1000
GRACE, FACTOR = 1 / 9, 3


@dataclass(frozen=True)
class Curve:
    """One recorded training: top-1 after each epoch, and how many it was to have."""

    config: dict[str, float]
    scores: tuple[float, ...]
    epochs: int

    @property
    def final(self) -> float:
        """Top-1 at the end; 0 where it diverged before."""
        return self.scores[-1] if len(self.scores) == self.epochs else 0.0


def read_curves(path: Path) -> list[Curve]:
    """All recorded trainings."""
    names = ["batch_size", "lr", "momentum", "weight_decay", "label_smoothing"]
    curves = []
    for _, rows in pd.read_parquet(path).groupby("iteration"):
        rows = rows.sort_values("epoch_index")
        scores = rows["top_1"].to_numpy()
        sound = scores[: int(np.isfinite(scores).cumprod().sum())]
        config = {name: rows[name].iloc[0].item() for name in names}
        if len(sound):
            curves.append(Curve(config, tuple(sound), int(rows["epochs"].iloc[0])))
    return curves


Stop = Callable[[str, Curve, int, float], bool]  # name, curve, epochs done, score -> stop?
Next = Callable[[], tuple[str, Curve] | None]
Ended = Callable[[str, Curve, int, bool], None]


def replay(next_curve: Next, stop: Stop, ended: Ended) -> tuple[int, float]:
    """Epochs spent and the best final score, on workers that run side by side."""
    spent, best, clock = 0, 0.0, 0
    events: list[tuple[int, int, str, Curve, int]] = []
    order = 0

    def start() -> None:
        nonlocal order
        if (chosen := next_curve()) is not None:
            order += 1
            heapq.heappush(events, (clock + 1, order, *chosen, 1))

    for _ in range(WORKERS):
        start()
    while events:
        clock, _, name, curve, done = heapq.heappop(events)
        spent += 1
        diverged = done > len(curve.scores)
        score = 0.0 if diverged else curve.scores[done - 1]
        over = diverged or done == curve.epochs
        if not diverged and done == curve.epochs:
            best = max(best, score)
        stopped = not over and stop(name, curve, done, score)
        if over or stopped:
            ended(name, curve, min(done, len(curve.scores)), stopped)
            start()
        else:
            order += 1
            heapq.heappush(events, (clock + 1, order, name, curve, done + 1))
    return spent, best


def our_asha() -> Stop:
    """Our scheduler, told each score as Ray Tune would tell it."""
    scheduler = EarlyStopping(Asha(reduction_factor=FACTOR), grace=int(GRACE * SCALE), total=SCALE)
    controller = SimpleNamespace(get_live_trials=list)
    trials: dict[str, Any] = {}

    def stop(name: str, curve: Curve, done: int, score: float) -> bool:
        if name not in trials:
            config = {"trial": {"config": {"batch_size": curve.config["batch_size"]}}}
            trials[name] = SimpleNamespace(trial_id=name, config=config)
            scheduler.on_trial_add(controller, trials[name])
        seen = int(SCALE * done / curve.epochs)
        result = {"score": score, "examples_seen": seen}
        return bool(scheduler.on_trial_result(controller, trials[name], result) == "STOP")

    return stop


def optunas_pruner() -> Stop:
    """The peer: optuna.pruners.SuccessiveHalvingPruner with the same rungs."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=int(GRACE * SCALE), reduction_factor=FACTOR
    )
    study = optuna.create_study(direction="maximize", pruner=pruner)
    trials: dict[str, optuna.Trial] = {}

    def stop(name: str, curve: Curve, done: int, score: float) -> bool:
        trial = trials.setdefault(name, study.ask()) if name not in trials else trials[name]
        trial.report(score, int(SCALE * done / curve.epochs))
        pruned = trial.should_prune()
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return pruned

    return stop


def in_order(curves: list[Curve]) -> Next:
    """The curves one after the other."""
    left = [(f"t{i}", curve) for i, curve in enumerate(curves)]
    return lambda: left.pop(0) if left else None


def search(curves: list[Curve], sampler: str, seed: int, folder: Path) -> tuple[int, float]:
    """Our sampler and our ASHA on all 512: a suggestion takes the nearest curve not yet taken."""
    table = pd.DataFrame([c.config for c in curves])
    domains = {
        "batch_size": tune.lograndint(int(table["batch_size"].min()), 1025),
        "base_lr": tune.loguniform(table["lr"].min(), table["lr"].max()),
        "momentum": tune.uniform(table["momentum"].min(), table["momentum"].max()),
        "weight_decay": tune.loguniform(table["weight_decay"].min(), table["weight_decay"].max()),
        "label_smoothing": tune.uniform(0.0, 0.5),
    }
    study = Study(
        name=f"{sampler}{seed}",
        base=TrialConfig(dataset="synthetic", model="plain", pretrained="none"),
        vary=domains,
        explore=Optuna(num_configs=CONFIGS, sampler=sampler, sampling_seed=seed),
        stop=Asha(reduction_factor=FACTOR),
        metric="val_accuracy",
    )
    suggestions = Suggestions(study, folder / study.name, data_fingerprint="replay")
    columns = ["batch_size", "lr", "momentum", "weight_decay", "label_smoothing"]
    logged = ["batch_size", "lr", "weight_decay"]
    space = table[columns].copy()
    space[logged] = np.log(space[logged])
    low, width = space.min(), space.max() - space.min()
    unit = ((space - low) / width).to_numpy()
    free = np.ones(len(curves), bool)
    numbers: dict[str, int] = {}
    asha = our_asha()

    def next_curve() -> tuple[str, Curve] | None:
        asked = suggestions.ask()
        if asked is None:
            return None
        number, (planned,) = asked
        c = planned.config
        wanted = pd.Series(
            [
                *(math.log(c.batch_size), math.log(c.base_lr), c.momentum),
                *(math.log(c.weight_decay), c.label_smoothing),
            ],
            index=columns,
        )
        distance = np.square(unit - ((wanted - low) / width).to_numpy()).sum(1)
        index = int(np.where(free, distance, np.inf).argmin())
        free[index] = False
        numbers[f"t{number}"] = number
        return f"t{number}", curves[index]

    def ended(name: str, curve: Curve, done: int, stopped: bool) -> None:
        diverged = not stopped and done < curve.epochs
        status = "stopped" if stopped else "diverged" if diverged else "completed"
        score = curve.scores[done - 1]
        row = {"status": status, "val_accuracy": score, "examples_seen": done}
        suggestions.tell(numbers[name], [row])

    return replay(next_curve, asha, ended)


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean with its 95 % bootstrap interval."""
    if len(set(values)) == 1:
        return values[0], values[0], values[0]
    bounds = bootstrap((np.array(values),), np.mean, rng=0).confidence_interval
    return float(np.mean(values)), float(bounds.low), float(bounds.high)


def main() -> None:
    """Replay all ways, print the table, draw the chart."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.efficiency")
    default = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "curves"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("efficiency.png"))
    given = parser.parse_args()
    curves = read_curves(given.data / "alexnet_imagenet.parquet")
    top = max(curve.final for curve in curves)
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            drawn = np.random.default_rng(seed).choice(len(curves), CONFIGS, replace=False)
            some = [curves[i] for i in drawn]
            whole, best = (
                sum(min(c.epochs, len(c.scores) + 1) for c in some),
                max(c.final for c in some),
            )
            for name, stop in (("our ASHA", our_asha()), ("Optuna's pruner", optunas_pruner())):
                spent, found = replay(in_order(some), stop, lambda *_: None)
                rows.append({"way": name, "cost_ratio": whole / spent, "regret": best - found})
            # The same cost spent on trainings that all run to their end.
            share = rows[-2]["cost_ratio"]
            fewer = max(int(CONFIGS / float(share)), 1)
            found = max(c.final for c in some[:fewer])
            rows.append({"way": "random, same cost", "cost_ratio": share, "regret": best - found})
            for sampler in ("tpe", "random"):
                spent, found = search(curves, sampler, seed, Path(folder))
                rows.append({"way": f"{sampler} + ASHA, of all 512", "regret": top - found})
    frame = pd.DataFrame(rows)
    table = Table(title=f"{given.seeds} repetitions, {CONFIGS} configurations", box=None)
    for heading in ("way", "times cheaper", "95 %", "regret, points", "95 %"):
        table.add_column(heading, justify="right")
    figures: dict[str, tuple[float, float, float]] = {}
    for way, group in frame.groupby("way", sort=False):
        regret = interval([100 * r for r in group["regret"]])
        figures[str(way)] = regret
        cost = ("-", "")
        if group["cost_ratio"].notna().all():
            c = interval(group["cost_ratio"].tolist())
            figures[f"{way} cost"] = c
            cost = f"{c[0]:.2f}", f"{c[1]:.2f} to {c[2]:.2f}"
        table.add_row(str(way), *cost, f"{regret[0]:.3f}", f"{regret[1]:.3f} to {regret[2]:.3f}")
    Console().print(table)
    chart = (
        alt.Chart(frame.assign(regret=100 * frame["regret"]))
        .mark_boxplot()
        .encode(alt.X("regret:Q", title="regret, points of top-1"), alt.Y("way:N", title=None))
    )
    chart.save(str(given.out), scale_factor=2)
    tpe = frame.loc[frame["way"].str.startswith("tpe"), "regret"].to_numpy()
    rnd = frame.loc[frame["way"].str.startswith("random +"), "regret"].to_numpy()
    said = {
        "asha_cost_ratio": figures["our ASHA cost"][0],
        "asha_regret": figures["our ASHA"][0],
        "tpe_asha_vs_random_asha": float(100 * (rnd - tpe).mean()),
        "peer_cost_ratio": figures["Optuna's pruner cost"][0],
        "peer_regret": figures["Optuna's pruner"][0],
    }
    print(json.dumps({name: round(value, 4) for name, value in said.items()}))


if __name__ == "__main__":
    main()
