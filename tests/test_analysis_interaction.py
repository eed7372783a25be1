import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols, wls
from statsmodels.stats.anova import anova_lm

from search.analysis.interaction import crossing_p, interaction, spearman
from search.analysis.surface import surface

Draw = Callable[..., pd.DataFrame]
LEVEL = 0.05
BATCH_SIZES, LRS = (16, 32, 64, 128), (0.01, 0.03, 0.1, 0.3, 1.0)


def additive(
    rng: np.random.Generator, *, seeds: int = 3, strength: float = 0.0, noise: float = 0.01
) -> pd.DataFrame:
    """Trials on which the two act, each for itself; together by `strength` at opposite corners."""
    rows = [
        (
            b,
            lr,
            seed,
            "completed",
            0.7 + 0.05 * i - 0.02 * (j - 2) ** 2 + strength * (i - 1.5) * (j - 2),
        )
        for i, b in enumerate(BATCH_SIZES)
        for j, lr in enumerate(LRS)
        for seed in range(seeds)
    ]
    names = ["batch_size", "base_lr", "seed", "status", "val_auroc"]
    table = pd.DataFrame(rows, columns=names)
    table["val_auroc"] += 0.7 + noise * rng.standard_normal(len(table))
    return table


def without_some(rng: np.random.Generator, table: pd.DataFrame, *, least: int = 2) -> pd.DataFrame:
    """The trials, of which a few were stopped, but for the `least` of a cell; one cell diverged."""
    status = table["status"].mask(rng.random(len(table)) < 0.3, "stopped")
    status = status.mask((table["batch_size"] == 128) & (table["base_lr"] == 1.0), "diverged")
    keep = table.groupby(["batch_size", "base_lr"]).cumcount() < least
    return table.assign(status=status.mask(keep & (status == "stopped"), "completed"))


def unequal(rng: np.random.Generator, *, noise: float = 0.01, **how: Any) -> pd.DataFrame:
    """Ten times the noise at the highest of the lrs, as at the edge of stability."""
    table = additive(rng, noise=noise, **how)
    wild = table["base_lr"] == LRS[-1]
    table.loc[wild, "val_auroc"] += 10 * noise * rng.standard_normal(wild.sum())
    return table


def of_common_seeds(rng: np.random.Generator, **how: Any) -> pd.DataFrame:
    """A seed is the same order of images in all cells, which matters more than the other noise."""
    table = additive(rng, **how)
    effects = 0.02 * rng.standard_normal(table["seed"].nunique())
    return table.assign(val_auroc=table["val_auroc"] + effects[table["seed"]])


def with_junk(rng: np.random.Generator) -> pd.DataFrame:
    """The highest lr learns nothing at most batch sizes, and at the largest so does the next."""
    table = additive(rng).assign(eval_images=1000)
    top, next_top = (table["base_lr"] == lr for lr in LRS[:-3:-1])
    junk = (top & (table["batch_size"] > 16)) | (next_top & (table["batch_size"] == 128))
    guesses = 0.5 + math.sqrt(1 / 3000) * rng.standard_normal(len(table))
    return table.assign(val_auroc=table["val_auroc"].where(~junk, guesses))


REGIMES: dict[str, Callable[[np.random.Generator], pd.DataFrame]] = {
    "whole": additive,
    "two seeds": lambda rng: additive(rng, seeds=2),
    "censored and diverged": lambda rng: without_some(rng, additive(rng), least=1),
    "unequal noise": unequal,
    "unequal noise, two seeds": lambda rng: unequal(rng, seeds=2),
    "common seeds": of_common_seeds,
    "junk": with_junk,
    "flat": lambda rng: additive(rng).assign(val_auroc=rng.normal(0.8, 0.01, size=60)),
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("repetitions", "error"), [(100, 0.05), pytest.param(600, 0.025, marks=pytest.mark.slow)]
)
def test_without_interaction_the_test_rejects_as_often_as_it_says(
    regime: str, repetitions: int, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.analysis.interaction.PERMUTATIONS", 199)  # as exact, and faster
    rng = np.random.default_rng(0)
    results = [interaction(REGIMES[regime](rng), metric="val_auroc") for _ in range(repetitions)]
    p_values = np.array([result.p_value for result in results])
    print(f"{regime}: {np.mean(p_values <= LEVEL):.3f} of {repetitions} rejected")
    assert np.mean(p_values <= LEVEL) == pytest.approx(LEVEL, abs=error)
    # With few seeds the estimated variances differ by chance, which large p values show.
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.1)
    if regime == "flat":
        p_flat = np.array([result.p_flat for result in results])
        assert np.mean(p_flat <= LEVEL) == pytest.approx(LEVEL, abs=error)
        # Only noise is there to share, and it is subtracted.
        assert np.mean([math.isnan(result.share_lr) for result in results]) < 0.5
    elif regime != "censored and diverged":
        assert all(result.p_flat <= LEVEL for result in results)


