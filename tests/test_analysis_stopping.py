"""Was stopping safe? Studies stopped by the real schedulers, on made and on real curves."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from ray import tune
from scipy import stats
from searches import BASE

from search.analysis.stopping import (
    _declared_rungs,
    deciding_rung,
    rank_correlation,
    stopping,
    verdict,
)
from search.execution.provenance import part_as_json
from search.execution.schedulers import EarlyStopping, scheduler_of
from search.explore import Asha, Grid, HyperBand, Median
from search.report.sentences.search import stopping_sentence
from search.study.study import Study

TRAIN_IMAGES, EPOCHS = 1000, 9
Curves = NDArray[np.float64]  # (trials, epochs)


class Trial:
    """A trial as a scheduler sees it."""

    def __init__(self, number: int, batch_size: int) -> None:
        total = TRAIN_IMAGES // batch_size * batch_size * EPOCHS
        self.trial_id = f"k{number}"
        self.config = {
            "key": self.trial_id,
            "batch_size": batch_size,
            "total_images": total,
            "whole": False,
        }


class Controller:
    """A controller without other trials."""

    def get_live_trials(self) -> list[Any]:
        return []


def played(
    stop: Any, curves: Curves, batch_sizes: Sequence[int], *, workers: int = 4, epochs: int = EPOCHS
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The tables of a study of these curves, as the scheduler stops them: so many at a time."""
    images = {b: TRAIN_IMAGES // b * b for b in set(batch_sizes)}
    total = epochs * max(images.values())
    scheduler = EarlyStopping(stop, grace=int(stop.grace_share * total), total=total)
    waiting = [Trial(number, b) for number, b in enumerate(batch_sizes)]
    running: dict[Trial, int] = {}
    trials, evaluations = [], []
    while waiting or running:
        while waiting and len(running) < workers:
            scheduler.on_trial_add(Controller(), waiting[0])
            running[waiting.pop(0)] = 0
        for trial in list(running):
            running[trial] += 1
            epoch, number, b = running[trial], int(trial.trial_id[1:]), trial.config["batch_size"]
            score, seen = float(curves[number, epoch - 1]), epoch * images[b]
            trial.config["total_images"] = epochs * images[b]
            evaluations.append((trial.trial_id, epoch, seen, seen / TRAIN_IMAGES, score))
            result = {"score": score, "examples_seen": seen}
            is_stopped = scheduler.on_trial_result(Controller(), trial, result) == "STOP"
            if is_stopped or epoch == epochs:
                scheduler.on_trial_complete(Controller(), trial, result)
                del running[trial]
                best = float(curves[number, :epoch].max())
                trials.append((trial.trial_id, "stopped" if is_stopped else "completed", b, best))
    table = pd.DataFrame(trials, columns=["trial_key", "status", "batch_size", "val_auroc"])
    table = table.assign(epochs=epochs, base_lr=0.1, warmup_epochs=0.0, decay="cosine")
    columns = ["trial_key", "epoch", "examples_seen", "epochs_seen", "val_auroc"]
    about = {"metric": "val_auroc", "stop": part_as_json(stop)}
    return table, pd.DataFrame(evaluations, columns=columns), about


def made_curves(rng: np.random.Generator, n: int, *, early: float, epochs: int = EPOCHS) -> Curves:
    """Scores that come to their final ones; `early` is how much of the spread is of the start."""
    final, start = rng.standard_normal((2, n, 1))
    left = 1 - np.arange(1, epochs + 1) / epochs
    return 0.8 + 0.02 * (final * (1 - early * left) + early * start * left) - 0.2 * left


def rungs_of(stop: Any, curves: Curves, batch_sizes: Sequence[int], **how: Any) -> pd.DataFrame:
    trials, epochs, about = played(stop, curves, batch_sizes, **how)
    return stopping(trials, epochs, about, metric="val_auroc")


def overall(rungs: pd.DataFrame) -> pd.DataFrame:
    return rungs[rungs["batch_size"].isna()].set_index("rung")


SIZES = [50, 100] * 60


@pytest.mark.parametrize("stop", [Asha(), HyperBand(), Asha(by_batch_size=True)])
def test_rungs_are_those_of_the_scheduler(stop: Any) -> None:
    """Factor three from a ninth of nine epochs on: epochs one and three."""
    rungs = rungs_of(stop, made_curves(np.random.default_rng(0), 120, early=0.5), SIZES)
    assert overall(rungs)[["images", "epoch"]].to_numpy().tolist() == [[1000, 1], [3000, 3]]
    assert rungs["batch_size"].dropna().unique().tolist() == [50, 100]
    assert (overall(rungs)["stopped"] > 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 9},
        {"epochs": 10, "warmup_epochs": 3.0, "warmup_scaling": "linear"},
        {"epochs": 10, "warmup_epochs": 0.0, "warmup_share": 0.4},
        {"epochs": None, "updates": 700},
        {"epochs": None, "examples": 12345},
    ],
)
def test_the_first_rung_is_that_of_the_study(changes: dict[str, Any]) -> None:
    configs = [
        replace(BASE, batch_size=b, reference_batch_size=32, **changes) for b in (32, 64, 100)
    ]
    vary = {"batch_size": tune.grid_search([32, 64, 100])}
    study = Study(name="s", base=configs[0], vary=vary, explore=Grid(), stop=Asha())
    scheduler = scheduler_of(study, train_images=TRAIN_IMAGES)
    assert scheduler is not None
    seen = pd.DataFrame({"examples_seen": [960, 1920], "epochs_seen": [0.96, 1.92]})
    trials = pd.DataFrame([asdict(config) for config in configs])
    declared = part_as_json(study.stop)
    assert declared is not None
    rungs = _declared_rungs(trials, seen, declared)
    inner = scheduler._of(Trial(0, 32))
    milestones = [rung for rung, _ in inner._brackets[0]._rungs]
    assert rungs == sorted(rung for rung in milestones if rung < scheduler.total)


