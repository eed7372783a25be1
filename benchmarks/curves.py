"""Recorded trainings: their configurations and the score after each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray import tune


@dataclass(frozen=True)
class Curve:
    """One recorded training.

    `config` has fields of `TrialConfig`; `scores` are accuracies in points, one after each epoch
    until the end or until they are no longer finite; `epochs` is how many it was to have.
    """

    config: dict[str, float]
    scores: Sequence[float]
    epochs: int

    @property
    def final(self) -> float:
        """The score at the end; 0 where it diverged before."""
        return self.scores[-1] if len(self.scores) == self.epochs else 0.0

    @property
    def cost(self) -> int:
        """Epochs it takes: one that diverges has the epoch in which it does so as its last."""
        return min(self.epochs, len(self.scores) + 1)


@dataclass(frozen=True)
class Recording:
    """A data set of recorded trainings, all of one network on one task."""

    name: str
    what: str
    curves: list[Curve]
    domains: dict[str, Any]


def read_alexnet(folder: Path) -> Recording:
    """512 trainings of AlexNet on ImageNet, of several lengths: top-1 (opda, CC BY-SA 4.0)."""
    names = {
        "batch_size": "batch_size",
        "lr": "base_lr",
        "momentum": "momentum",
        "weight_decay": "weight_decay",
        "label_smoothing": "label_smoothing",
    }
    table = pd.read_parquet(folder / "alexnet_imagenet.parquet").rename(columns=names)
    curves = []
    for _, rows in table.groupby("iteration"):
        rows = rows.sort_values("epoch_index")
        scores = _sound(100 * rows["top_1"].to_numpy())
        if scores:
            curves.append(_curve(rows, list(names.values()), scores, int(rows["epochs"].iloc[0])))
    domains = {
        "batch_size": _spans(table, "batch_size", logarithmic=True),
        "base_lr": _spans(table, "base_lr", logarithmic=True),
        "momentum": _spans(table, "momentum"),
        "weight_decay": _spans(table, "weight_decay", logarithmic=True),
        "label_smoothing": _spans(table, "label_smoothing"),
    }
    return Recording("alexnet", "AlexNet on ImageNet, top-1", curves, domains)


def read_lcbench(folder: Path) -> Recording:
    """2,000 trainings of 51 epochs on the table `blood`: validation accuracy (LCBench, Apache-2.0).

    Its row of epoch 0 is left out: it was scored before the first update.
    """
    table = pd.read_parquet(folder / "lcbench_blood.parquet")
    table = table[table["epoch"] > 0].rename(columns={"learning_rate": "base_lr"})
    names = ["batch_size", "base_lr", "momentum", "weight_decay"]
    epochs = int(table["epoch"].max())
    curves = []
    for _, rows in table.groupby("trial"):
        rows = rows.sort_values("epoch")
        curves.append(_curve(rows, names, _sound(rows["Train/val_accuracy"].to_numpy()), epochs))
    domains = {
        "batch_size": _spans(table, "batch_size", logarithmic=True),
        "base_lr": _spans(table, "base_lr", logarithmic=True),
        "momentum": _spans(table, "momentum"),
        "weight_decay": _spans(table, "weight_decay"),
    }
    return Recording("lcbench", "LCBench blood, validation accuracy", curves, domains)


def _sound(scores_E: np.ndarray) -> list[float]:
    """The scores up to the first that is not finite."""
    finite: list[float] = scores_E[: int(np.isfinite(scores_E).cumprod().sum())].tolist()
    return finite


def _curve(rows: pd.DataFrame, names: list[str], scores: list[float], epochs: int) -> Curve:
    return Curve({name: rows[name].iloc[0].item() for name in names}, tuple(scores), epochs)


def _spans(table: pd.DataFrame, name: str, *, logarithmic: bool = False) -> object:
    """Ray Tune's domain from the smallest value that was recorded to the largest."""
    low, high = table[name].min().item(), table[name].max().item()
    if name == "batch_size":
        return tune.lograndint(low, high + 1)
    return tune.loguniform(low, high) if logarithmic else tune.uniform(low, high)
