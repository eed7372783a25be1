"""What seeds do to all cells alike is no noise of a comparison; Leaders; what is near the best."""

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols

from search.analysis.best_set import compared, optimism, seeds_for
from search.analysis.noise import noise_of, redrawn, standard_errors
from search.analysis.surface import surface

STD, SEED_STD = 0.004, 0.012
TRUTH = 0.9 - 0.003 * np.arange(12)


def trials_of(
    rng: np.random.Generator, *, seeds: int = 3, seed_std: float = SEED_STD
) -> pd.DataFrame:
    """A cell a true mean, the lr counting them; the same seeds in all, whose effects are shared."""
    rows = [(16, i + 1, seed) for i in range(len(TRUTH)) for seed in range(seeds)]
    table = pd.DataFrame(rows, columns=["batch_size", "base_lr", "seed"])
    effects = seed_std * rng.standard_normal(seeds)
    score = TRUTH[table["base_lr"] - 1] + effects[table["seed"]]
    score += STD * rng.standard_normal(len(table))
    return table.assign(val_auroc=score, status="completed")


def cells_of(trials: pd.DataFrame) -> pd.DataFrame:
    return surface(trials, metric="val_auroc")


def test_residuals_are_those_of_statsmodels() -> None:
    trials = trials_of(np.random.default_rng(0)).drop(index=[4, 11])
    cells = cells_of(trials)
    noise = noise_of(cells, mode="max")
    half = cells[cells["n"] > 1].nlargest(6, "mean")["lr"]
    fit = ols("val_auroc ~ C(base_lr) + C(seed)", trials[trials["base_lr"].isin(half)]).fit()
    assert (noise.std, noise.freedom) == (pytest.approx(math.sqrt(fit.mse_resid)), fit.df_resid)
    within = ols("val_auroc ~ C(base_lr)", trials[trials["base_lr"].isin(half)]).fit()
    assert noise.seed_std == pytest.approx(math.sqrt(within.mse_resid - fit.mse_resid))


def test_a_difference_counts_only_the_seeds_that_two_cells_do_not_share() -> None:
    trials = trials_of(np.random.default_rng(1), seeds=4)
    lost = (trials["base_lr"] == 2) & (trials["seed"] > 1)
    noise = noise_of(cells_of(trials[~lost]), mode="max")
    error = noise.of_difference()
    assert error[0, 2] == pytest.approx(noise.std * math.sqrt(2 / 4))
    # Two seeds against the same two and two more: 2 (1/2 - 1/4)^2 + 2 (1/4)^2 of their variance.
    wanted = noise.std**2 * (1 / 2 + 1 / 4) + noise.seed_std**2 * 0.25
    assert error[0, 1] == pytest.approx(math.sqrt(wanted))