def test_the_correlation_is_scipys_of_the_trials_that_finished() -> None:
    curves = made_curves(np.random.default_rng(1), 120, early=0.8)
    trials, epochs, about = played(Asha(), curves, SIZES)
    rungs = stopping(trials, epochs, about, metric="val_auroc")
    ended = trials[trials["status"] == "completed"].set_index("trial_key")
    for number, epoch in ((1, 1), (2, 3)):
        there = epochs[epochs["epoch"] == epoch].set_index("trial_key")["val_auroc"]
        for batch_size, group in ((None, ended), *ended.groupby("batch_size")):
            wanted = stats.spearmanr(there[group.index], group["val_auroc"]).statistic
            rows = rungs[rungs["rung"] == number]
            is_row = rows["batch_size"] == batch_size if batch_size else rows["batch_size"].isna()
            (row,) = rows[is_row].to_dict("records")
            assert (row["rho"], row["n"]) == (pytest.approx(wanted), len(group))
    last = epochs.groupby("trial_key")["epoch"].max()[trials["trial_key"]].to_numpy()
    stopped = trials["status"].to_numpy() == "stopped"
    assert overall(rungs)["stopped"].tolist() == [(last[stopped] == e).sum() for e in (1, 3)]
    assert overall(rungs)["reached"].tolist() == [len(trials), (last >= 3).sum()]


