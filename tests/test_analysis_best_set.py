import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from made_tables import Cells, best_set, table, with_scores
from scipy import stats

from search.analysis.best_set import dunnett_critical, optimism
from search.analysis.groups import analyses
from search.analysis.leaderboard import leaderboard
from search.analysis.noise import noise_of
from search.analysis.surface import best_cell, surface

NOISE = 0.01


def cells_of(
    rng: np.random.Generator, truth: Sequence[float], seeds: Sequence[int]
) -> pd.DataFrame:
    """The surface of cells with these true means and numbers of seeds, the lr counting them."""
    lrs = np.repeat(np.arange(1, len(truth) + 1), seeds)
    score = np.repeat(truth, seeds) + NOISE * rng.standard_normal(len(lrs))
    table = pd.DataFrame({"batch_size": 16, "base_lr": lrs, "val_auroc": score})
    return surface(table.assign(status="completed"), metric="val_auroc")


@pytest.mark.parametrize(("groups", "seeds"), [(2, 3), (6, 2), (6, 3), (12, 5), (35, 3)])
def test_dunnetts_critical_value_is_scipys(groups: int, seeds: int) -> None:
    """Of data whose largest statistic is the critical value, scipy's p value is 5 %."""
    rng = np.random.default_rng(0)
    freedom = groups * (seeds - 1)
    critical = dunnett_critical(groups - 1, freedom)
    data = rng.standard_normal((groups, seeds))
    data -= data.mean(axis=1, keepdims=True)
    pooled = math.sqrt((data**2).sum() / freedom)
    data[1] += critical * pooled * math.sqrt(2 / seeds)
    found = stats.dunnett(*data[1:], control=data[0], alternative="greater", rng=1)
    assert found.statistic[0] == pytest.approx(critical)
    assert found.pvalue[0] == pytest.approx(0.05, abs=0.002)


def test_one_comparison_is_students() -> None:
    assert dunnett_critical(1, 7) == pytest.approx(stats.t.ppf(0.95, 7), abs=0.002)


@pytest.mark.parametrize(
    ("truth", "seeds"),
    [
        ([0.9] * 20, [3] * 20),
        ([0.9, *[0.89] * 10, *[0.85] * 9], [3] * 20),
        ([0.9] * 20, [2, 5] * 10),
        ([0.9] * 20, [2] * 10 + [10] * 10),
        ([0.9] * 20, [10] + [2] * 19),
    ],
    ids=["all alike", "one ahead", "of two sizes", "of very unlike sizes", "the best has more"],
)
@pytest.mark.parametrize(
    ("repetitions", "least_share"), [(80, 0.9), pytest.param(300, 0.94, marks=pytest.mark.slow)]
)
def test_the_true_best_is_kept(
    truth: Sequence[float], seeds: Sequence[int], repetitions: int, least_share: float
) -> None:
    rng = np.random.default_rng(1)
    kept = [
        1 in set(best_set(cells_of(rng, truth, seeds), mode="max")["lr"])
        for _ in range(repetitions)
    ]
    assert np.mean(kept) >= least_share  # 0.95 within the error of so few


def test_cells_that_are_far_behind_are_told_from_the_best() -> None:
    """Beside each cell that is as good; a set of all cells would pass the test before."""
    rng = np.random.default_rng(2)
    truth = [0.9, 0.895, *[0.9 - 8 * NOISE] * 18]
    for mode, sign in (("max", 1), ("min", -1)):
        cells = cells_of(rng, [sign * each for each in truth], [3] * 20)
        assert set(best_set(cells, mode=mode)["lr"]) == {1, 2}


def test_an_own_calculation_keeps_the_same_cells() -> None:
    """Hsu's lower bounds from scipy's intervals: each cell is the control against all others."""
    rng = np.random.default_rng(3)
    truth = rng.normal(0.9, 1.5 * NOISE, 6)
    for _ in range(5):
        data = truth[:, None] + NOISE * rng.standard_normal((6, 4))
        table = pd.DataFrame(
            {"batch_size": 16, "base_lr": np.repeat(range(6), 4), "val_auroc": data.ravel()}
        )
        cells = surface(table.assign(status="completed"), metric="val_auroc")
        noise, freedom = noise_of(cells, mode="max").std, noise_of(cells, mode="max").freedom
        assert freedom == 9  # pooled over the better half of six
        stays = []
        for own in range(6):
            ahead = (data.mean(axis=1) - data[own].mean()) / (noise * math.sqrt(2 / 4))
            others = np.delete(ahead, own)
            draws = rng.standard_normal((200_000, 6))
            scale = np.sqrt(rng.chisquare(freedom, 200_000) / freedom)
            most = ((draws[:, :5] - draws[:, 5:]) / math.sqrt(2)).max(axis=1) / scale
            if (most >= others.max()).mean() >= 0.05:
                stays.append(own)
        assert sorted(best_set(cells, mode="max")["lr"]) == stays


