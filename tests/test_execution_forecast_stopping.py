"""Forecasts of final scores, and the scheduler that stops trials by them."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Run

from search.execution.forecast_stopping import ForecastStopping
from search.execution.schedulers import scheduler_of
from search.explore import Forecast
from search.explore.forecast import Curve, forecast
from search.study.study import Study
from trainable.config import TrialConfig

TOTAL = 1000
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


def rising(final: float, gain: float, rng: np.random.Generator, noise: float) -> list[float]:
    """A curve that comes to `final`; four fifths before its end it lacks `gain`."""
    left = np.array([1.0, 0.6, 0.3, 0.1, 0.0])
    scores = final - gain * left + noise * rng.standard_normal(5) * (left > 0)
    return np.maximum.accumulate(scores).tolist()


def test_the_interval_of_a_forecast_holds_the_final_score() -> None:
    rng = np.random.default_rng(0)
    held = errors = 0
    for _ in range(400):
        finals = rng.normal(0.8, 0.03, 21)
        sizes = rng.choice([16, 64, 256], 21)
        # Larger batch sizes gain more at the end, and so do low scores.
        gains = 0.02 + 0.01 * np.log2(sizes / 16) + 0.3 * (0.9 - finals)
        every = [
            Curve(int(b), SHARES, rising(f, g, rng, 0.003))
            for b, f, g in zip(sizes, finals, gains, strict=True)
        ]
        share = int(rng.integers(1, 4))
        half = Curve(every[0].batch_size, SHARES[:share], every[0].scores[:share])
        predicted = forecast(half, every[1:])
        held += predicted.low <= every[0].scores[-1] <= predicted.high
        errors += (every[0].scores[-1] - predicted.mean) / predicted.std
    assert 0.92 <= held / 400 <= 0.99
    assert abs(errors / 400) < 0.15


def test_curves_without_noise_leave_a_forecast_some_doubt() -> None:
    gained = [Curve(16, SHARES, [0.5, 0.6, 0.6, 0.7, 0.7 + k / 100]) for k in range(12)]
    near = Curve(16, SHARES[:4], [0.5, 0.6, 0.6, 0.7])
    predicted = forecast(near, gained)
    assert predicted.low < 0.7 + 0.035 < predicted.high
    assert predicted.std > 0


def trial(name: str, batch_size: int = 16, *, whole: bool = False) -> Any:
    config = {"key": name, "batch_size": batch_size, "total_images": TOTAL, "whole": whole}
    return SimpleNamespace(trial_id=name, config=config)


def play(rule: ForecastStopping, of: Any, scores: Sequence[float]) -> str:
    """The first decision that is no CONTINUE; at the end the trial's own row."""
    rule.on_trial_add(None, of)
    for share, score in zip(SHARES, scores, strict=True):
        result = {"score": score, "examples_seen": int(TOTAL * share), "epoch_row": {}}
        if rule.on_trial_result(None, of, result) != "CONTINUE":
            rule.on_trial_complete(None, of, result)
            return f"stopped at {share}"
    ending = {"trial_row/status": "completed", "examples_seen": TOTAL, "score": scores[-1]}
    assert rule.on_trial_result(None, of, ending) == "CONTINUE"
    rule.on_trial_complete(None, of, ending)
    return "completed"


def taught(num: int = 8, **given: Any) -> ForecastStopping:
    """A scheduler that saw trials of two batch sizes, whose best are 0.87 and 0.67."""
    rng = np.random.default_rng(1)
    rule = ForecastStopping(Forecast(**given), grace=int(0.2 * TOTAL))
    for k in range(num):
        for batch_size, best in ((16, 0.87), (256, 0.67)):
            scores = rising(best - 0.002 * k, 0.05, rng, 0.001)
            assert play(rule, trial(f"{batch_size}-{k}", batch_size), scores)
    return rule


def test_a_trial_that_cannot_be_the_best_of_its_batch_size_is_stopped() -> None:
    rule, rng = taught(), np.random.default_rng(2)
    low = rising(0.7, 0.05, rng, 0.001)
    assert play(rule, trial("low", 16), low) == "stopped at 0.2"
    assert rule.reasons["low"] == "forecast at 200 images"
    assert rule.forecasts["low"].mean == pytest.approx(0.7, abs=0.01)
    # The same curve is the best so far of the other batch size.
    assert play(rule, trial("other", 256), low) == "completed"
    high = rising(0.88, 0.05, rng, 0.001)
    assert play(rule, trial("high", 16), high) == "completed"
    assert not rule.curves  # nothing is kept of trials that ended, but what forecasts need


