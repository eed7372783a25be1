"""A population's next generation, by hand: who goes on, from whom, with what."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import end, no_tables, ready_of
from ray import tune

from search.analysis.leaderboard import lineage
from search.execution.recorder import delete_states
from search.explore import Pbt
from search.explore.ask import ask
from search.explore.pbt import generation_of
from search.results import tables
from search.session import known_trials
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig, trial_key
from trainable.host import storage

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
VARY = {"batch_size": tune.choice([16, 32, 64]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(explore: Pbt, **changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": VARY, "explore": explore} | changes))


def begun(explore: Pbt, **changes: Any) -> tuple[Study, Tables, list[PlannedTrial]]:
    """A first generation, which has not ended."""
    declared, known = study(explore, **changes), no_tables()
    return declared, known, list(ask(declared, known, 1))


def after_one(
    explore: Pbt, *, scores: list[float] | None = None, **changes: Any
) -> tuple[list[PlannedTrial], list[PlannedTrial]]:
    """The first generation, whose scores fall with its index if none are given, and the second."""
    declared, known, first = begun(explore, **changes)
    falling = scores or [0.9 - i / 100 for i in range(len(first))]
    score_of = {t.config: score for t, score in zip(first, falling, strict=True)}
    end(known, first, declared, lambda config: score_of[config])
    return first, ask(declared, known, 1)


def donors(first: list[PlannedTrial], second: list[PlannedTrial]) -> list[int]:
    """From which of the first ones the second ones go on."""
    keys = [trial.key for trial in first]
    return [keys.index(str(trial.config.begins_from)) for trial in second]


@pytest.mark.parametrize(
    ("size", "quantile", "replaced"), [(8, 0.25, 2), (8, 0.5, 4), (8, 0.3, 2), (4, 0.1, 1)]
)
def test_so_many_of_the_worst_go_on_from_as_many_of_the_best(
    size: int, quantile: float, replaced: int
) -> None:
    for sampling_seed in range(5):
        explore = Pbt(size=size, quantile=quantile, sampling_seed=sampling_seed)
        first, second = after_one(explore)
        stay = list(range(size - replaced))
        assert donors(first, second)[: len(stay)] == stay
        assert len(second) == size
        assert set(donors(first, second)[len(stay) :]) <= set(range(replaced))
        for old, new in zip(first, second[: len(stay)], strict=False):
            assert new.config.base_lr == old.config.base_lr
            assert new.config.batch_size == old.config.batch_size


def test_every_one_of_the_best_is_gone_on_from_sometimes() -> None:
    found = set()
    for sampling_seed in range(10):
        first, second = after_one(Pbt(size=8, sampling_seed=sampling_seed))
        found |= set(donors(first, second)[6:])
    assert found == {0, 1}


def test_less_is_better_for_a_loss() -> None:
    first, second = after_one(Pbt(size=8), scores=[i / 10 for i in range(8)], metric="val_loss")
    assert donors(first, second)[:6] == [0, 1, 2, 3, 4, 5]
    assert set(donors(first, second)[6:]) <= {0, 1}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_none(score: float) -> None:
    """It would be the best, or sort anywhere; the two worst that have one are replaced too."""
    first, second = after_one(Pbt(size=8), scores=[0.9, score, *(0.8 - i / 10 for i in range(6))])
    assert donors(first, second)[:6] == [0, 2, 3, 4, 5, 6]
    assert set(donors(first, second)[6:]) <= {0, 2}
    assert len(second) == 8


@pytest.mark.parametrize("status", ["completed", "diverged", "failed"])
def test_only_a_generation_that_ended_as_one_is_gone_on_from(status: str) -> None:
    declared, known, first = begun(Pbt(size=4))
    end(known, first, declared, lambda _: 0.5, lambda _: status)
    assert ask(declared, known, 1) == []


def test_an_interrupted_generation_is_gone_on_with(tmp_path: Path) -> None:
    """Nothing comes of it until it has ended; then a later command goes on from it."""
    declared, _, first = begun(Pbt(size=4))
    ready = ready_of(declared, tables.open_results(str(tmp_path), "s"))
    for ending, num_more in (("interrupted", 0), ("stopped", 4)):
        rows = [{"trial_key": t.key, "status": "stopped", "val_auroc": 0.5} for t in first]
        rows[-1]["status"] = ending
        table = pd.DataFrame(rows).reindex(columns=tables.TRIALS.names)
        known = known_trials(ready, table)
        assert len(known.ended) == len(first) - (num_more == 0)
        assert ask(declared, known, 1)[:4] == first
        assert len(known.asked) == 4 + num_more


def test_a_value_is_perturbed_or_drawn_as_often_as_is_said() -> None:
    first, near = after_one(Pbt(size=8, resample=0.0))
    by_key = {t.key: t.config for t in first}
    for trial in near[6:]:
        ratio = trial.config.base_lr / by_key[str(trial.config.begins_from)].base_lr
        at_the_end = trial.config.base_lr == 1.0
        assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.2) or at_the_end
    first, anew = after_one(Pbt(size=8, resample=1.0))
    by_key = {t.key: t.config for t in first}
    ratios = {t.config.base_lr / by_key[str(t.config.begins_from)].base_lr for t in anew[6:]}
    assert not {round(ratio, 6) for ratio in ratios} & {0.8, 1.2, 1.0}


def test_no_two_members_are_the_same_where_others_are_possible() -> None:
    """Two that go on from one donor, which goes on itself: three of its four possible ones."""
    vary = {"batch_size": tune.choice([8, 16, 32, 64])}
    for sampling_seed in range(20):
        explore = Pbt(size=4, quantile=0.5, resample=0.0, sampling_seed=sampling_seed)
        configs = [replace(BASE, batch_size=size, until_share=0.2) for size in (8, 16, 32, 64)]
        first = [PlannedTrial(trial_key(config, "d"), config) for config in configs]
        declared = study(explore, vary=vary)
        known = replace(no_tables(), asked=list(first))
        end(known, first, declared, lambda config: 0.9 - config.batch_size / 100)
        second = ask(declared, known, 1)
        assert len({t.key for t in second}) == len(second) == 4


def test_each_seed_and_each_generation_has_draws_of_its_own() -> None:
    explore = Pbt(size=4, generations=4, resample=1.0)
    declared, known, more = begun(explore, seeds=2)
    drawn: set[float] = {t.config.base_lr for t in more}
    assert len(drawn) == 4  # the same first ones for both seeds
    for generation in (2, 3, 4):
        score_of = {t.config: 0.9 - i / 100 for i, t in enumerate(more)}
        end(known, more, declared, score_of.__getitem__)
        more = ask(declared, known, 1)
        assert {t.config.until_share for t in more} == {generation / 4}
        assert {generation_of(t.config, explore) for t in more} == {generation}
        assert [t.config.seed for t in more] == [0] * 4 + [1] * 4
        fresh = {t.config.base_lr for t in more} - drawn
        assert len(fresh) == 2  # one a seed
        drawn |= fresh
    end(known, more, declared, lambda _: 0.5)
    assert ask(declared, known, 1) == []
    assert len(known.asked) == 2 * 4 * 4


def test_a_seed_that_is_ahead_does_not_wait_for_the_other() -> None:
    """Each is as far as its own trials are."""
    declared, known, first = begun(Pbt(size=2, generations=2), seeds=2)
    end(known, first, declared, lambda _: 0.5)
    both = replace(known, asked=list(first))
    more = ask(declared, both, 1)
    of_one = [t for t in more if t.config.seed == 0]
    known.asked.extend(of_one)
    rest = ask(declared, known, 1)
    assert [t.config.seed for t in rest] == [1, 1]
    assert rest == [t for t in more if t.config.seed == 1]


def test_a_line_ends_where_its_trial_is_not_in_the_table() -> None:
    table = pd.DataFrame(
        {"trial_key": ["c", "b", "x"], "begins_from": ["b", "a", None], "val_auroc": [3, 2, 1]}
    )
    assert list(lineage(table, "c")["trial_key"]) == ["b", "c"]
    assert list(lineage(table, "c").index) == [0, 1]
    assert list(lineage(table, "x")["trial_key"]) == ["x"]


def test_states_are_deleted_with_their_folders_and_kept_weights_stay(tmp_path: Path) -> None:
    opened = tables.open_results(str(tmp_path), "s")
    parts = [PlannedTrial(key, replace(BASE, until_share=0.5)) for key in ("a", "b", "c")]
    whole = PlannedTrial("whole", BASE)  # a failed one may be tried again from its state
    states = (("a", "even.pt"), ("other", "even.pt"), ("c", "notes.txt"), ("whole", "even.pt"))
    for key, name in states:
        storage.write(opened / "checkpoints" / key, name, b"state")
    delete_states(opened, [*parts, whole])
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [
        "s/.writable",
        "s/checkpoints/c/notes.txt",
        "s/checkpoints/other/even.pt",
        "s/checkpoints/whole/even.pt",
    ]