@pytest.mark.parametrize(
    "truth",
    [
        [0.9] * 20,
        [0.9 - 0.002 * k for k in range(20)],
        [0.9 - 0.02 * k for k in range(20)],
    ],
    ids=["flat", "gently falling", "steep"],
)
@pytest.mark.parametrize("repetitions", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_optimism_is_that_of_a_simulation(truth: Sequence[float], repetitions: int) -> None:
    """By how much the mean of the cell that was picked exceeds that cell's truth, on average."""
    rng = np.random.default_rng(4)
    real, said = [], []
    for _ in range(repetitions):
        cells = cells_of(rng, truth, [3] * 20)
        picked = int(cells["mean"].argmax())
        real.append(cells["mean"].iloc[picked] - truth[picked])
        said.append(optimism(cells, mode="max"))
    error = NOISE / math.sqrt(3)  # of one mean: what the gain is measured in
    assert np.mean(said) == pytest.approx(np.mean(real), abs=0.25 * error)


def test_of_less_is_better_optimism_is_the_same() -> None:
    rng = np.random.default_rng(5)
    cells = cells_of(rng, [0.9] * 10, [3] * 10)
    low = cells.assign(mean=1 - cells["mean"])
    assert optimism(cells, mode="max") > 0
    assert optimism(low, mode="min") == pytest.approx(optimism(cells, mode="max"), rel=0.1)


def test_noise_is_pooled_over_the_better_half() -> None:
    cells = pd.DataFrame(
        {"mean": [0.9, 0.8, 0.7, 0.6], "std": [0.01, 0.03, 0.5, 0.5], "n": [2, 3, 3, 3]}
    )
    cells = with_scores(cells)
    noise, freedom = noise_of(cells, mode="max").std, noise_of(cells, mode="max").freedom
    assert freedom == 3
    assert noise == pytest.approx(math.sqrt((0.01**2 + 2 * 0.03**2) / 3))
    assert noise_of(cells, mode="min").std == pytest.approx(0.5)


def test_without_seeds_there_is_no_set_and_no_optimism() -> None:
    cells = cells_of(np.random.default_rng(6), [0.9] * 4, [1] * 4)
    assert best_set(cells, mode="max").empty
    assert math.isnan(optimism(cells, mode="max"))


UNEVEN: Cells = {
    (16, 0.1): [0.840, 0.814],
    (16, 0.2): [0.8284],
    (32, 0.1): [0.751],
    (32, 0.2): [0.750, 0.724],
    (64, 0.1): [0.70, 0.66],
}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_one_seed_is_not_best_beside_settings_with_several(mode: str) -> None:
    """Neither by its luck (0.8284 > 0.827), nor tied while a mean close to its own is not."""
    sign = 1 if mode == "max" else -1
    cells = surface(table(UNEVEN).assign(score=lambda t: sign * t["val_auroc"]), metric="score")
    assert best_cell(cells, mode=mode)["mean"] == pytest.approx(sign * 0.827)
    tied = best_set(cells, mode=mode)
    assert tied["mean"].tolist() == pytest.approx([sign * 0.827])
    leaders = leaderboard(
        table(UNEVEN).assign(score=lambda t: sign * t["val_auroc"]),
        by=["batch_size", "base_lr"], metric="score", mode=mode, rows=9,
    )  # fmt: skip
    assert leaders["n"].tolist() == [2, 2, 2, 1, 1]
    assert (sign * leaders["mean"]).tolist() == pytest.approx([0.827, 0.737, 0.68, 0.8284, 0.751])


def test_one_replicated_setting_alone_leaves_the_others_in() -> None:
    cells = surface(table({(16, 0.1): [0.8, 0.81], (16, 0.2): [0.9]}), metric="val_auroc")
    assert best_cell(cells, mode="max")["mean"] == 0.9


def test_a_surface_of_one_seed_does_not_come_before_one_of_two() -> None:
    twice = table({(16, 0.1): [0.8267, 0.8267], (16, 0.2): [0.7, 0.7]}, momentum=0.9)
    once = table({(16, 0.1): [0.8284], (16, 0.2): [0.7]}, momentum=0.5)
    found = analyses(pd.concat([once, twice]), None, {}, metric="val_auroc", mode="max")
    assert [surface.of["momentum"] for surface in found] == [0.9, 0.5]
