"""Planning in rounds: wider and finer grids, more seeds for the leaders, variants, random draws."""

import math
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from ray import tune

from search.explore import Grid, Leaders, Random, Variants, plan
from search.explore.plan import PlannedTrial
from search.study.study import Study, configurations
from trainable.config import TrialConfig, trial_key

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
SEARCHED = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(**changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": SEARCHED} | changes))


def graded(trials: list[PlannedTrial], score: Any) -> pd.DataFrame:
    rows = [
        {
            **asdict(t.config),
            "trial_key": t.key,
            "status": "completed",
            "attempt": 1,
            "val_auroc": score(t.config),
        }
        for t in trials
    ]
    return pd.DataFrame(rows)


def rounds(declared: Study, score: Any) -> list[PlannedTrial]:
    """All trials that a study comes to plan."""
    planned = plan.plan_trials(declared, data_fingerprint="d")
    for _ in range(20):
        more = plan.next_round(declared, planned, graded(planned, score), data_fingerprint="d")
        if not more:
            return planned
        planned = [*planned, *more]
    raise AssertionError("rounds without end")


GRID = {
    "batch_size": tune.grid_search([16, 64]),
    "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
}


def test_widening_follows_the_ridge_until_it_is_interior_or_the_bound_is_met() -> None:
    def score(config: TrialConfig) -> float:
        best = 1.6 if config.batch_size == 64 else 0.2
        return 1 - abs(math.log2(config.base_lr / best))

    declared = study(vary=GRID, explore=Grid(widen=5))
    lrs = {
        b: sorted(t.config.base_lr for t in rounds(declared, score) if t.config.batch_size == b)
        for b in (16, 64)
    }
    assert lrs == {16: [0.1, 0.2, 0.4], 64: [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]}
    bounded = rounds(replace(declared, explore=Grid(widen=1)), score)
    assert max(t.config.base_lr for t in bounded) == 0.8


def test_refining_adds_between_the_best_and_its_neighbours_once() -> None:
    declared = study(vary=GRID, explore=Grid(refine=1), seeds=2)
    trials = rounds(declared, lambda c: 1 - abs(math.log2(c.base_lr / 0.2)))
    lrs = sorted({round(t.config.base_lr, 4) for t in trials})
    assert lrs == [0.1, 0.1414, 0.2, 0.2828, 0.4]
    assert len(trials) == 2 * 5 * 2


def test_leaders_get_more_seeds() -> None:
    declared = study(vary=GRID, explore=Grid(), seeds=2, leaders=Leaders(top=2, seeds=5))
    trials = rounds(declared, lambda c: c.base_lr + c.batch_size / 1000)
    counts = pd.Series([(t.config.batch_size, t.config.base_lr) for t in trials]).value_counts()
    assert counts.to_dict() == {
        (64, 0.4): 5,
        (16, 0.4): 5,
        (64, 0.2): 2,
        (16, 0.2): 2,
        (64, 0.1): 2,
        (16, 0.1): 2,
    }


def test_no_round_while_a_trial_is_missing() -> None:
    declared = study(vary=GRID, explore=Grid(widen=2))
    planned = plan.plan_trials(declared, data_fingerprint="d")
    table = graded(planned[:-1], lambda c: c.base_lr)
    assert plan.next_round(declared, planned, table, data_fingerprint="d") == []


def test_variants_are_the_same_grid_under_each_budget() -> None:
    budgets = {"epochs": {"epochs": 9}, "updates": {"epochs": None, "updates": 50}}
    declared = study(vary=GRID, explore=Variants(each=budgets))
    cells = configurations(declared)
    assert len(cells) == 12
    assert {(step, c.epochs, c.updates) for step, c in cells} == {
        ("epochs", 9, None),
        ("updates", None, 50),
    }


def test_random_is_the_same_draw_in_every_run() -> None:
    declared = study(explore=Random(num_configs=10, points=[{"batch_size": 16, "base_lr": 0.5}]))
    first, again = (plan.plan_trials(declared, data_fingerprint="d") for _ in range(2))
    assert [t.key for t in first] == [t.key for t in again]
    assert len({t.key for t in first}) == 10
    assert any(t.config.base_lr == 0.5 for t in first)
    assert trial_key(first[0].config, "d") == first[0].key


def test_a_configuration_that_is_drawn_twice_is_one_trial() -> None:
    declared = study(vary={"batch_size": tune.choice([16, 32])}, explore=Random(num_configs=10))
    planned = plan.plan_trials(declared, data_fingerprint="d")
    assert sorted(t.config.batch_size for t in planned) == [16, 32]
