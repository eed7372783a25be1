"""Is the critical batch size what it should be? On tables of known truth, and on quadratic models.

The numbers of docs/statistics.md are those of the full count:

    uv run pytest -m slow -n0 -s tests/test_analysis_critical.py
"""

import math

import numpy as np
import pandas as pd
import pytest
from made_tables import simulated
from numpy.typing import NDArray
from scipy import optimize, stats

from search.analysis.analysis import analyse
from search.analysis.costs.critical_batch import ANY, DECAYS, PADDING, Front, decays, front
from search.analysis.costs.time_to_target import common_target, to_target
from search.analysis.surface import lr_step
from trainable.config import TrialConfig

Floats = NDArray[np.float64]
Tables = tuple[pd.DataFrame, pd.DataFrame]
SIZES = {4: 16.0 * 4 ** np.arange(4), 6: 16.0 * 2 ** np.arange(6)}
LOSS = {"metric": "val_loss", "mode": "min"}


def holds(found: Front, truth: float) -> bool:
    return not (truth < found.low or truth > found.high)  # NaN is an open side


def tables(needed: dict[float, Floats], *, first: float, last: float) -> Tables:
    """Trials whose score reaches 1 after these updates; evaluations after so many images."""
    images = np.geomspace(first, max(last, first * 1.01), 12)
    trials, epochs = [], []
    for b, updates in needed.items():
        for seed, s in enumerate(updates):
            key = f"{b}-{seed}"
            trials.append((key, b, 0.1, seed, "completed", images[-1] / b / s))
            epochs += [
                (key, n, seen / b, seen, seen / b / s, 1.0, 0.1) for n, seen in enumerate(images, 1)
            ]
    names = ["trial_key", "batch_size", "base_lr", "seed", "status", "val_auroc"]
    columns = [
        *("trial_key", "epoch", "updates", "examples_seen", "val_auroc", "epoch_wall_s", "lr"),
    ]
    return pd.DataFrame(trials, columns=names), pd.DataFrame(epochs, columns=columns)


def drawn(rng: np.random.Generator, critical: float, b: Floats, *, seeds: int, std: float) -> dict:
    return {
        float(size): 500 * (1 + critical / size) * np.exp(rng.normal(0, std, seeds)) for size in b
    }


def reached(both: Tables) -> pd.DataFrame:
    return to_target(*both, metric="val_auroc", mode="max", target=1.0)


# Evaluations begin and end at these shares of the images that the extreme batch sizes need.
CENSORING = {"none": (0.05, 20.0), "early": (1.0, 20.0), "late": (0.05, 1.15), "both": (1.0, 1.15)}


@pytest.mark.parametrize(
    ("censoring", "count", "where", "noise", "repetitions"),
    simulated(
        [
            [*CENSORING],
            [*SIZES],
            ["within", "below", "above"],
            [(2, 0.05), (2, 0.4), (3, 0.2), (10, 0.2)],
        ],
        few=8,
        many=200,
        every=7,
    ),
)
def test_an_interval_holds_the_critical_batch_size_or_is_refused(
    censoring: str, count: int, where: str, noise: tuple[int, float], repetitions: int
) -> None:
    seeds, std = noise
    rng = np.random.default_rng(0)
    b = SIZES[count]
    places = {"within": math.sqrt(b[0] * b[-1]), "below": b[0] / 4, "above": 4 * b[-1]}
    critical = places[where]
    first, last = (
        share * 500 * (size + critical)
        for share, size in zip(CENSORING[censoring], b[[0, -1]], strict=True)
    )
    found = [
        front(reached(tables(made, first=first, last=last)))
        for made in (drawn(rng, critical, b, seeds=seeds, std=std) for _ in range(repetitions))
    ]
    told = [each for each in found if not each.why]
    wrong = sum(not holds(each, critical) for each in told)
    print(
        f"\n{censoring}, {count} sizes, {where}, {seeds} seeds, std {std}: "
        f"{wrong} wrong of {len(told)} told, {repetitions - len(told)} refused"
    )
    # 5 % of all, and what chance adds in so many repetitions once in a thousand.
    assert wrong <= stats.binom.ppf(0.999, repetitions, 0.05)
    if censoring == "none" and std < 0.4:
        assert len(told) == repetitions