def test_the_best_finisher_is_placed_among_all_that_it_competes_with() -> None:
    """Eight trials at batch size 50 and four at 100, whose scores at epoch one are by hand."""
    first = [0.50, 0.60, 0.70, 0.80, 0.55, 0.65, 0.75, 0.85, 0.40, 0.42, 0.44, 0.46]
    curves = np.repeat(np.array(first)[:, None], EPOCHS, axis=1)
    curves[8, 1:] = 0.95  # it was the last at first, and is the best at last
    sizes = [50] * 8 + [100] * 4
    trials, epochs, about = played(Asha(), curves, sizes, workers=1)
    trials.loc[trials["trial_key"] == "k8", "status"] = "completed"  # it is let to its end
    trials.loc[trials["trial_key"] == "k8", "val_auroc"] = 0.95
    more = [("k8", e, e * 1000, float(e), 0.95) for e in range(2, EPOCHS + 1)]
    epochs = pd.concat([epochs, pd.DataFrame(more, columns=epochs.columns)])
    rungs = stopping(trials, epochs, about, metric="val_auroc").query("rung == 1")
    places = rungs[["best_place", "of", "best_below"]].to_numpy().tolist()
    assert places == [[1, 12, False], [12, 12, True], [12, 12, True]]
    about["stop"]["by_batch_size"] = True
    rungs = stopping(trials, epochs, about, metric="val_auroc").query("rung == 1")
    places = rungs[["best_place", "of", "best_below"]].to_numpy().tolist()
    assert places == [[1, 8, False], [4, 4, True], [4, 4, True]]
    assert verdict(rungs) == "not safe"


def test_where_batch_sizes_compete_apart_the_ranks_are_within_each() -> None:
    """One batch size is far better: over all, its place alone would make a high correlation."""
    curves = made_curves(np.random.default_rng(2), 120, early=1.0)
    curves[::2] += 0.3
    apart, together = (
        overall(rungs_of(Asha(by_batch_size=b), curves, SIZES, workers=120)) for b in (True, False)
    )
    rungs = rungs_of(Asha(by_batch_size=True), curves, SIZES, workers=120)
    of_sizes = rungs[rungs["batch_size"].notna() & (rungs["rung"] == 1)]
    assert apart.loc[1, "rho"] == pytest.approx(of_sizes["rho"].mean(), abs=0.05)
    assert set(together["n"]) != set(apart["n"])


@pytest.mark.parametrize(
    ("stop", "changed"),
    [
        (Median(), {}),
        (Asha(), {"stop": "Asha(reduction_factor=3.0)"}),  # as older studies have it
        (Asha(), {"stop": part_as_json(Asha(grace_share=0.7))}),  # of the command after
    ],
)
def test_rungs_that_the_declaration_does_not_tell_are_where_trials_stopped(
    stop: Any, changed: dict[str, Any]
) -> None:
    curves = made_curves(np.random.default_rng(3), 120, early=0.9)
    trials, epochs, about = played(stop, curves, SIZES)
    rungs = stopping(trials, epochs, about | changed, metric="val_auroc")
    ends = epochs.groupby("trial_key")["examples_seen"].max()
    stopped_at = ends[trials.loc[trials["status"] == "stopped", "trial_key"]]
    images = overall(rungs)["images"].tolist()
    assert images[0] == stopped_at.min()
    assert set(images) <= set(stopped_at)
    assert overall(rungs)["stopped"].sum() == (trials["status"] == "stopped").sum()
    if "stop" in changed and isinstance(changed["stop"], str):
        assert not rungs["best_below"].any()  # the cut is not known


def test_a_batch_that_does_not_divide_the_images_is_judged_an_evaluation_later() -> None:
    """Batches of 64 see 960 of 1,000 images an epoch: fewer than the first rung of 1,000."""
    sizes = [50, 64] * 60
    rungs = rungs_of(Asha(), made_curves(np.random.default_rng(4), 120, early=0.5), sizes)
    by_size = rungs[rungs["rung"] == 1].set_index("batch_size")["epoch"]
    assert (by_size.isna()).all()
    assert overall(rungs)["images"].tolist() == [1000, 3000]
    assert "1,000 images" in stopping_sentence(rungs, by_batch_size=False)


