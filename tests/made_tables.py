"""Small tables of trials for tests, and what follows from them by hand."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from search.analysis.analysis import Analysis, analyse
from search.analysis.best_set import compared
from search.report.findings import Findings
from trainable.config import TrialConfig

Cells = Mapping[tuple[int, float], Sequence[float | str]]
SHARES = (
    "f the variance between settings, batch size explains {batch_size}, {lr_name} {lr} and their "
    "interaction {both}"
)
CONFIG = TrialConfig(model="plain", pretrained="none")


def row(key: str, **changes: Any) -> dict[str, Any]:
    """A completed trial's row, as it is committed."""
    now = datetime.now(UTC)
    said = {"study": "s", "trial_key": key, "attempt": 1, "status": "completed", "reason": ""}
    return asdict(CONFIG) | said | {"val_auroc": 0.9, "started_at": now, "ended_at": now} | changes


def table(cells: Cells, *, lr: str = "base_lr", **more: object) -> pd.DataFrame:
    """A row a seed: its score, or the status of what has none. No two trials share a seed."""
    rows = [
        (b, rate, each if isinstance(each, str) else "completed", each)
        for (b, rate), scores in cells.items()
        for each in scores
    ]
    frame = pd.DataFrame(rows, columns=["batch_size", lr, "status", "val_auroc"])
    frame.insert(2, "seed", range(len(frame)))
    frame["val_auroc"] = pd.to_numeric(frame["val_auroc"], errors="coerce").astype(float)
    return frame.assign(**more)


def with_scores(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells of known mean, std and n with scores that have them, and seeds that nobody knows."""
    scores = []
    for row in cells.to_dict("records"):
        n = int(row["n"])
        z = np.arange(n) - (n - 1) / 2
        std = row["std"] if n > 1 else 0.0
        scores.append(tuple(row["mean"] + std * z / z.std(ddof=1) if n > 1 else [row["mean"]] * n))
    return cells.assign(scores=scores, seeds=[(np.nan,) * len(each) for each in scores])


def best_set(cells: pd.DataFrame, *, mode: str) -> pd.DataFrame:
    """The cells that cannot be told from the best."""
    table = compared(cells, mode=mode)
    return table[table["in_best_set"].astype(bool)]


def analysed(cells: Cells, *, mode: str = "max", lr: str = "base_lr", **more: object) -> Analysis:
    return analyse(table(cells, lr=lr, **more), metric="val_auroc", mode=mode, lr=lr)


def simulated(axes: Sequence[Sequence[Any]], *, few: int, many: int, every: int) -> list[Any]:
    """The cases of a simulation: all with `many` repetitions (slow), some with `few`."""
    cases = list(itertools.product(*axes))
    slow = [pytest.param(*case, many, marks=pytest.mark.slow) for case in cases]
    return [pytest.param(*case, few) for case in cases[::every]] + slow


def shares_of(scores: Sequence[Sequence[float]], lr_name: str = "base_lr") -> str:
    """Of a whole table of cell means, a row a batch size: sums of squares by hand."""
    means = np.array(scores)
    rows, columns = means.shape
    squares = {
        "batch_size": columns * ((means.mean(axis=1) - means.mean()) ** 2).sum(),
        "lr": rows * ((means.mean(axis=0) - means.mean()) ** 2).sum(),
    }
    total = ((means - means.mean()) ** 2).sum()
    squares["both"] = total - sum(squares.values())
    return SHARES.format(
        lr_name=lr_name, **{name: f"{each / total:.0%}" for name, each in squares.items()}
    )


def findings_of(cells: Cells, trials: pd.DataFrame, **more: Any) -> Findings:
    """What a report says of one surface of those cells, where a test changes what it is about."""
    nothing = pd.DataFrame()
    known: dict[str, Any] = {
        "name": "made",
        "metric": "val_auroc",
        "mode": "max",
        "about": {},
        "trials": trials,
        "epochs": None,
        "analyses": [analysed(cells)],
        "steps": {},
        "fields": [],
        "leaders": nothing,
        "importance": nothing,
        "cautions": [],
    }
    return Findings(**known | more)
