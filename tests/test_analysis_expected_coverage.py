"""How often are expectations reproduced where there is nothing, and where there is something?

The numbers of docs/statistics.md are those of the full count:

    uv run pytest -m slow -n0 -s tests/test_analysis_expected_coverage.py
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from search.analysis import analyse
from search.analysis.expected import NOT_REPRODUCED, REPRODUCED, UNRESOLVED, verdicts

ABOUT: dict[str, Any] = {"vary": {}, "explore": {"kind": "Grid"}}
BATCH_SIZES = (16, 32, 64, 128, 256)
LRS = tuple(0.01 * 10 ** (k / 2) for k in range(5))
NORMS = ("group", "batch", "none", "ghost")
STD = 0.004


def made(
    rng: np.random.Generator,
    *,
    seeds: int = 3,
    norms: Mapping[str, float] = {"group": 0.0, "batch": 0.0},
    by_batch: float = 0.0,
    lrs: Mapping[str, tuple[float, ...]] = {},
    power: float = 1.0,
    flat: bool = False,
    lost: float = 0.0,
) -> pd.DataFrame:
    """Trials whose best lr grows as a power of the batch size; each norm is better by its number.

    The noise has three parts: what a seed does to all cells, what it does to all those of a norm,
    and what it does to one. `by_batch` is what a step to the next batch size adds at all lrs.
    """
    rows = [
        (norm, b, lr, seed)
        for norm in norms
        for b in BATCH_SIZES
        for lr in lrs.get(norm, LRS)
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows, columns=["norm", "batch_size", "base_lr", "seed"])
    steps = np.log2(table["batch_size"] / 64)
    beside = np.log10(table["base_lr"] / 0.1) - power * steps * math.log10(2)
    score = 0.85 + table["norm"].map(norms) + by_batch * steps - (0.0 if flat else 0.02 * beside**2)
    of_seed = rng.normal(0, STD, seeds)[table["seed"]]
    arm = {(n, s): rng.normal(0, STD / 2) for n in norms for s in range(seeds)}
    of_arm = [arm[pair] for pair in zip(table["norm"], table["seed"], strict=True)]
    score = score + of_seed + of_arm + rng.normal(0, STD, len(table))
    status = np.where(rng.random(len(table)) < lost, "diverged", "completed")
    score = score.where(status == "completed")
    return table.assign(val_auroc=score, status=status)


def outcomes(
    draw: Callable[[], pd.DataFrame], entry: Mapping[str, Any], repetitions: int
) -> "pd.Series[float]":
    """The share of studies with each verdict."""
    how: dict[str, Any] = {"metric": "val_auroc", "mode": "max"}
    found = []
    for _ in range(repetitions):
        trials = draw()
        analyses = [analyse(trials, **how)] if entry["kind"] == "Exponent" else []
        about = ABOUT | {"expect": [{"where": {}, "source": "s", **entry}]}
        (verdict,) = verdicts(trials, about, analyses, **how)
        found.append(verdict.outcome)
    shares = pd.Series(found).value_counts(normalize=True)
    shares = shares.reindex([REPRODUCED, NOT_REPRODUCED, UNRESOLVED], fill_value=0.0)
    how_often = ", ".join(f"{share:.3f} {outcome}" for outcome, share in shares.items())
    print(f"\n{entry['kind']}: {how_often}, of {repetitions}")
    return shares


BETTER = {"kind": "Better", "field": "norm", "value": "group", "than": "batch"}
ORDER = {"kind": "Order", "field": "norm", "values": ["group", "batch", "none"]}
TREND = {"kind": "Trend", "field": "batch_size", "direction": "rises", "where": {"base_lr": 0.1}}
AT_BEST = {"kind": "Trend", "field": "batch_size", "direction": "rises"}
TABLE = {
    "kind": "Reported",
    "metric": "val_auroc",
    "rows": [
        {"batch_size": b, "base_lr": lr, "val_auroc": 0.9 - 0.02 * (i - j) ** 2}
        for i, b in enumerate(BATCH_SIZES)
        for j, lr in enumerate(LRS)
    ],
}
THREE = {"group": 0.0, "batch": 0.0, "none": 0.0}
ONE = {"group": 0.0}
MANY = {"group": tuple(0.01 * 10 ** (k / 6) for k in range(13))}
# The surface, and what is expected of it; all are without the effect.
NOTHING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "better, 2 seeds": ({"seeds": 2}, BETTER),
    "better, 3 seeds": ({}, BETTER),
    "better, 10 seeds": ({"seeds": 10}, BETTER),
    "better, three times the rates of the other": ({"lrs": MANY, "flat": True}, BETTER),
    "better, a fifth diverged": ({"lost": 0.2}, BETTER),
    "order, 3 seeds": ({"norms": THREE}, ORDER),
    "trend, 1 seed": ({"seeds": 1, "norms": ONE, "flat": True}, TREND),
    "trend, 3 seeds": ({"norms": ONE, "flat": True}, TREND),
    "trend, own best rates, 3 seeds": ({"norms": ONE}, AT_BEST),
    "trend, a fifth diverged": ({"norms": ONE, "flat": True, "lost": 0.2}, TREND),
    "table, 1 seed": ({"seeds": 1, "norms": ONE, "flat": True}, TABLE),
    "table, 3 seeds": ({"norms": ONE, "flat": True}, TABLE),
}
EXPONENTS: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "constant, 3 seeds, linear expected": ({"norms": ONE, "power": 0.0}, (0.8, 1.2)),
    "constant, 3 seeds, square root expected": ({"norms": ONE, "power": 0.0}, (0.4, 0.6)),
    "linear, 3 seeds, constant expected": ({"norms": ONE}, (0.0, 0.2)),
    "flat, 1 seed": ({"norms": ONE, "flat": True, "seeds": 1}, (0.8, 1.2)),
    "flat, 3 seeds": ({"norms": ONE, "flat": True}, (0.8, 1.2)),
}
CLEAR: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "better by 5 std, 3 seeds": ({"norms": {"group": 0.02, "batch": 0.0}}, BETTER),
    "order, 7 std apart, 3 seeds": (
        {"norms": {"group": 0.056, "batch": 0.028, "none": 0.0}},
        ORDER,
    ),
    "trend, 1 std a step, 3 seeds": ({"norms": ONE, "by_batch": STD, "power": 0.0}, TREND),
    "trend, 3 std a step, 1 seed": (
        {"norms": ONE, "by_batch": 3 * STD, "power": 0.0, "seeds": 1},
        TREND,
    ),
    "table, 1 seed": ({"norms": ONE, "seeds": 1}, TABLE),
}


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.analysis.effects.PERMUTATIONS", 499)  # as exact, and faster


def repeated(few: int, many: int) -> Any:
    counts = [few, pytest.param(many, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("repetitions", counts)


@repeated(12, 200)
@pytest.mark.parametrize("regime", NOTHING)
def test_what_is_not_there_is_rarely_reproduced(regime: str, repetitions: int) -> None:
    how, entry = NOTHING[regime]
    rng = np.random.default_rng(0)
    shares = outcomes(lambda: made(rng, **how), entry, repetitions)
    most = 0.055 if repetitions > 50 else 0.26
    assert shares[REPRODUCED] <= most
    assert shares[NOT_REPRODUCED] <= most


@repeated(2, 60)
@pytest.mark.parametrize("regime", EXPONENTS)
def test_an_exponent_that_is_not_there_is_rarely_reproduced(regime: str, repetitions: int) -> None:
    how, (low, high) = EXPONENTS[regime]
    rng = np.random.default_rng(1)
    entry = {"kind": "Exponent", "low": low, "high": high}
    shares = outcomes(lambda: made(rng, **how), entry, repetitions)
    assert shares[REPRODUCED] <= (0.05 if repetitions > 50 else 0.5)


@repeated(2, 60)
def test_a_true_exponent_is_reproduced(repetitions: int) -> None:
    rng = np.random.default_rng(2)
    entry = {"kind": "Exponent", "low": 0.8, "high": 1.2}
    shares = outcomes(lambda: made(rng, norms=ONE), entry, repetitions)
    assert shares[REPRODUCED] >= (0.7 if repetitions > 50 else 0.5)


@repeated(8, 100)
@pytest.mark.parametrize("regime", CLEAR)
def test_what_is_clear_is_reproduced(regime: str, repetitions: int) -> None:
    how, entry = CLEAR[regime]
    rng = np.random.default_rng(3)
    shares = outcomes(lambda: made(rng, **how), entry, repetitions)
    assert shares[REPRODUCED] >= (0.75 if repetitions > 50 else 0.6)
    assert shares[NOT_REPRODUCED] <= 0.01