def test_a_mean_under_censoring_is_the_likeliest() -> None:
    """Of one batch size: known, at most the first evaluation, more than the last."""
    needed = {16.0: np.array([90.0, 150, 260, 420, 2000]), 32.0: np.array([100.0, 130, 170, 200])}
    table = reached(tables(needed, first=16 * 100, last=32 * 300))
    row = table[table["batch_size"] == 16].iloc[0]
    assert (row["early"], row["unreached"], row["n"]) == (1, 0, 5) or row["unreached"] == 1
    known = [np.log([150.0, 260, 420]), np.log([100.0, 130, 170, 200])]
    std = math.sqrt(sum(((each - each.mean()) ** 2).sum() for each in known) / 5)

    def minus_log_likelihood(mean: float) -> float:
        exact = stats.norm.logpdf(known[0], mean, std).sum()
        early = stats.norm.logcdf(math.log(100), mean, std)
        late = stats.norm.logsf(math.log(32 * 300 / 16), mean, std)
        return -float(exact + early + late)

    best = optimize.minimize_scalar(minus_log_likelihood, bounds=(0, 20), method="bounded")
    assert math.log(row["typical_updates"]) == pytest.approx(best.x, abs=1e-3)


def test_batch_sizes_that_are_early_bound_the_profile() -> None:
    """As a tobit likelihood on a grid of both parameters."""
    b = np.array([8.0, 16, 32, 64, 128, 256, 512])
    updates = 500 * (1 + 60 / b) * np.exp([0.3, 0.2, 0.1, -0.1, 0.05, -0.1, 0.06])
    early = np.array([1, 1, 0, 0, 0, 0, 0])
    needed = pd.DataFrame({"batch_size": b, "updates": updates, "typical_updates": updates})
    found = front(needed.assign(early=2 * early, n=2, unreached=0))
    tried, log_min = np.linspace(-1, 10, 2001)[:, None], np.linspace(5, 8, 1501)

    def left(at: int) -> Floats:
        curve: Floats = np.log(updates[at]) - np.log1p(np.exp(tried) / b[at]) - log_min
        return curve

    squares = sum(left(i) ** 2 for i in range(2, 7))
    variance = squares.min() / 3
    deviance = squares / variance
    deviance -= 2 * sum(stats.norm.logcdf(left(i) / math.sqrt(variance)) for i in range(2))
    profile = deviance.min(axis=1)
    inside = np.exp(tried[profile <= profile.min() + stats.f.ppf(0.95, 1, 3), 0])
    assert found.critical_batch_size == pytest.approx(np.exp(tried[profile.argmin(), 0]), rel=0.02)
    assert found.high == pytest.approx(inside.max(), rel=0.02)
    assert math.isnan(found.low) or found.low == pytest.approx(inside.min(), rel=0.02)
    # Without what the early ones tell, the critical batch size could be larger.
    assert front(needed.iloc[2:].assign(early=0, n=2, unreached=0)).high > found.high


@pytest.mark.parametrize(
    ("early", "count", "why"),
    [
        (2, 4, "2 batch sizes reach the target with all seeds after the first evaluation; at least "
         "four batch sizes are needed, so evaluate more often (eval_updates)"),
        (4, 5, "1 batch size reaches the target with all seeds after the first evaluation; at "
         "least four batch sizes are needed, so evaluate more often (eval_updates)"),
        (0, 3, "3 batch sizes reach the target; at least four batch sizes are needed"),
        (0, 1, "1 batch size reaches the target; at least four batch sizes are needed"),
    ],
)  # fmt: skip
def test_too_few_batch_sizes_are_counted(early: int, count: int, why: str) -> None:
    rng = np.random.default_rng(0)
    b = 16.0 * 2 ** np.arange(count)
    made = drawn(rng, 100.0, b, seeds=2, std=0.01)
    first = 500 * (b[early - 1] + 100) * 1.1 if early else 10.0
    assert front(reached(tables(made, first=first, last=1e6))).why == why


