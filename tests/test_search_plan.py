"""Planning in rounds: wider and finer grids, more seeds for the leaders, variants, random draws."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from helpers import Score, batches_of, end, no_tables
from ray import tune

from search.explore import Grid, Leaders, Random, Variants
from search.explore.ask import ask
from search.study.explorer import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig, trial_key

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
SEARCHED = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(**changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": SEARCHED} | changes))


def all_trials(declared: Study, score: Score) -> list[PlannedTrial]:
    """All trials that a study comes to ask for."""
    return [trial for batch in batches_of(declared, score) for trial in batch]


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
        b: sorted(t.config.base_lr for t in all_trials(declared, score) if t.config.batch_size == b)
        for b in (16, 64)
    }
    assert lrs == {16: [0.1, 0.2, 0.4], 64: [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]}
    bounded = all_trials(replace(declared, explore=Grid(widen=1)), score)
    assert max(t.config.base_lr for t in bounded) == 0.8


def test_refining_adds_between_the_best_and_its_neighbours_once() -> None:
    declared = study(vary=GRID, explore=Grid(refine=1), seeds=2)
    trials = all_trials(declared, lambda c: 1 - abs(math.log2(c.base_lr / 0.2)))
    lrs = sorted({round(t.config.base_lr, 4) for t in trials})
    assert lrs == [0.1, 0.1414, 0.2, 0.2828, 0.4]
    assert len(trials) == 2 * 5 * 2


def test_leaders_get_more_seeds() -> None:
    declared = study(vary=GRID, explore=Grid(), seeds=2, leaders=Leaders(top=2, seeds=5))
    trials = all_trials(declared, lambda c: c.base_lr + c.batch_size / 1000)
    counts = pd.Series([(t.config.batch_size, t.config.base_lr) for t in trials]).value_counts()
    assert counts.to_dict() == {
        (64, 0.4): 5,
        (16, 0.4): 5,
        (64, 0.2): 2,
        (16, 0.2): 2,
        (64, 0.1): 2,
        (16, 0.1): 2,
    }


@pytest.mark.parametrize("missing_size", [16, 64])
def test_nothing_is_added_beside_what_a_trial_is_missing_of(missing_size: int) -> None:
    declared = study(vary=GRID, explore=Grid(widen=2), leaders=Leaders(top=1, seeds=2))
    known = no_tables()
    grid = ask(declared, known, 1)
    missing = next(trial for trial in grid if trial.config.batch_size == missing_size)
    end(known, [trial for trial in grid if trial is not missing], declared, lambda c: c.base_lr)
    more = ask(declared, known, 1)
    other_size = 80 - missing_size
    assert [(t.config.batch_size, t.config.seed) for t in more] == [(other_size, 0)]


def test_variants_are_the_same_grid_under_each_budget() -> None:
    budgets = {"epochs": {"epochs": 9}, "updates": {"epochs": None, "updates": 50}}
    declared = study(vary=GRID, explore=Variants(each=budgets), seeds=2)
    planned = ask(declared, no_tables(), 1)
    assert len(planned) == len({t.key for t in planned}) == 24
    assert len(declared.configs) == 12
    assert {(t.variant, t.config.epochs, t.config.updates) for t in planned} == {
        ("epochs", 9, None),
        ("updates", None, 50),
    }
    assert {t.step for t in planned} == {""}
    order = [(t.config.seed, t.config.batch_size) for t in planned]
    assert order == [(0, 64)] * 6 + [(0, 16)] * 6 + [(1, 64)] * 6 + [(1, 16)] * 6


def test_a_variant_may_have_values_of_its_own() -> None:
    each = {"sgd": {}, "adam": {"optimizer": "adam", "base_lr": tune.grid_search([1e-3, 1e-2])}}
    declared = study(vary=GRID, explore=Variants(each=each))
    lrs: dict[str, set[float]] = {"sgd": set(), "adam": set()}
    for config in declared.configs:
        lrs[config.optimizer].add(config.base_lr)
    assert lrs == {"sgd": {0.1, 0.2, 0.4}, "adam": {1e-3, 1e-2}}
    assert len(declared.configs) == 2 * 3 + 2 * 2


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (tune.loguniform(1e-3, 1.0), "a grid goes through values"),
        (tune.grid_search([0.1, -1.0]), "base_lr must be > 0"),
        (0.1, "varies and is changed by a step"),
    ],
)
def test_a_variants_own_values_are_checked(own: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(vary=GRID, explore=Variants(each={"a": {}, "b": {"base_lr": own}}))


def test_a_field_that_is_fixed_cannot_vary_in_one_variant() -> None:
    own = Variants(each={"a": {}, "b": {"momentum": tune.grid_search([0.1, 0.2])}})
    with pytest.raises(ValueError, match="variant 'b' has values of its own, so let momentum vary"):
        study(vary=GRID, explore=own)


def test_random_is_the_same_draw_in_every_run() -> None:
    declared = study(explore=Random(num_configs=10, points=[{"batch_size": 16, "base_lr": 0.5}]))
    first, again = (ask(declared, no_tables(), 1) for _ in range(2))
    assert [t.key for t in first] == [t.key for t in again]
    assert len({t.key for t in first}) == 10
    assert any(t.config.base_lr == 0.5 for t in first)
    assert trial_key(first[0].config, "d") == first[0].key


def test_a_configuration_that_is_drawn_twice_is_one_trial() -> None:
    declared = study(vary={"batch_size": tune.choice([16, 32])}, explore=Random(num_configs=10))
    planned = ask(declared, no_tables(), 1)
    assert sorted(t.config.batch_size for t in planned) == [16, 32]


def test_what_cannot_work_together_is_drawn_anew() -> None:
    vary = {"batch_size": tune.choice([16, 32]), "microbatch_size": tune.choice([8, 32])}
    configs = study(vary=vary, explore=Random(num_configs=12)).configs
    pairs = [(config.batch_size, config.microbatch_size) for config in configs]
    assert len(pairs) == 12
    assert set(pairs) == {(16, 8), (32, 8), (32, 32)}


def test_where_nothing_can_work_the_study_is_refused_with_the_reason() -> None:
    vary = {"warmup_epochs": tune.choice([5]), "epochs": tune.choice([3])}
    with pytest.raises(ValueError, match=r"100 configurations in a row.*warmup_epochs must be"):
        study(vary=vary, explore=Random(num_configs=2))