def test_without_a_stopper_or_a_stopped_trial_there_is_nothing_to_judge() -> None:
    trials, epochs, about = played(Asha(), made_curves(np.random.default_rng(5), 9, early=0), [50])
    whole = trials.assign(status="completed")
    tables: list[tuple[Any, Any, Any]] = [
        (trials, epochs, {}),
        (trials, epochs, {"stop": None}),
        (trials, epochs, {"stop": "None"}),
        (trials, None, about),
        (whole, epochs, about),
        (trials.iloc[:0], epochs.iloc[:0], about),
    ]
    for rows, evaluations, said in tables:
        rungs = stopping(rows, evaluations, said, metric="val_auroc")
        assert rungs.empty
        assert deciding_rung(rungs).empty
        assert stopping_sentence(rungs, by_batch_size=False) == ""


@pytest.mark.parametrize("sizes", [[15], [8, 12]])
def test_the_correlation_and_its_jackknife_are_scipys(sizes: list[int]) -> None:
    rng = np.random.default_rng(9)
    groups = np.repeat(range(len(sizes)), sizes)
    x = rng.integers(0, 6, len(groups)).astype(float)  # with ties
    y = x + rng.normal(0, 2, len(groups))

    def by_scipy(kept: "NDArray[np.bool_]") -> float:
        ranks = []
        for of in (x, y):
            parts = [of[kept & (groups == group)] for group in np.unique(groups)]
            each = [(stats.rankdata(part) - 0.5) / len(part) - 0.5 for part in parts]
            ranks.append(np.concatenate(each))
        return float(stats.pearsonr(*ranks).statistic)

    rho, low, high = rank_correlation(x, y, groups)
    n = len(groups)
    assert rho == pytest.approx(by_scipy(np.ones(n, dtype=bool)))
    if len(sizes) == 1:
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    z = np.arctanh([by_scipy(np.arange(n) != i) for i in range(n)])
    jackknife = math.sqrt((n - 1) / n * ((z - z.mean()) ** 2).sum())
    freedom = n - len(sizes) - 2
    half = max(
        jackknife * stats.t.ppf(0.975, freedom + 1),
        math.sqrt((1 + rho**2 / 2) / freedom) * stats.norm.ppf(0.975),
    )
    wanted = np.tanh(np.arctanh(rho) + half * np.array([-1, 1]))
    assert (low, high) == pytest.approx(tuple(wanted))


def test_a_perfect_order_has_an_interval_and_equal_scores_have_no_correlation() -> None:
    rho, low, high = rank_correlation(range(20), range(20), [0] * 20)
    assert (rho, high) == (pytest.approx(1), pytest.approx(1))
    assert 0.9 < low < 1
    for x, n in (([0.5] * 20, 20), ([], 0), ([1.0], 1)):
        assert np.isnan(rank_correlation(x, range(n), [0] * n)).all()
    assert np.isnan(rank_correlation(range(11), range(11), [0] * 11)[1:]).all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("n", [12, 20, 40])
def test_the_interval_of_rho_covers_the_true_one(n: int, strength: float) -> None:
    rng = np.random.default_rng(6)
    true = 6 / math.pi * math.asin(strength / 2)  # of normal scores
    covered = []
    for _ in range(500):
        x, noise = rng.standard_normal((2, n))
        y = strength * x + math.sqrt(1 - strength**2) * noise
        _, low, high = rank_correlation(x, y, ["a"] * n)
        covered.append(low <= true <= high)
    print(f"n {n}, correlation {strength}: {np.mean(covered):.3f} of 500 covered")
    assert 0.92 <= np.mean(covered) <= 0.995


def test_the_verdict_is_of_studies_whose_best_trial_is_lost_seldom() -> None:
    """Over studies of 200 trials with an early score that says much, or nothing, of the end."""
    rng = np.random.default_rng(7)
    lost: dict[str, list[bool]] = {"safe": [], "not safe": [], "unknown": []}
    for early in (0.2, 0.6, 1.0):
        for _ in range(8):
            curves = made_curves(rng, 200, early=early)
            trials, epochs, about = played(Asha(), curves, [50] * 200, workers=8)
            rungs = stopping(trials, epochs, about, metric="val_auroc")
            best = f"k{curves[:, -1].argmax()}"
            is_lost = trials.set_index("trial_key").loc[best, "status"] == "stopped"
            lost[verdict(deciding_rung(rungs))].append(bool(is_lost))
    print({outcome: (len(each), np.mean(each or [0])) for outcome, each in lost.items()})
    assert len(lost["safe"]) >= 5
    assert np.mean(lost["safe"]) <= 0.1
    assert len(lost["not safe"]) >= 5
    assert np.mean(lost["not safe"]) >= 0.3


