"""What the trials so far call for: wider, finer, more seeds; each number by hand."""

import math
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import Score, batches_of, end, no_tables, ready_of
from ray import tune
from rich.console import Console

from search import session
from search.explore import Ablation, Grid, Leaders
from search.explore.ask import ask, total
from search.results import tables as results_tables
from search.study.explorer import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
GRID: dict[str, Any] = {
    "batch_size": tune.grid_search([16, 64]),
    "base_lr": tune.grid_search([0.1, 0.2, 0.4]),
}


def study(**changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": GRID} | changes))


def rounds(declared: Study, score: Score) -> list[list[PlannedTrial]]:
    """The trials of each batch, until there are no more; none comes twice."""
    batches = batches_of(declared, score)
    every = [(t.key, t.step) for batch in batches for t in batch]
    assert len(set(every)) == len(every)
    return batches


def lrs_of(batches: list[list[PlannedTrial]], batch_size: int) -> list[list[float]]:
    return [
        [round(t.config.base_lr, 6) for t in batch if t.config.batch_size == batch_size]
        for batch in batches
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
    batches = rounds(study(explore=Grid(widen=5)), peak(best))
    for batch_size in (16, 64):
        assert lrs_of(batches, batch_size) == [[0.1, 0.2, 0.4], *added]


def test_widening_takes_the_ratio_of_the_grids_own_end() -> None:
    uneven = {"base_lr": tune.grid_search([0.1, 0.3, 0.4])}
    low = rounds(study(vary=uneven, explore=Grid(widen=1)), peak(0.001))
    high = rounds(study(vary=uneven, explore=Grid(widen=2)), peak(100.0))
    batch_size = BASE.batch_size
    assert lrs_of(low, batch_size) == [[0.1, 0.3, 0.4], [0.033333]]
    assert lrs_of(high, batch_size) == [[0.1, 0.3, 0.4], [0.533333], [0.711111]]


def test_the_order_in_which_rates_are_declared_does_not_matter() -> None:
    shuffled = {"base_lr": tune.grid_search([0.4, 0.1, 0.2])}
    batches = rounds(study(vary=shuffled, explore=Grid(widen=1)), peak(100.0))
    assert lrs_of(batches, BASE.batch_size) == [[0.4, 0.1, 0.2], [0.8]]


def test_less_is_better_for_a_loss() -> None:
    declared = study(explore=Grid(widen=1), metric="val_loss")
    batches = rounds(declared, lambda config: config.base_lr)
    assert lrs_of(batches, 16) == [[0.1, 0.2, 0.4], [0.05]]


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
    batches = rounds(study(explore=Grid(refine=2), seeds=2), peak(0.2))
    assert len(batches) == 2
    third = 2 ** (1 / 3)
    expected = [0.1 * third, 0.1 * third**2, 0.2 * third, 0.2 * third**2]
    for seed in (0, 1):
        lrs = sorted(
            t.config.base_lr
            for t in batches[1]
            if (t.config.seed, t.config.batch_size) == (seed, 64)
        )
        assert lrs == pytest.approx(expected)
    order = [(t.config.seed, t.config.batch_size) for t in batches[1]]
    assert order == [(0, 64)] * 4 + [(0, 16)] * 4 + [(1, 64)] * 4 + [(1, 16)] * 4


def test_refined_values_do_not_move_the_grid_that_is_widened() -> None:
    def score(config: TrialConfig) -> float:
        return 1.0 if config.base_lr == pytest.approx(0.1 * 2**0.5) else peak(0.2)(config) / 10

    batches = rounds(study(explore=Grid(widen=2, refine=1)), score)
    assert lrs_of(batches, 16)[0] == [0.1, 0.2, 0.4]
    assert sorted(lrs_of(batches, 16)[1]) == [0.141421, 0.282843]
    assert len(batches) == 2


def test_each_other_field_has_its_own_ridge() -> None:
    vary = {**GRID, "optimizer": tune.grid_search(["sgd", "adam"])}

    def score(config: TrialConfig) -> float:
        return peak(100.0 if config.optimizer == "adam" else 0.2)(config)

    batches = rounds(study(vary=vary, explore=Grid(widen=1)), score)
    assert {(t.config.optimizer, t.config.base_lr) for t in batches[1]} == {("adam", 0.8)}
    assert sorted(t.config.batch_size for t in batches[1]) == [16, 64]


def test_a_field_that_is_none_has_its_ridge_too() -> None:
    vary = {"base_lr": GRID["base_lr"], "image_size": tune.grid_search([None, 48])}
    declared = study(vary=vary, explore=Grid(widen=1))
    batches = rounds(declared, peak(100.0))
    assert {t.config.image_size for t in batches[1]} == {None, 48}


@pytest.mark.parametrize("lost_score", [None, math.nan])
def test_a_cell_without_a_score_is_passed_over(lost_score: float | None) -> None:
    declared = study(explore=Grid(widen=1))
    known = no_tables()
    grid = ask(declared, known, 1)
    lost = [trial for trial in grid if trial.config.batch_size == 16]
    end(known, lost, declared, lambda _: lost_score, lambda _: "failed")  # type: ignore[arg-type, return-value]
    end(known, [trial for trial in grid if trial not in lost], declared, peak(100.0))
    more = ask(declared, known, 1)
    assert [(t.config.batch_size, t.config.base_lr) for t in more] == [(64, 0.8)]


# --- while others are under way -------------------------------------------------------------------


def test_a_batch_size_widens_while_another_is_under_way() -> None:
    declared = study(explore=Grid(widen=2), seeds=2)
    known = no_tables()
    grid = ask(declared, known, 1)
    small = [trial for trial in grid if trial.config.batch_size == 16]
    end(known, small[:-1], declared, peak(100.0))
    assert ask(declared, known, 1) == []  # a trial of its own is under way
    end(known, small[-1:], declared, peak(100.0))
    more = ask(declared, known, 1)
    wider = [(16, 0.8, 0), (16, 0.8, 1)]
    assert [(t.config.batch_size, t.config.base_lr, t.config.seed) for t in more] == wider
    assert ask(declared, known, 1) == []  # it is asked for once
    # It goes on by itself, and the other one joins in when its own trials have ended.
    end(known, more, declared, peak(100.0))
    again = ask(declared, known, 1)
    assert {(t.config.batch_size, t.config.base_lr) for t in again} == {(16, 1.6)}
    large = [trial for trial in grid if trial.config.batch_size == 64]
    end(known, large, declared, peak(100.0))
    late = ask(declared, known, 1)
    assert {(t.config.batch_size, t.config.base_lr) for t in late} == {(64, 0.8)}
    assert total(declared, known) == len(known.asked) == 2 * (6 + 2 + 1)


def test_a_batch_size_refines_while_another_is_under_way() -> None:
    declared = study(explore=Grid(refine=1))
    known = no_tables()
    grid = ask(declared, known, 1)
    end(known, [trial for trial in grid if trial.config.batch_size == 64], declared, peak(0.2))
    more = ask(declared, known, 1)
    finer = [(64, round(lr, 4)) for lr in (0.1 * 2**0.5, 0.2 * 2**0.5)]
    assert [(t.config.batch_size, round(t.config.base_lr, 4)) for t in more] == finer


def test_what_depends_on_results_is_trained_to_its_end() -> None:
    """A stopper would compare a later trial with those that began before it."""
    declared = study(explore=Grid(widen=1), leaders=Leaders(top=1, seeds=2))
    grid, *later = rounds(declared, peak(100.0))
    assert not any(trial.whole for trial in grid)
    assert later
    assert all(trial.whole for batch in later for trial in batch)


# --- leaders --------------------------------------------------------------------------------------


def led(
    *, statuses: Mapping[tuple[float, int], str], score: Score, **changes: Any
) -> list[tuple[float, int]]:
    """Rate and seed of what the leaders get more of."""
    vary = {"base_lr": tune.grid_search([0.1, 0.2, 0.4, 0.8])}
    declared = study(**{"vary": vary, "seeds": 2, "leaders": Leaders(top=2, seeds=4), **changes})
    known = no_tables()
    own = ask(declared, known, 1)
    end(known, own, declared, score, lambda c: statuses.get((c.base_lr, c.seed), "completed"))
    return [(t.config.base_lr, t.config.seed) for t in ask(declared, known, 1)]


def test_leaders_are_the_best_means_and_get_the_seeds_that_they_lack() -> None:
    # Means 0.55, 0.6, 0.65, 0.5: one seed of the last is the best of all.
    scores = {0.1: (0.5, 0.6), 0.2: (0.6, 0.6), 0.4: (0.6, 0.7), 0.8: (0.9, 0.1)}
    more = led(statuses={}, score=lambda c: scores[c.base_lr][c.seed])
    assert more == [(0.4, 2), (0.2, 2), (0.4, 3), (0.2, 3)]
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

    more = led(statuses={(0.8, seed): status}, score=score)
    assert {lr for lr, _ in more} == {0.4, 0.2}


def test_later_seeds_do_not_change_who_leads() -> None:
    """Else a leader whose new seeds are bad would be replaced, and so on for all."""
    vary = {"base_lr": tune.grid_search([0.1, 0.2, 0.4])}
    declared = study(vary=vary, seeds=2, leaders=Leaders(top=1, seeds=4))

    def score(config: TrialConfig) -> float:
        return config.base_lr if config.seed < 2 else 0.0

    batches = rounds(declared, score)
    assert [[(t.config.base_lr, t.config.seed) for t in batch] for batch in batches[1:]] == [
        [(0.4, 2), (0.4, 3)]
    ]


def test_leaders_come_when_the_grid_is_as_wide_as_it_gets() -> None:
    vary = {"base_lr": tune.grid_search([0.1, 0.2])}
    leaders = Leaders(top=1, seeds=2)
    batches = rounds(study(vary=vary, explore=Grid(widen=2), leaders=leaders), peak(0.4))
    assert [[(t.config.base_lr, t.config.seed) for t in batch] for batch in batches[1:]] == [
        [(0.4, 0)],
        [(0.8, 0)],
        [(0.4, 1)],
    ]


def test_a_leader_keeps_the_step_of_its_ablation() -> None:
    steps = {"none": {}, "step decay": {"decay": "step"}}
    declared = study(vary={}, explore=Ablation(steps=steps), leaders=Leaders(top=1, seeds=2))
    batches = rounds(declared, lambda config: float(config.decay == "step"))
    assert [[(t.step, t.config.decay, t.config.seed) for t in batch] for batch in batches[1:]] == [
        [("step decay", "step", 1)]
    ]


# --- the plan's own tables ------------------------------------------------------------------------


def test_within_a_seed_large_batches_come_first() -> None:
    planned = ask(study(seeds=2), no_tables(), 1)
    order = [(t.config.seed, t.config.batch_size) for t in planned]
    assert order == [(0, 64)] * 3 + [(0, 16)] * 3 + [(1, 64)] * 3 + [(1, 16)] * 3


def test_two_steps_of_one_configuration_are_both_planned() -> None:
    steps = {"a": {}, "b": {"decay": "step"}, "a again": {"decay": BASE.decay}}
    planned = ask(study(vary={}, explore=Ablation(steps=steps)), no_tables(), 1)
    assert [trial.step for trial in planned] == ["a", "b", "a again"]
    assert planned[0].key == planned[2].key != planned[1].key


def test_rows_of_other_plans_are_left_out_and_numbered_anew() -> None:
    planned = ask(study(), no_tables(), 1)
    table = pd.DataFrame({"trial_key": ["x", planned[1].key, planned[0].key], "attempt": [1, 2, 3]})
    kept = results_tables.of_trials(table, {trial.key for trial in planned})
    assert list(kept["trial_key"]) == [planned[1].key, planned[0].key]
    assert list(kept.index) == [0, 1]
    assert list(kept.columns) == ["trial_key", "attempt"]


def test_a_command_knows_how_often_each_trial_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = study()
    opened = results_tables.open_results(str(tmp_path), "s")
    first, second, *_ = ask(declared, no_tables(), 1)
    for key, attempt in (("x", 1), (first.key, 2), (second.key, 3)):
        row = {"trial_key": key, "status": "interrupted", "attempt": attempt}
        results_tables.commit_trial(opened, row)
    taken: list[Any] = []
    connecting: Future[str] = Future()
    connecting.set_result("a cluster")
    monkeypatch.setattr(session, "_connected", lambda *_: nullcontext(connecting))
    for name in ("check_images", "check_networks"):
        monkeypatch.setattr(f"search.execution.preflight.{name}", lambda ready: None)
    monkeypatch.setattr(session, "_train", lambda *words: taken.extend(words) or True)
    ready = ready_of(declared, opened)
    session._train_missing(session.Order(study=declared), ready, Console(quiet=True))
    _, _, known, attempts, cluster, _ = taken
    assert attempts == {"x": 1, first.key: 2, second.key: 3}
    assert all(type(number) is int for number in attempts.values())
    assert (len(known.asked), known.ended) == (6, {})  # an interrupted one goes on
    assert cluster == "a cluster"
