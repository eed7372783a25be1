"""What the trials so far call for: wider, finer, more seeds; each number by hand."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray import tune

from search.explore import Ablation, Grid, Leaders, plan
from search.explore.plan import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig, trial_key

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
GRID: dict[str, Any] = {
    "batch_size": tune.grid_search([16, 64]),
    "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
}
Score = Callable[[TrialConfig], float]


def study(**changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": GRID} | changes))


def graded(
    trials: list[PlannedTrial],
    score: Score,
    *,
    metric: str = "val_auroc",
    statuses: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    ended = statuses or {}
    rows = [
        {
            **asdict(t.config),
            "trial_key": t.key,
            "status": ended.get(t.key, "completed"),
            "attempt": 1,
            metric: score(t.config),
        }
        for t in trials
    ]
    return pd.DataFrame(rows)


def rounds(declared: Study, score: Score, *, metric: str = "val_auroc") -> list[list[PlannedTrial]]:
    """The trials of each round, until there are no more."""
    found = [plan.plan_trials(declared, data_fingerprint="d")]
    for _ in range(20):
        planned = [trial for some in found for trial in some]
        table = graded(planned, score, metric=metric)
        more = plan.next_round(declared, planned, table, data_fingerprint="d")
        if not more:
            return found
        assert all(t.key == trial_key(t.config, "d") for t in more)
        found.append(more)
    raise AssertionError("rounds without end")


def lrs_of(found: list[list[PlannedTrial]], batch_size: int) -> list[list[float]]:
    return [
        [round(t.config.base_lr, 6) for t in some if t.config.batch_size == batch_size]
        for some in found
    ]


def peak(at: float) -> Score:
    return lambda config: 1 - abs(math.log2(config.base_lr / at))


@pytest.mark.parametrize(
    ("best", "added"),
    [
        (0.0125, [[0.05], [0.025], [0.0125], [0.00625]]),  # until the best is interior
        (0.001, [[0.05], [0.025], [0.0125], [0.00625], [0.003125]]),  # until five were added
        (0.2, []),
        (1.6, [[0.8], [1.6], [3.2]]),
    ],
)
def test_widening_goes_on_at_either_end_one_value_a_round(
    best: float, added: list[list[float]]
) -> None:
    found = rounds(study(explore=Grid(widen=5)), peak(best))
    for batch_size in (16, 64):
        assert lrs_of(found, batch_size) == [[0.1, 0.2, 0.4], *added]


def test_widening_takes_the_ratio_of_the_grids_own_end() -> None:
    uneven = {"base_lr": tune.grid_search([0.1, 0.3, 0.4])}
    low = rounds(study(vary=uneven, explore=Grid(widen=1)), peak(0.001))
    high = rounds(study(vary=uneven, explore=Grid(widen=2)), peak(100.0))
    batch_size = BASE.batch_size
    assert lrs_of(low, batch_size) == [[0.1, 0.3, 0.4], [0.033333]]
    assert lrs_of(high, batch_size) == [[0.1, 0.3, 0.4], [0.533333], [0.711111]]


def test_the_order_in_which_rates_are_declared_does_not_matter() -> None:
    shuffled = {"base_lr": tune.grid_search([0.4, 0.1, 0.2])}
    found = rounds(study(vary=shuffled, explore=Grid(widen=1)), peak(100.0))
    assert lrs_of(found, BASE.batch_size) == [[0.4, 0.1, 0.2], [0.8]]


def test_less_is_better_for_a_loss() -> None:
    declared = study(explore=Grid(widen=1), metric="val_loss")
    found = rounds(declared, lambda config: config.base_lr, metric="val_loss")
    assert lrs_of(found, 16) == [[0.1, 0.2, 0.4], [0.05]]


@pytest.mark.parametrize(
    "vary", [{"base_lr": tune.grid_search([0.1])}, {"batch_size": GRID["batch_size"]}]
)
def test_one_rate_has_no_ratio_to_go_on_by(vary: dict[str, Any]) -> None:
    assert len(rounds(study(vary=vary, explore=Grid(widen=3, refine=3)), peak(0.1))) == 1


def test_without_widen_or_refine_there_is_one_round() -> None:
    assert len(rounds(study(), peak(100.0))) == 1
    assert len(rounds(study(explore=Ablation(steps={"a": {}})), peak(100.0))) == 1
    # A best that is interior is not widened, one on the edge not refined.
    assert len(rounds(study(explore=Grid(widen=3)), peak(0.2))) == 1
    assert len(rounds(study(explore=Grid(refine=3)), peak(0.4))) == 1


def test_refining_divides_both_sides_in_equal_ratios() -> None:
    found = rounds(study(explore=Grid(refine=2), seeds=2), peak(0.2))
    assert len(found) == 2
    third = 2 ** (1 / 3)
    expected = [0.1 * third, 0.1 * third**2, 0.2 * third, 0.2 * third**2]
    for seed in (0, 1):
        lrs = sorted(
            t.config.base_lr for t in found[1] if (t.config.seed, t.config.batch_size) == (seed, 64)
        )
        assert lrs == pytest.approx(expected)
    order = [(t.config.seed, t.config.batch_size) for t in found[1]]
    assert order == [(0, 64)] * 4 + [(0, 16)] * 4 + [(1, 64)] * 4 + [(1, 16)] * 4


def test_refined_values_do_not_move_the_grid_that_is_widened() -> None:
    def score(config: TrialConfig) -> float:
        return 1.0 if config.base_lr == pytest.approx(0.1 * 2**0.5) else peak(0.2)(config) / 10

    found = rounds(study(explore=Grid(widen=2, refine=1)), score)
    assert lrs_of(found, 16)[0] == [0.1, 0.2, 0.4]
    assert sorted(lrs_of(found, 16)[1]) == [0.141421, 0.282843]
    assert len(found) == 2


def test_each_other_field_has_its_own_ridge() -> None:
    vary = {**GRID, "optimizer": tune.grid_search(["sgd", "adam"])}

    def score(config: TrialConfig) -> float:
        return peak(100.0 if config.optimizer == "adam" else 0.2)(config)

    found = rounds(study(vary=vary, explore=Grid(widen=1)), score)
    assert {(t.config.optimizer, t.config.base_lr) for t in found[1]} == {("adam", 0.8)}
    assert sorted(t.config.batch_size for t in found[1]) == [16, 64]


def test_a_field_that_is_none_has_its_ridge_too() -> None:
    vary = {"base_lr": GRID["base_lr"], "image_size": tune.grid_search([None, 48])}
    declared = study(vary=vary, explore=Grid(widen=1))
    found = rounds(declared, peak(100.0))
    assert {t.config.image_size for t in found[1]} == {None, 48}


def test_a_cell_without_a_score_is_passed_over() -> None:
    declared = study(explore=Grid(widen=1))
    planned = plan.plan_trials(declared, data_fingerprint="d")
    lost = {t.key: "failed" for t in planned if t.config.batch_size == 16}
    table = graded(planned, peak(100.0), statuses=lost)
    more = plan.next_round(declared, planned, table, data_fingerprint="d")
    assert [(t.config.batch_size, t.config.base_lr) for t in more] == [(64, 0.8)]


# --- leaders --------------------------------------------------------------------------------------


def led(
    *, statuses: Mapping[tuple[float, int], str], score: Score, **changes: Any
) -> list[tuple[float, int]]:
    """Rate and seed of what the leaders get more of."""
    vary = {"base_lr": tune.grid_search([0.1, 0.2, 0.4, 0.8])}
    declared = study(**{"vary": vary, "seeds": 2, "leaders": Leaders(top=2, seeds=4), **changes})
    planned = plan.plan_trials(declared, data_fingerprint="d")
    ended = {
        t.key: statuses[t.config.base_lr, t.config.seed]
        for t in planned
        if (t.config.base_lr, t.config.seed) in statuses
    }
    table = graded(planned, score, metric=declared.metric, statuses=ended)
    more = plan.next_round(declared, planned, table, data_fingerprint="d")
    return [(t.config.base_lr, t.config.seed) for t in more]


def test_leaders_are_the_best_means_and_get_the_seeds_that_they_lack() -> None:
    # Means 0.55, 0.6, 0.65, 0.5: one seed of the last is the best of all.
    scores = {0.1: (0.5, 0.6), 0.2: (0.6, 0.6), 0.4: (0.6, 0.7), 0.8: (0.9, 0.1)}
    found = led(statuses={}, score=lambda c: scores[c.base_lr][c.seed])
    assert found == [(0.4, 2), (0.2, 2), (0.4, 3), (0.2, 3)]
    losses = led(statuses={}, score=lambda c: scores[c.base_lr][c.seed], metric="val_loss")
    assert losses == [(0.8, 2), (0.1, 2), (0.8, 3), (0.1, 3)]


@pytest.mark.parametrize("status", ["diverged", "stopped", "failed"])
@pytest.mark.parametrize("lost_score", [0.99, math.nan])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_configuration_with_a_lost_seed_does_not_lead(
    status: str, lost_score: float, seed: int
) -> None:
    def score(config: TrialConfig) -> float:
        lost = config.base_lr == 0.8 and config.seed == seed
        return lost_score if lost else config.base_lr

    found = led(statuses={(0.8, seed): status}, score=score)
    assert {lr for lr, _ in found} == {0.4, 0.2}


def test_later_seeds_do_not_change_who_leads() -> None:
    """Else a leader whose new seeds are bad would be replaced, and so on for all."""
    vary = {"base_lr": tune.grid_search([0.1, 0.2, 0.4])}
    declared = study(vary=vary, seeds=2, leaders=Leaders(top=1, seeds=4))

    def score(config: TrialConfig) -> float:
        return config.base_lr if config.seed < 2 else 0.0

    found = rounds(declared, score)
    assert [[(t.config.base_lr, t.config.seed) for t in some] for some in found[1:]] == [
        [(0.4, 2), (0.4, 3)]
    ]


def test_leaders_come_when_the_grid_is_as_wide_as_it_gets() -> None:
    vary = {"base_lr": tune.grid_search([0.1, 0.2])}
    leaders = Leaders(top=1, seeds=2)
    found = rounds(study(vary=vary, explore=Grid(widen=2), leaders=leaders), peak(0.4))
    assert [[(t.config.base_lr, t.config.seed) for t in some] for some in found[1:]] == [
        [(0.4, 0)],
        [(0.8, 0)],
        [(0.4, 1)],
    ]


def test_a_leader_keeps_the_step_of_its_ablation() -> None:
    steps = {"none": {}, "step decay": {"decay": "step"}}
    declared = study(vary={}, explore=Ablation(steps=steps), leaders=Leaders(top=1, seeds=2))
    found = rounds(declared, lambda config: float(config.decay == "step"))
    assert [[(t.step, t.config.decay, t.config.seed) for t in some] for some in found[1:]] == [
        [("step decay", "step", 1)]
    ]


# --- the plan's own tables ------------------------------------------------------------------------


def test_within_a_seed_large_batches_come_first() -> None:
    planned = plan.plan_trials(study(seeds=2), data_fingerprint="d")
    order = [(t.config.seed, t.config.batch_size) for t in planned]
    assert order == [(0, 64)] * 3 + [(0, 16)] * 3 + [(1, 64)] * 3 + [(1, 16)] * 3


def test_two_steps_of_one_configuration_are_both_planned() -> None:
    steps = {"a": {}, "b": {"decay": "step"}, "a again": {"decay": BASE.decay}}
    planned = plan.plan_trials(study(vary={}, explore=Ablation(steps=steps)), data_fingerprint="d")
    assert [trial.step for trial in planned] == ["a", "b", "a again"]
    assert planned[0].key == planned[2].key != planned[1].key


def test_rows_of_other_plans_are_left_out_and_numbered_anew() -> None:
    planned = plan.plan_trials(study(), data_fingerprint="d")
    table = pd.DataFrame({"trial_key": ["x", planned[1].key, planned[0].key], "attempt": [1, 2, 3]})
    kept = plan.of_plan(planned, table)
    assert list(kept["trial_key"]) == [planned[1].key, planned[0].key]
    assert list(kept.index) == [0, 1]
    assert list(kept.columns) == ["trial_key", "attempt"]
    counts = plan.attempts(table)
    assert counts == {"x": 1, planned[1].key: 2, planned[0].key: 3}
    assert all(type(n) is int or isinstance(n, np.integer) for n in counts.values())