def test_of_an_interaction_the_test_knows() -> None:
    rng = np.random.default_rng(1)
    found = [
        interaction(additive(rng, strength=0.006), metric="val_auroc").p_value <= LEVEL
        for _ in range(40)
    ]
    assert np.mean(found) >= 0.95


@pytest.mark.parametrize(
    ("made", "least"), [(additive, 0.95), (unequal, 0.6), (of_common_seeds, 0.95)]
)
def test_its_power_is_of_the_lrs_with_little_noise(
    made: Callable[..., pd.DataFrame], least: float
) -> None:
    rng = np.random.default_rng(2)
    tables = [made(rng, strength=0.008) for _ in range(30)]
    p_values = np.array([interaction(table, metric="val_auroc").p_value for table in tables])
    assert np.mean(p_values <= LEVEL) >= least


@pytest.mark.parametrize("lost", [False, True])
def test_the_figures_are_statsmodels(lost: bool) -> None:
    rng = np.random.default_rng(3)
    table = unequal(rng, strength=0.003)
    table = without_some(rng, table) if lost else table
    result = interaction(table.drop(columns="seed"), metric="val_auroc")
    used = table[(table["status"] == "completed") & table["base_lr"].isin(result.lrs)]
    full = ols("val_auroc ~ C(batch_size) * C(base_lr)", used).fit()
    squares = (full.resid**2).groupby(used["base_lr"]).sum()
    freedom = used.groupby("base_lr").size() - used["batch_size"].nunique()
    weights = used["base_lr"].map(freedom / squares)
    additive_fit = wls("val_auroc ~ C(batch_size) + C(base_lr)", used, weights=weights).fit()
    full_fit = wls("val_auroc ~ C(batch_size) * C(base_lr)", used, weights=weights).fit()
    between = additive_fit.df_resid - full_fit.df_resid
    # The weights are those that make the variance of the residuals one.
    assert full_fit.mse_resid == pytest.approx(1)
    assert result.f == pytest.approx((additive_fit.ssr - full_fit.ssr) / between)


def test_the_shares_are_statsmodels_without_the_noise() -> None:
    table = additive(np.random.default_rng(3), strength=0.006)
    result = interaction(table.drop(columns="seed"), metric="val_auroc")
    squares = anova_lm(ols("val_auroc ~ C(batch_size) * C(base_lr)", table).fit(), typ=2)
    noise = squares.loc["Residual", "sum_sq"] / squares.loc["Residual", "df"]
    # Omega squared; ours pools the noise of each lr, which agrees where all have as many trials.
    parts = (squares["sum_sq"] - squares["df"] * noise).drop("Residual")
    shares = (result.share_batch_size, result.share_lr, result.share_interaction)
    assert shares == pytest.approx(tuple(parts / parts.sum()))
    one_seed = interaction(table[table["seed"] == 0], metric="val_auroc")
    means = ols("val_auroc ~ C(batch_size) + C(base_lr)", table[table["seed"] == 0]).fit()
    squares = anova_lm(means, typ=2)["sum_sq"]
    shares = (one_seed.share_batch_size, one_seed.share_lr, one_seed.share_interaction)
    assert shares == pytest.approx(tuple(squares / squares.sum()))


def test_of_a_grid_with_a_hole_the_largest_whole_part_is_used() -> None:
    rng = np.random.default_rng(4)
    found = interaction(without_some(rng, additive(rng)), metric="val_auroc")
    assert found.batch_sizes == BATCH_SIZES
    assert found.lrs == (0.01, 0.03, 0.1, 0.3)
    assert found.left_out == 3
    assert found.replicates == 2


@pytest.mark.parametrize("seeds", ["drawn anew", "unknown", "none"])
def test_seeds_that_no_two_cells_share_are_no_blocks(seeds: str) -> None:
    """As in a table of someone who draws a seed for each trial, or notes none."""
    table = additive(np.random.default_rng(8), strength=0.01)
    without = table.drop(columns="seed")
    changed = {
        "drawn anew": without.assign(seed=range(1000, 1000 + len(table))),
        "unknown": without.assign(seed=math.nan),
        "none": without,
    }[seeds]
    result = interaction(changed, metric="val_auroc")
    assert result == interaction(without, metric="val_auroc")
    assert result.p_value <= LEVEL
    assert not result.why


def test_one_cell_of_one_seed_forbids_no_test() -> None:
    table = additive(np.random.default_rng(7), strength=0.01)
    result = interaction(table.iloc[2:], metric="val_auroc")
    assert result.replicates == 1
    assert result.p_value <= LEVEL
    assert not result.why


