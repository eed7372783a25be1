import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from search.analysis.interaction import interaction, spearman
from search.analysis.surface import surface

Draw = Callable[..., pd.DataFrame]
LEVEL = 0.05
BATCH_SIZES, LRS = (16, 32, 64, 128), (0.01, 0.03, 0.1, 0.3, 1.0)


def additive(
    rng: np.random.Generator, *, seeds: int = 3, strength: float = 0.0, noise: float = 0.01
) -> pd.DataFrame:
    """Trials on which the two act, each for itself; together by `strength` at opposite corners."""
    rows = [
        (b, lr, seed, "completed", 0.05 * i - 0.02 * (j - 2) ** 2 + strength * (i - 1.5) * (j - 2))
        for i, b in enumerate(BATCH_SIZES)
        for j, lr in enumerate(LRS)
        for seed in range(seeds)
    ]
    names = ["batch_size", "base_lr", "seed", "status", "val_auroc"]
    table = pd.DataFrame(rows, columns=names)
    table["val_auroc"] += noise * rng.standard_normal(len(table))
    return table


def without_some(rng: np.random.Generator, table: pd.DataFrame, *, least: int = 2) -> pd.DataFrame:
    """The trials, of which a few were stopped, but for the `least` of a cell; one cell diverged."""
    status = table["status"].mask(rng.random(len(table)) < 0.3, "stopped")
    status = status.mask((table["batch_size"] == 128) & (table["base_lr"] == 1.0), "diverged")
    keep = table.groupby(["batch_size", "base_lr"]).cumcount() < least
    return table.assign(status=status.mask(keep & (status == "stopped"), "completed"))


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "censored and diverged"])
@pytest.mark.parametrize(
    ("repetitions", "error"), [(150, 0.04), pytest.param(600, 0.02, marks=pytest.mark.slow)]
)
def test_without_interaction_the_test_rejects_as_often_as_it_says(
    lost: bool, repetitions: int, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its p value is not looked at here, and takes longer than all else.
    monkeypatch.setattr("search.analysis.interaction._robust_p", lambda *_: math.nan)
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(repetitions):
        table = additive(rng)
        table = without_some(rng, table, least=1) if lost else table
        p_values.append(interaction(table, metric="val_auroc").p_value)
    assert np.mean(np.array(p_values) <= LEVEL) == pytest.approx(LEVEL, abs=error)
    assert np.mean(p_values) == pytest.approx(0.5, abs=2 * error)


def test_of_an_interaction_the_test_knows() -> None:
    rng = np.random.default_rng(1)
    found = [
        interaction(additive(rng, strength=0.006), metric="val_auroc").p_value <= LEVEL
        for _ in range(40)
    ]
    assert np.mean(found) >= 0.95


@pytest.mark.parametrize("repetitions", [50, pytest.param(120, marks=pytest.mark.slow)])
def test_the_robust_test_bears_noise_that_differs(repetitions: int) -> None:
    """Ten times as large at the highest lr, as at the edge of stability: the other does not."""
    rng = np.random.default_rng(2)
    rejected = []
    for _ in range(repetitions):
        table = additive(rng)
        wild = table["base_lr"] == 1.0
        table.loc[wild, "val_auroc"] += 0.1 * rng.standard_normal(wild.sum())
        found = interaction(table, metric="val_auroc")
        rejected.append((found.p_value <= LEVEL, found.p_robust <= LEVEL))
    permuted, robust = np.mean(rejected, axis=0)
    assert robust < 0.17 < permuted


@pytest.mark.parametrize("lost", [False, True])
def test_the_figures_are_statsmodels(lost: bool) -> None:
    rng = np.random.default_rng(3)
    table = additive(rng, strength=0.003)
    table = without_some(rng, table) if lost else table
    found = interaction(table, metric="val_auroc")
    used = table[(table["status"] == "completed") & table["base_lr"].isin(found.lrs)]
    model = ols("val_auroc ~ C(batch_size) * C(base_lr)", used).fit()
    both = "C(batch_size):C(base_lr)"
    assert found.f == pytest.approx(anova_lm(model, typ=2).loc[both, "F"])
    robust = anova_lm(model, typ=2, robust="hc3").loc[both, "PR(>F)"]
    assert found.p_robust == pytest.approx(robust)
    # The shares are of the cell means, so that a cell with more seeds weighs no more.
    means = used.groupby(["batch_size", "base_lr"], as_index=False)["val_auroc"].mean()
    squares = anova_lm(ols("val_auroc ~ C(batch_size) + C(base_lr)", means).fit(), typ=2)["sum_sq"]
    shares = (found.share_batch_size, found.share_lr, found.share_interaction)
    assert shares == pytest.approx(tuple(squares / squares.sum()))


def test_of_a_grid_with_a_hole_the_largest_whole_part_is_used() -> None:
    rng = np.random.default_rng(4)
    found = interaction(without_some(rng, additive(rng)), metric="val_auroc")
    assert found.batch_sizes == BATCH_SIZES
    assert found.lrs == (0.01, 0.03, 0.1, 0.3)
    assert found.left_out == 3
    assert found.replicates == 2


def test_one_cell_of_one_seed_forbids_the_robust_test_alone() -> None:
    table = additive(np.random.default_rng(7), strength=0.01)
    found = interaction(table.iloc[2:], metric="val_auroc")
    assert found.replicates == 1
    assert found.p_value <= LEVEL
    assert math.isnan(found.p_robust)
    assert not found.why


def test_kandels_share_and_ranks() -> None:
    low = [0.9677, 0.9636, 0.9616, 0.9567, 0.9585]  # Kandel & Castelli 2020, Table 1, Adam
    high = [0.9144, 0.9332, 0.9381, 0.9432, 0.9652]
    rows = [
        (b, lr, "completed", score)
        for lr, scores in ((1e-4, low), (1e-3, high))
        for b, score in zip((16, 32, 64, 128, 256), scores, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["batch_size", "base_lr", "status", "test_auroc"])
    found = interaction(table, metric="test_auroc")
    assert found.share_batch_size == pytest.approx(0.16, abs=0.005)
    assert found.share_lr == pytest.approx(0.48, abs=0.005)
    assert found.share_interaction == pytest.approx(0.36, abs=0.005)
    assert found.why.startswith("with one seed per setting")
    assert math.isnan(found.p_value)
    ranks = spearman(surface(table, metric="test_auroc"))
    assert ranks == {1e-4: pytest.approx(-0.9), 1e-3: pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.iloc[:0], "no scores for a grid of two batch sizes and two lrs"),
        (lambda t: t[t["batch_size"] == 16], "no scores for a grid of two batch sizes and two lrs"),
        (lambda t: t.assign(status="diverged"), "no scores for a grid of two batch sizes"),
        (lambda t: t.assign(val_auroc=0.5), "the metric is the same in every cell"),
        (lambda t: t[t["seed"] == 0], "with one seed per setting"),
        (
            lambda t: t.assign(val_auroc=t["batch_size"] * t["base_lr"]),
            "all seeds of a setting have the same score",
        ),
    ],
)
def test_what_cannot_be_said_is_said(
    change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    found = interaction(change(additive(np.random.default_rng(5))), metric="val_auroc")
    assert said in found.why
    assert math.isnan(found.p_value)


def test_ranks_want_three_batch_sizes_that_differ() -> None:
    table = additive(np.random.default_rng(6), seeds=1)
    cells = surface(table, metric="val_auroc")
    two = spearman(cells[cells["batch_size"] < 64])
    assert all(math.isnan(rho) for rho in two.values())
    assert all(math.isnan(rho) for rho in spearman(cells.assign(mean=0.5)).values())
    assert set(spearman(cells)) == set(LRS)