def test_costs_without_an_order_tell_nothing() -> None:
    updates = [900.0, 100, 800, 90]
    found = front(pd.DataFrame({"batch_size": SIZES[4], "updates": updates}))
    assert found.why == ANY
    bounds = (found.critical_batch_size, found.low, found.high, found.s_min, found.e_min)
    assert all(math.isnan(bound) for bound in bounds)


def test_every_decay_but_the_constant_one_decays() -> None:
    for decay in ("cosine", "step", "polynomial", "batch_growth"):
        assert decays(pd.DataFrame({"decay": ["constant", TrialConfig(decay=decay).decay]}))
    assert not decays(pd.DataFrame({"decay": ["constant", None]}))
    assert not decays(pd.DataFrame({"base_lr": [0.1]}))


# A noisy quadratic model (Zhang et al. 2019, arXiv:1907.04164): curvatures 1, 1/2, 1/3 ... and
# gradient noise in proportion, of variance NOISE at batch size 1.
CURVATURES = 1 / np.arange(1, 61)
TRIED = (8, 16, 32, 64, 128, 256)


def rates(lr: float, updates: int, decay: str) -> Floats:
    share = np.arange(updates) / updates
    return np.full(updates, lr) if decay == "constant" else lr * (1 + np.cos(np.pi * share)) / 2


def moved(lrs: Floats, b: float, noise: float) -> tuple[Floats, Floats]:
    """What some updates multiply a mean by, and the variance that they add."""
    kept = np.cumprod((1 - lrs[:, None] * CURVATURES)[::-1], axis=0)[::-1]
    after = np.vstack([kept[1:], np.ones_like(CURVATURES)])
    added: Floats = (after**2 * lrs[:, None] ** 2).sum(axis=0) * noise * CURVATURES / b
    return kept[0], added


def quadratic(
    rng: np.random.Generator, *, decay: str, noise: float, images: int, epochs: int, seeds: int
) -> Tables:
    """A grid of lrs a factor of two apart, somewhere; an evaluation each epoch."""
    trials, rows = [], []
    grid = 1.9 * rng.uniform(0.5, 1) * 2.0 ** -np.arange(8)
    for b in TRIED:
        per_epoch = images // b
        for lr in grid:
            lrs = rates(lr, per_epoch * epochs, decay)
            weights = np.ones((seeds, len(CURVATURES)))
            losses = np.empty((seeds, epochs))
            for epoch in range(epochs):
                kept, added = moved(lrs[epoch * per_epoch : (epoch + 1) * per_epoch], b, noise)
                weights = weights * kept + np.sqrt(added) * rng.standard_normal(weights.shape)
                losses[:, epoch] = (CURVATURES * weights**2).sum(axis=1) / 2
            for seed in range(seeds):
                key = f"{b}-{lr}-{seed}"
                trials.append((key, b, lr, seed, "completed", losses[seed].min(), decay))
                rows += [
                    (key, n, n * per_epoch, n * per_epoch * b, loss, 1.0, lr)
                    for n, loss in enumerate(losses[seed], 1)
                ]
    names = ["trial_key", "batch_size", "base_lr", "seed", "status", "val_loss", "decay"]
    columns = ["trial_key", "epoch", "updates", "examples_seen", "val_loss", "epoch_wall_s", "lr"]
    return pd.DataFrame(trials, columns=names), pd.DataFrame(rows, columns=columns)


