"""When a trial is stopped early: by whom, compared with whom, and from which rung on."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray import tune
from searches import BASE

from search.execution.schedulers import EarlyStopping, first_rung, scheduler_of
from search.explore import Asha, Grid, HyperBand, Median
from search.study.study import Study

# --- rungs ----------------------------------------------------------------------------------------


def grid(stop: Any) -> Study:
    vary = {"base_lr": tune.grid_search([0.1, 0.2])}
    return Study(name="s", base=BASE, vary=vary, explore=Grid(), stop=stop)


def test_rungs_are_those_of_the_longest_trial() -> None:
    short, long = replace(BASE, epochs=4), replace(BASE, epochs=10, warmup_epochs=1.0)
    declared = grid(Asha(grace_share=0.25))
    assert first_rung(declared, [short, long], train_images=320) == 800  # a quarter of 10 epochs
    warm = replace(short, warmup_epochs=3.0)
    assert first_rung(declared, [warm, long], train_images=320) == 960
    assert first_rung(replace(declared, stop=None), [short], train_images=320) == 0
    grown = replace(declared, vary={"epochs": tune.grid_search([4, 10])})
    made = scheduler_of(grown, train_images=320)
    assert made is not None
    assert (made.grace, made.total, made.stop) == (800, 3200, declared.stop)


class Played:
    """A trial as a scheduler sees it."""

    def __init__(self, trial_id: str, batch_size: int = 16, *, whole: bool = False) -> None:
        self.trial_id = trial_id
        self.config = {
            "key": trial_id,
            "batch_size": batch_size,
            "total_images": 90,
            "whole": whole,
        }


class Quiet:
    """A controller without other trials."""

    def get_live_trials(self) -> list[Any]:
        return []


@pytest.mark.parametrize("kind", [Asha, HyperBand, Median])
def test_one_scheduler_for_all_or_one_a_batch_size(kind: Any) -> None:
    for by_batch_size, groups in ((False, {0}), (True, {16, 32})):
        scheduler = EarlyStopping(kind(by_batch_size=by_batch_size), grace=10, total=90)
        for i, size in enumerate((16, 32, 16)):
            scheduler.on_trial_add(None, Played(f"t{i}", size))
        assert set(scheduler.inner) == groups


def test_asha_asks_no_one_before_grace_and_by_its_own_factor() -> None:
    scheduler = EarlyStopping(Asha(reduction_factor=2.0), grace=20, total=90)
    scores = {"a": 0.9, "b": 0.1}
    for seen, verdicts in ((19, ["CONTINUE"] * 2), (20, ["CONTINUE", "STOP"])):
        said = []
        for name, score in scores.items():
            if seen == 19:
                scheduler.on_trial_add(None, Played(name))
            result = {"score": score, "examples_seen": seen}
            said.append(scheduler.on_trial_result(None, Played(name), result))
        assert said == verdicts
    assert scheduler.reasons == {"b": "asha at 20 images"}
    assert [rung for rung, _ in scheduler.inner[0]._brackets[0]._rungs] == [80, 40, 20]
    scheduler.on_trial_complete(None, Played("b"), {"score": 0.1, "examples_seen": 20})
    scheduler.on_trial_remove(None, Played("a"))
    assert scheduler.inner[0]._trial_info == {}


@pytest.mark.parametrize(("min_trials", "stopped"), [(3, True), (4, False)])
def test_median_waits_for_so_many_and_for_grace(min_trials: int, stopped: bool) -> None:
    scheduler = EarlyStopping(Median(min_trials=min_trials), grace=20, total=90)
    for name in ("a", "b", "c"):
        scheduler.on_trial_add(Quiet(), Played(name))
        for seen in (19, 20):
            result = {"score": 0.8, "examples_seen": seen}
            assert scheduler.on_trial_result(Quiet(), Played(name), result) == "CONTINUE"
    for seen, verdict in ((19, "CONTINUE"), (20, "STOP" if stopped else "CONTINUE")):
        result = {"score": 0.3, "examples_seen": seen}
        assert scheduler.on_trial_result(Quiet(), Played("worse"), result) == verdict
    assert scheduler.reasons == ({"worse": "median at 20 images"} if stopped else {})


@pytest.mark.parametrize("kind", [Asha, HyperBand, Median])
def test_a_whole_trial_is_neither_stopped_nor_compared_with(kind: Any) -> None:
    """It is longer than others were when they were compared, and they would be stopped for it."""
    alone, beside_whole = (EarlyStopping(kind(), grace=20, total=90) for _ in range(2))
    np.random.seed(0)  # of HyperBand's brackets
    verdicts = []
    for scheduler in (alone, beside_whole):
        if scheduler is beside_whole:
            for score, name in ((0.99, "w"), (0.98, "x"), (0.97, "y"), (0.01, "z")):
                trial = Played(name, whole=True)
                scheduler.on_trial_add(Quiet(), trial)
                for seen in (20, 60):
                    result = {"score": score, "examples_seen": seen}
                    assert scheduler.on_trial_result(Quiet(), trial, result) == "CONTINUE"
                end = {"score": score, "examples_seen": 89}
                scheduler.on_trial_complete(Quiet(), trial, end)
            scheduler.on_trial_add(Quiet(), Played("v", whole=True))
            scheduler.on_trial_remove(Quiet(), Played("v", whole=True))
        trial = Played("a")
        scheduler.on_trial_add(Quiet(), trial)
        for seen in (20, 60, 80):
            result = {"score": 0.5, "examples_seen": seen}
            verdicts.append(scheduler.on_trial_result(Quiet(), trial, result))
    assert set(verdicts) == {"CONTINUE"}
    assert beside_whole.reasons == {}
