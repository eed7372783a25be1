"""A trial that has trained its whole budget is never stopped: there is nothing left to save."""

from dataclasses import dataclass
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from search.execution.schedulers import EarlyStopping
from search.explore import Asha, HyperBand, Median

IMAGES = 100


@dataclass(frozen=True, eq=False)
class Running:
    """What schedulers ask of a trial."""

    trial_id: str
    config: dict[str, Any]
    status: str = "RUNNING"

    def is_finished(self) -> bool:
        return False


@pytest.mark.parametrize(
    "stop", [Asha(), HyperBand(), Median()], ids=lambda stop: type(stop).__name__
)
@pytest.mark.parametrize("batch_size", [10, 32])  # 32: of each epoch's 100 images 4 are left over
def test_of_trials_that_differ_at_their_end_alone_none_is_stopped(
    stop: Any, batch_size: int
) -> None:
    # Nine epochs with the first rung at one: rungs of Asha's are at 1, 3 and, for Ray, 9.
    scheduler = EarlyStopping(stop, grace=IMAGES, total=9 * IMAGES)
    decisions = []
    for number in range(12):
        own = IMAGES // batch_size * batch_size  # an epoch's
        name = str(number)
        config = {"key": name, "batch_size": batch_size, "total_images": 9 * own, "whole": False}
        trial = Running(name, config)
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, 10):
            seen = epoch * own
            # Equal until the last evaluation, at which the first eight are far ahead.
            score = 0.9 if epoch == 9 and number < 8 else 0.5
            result = {
                "score": score,
                "examples_seen": seen,
                "time_total_s": float(seen),
                "training_iteration": epoch,
            }
            decisions.append(scheduler.on_trial_result(None, trial, result))
        scheduler.on_trial_complete(None, trial, result)
    assert set(decisions) == {TrialScheduler.CONTINUE}
    assert scheduler.reasons == {}


def test_a_trial_of_a_larger_budget_than_the_rungs_know_goes_on_to_its_end() -> None:
    """The batch sizes of a search are not known beforehand, and so neither is the most images."""
    scheduler = EarlyStopping(Asha(), grace=10, total=100)
    trial = Running("a", {"key": "a", "batch_size": 10, "total_images": 120, "whole": False})
    scheduler.on_trial_add(None, trial)
    for seen in range(10, 130, 10):
        result = {"score": 0.5, "examples_seen": seen}
        assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