SAFE = (
    "Stopping at {where} was safe as far as the finished trials show: their order there agrees "
    "with their final order (Spearman's rho {rho} [{low}, {high}], {n} trials)."
)
BEST_BELOW = (
    "Stopping at {where} was not safe: the trial{s} that finished best at batch size{s} {sizes} "
    "{were} below the final cut there, so better ones may have been stopped{more}."
)
WITHIN = "; add --set stop.by_batch_size=true to compare trials of one batch size only"
SAYS_LITTLE = (
    "Stopping at {where} was not safe: the order of the finished trials there says little about "
    "their final order (Spearman's rho {rho} [{low}, {high}], {n} trials; below 0.3 it misleads)."
)
FEW = (
    "Whether stopping at {where} was safe cannot be said: only {n} that finished {have} a score "
    "there, and the comparison needs 12 with different scores."
)
WIDE = (
    "Whether stopping at {where} was safe cannot be said: the order of the finished trials there "
    "may agree with their final order well or badly (Spearman's rho {rho} [{low}, {high}], {n} "
    "trials; from 0.5 on it would be safe)."
)


def one_rung(
    numbers: tuple[float, float, float, int], *, below: Sequence[int] = (), **more: object
) -> pd.DataFrame:
    """A rung with its row of all, and one for each of two batch sizes."""
    rho, low, high, n = numbers
    rows = [
        {"batch_size": size, "n": n, "rho": rho, "low": low, "high": high, "best_below": is_below}
        for size, is_below in ((16.0, 16 in below), (32.0, 32 in below), (math.nan, False))
    ]
    known: dict[str, object] = {"rung": 1, "images": 12345, "epoch": 3.0, "reached": 99}
    return pd.DataFrame(rows).assign(**known | {"stopped": 50} | more)


def test_each_sentence_word_for_word() -> None:
    def said(numbers: tuple[float, float, float, int], **more: Any) -> str:
        return stopping_sentence(one_rung(numbers, **more), by_batch_size=False)

    known = {"where": "epoch 3", "rho": "0.91", "low": "0.50", "high": "0.96", "n": 40}
    assert said((0.911, 0.5, 0.96, 40)) == SAFE.format(**known)
    elsewhere = SAFE.format(**known | {"where": "12,345 images"})
    assert said((0.911, 0.5, 0.96, 40), epoch=math.nan) == elsewhere
    known = {"where": "epoch 3", "rho": "0.60", "low": "0.49", "high": "0.70", "n": 40}
    assert said((0.6, 0.49, 0.7, 40)) == WIDE.format(**known)
    known |= {"rho": "-0.10", "low": "-0.40", "high": "0.29"}
    assert said((-0.1, -0.4, 0.29, 40)) == SAYS_LITTLE.format(**known)
    assert said((0.9, math.nan, math.nan, 9)) == FEW.format(
        where="epoch 3", n="9 trials", have="have"
    )
    assert said((math.nan, math.nan, math.nan, 1)) == FEW.format(
        where="epoch 3", n="1 trial", have="has"
    )
    safe = (0.911, 0.5, 0.96, 40)
    one = {"s": "", "sizes": "32", "were": "was", "where": "epoch 3"}
    two = {"s": "s", "sizes": "16 and 32", "were": "were", "where": "epoch 3"}
    assert said(safe, below=[32]) == BEST_BELOW.format(**one, more=WITHIN)
    assert said(safe, below=[16, 32]) == BEST_BELOW.format(**two, more=WITHIN)
    apart = stopping_sentence(one_rung(safe, below=[32]), by_batch_size=True)
    assert apart == BEST_BELOW.format(**one, more="")