def test_what_is_not_known_well_enough_stops_nothing() -> None:
    low = [0.3, 0.3, 0.3, 0.3, 0.3]
    assert play(taught(2), trial("a"), low) == "completed"  # after four trials
    assert play(taught(3), trial("a"), low).startswith("stopped")
    assert play(taught(), trial("a", 64), low) == "completed"  # the first of its batch size
    assert play(taught(), trial("a", whole=True), low) == "completed"
    rule = ForecastStopping(Forecast(), grace=500)
    rule.ended = taught().ended
    assert play(rule, trial("a"), low) == "stopped at 0.6"


def test_trials_that_diverged_or_were_stopped_forecast_nothing() -> None:
    rule = taught()
    num = len(rule.ended)
    play(rule, trial("low"), [0.1, 0.1, 0.1, 0.1, 0.1])
    lost = trial("lost")
    rule.on_trial_add(None, lost)
    rule.on_trial_result(None, lost, {"score": 0.9, "examples_seen": 200, "epoch_row": {}})
    ending = {"trial_row/status": "diverged", "examples_seen": 300, "score": 0.0}
    rule.on_trial_result(None, lost, ending)
    assert len(rule.ended) == num
    assert rule.on_trial_result(None, lost, {"host_error/kind": "OSError"}) == "CONTINUE"


def test_a_next_attempt_that_reports_again_adds_nothing() -> None:
    rule = taught()
    again = trial("again")
    for seen in (200, 400, 200, 400, 600):  # its worker was lost after 400 images
        result = {"score": 0.86, "examples_seen": seen, "epoch_row": {}}
        assert rule.on_trial_result(None, again, result) == "CONTINUE"
    assert rule.curves["again"].shares == (0.2, 0.4, 0.6)


def test_a_later_command_knows_the_trials_of_an_earlier_one() -> None:
    now, later = taught(), ForecastStopping(Forecast(), grace=200)
    for number, curve in enumerate(now.ended):
        config = {"batch_size": curve.batch_size, "total_images": TOTAL}
        rows = [
            {"score": score, "examples_seen": TOTAL * share}
            for score, share in zip(curve.scores, curve.shares, strict=True)
        ]
        later.learn(str(number), config, rows, status="completed")
    assert later.ended == now.ended
    later.learn("stopped", config, rows[:2], status="stopped")
    assert len(later.ended) == len(now.ended)


def test_a_study_with_forecasts_gets_the_scheduler() -> None:
    base = TrialConfig(
        dataset="synthetic", model="plain", pretrained="none", epochs=10, warmup_epochs=3
    )
    study = Study(name="s", base=base, vary={}, stop=Forecast())
    rule = scheduler_of(study, train_images=320)
    assert isinstance(rule, ForecastStopping)
    assert rule.grace == 3 * 320
    with pytest.raises(ValueError, match="min_trials"):
        Forecast(min_trials=1)
    with pytest.raises(ValueError, match="grace_share"):
        Forecast(grace_share=0.01)


SPACE = """
from ray import tune

from search.explore import Forecast, Grid
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="watched",
    base=TrialConfig(
        dataset="synthetic", model="plain", pretrained="none", precision="fp32", image_size=32,
        train_images=64, eval_images=48, width=4, epochs=6, augment="none", batch_size=16,
    ),
    vary={"base_lr": tune.grid_search([0.1, 0.2, 0.3, 0.4, 1e-7, 2e-7, 3e-7])},
    seeds=SEEDS,
    stop=Forecast(min_trials=4),
)
"""


@pytest.mark.ray
def test_a_stopped_trial_has_its_forecast_in_its_row(tmp_path: Path, run_joined: Run) -> None:
    space = tmp_path / "watched.py"
    space.write_text(SPACE.replace("SEEDS", "1"))
    assert run_joined(space, tmp_path).returncode == 0
    rows = pd.read_parquet(tmp_path / "watched" / "trials")
    assert (rows["status"] == "stopped").sum() >= 1  # not only in a later command
    space.write_text(SPACE.replace("SEEDS", "2"))
    again = run_joined(space, tmp_path)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "7 done before, 7 to run" in again.stdout
    rows = pd.read_parquet(tmp_path / "watched" / "trials")
    assert len(rows) == 14
    stopped = rows[rows["status"] == "stopped"]
    assert len(stopped) >= 3
    assert (stopped["base_lr"] < 1e-5).sum() >= 2
    assert stopped["reason"].str.startswith("forecast at ").all()
    assert (stopped["forecast_std"] > 0).all()
    best = rows.loc[rows["status"] == "completed", "val_auroc"].max()
    assert (stopped["forecast"] < best).all()
    assert (stopped["peak_lr"] > 0).all()
    others = rows[rows["status"] != "stopped"]
    assert others[["forecast", "forecast_std"]].isna().all(axis=None)