def needs(b: float, target: float, noise: float, decay: str, most: int) -> int:
    """The length of the shortest run, with its own schedule, whose mean loss meets the target."""
    best = most
    for lr in 1.95 * 2.0 ** -np.arange(0, 9, 0.2):

        def meets(updates: int, lr: float = lr) -> bool:
            kept, added = moved(rates(lr, updates, decay), b, noise)
            return bool((CURVATURES * (kept**2 + added)).sum() / 2 <= target)

        if not meets(best):
            continue
        low, high = 0, best
        while high - low > max(1, high // 200):
            middle = (low + high) // 2
            low, high = (low, middle) if meets(middle) else (middle, high)
        best = high
    return best


def true_critical(target: float, noise: float, decay: str) -> float:
    updates = [needs(b, target, noise, decay, 1 << 13) for b in TRIED]
    return front(pd.DataFrame({"batch_size": TRIED, "updates": updates})).critical_batch_size


@pytest.mark.parametrize("repetitions", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [0.05, 0.3, 2.0])
def test_under_a_decaying_rate_the_critical_batch_size_is_refused(
    noise: float, repetitions: int
) -> None:
    """What one budget would give is several times too large, mostly with the truth outside."""
    rng = np.random.default_rng(2)
    settings = {"noise": noise, "images": 2048, "epochs": 10, "seeds": 3}
    times, missed = [], []
    for _ in range(repetitions):
        trials, epochs = quadratic(rng, decay="cosine", **settings)  # type: ignore[arg-type]
        found = analyse(trials, epochs, **LOSS)
        assert found.front.why == DECAYS
        assert math.isnan(found.front.critical_batch_size)
        one_budget = front(found.needed.assign(early=0))
        truth = true_critical(found.target, noise, "cosine")
        times.append(one_budget.critical_batch_size / truth)
        missed.append(not holds(one_budget, truth))
    print(f"\nnoise {noise}: {np.nanmedian(times):.1f} times too large, {np.mean(missed):.2f} miss")
    assert np.nanmedian(times) > 2


@pytest.mark.parametrize("repetitions", [1, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("noise", "epochs"), [(2.0, 20), (10.0, 40)])
def test_under_a_constant_rate_the_interval_holds_the_true_one(
    noise: float, epochs: int, repetitions: int
) -> None:
    """Over the whole way: the target in common, the best lr of a grid, curves between epochs."""
    rng = np.random.default_rng(1)
    settings = {"noise": noise, "images": 512, "epochs": epochs, "seeds": 3}
    held: list[bool] = []
    for _ in range(repetitions):
        trials, rows = quadratic(rng, decay="constant", **settings)  # type: ignore[arg-type]
        target = common_target(trials, **LOSS)
        step = lr_step(trials, lr="base_lr")
        assert step == pytest.approx(math.log(2))
        found = front(to_target(trials, rows, target=target, **LOSS), step=step)
        if not found.why:
            held.append(holds(found, true_critical(target, noise, "constant")))
    print(f"\nnoise {noise}: {np.mean(held):.3f} of {len(held)} told held, of {repetitions}")
    assert sum(not each for each in held) <= stats.binom.ppf(0.999, repetitions, 0.05)


def test_the_interval_is_padded_by_a_part_of_the_lrs_step() -> None:
    rows = [(16, 0.0), *((16, lr) for lr in (0.1, 0.2, 0.2, 0.8)), (32, 0.1), (32, 0.2), (64, 5.0)]
    step = lr_step(pd.DataFrame(rows, columns=["batch_size", "lr"]), lr="lr")
    assert step == pytest.approx(math.log(2))  # of log 2, log 4 and log 2
    alone = pd.DataFrame([(16, 0.1), (32, 0.2)], columns=["batch_size", "lr"])
    assert lr_step(alone, lr="lr") == 0
    made = drawn(np.random.default_rng(0), 120.0, SIZES[6], seeds=2, std=0.05)
    needed = reached(tables(made, first=100, last=1e6))
    bare, padded = front(needed), front(needed, step=step)
    assert padded.critical_batch_size == bare.critical_batch_size
    assert padded.low == pytest.approx(bare.low / 2**PADDING)
    assert padded.high == pytest.approx(bare.high * 2**PADDING)