def test_the_sentence_is_of_the_first_rung_that_was_not_safe() -> None:
    safe, bad, wide = (
        (0.9, 0.8, 0.95, 40),
        (0.0, -0.2, 0.2, 40),
        (0.6, 0.4, 0.7, 40),
    )

    def decided(*rungs: tuple[float, float, float, int], stopped: Sequence[int]) -> int:
        tables = [
            one_rung(numbers, rung=at, stopped=stopped[at]) for at, numbers in enumerate(rungs)
        ]
        return int(deciding_rung(pd.concat(tables))["rung"].iloc[0])

    assert decided(wide, safe, stopped=[9, 9]) == 0
    assert decided(wide, bad, stopped=[9, 9]) == 1
    assert decided(bad, safe, bad, stopped=[0, 9, 9]) == 2
    assert decided(bad, safe, safe, stopped=[0, 9, 9]) == 1


def test_a_made_study_is_safe_and_says_so() -> None:
    curves = made_curves(np.random.default_rng(8), 120, early=0.1)
    rungs = rungs_of(Asha(by_batch_size=True), curves, SIZES)
    row = overall(rungs).loc[1]
    known = {name: f"{row[name]:.2f}" for name in ("rho", "low", "high")}
    wanted = SAFE.format(where="epoch 1", n=row["n"], **known)
    assert stopping_sentence(rungs, by_batch_size=True) == wanted


@pytest.mark.data
def test_on_real_curves_the_interval_covers_the_rho_of_all(
    shared_data: Path,
) -> None:
    """2,000 configurations of LCBench on Blood, stopped by ASHA at 6 and 18 of 52 epochs."""
    table = pd.read_parquet(shared_data / "curves" / "lcbench_blood.parquet")
    curves = table.pivot_table(index="trial", columns="epoch", values="Train/val_accuracy") / 100
    sizes = 2 ** np.log2(table.groupby("trial")["batch_size"].first()).round().astype(int)
    trials, epochs, about = played(
        Asha(by_batch_size=True), curves.to_numpy(), sizes.tolist(), workers=16, epochs=52
    )
    rungs = stopping(trials, epochs, about, metric="val_auroc")
    print(overall(rungs).drop(columns="batch_size").to_string())
    print(stopping_sentence(rungs, by_batch_size=True))
    ended = trials[trials["status"] == "completed"].set_index("trial_key")
    there = epochs[epochs["epoch"] == 6].set_index("trial_key")["val_auroc"]
    pairs = np.array([there[ended.index], ended["val_auroc"]])
    true = stats.spearmanr(*pairs).statistic
    rng = np.random.default_rng(0)
    for n in (12, 40):
        covered = []
        for _ in range(500):
            x, y = pairs[:, rng.choice(pairs.shape[1], n, replace=False)]
            _, low, high = rank_correlation(x, y, ["a"] * n)
            covered.append(low <= true <= high)
        print(f"{n} of {len(ended)}: {np.mean(covered):.3f} of 500 covered {true:.2f}")
        assert np.mean(covered) >= 0.92


def test_rungs_need_the_evaluations_of_stopped_trials_but_no_budget_in_images() -> None:
    curves = made_curves(np.random.default_rng(0), 120, early=0.5)
    trials, epochs, about = played(Asha(), curves, SIZES)
    whole = trials.loc[trials["status"] != "stopped", "trial_key"]
    left = epochs[epochs["trial_key"].isin(whole)]  # the others' file cannot be read
    assert stopping(trials, left, about, metric="val_auroc").empty
    timed = stopping(trials.assign(epochs=None, seconds=60), epochs, about, metric="val_auroc")
    assert overall(timed)["images"].tolist() == [1000, 3000]