def test_where_one_cell_alone_has_replicates_its_seeds_are_its_noise() -> None:
    """As after the best cell of a study of one seed was trained once more."""
    table = additive(np.random.default_rng(7), strength=0.01, seeds=2)
    is_best = (table["batch_size"] == 64) & (table["base_lr"] == 0.1)
    again = table[(table["seed"] == 0) | is_best]
    result = interaction(again, metric="val_auroc")
    assert result == interaction(again.drop(columns="seed"), metric="val_auroc")
    assert math.isfinite(result.p_value)
    assert not result.why


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
        (lambda t: t.assign(val_auroc=0.8), "the metric is the same in every cell"),
        (lambda t: t[t["seed"] == 0], "with one seed per setting"),
        (
            lambda t: t.assign(val_auroc=0.6 + t["batch_size"] * t["base_lr"] / 1000),
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


@pytest.mark.parametrize("sizes", [3, 4, 5])
def test_the_order_turns_by_noise_in_no_more_than_five_of_a_hundred(sizes: int) -> None:
    rng = np.random.default_rng(4)
    grid = list(itertools.product([16 * 2**i for i in range(sizes)], range(1, 8)))
    cells = pd.DataFrame(grid, columns=["batch_size", "lr"])
    p_values = [crossing_p(cells.assign(mean=rng.normal(size=len(grid)))) for _ in range(200)]
    assert np.mean(np.array(p_values) <= LEVEL) <= 0.08


def test_kandels_order_turns_by_more_than_noise() -> None:
    low = [0.9677, 0.9636, 0.9616, 0.9567, 0.9585]
    high = [0.9144, 0.9332, 0.9381, 0.9432, 0.9652]
    grid = [(b, lr) for lr in (1e-4, 1e-3) for b in (16, 32, 64, 128, 256)]
    cells = pd.DataFrame(grid, columns=["batch_size", "lr"]).assign(mean=low + high)
    # By all 120 x 120 orders: five of 120 have a rho of 0.9 or more, and as many -0.9 or less.
    assert crossing_p(cells) == pytest.approx(2 * (5 / 120) ** 2, abs=0.003)
    assert math.isnan(crossing_p(cells[cells["batch_size"] < 64]))


def test_ranks_want_three_batch_sizes_that_differ() -> None:
    table = additive(np.random.default_rng(6), seeds=1)
    cells = surface(table, metric="val_auroc")
    two = spearman(cells[cells["batch_size"] < 64])
    assert all(math.isnan(rho) for rho in two.values())
    assert all(math.isnan(rho) for rho in spearman(cells.assign(mean=0.5)).values())
    assert set(spearman(cells)) == set(LRS)


def test_cells_near_chance_are_left_out_of_shares_and_test() -> None:
    rng = np.random.default_rng(9)
    table = with_junk(rng)
    found = interaction(table, metric="val_auroc")
    assert found.near_chance == ((32, 1.0), (64, 1.0), (128, 0.3), (128, 1.0))
    assert found.lrs == LRS[:-2] or found.batch_sizes == BATCH_SIZES[:-1]
    assert found.left_out == 20 - len(found.lrs) * len(found.batch_sizes)
    used = table[table["base_lr"].isin(found.lrs) & table["batch_size"].isin(found.batch_sizes)]
    assert found == replace(
        interaction(used, metric="val_auroc"),
        near_chance=found.near_chance,
        left_out=found.left_out,
    )
    assert found.share_interaction < 0.05
    with_all = interaction(table.rename(columns={"val_auroc": "q"}), metric="q")
    assert with_all.share_interaction > 0.2  # what the junk is named for
    assert with_all.near_chance == ()


def test_another_metrics_cells_are_near_chance_by_their_auroc() -> None:
    table = with_junk(np.random.default_rng(10)).assign(val_loss=0.3)
    table["val_loss"] += 0.01 * np.random.default_rng(11).standard_normal(len(table))
    near = interaction(table, metric="val_loss").near_chance
    assert near == ((32, 1.0), (64, 1.0), (128, 0.3), (128, 1.0))
    percent = table.rename(columns={"val_auroc": "test_auc"})
    percent["test_auc"] *= 100
    assert interaction(percent, metric="test_auc").near_chance == near
    assert interaction(percent, metric="val_loss").near_chance == ()


@pytest.mark.parametrize(
    ("scores", "images", "is_near"),
    [
        ([0.5, 0.5, 0.9], None, True),  # most of its trials
        ([0.5, 0.9, 0.9], None, False),
        ([0.53, 0.53, 0.53], 1000, True),  # within 0.030 of a half
        ([0.531, 0.531, 0.531], 1000, False),
        ([0.51, 0.51, 0.51], None, False),
        ([0.3, 0.4, 0.6], None, True),
    ],
)
def test_a_cell_is_near_chance_by_its_mean_or_most_of_its_trials(
    scores: list[float], images: int | None, is_near: bool
) -> None:
    table = additive(np.random.default_rng(12)).assign(eval_images=images)
    cell = (table["batch_size"] == 32) & (table["base_lr"] == 0.1)
    table.loc[cell, "val_auroc"] = scores
    found = interaction(table, metric="val_auroc")
    assert found.near_chance == (((32, 0.1),) if is_near else ())


def test_where_all_cells_are_near_chance_it_says_so() -> None:
    table = additive(np.random.default_rng(13)).assign(val_auroc=0.5)
    found = interaction(table, metric="val_auroc")
    assert found.why == "there are no scores above chance for a grid of two batch sizes and two lrs"
    assert len(found.near_chance) == found.left_out == 20