def test_redrawn_surfaces_move_as_a_whole_where_cells_share_seeds() -> None:
    cells = cells_of(trials_of(np.random.default_rng(12)))
    noise = noise_of(cells, mode="max")
    draws = redrawn(cells, mode="max", draws=20_000)
    assert draws is not None
    apart = (draws[:, 4] - draws[:, 5]).std()
    errors = standard_errors(cells, noise)[[4, 5]]
    assert apart == pytest.approx(math.hypot(*errors) * math.sqrt(10 / 8), rel=0.05)  # Student's
    together = draws.mean(axis=1).std()
    assert together == pytest.approx(noise.seed_std / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize("seeds", ["drawn anew", "unknown"])
def test_seeds_that_no_two_cells_share_are_all_noise(seeds: str) -> None:
    trials = trials_of(np.random.default_rng(3), seed_std=0.0)
    changed = trials.assign(seed=range(1000, 1000 + len(trials)))
    changed = changed if seeds == "drawn anew" else trials.assign(seed=math.nan)
    noise = noise_of(cells_of(changed), mode="max")
    assert (noise.seed_std, noise.freedom) == (0.0, 12)
    assert noise.std == pytest.approx(STD, rel=0.5)


@pytest.mark.parametrize("repetitions", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_shared_seeds_hide_neither_the_best_nor_its_rivals(repetitions: int) -> None:
    rng = np.random.default_rng(4)
    kept, sizes, gains, stated, unpaired = [], [], [], [], []
    for _ in range(repetitions):
        trials = trials_of(rng)
        cells = cells_of(trials)
        table = compared(cells, mode="max")
        kept.append(bool(table.set_index("lr")["in_best_set"][1]))
        sizes.append(table["in_best_set"].sum())
        unknown = compared(cells_of(trials.assign(seed=math.nan)), mode="max")
        unpaired.append(unknown["in_best_set"].sum())
        picked = int(cells["mean"].argmax())
        # Against the mean of all cells, which the effects of seeds move as much.
        gains.append(
            cells["mean"].iloc[picked] - cells["mean"].mean() - TRUTH[picked] + TRUTH.mean()
        )
        stated.append(optimism(cells, mode="max"))
    print(
        f"\nkept {np.mean(kept):.3f}; {np.mean(sizes):.1f} cells, unpaired {np.mean(unpaired):.1f}"
    )
    print(f"optimism {np.mean(stated):.5f}, true {np.mean(gains):.5f}")
    assert np.mean(kept) >= 0.92
    assert np.mean(sizes) < 0.75 * np.mean(unpaired)
    assert np.mean(stated) == pytest.approx(np.mean(gains), abs=0.25 * STD / math.sqrt(3))


@pytest.mark.parametrize(("first", "all_seeds"), [(1, 5), (2, 5)])
@pytest.mark.parametrize("repetitions", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_optimism_is_that_of_leaders_which_got_more_seeds(
    first: int, all_seeds: int, repetitions: int
) -> None:
    """All cells have a few seeds, the best five then get the others."""
    rng = np.random.default_rng(5)
    gains, stated = [], []
    for _ in range(repetitions):
        trials = trials_of(rng, seeds=all_seeds, seed_std=0.0)
        few = trials[trials["seed"] < first].groupby("base_lr")["val_auroc"].mean()
        leaders = few.nlargest(5).index
        cells = cells_of(trials[(trials["seed"] < first) | trials["base_lr"].isin(leaders)])
        contenders = cells[cells["n"] > 1]
        picked = int(contenders["mean"].idxmax())
        gains.append(cells.loc[picked, "mean"] - TRUTH[picked])
        stated.append(optimism(cells, mode="max"))
    print(f"\n{first} then {all_seeds}: stated {np.mean(stated):.5f}, true {np.mean(gains):.5f}")
    assert np.mean(stated) == pytest.approx(np.mean(gains), abs=0.25 * STD / math.sqrt(first))


@pytest.mark.parametrize("seed_std", [0.0, SEED_STD])
@pytest.mark.parametrize(
    ("seeds", "repetitions"), [(3, 60), pytest.param(10, 200, marks=pytest.mark.slow)]
)
def test_a_cell_is_no_further_behind_than_the_table_says(
    seeds: int, repetitions: int, seed_std: float
) -> None:
    rng = np.random.default_rng(6)
    holds, within = [], []
    for _ in range(repetitions):
        table = compared(cells_of(trials_of(rng, seeds=seeds, seed_std=seed_std)), mode="max")
        behind = TRUTH[0] - TRUTH[table["lr"] - 1]
        holds.append((behind <= table["behind"] + 1e-12).all())
        within.append((table["behind"] <= 0.01).sum())
    print(f"\n{seeds} seeds: {np.mean(holds):.3f} hold; {np.mean(within):.1f} cells within 0.01")
    assert np.mean(holds) >= 0.92
    if seeds == 10:
        assert np.mean(within) >= 2  # of four that are; a bound that holds nothing says nothing


def test_seeds_for_a_margin_are_those_that_tell_two_cells_apart() -> None:
    cells = cells_of(trials_of(np.random.default_rng(7), seed_std=0.0))
    n = seeds_for(0.004, cells, mode="max")
    noise = noise_of(cells, mode="max")
    assert n >= 2 * (noise.std * 1.9 / 0.004) ** 2  # Dunnett's d is above that
    assert seeds_for(0.002, cells, mode="max") == pytest.approx(4 * n, abs=4)
    assert seeds_for(math.nan, cells, mode="max") == 0
    one_seed = cells_of(trials_of(np.random.default_rng(8), seeds=1))
    assert seeds_for(0.004, one_seed, mode="max") == 0
