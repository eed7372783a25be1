"""The journal of a search: what is asked, what is told, and what a later command finds of it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from ray import tune
from searches import beside, drawn_once, known, opened, study
from trainings import ByHand

from search.explore import Optuna
from search.explore.ask import ask
from search.explore.journal import (
    distribution_of,
    distributions_of,
    params_of,
    past_scores,
    sampler_of,
    values_of,
)
from search.explore.optuna import JOURNAL
from search.study.space_file import SpaceFileError
from trainable.config import trial_key

# --- ask and tell ---------------------------------------------------------------------------------


def test_what_is_asked_is_planned_with_its_seeds_and_keys(tmp_path: Path) -> None:
    declared, tables = study(2, seeds=3), known(tmp_path)
    assert ask(declared, tables, room=0) == []
    assert not (tmp_path / JOURNAL).exists()  # a dry run leaves none
    first, second = ask(declared, tables, room=1), ask(declared, tables, room=1)
    assert ask(declared, tables, room=1) == []
    assert tables.memory["journal"].open == {0: first, 1: second}
    assert [t.config.seed for t in first] == [0, 1, 2]
    assert all(t.key == trial_key(t.config, "d") for t in [*first, *second])
    assert tables.asked == [*first, *second]
    scores = {trial.key: {"status": "completed", "val_auroc": 0.5} for trial in first}
    again = known(tmp_path, scores)  # another command
    assert ask(declared, again, room=0) == [*first, *second]
    assert again.memory["journal"].open == {1: second}
    assert ask(declared, again, room=9) == []


@pytest.mark.parametrize(
    ("room", "seeds", "num_chosen"),
    [(0, 1, 0), (1, 1, 1), (3, 1, 3), (9, 1, 4), (1, 3, 1), (4, 3, 2), (9, 3, 3)],
)
def test_no_more_is_chosen_than_there_is_room_for(
    room: int, seeds: int, num_chosen: int, tmp_path: Path
) -> None:
    """The room is counted in trials; a configuration comes with all its seeds."""
    ours = opened(study(4, seeds=seeds), tmp_path)
    assert len(ours.next(known(tmp_path), room)) == num_chosen * seeds
    assert len(ours.optuna.get_trials()) == num_chosen


@pytest.mark.parametrize(("room", "num_new"), [(1, 0), (2, 0), (3, 1)])
def test_what_an_earlier_command_left_takes_its_room_first(
    room: int, num_new: int, tmp_path: Path
) -> None:
    """Two were under way when the command before was killed; a third had ended."""
    left = opened(study(9), tmp_path).next(known(tmp_path), 3)
    ended = {left[0].key: {"status": "completed", "val_auroc": 0.5}}
    chosen = opened(study(9), tmp_path).next(known(tmp_path, ended), room)
    assert chosen[:3] == left
    assert len(chosen) == 3 + num_new


def test_a_later_command_does_not_draw_the_first_ones_again(tmp_path: Path) -> None:
    first = opened(study(4), tmp_path).next(known(tmp_path), 2)
    drawn = opened(study(4), tmp_path).next(known(tmp_path), 4)
    assert drawn[:2] == first
    assert len({trial.config.base_lr for trial in drawn}) == 4
    # Another study of the same seed draws the same.
    assert opened(study(4), beside(tmp_path)).next(known(tmp_path), 2) == first


def test_what_was_told_stays_told(tmp_path: Path) -> None:
    ours = opened(study(), tmp_path)
    ours.next(known(tmp_path), 1)
    ours.tell(0, [{"status": "completed", "val_auroc": 0.55}])
    ours.tell(0, [{"status": "failed"}])
    ours.tell(0, [{"status": "stopped", "val_auroc": 0.1, "examples_seen": 96}])
    (trial,) = ours.optuna.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.55)


def test_a_dry_run_beside_a_command_that_trains_disturbs_neither(tmp_path: Path) -> None:
    """Both tell the journal of a trial that ended; whoever comes second leaves it."""
    ours = ByHand(study(1), tmp_path)
    ours.suggest("a")
    ours.end("a", status="completed", val_auroc=0.55)
    assert ask(ours.study, known(tmp_path, ours.known.ended), room=0) == ours.known.asked
    assert ours.suggest("b") == "FINISHED"
    assert ours.values() == [0.55]


@pytest.mark.parametrize("metric", ["val_auroc", "val_accuracy"])
def test_one_prediction_for_every_image_is_told_as_the_worst(metric: str, tmp_path: Path) -> None:
    """At a rate of a million a network answers the same for all, and that is not a score."""
    ours = opened(study(seeds=2, metric=metric), tmp_path)
    ours.next(known(tmp_path), 1)
    learned = {"status": "completed", "val_auroc": 0.8, "val_accuracy": 0.8}
    constant = {"status": "completed", "val_auroc": 0.5, "val_accuracy": 0.6}
    ours.tell(0, [learned, constant])
    assert ours.optuna.get_trials()[0].value == pytest.approx(0.4)


def test_a_trial_that_failed_teaches_nothing(tmp_path: Path) -> None:
    ours = opened(study(), tmp_path)
    ours.next(known(tmp_path), 1)
    ours.tell(0, [{"status": "failed", "val_auroc": None, "examples_seen": None}])
    (trial,) = ours.optuna.get_trials()
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.FAIL, None, {})


@pytest.mark.parametrize("changes", [{}, {"seeds": 2}, {"objectives": ["train_wall_s"]}])
def test_only_of_a_stopped_one_is_a_score_on_the_way_told(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = opened(study(**changes), tmp_path)
    ours.next(known(tmp_path), 1)
    row = {"status": "completed", "val_auroc": 0.5, "examples_seen": 192, "train_wall_s": 2.0}
    ours.tell(0, [row] * changes.get("seeds", 1))
    assert ours.optuna.get_trials()[0].intermediate_values == {}


def test_a_stopped_one_is_told_where_it_was_once(tmp_path: Path) -> None:
    ours = opened(study(), tmp_path)
    ours.next(known(tmp_path), 2)
    ours.tell(0, [{"status": "stopped", "val_auroc": 0.7, "examples_seen": 192}])
    ours.tell(1, [{"status": "stopped", "val_auroc": 0.7}])
    told = ours.optuna.get_trials()
    assert [t.state for t in told] == [TrialState.PRUNED] * 2
    assert [t.intermediate_values for t in told] == [{192: 0.7}, {0: 0.7}]


def test_of_seeds_where_one_was_stopped_the_mean_is_told(tmp_path: Path) -> None:
    ours = opened(study(seeds=2), tmp_path)
    ours.next(known(tmp_path), 1)
    stopped = {"status": "stopped", "val_auroc": 0.5, "examples_seen": 192}
    ours.tell(0, [stopped, {"status": "completed", "val_auroc": 0.7, "examples_seen": 960}])
    (trial,) = ours.optuna.get_trials()
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {192: pytest.approx(0.6)}


def test_a_secret_among_the_parameters_is_refused(tmp_path: Path) -> None:
    def space(trial: Any) -> dict[str, object]:
        trial.suggest_categorical("api_key", ["a", "b"])
        return {"base_lr": 0.1}

    ours = opened(study(vary={}, space=space), tmp_path)
    with pytest.raises(ValueError, match="api_key "):
        ours.next(known(tmp_path), 1)
    named = opened(study(vary={}, space=lambda _: {"password": "x"}), beside(tmp_path))
    with pytest.raises(ValueError, match="password "):
        named.next(known(tmp_path), 1)


def test_points_are_first_and_in_order(tmp_path: Path) -> None:
    points = [{"batch_size": 32, "base_lr": lr} for lr in (0.25, 0.5)]
    trials = opened(study(3, points=points), tmp_path).next(known(tmp_path), 3)
    configs = [trial.config for trial in trials]
    assert [(c.batch_size, c.base_lr) for c in configs[:2]] == [(32, 0.25), (32, 0.5)]
    assert configs[2].base_lr not in (0.25, 0.5)


def test_a_later_command_does_not_ask_the_points_again(tmp_path: Path) -> None:
    points = ({"batch_size": 32, "base_lr": 0.5},)
    opened(study(1, points=points), tmp_path).next(known(tmp_path), 9)
    trials = opened(study(3, points=points), tmp_path).next(known(tmp_path), 9)
    assert len({trial.key for trial in trials}) == 3


def test_tpes_first_third_is_random() -> None:
    for num_configs, startup in ((4, 10), (31, 10), (34, 11), (90, 30)):
        made: Any = sampler_of(Optuna(num_configs=num_configs), "tpe", asked=0)
        assert made._n_startup_trials == startup


def test_tpe_models_what_varies_together_whatever_optunas_defaults() -> None:
    made: Any = sampler_of(Optuna(num_configs=4), "tpe", asked=0)
    assert (made._multivariate, made._group, made._constant_liar) == (True, False, True)
    made = sampler_of(Optuna(num_configs=4, space=drawn_once), "tpe", asked=0)
    assert (made._multivariate, made._group) == (True, True)


def test_a_choice_among_numbers_is_ordered_to_a_sampler(tmp_path: Path) -> None:
    vary = {
        "batch_size": tune.choice([64, 16, 32]),
        "augment": tune.choice(["none", "hflip"]),
        "nesterov": tune.choice([True, False]),
    }
    assert distributions_of(vary) == {
        "batch_size_index": optuna.distributions.IntDistribution(0, 2),
        "augment": optuna.distributions.CategoricalDistribution(["none", "hflip"]),
        "nesterov": optuna.distributions.CategoricalDistribution([True, False]),
    }
    values = {"batch_size": 64, "augment": "hflip", "nesterov": True}
    params = {"batch_size_index": 2, "augment": "hflip", "nesterov": True}
    assert params_of(vary, values) == params
    assert values_of(vary, params) == values
    drawn = opened(study(30), tmp_path).next(known(tmp_path), 30)
    assert {trial.config.batch_size for trial in drawn} == {16, 32}


def test_a_point_outside_of_a_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"points: batch_size must be one of 16, 32, got 48"):
        study(points=[{"batch_size": 48, "base_lr": 0.1}])


def test_ranges_keep_their_steps_and_logarithms() -> None:
    as_optunas = {
        tune.choice([16, "a"]): optuna.distributions.CategoricalDistribution([16, "a"]),
        tune.uniform(0.5, 2.0): optuna.distributions.FloatDistribution(0.5, 2.0),
        tune.loguniform(0.5, 2.0): optuna.distributions.FloatDistribution(0.5, 2.0, log=True),
        tune.quniform(0.5, 2.0, 0.5): optuna.distributions.FloatDistribution(0.5, 2.0, step=0.5),
        tune.randint(1, 9): optuna.distributions.IntDistribution(1, 8),
        tune.lograndint(1, 9): optuna.distributions.IntDistribution(1, 8, log=True),
        tune.qrandint(2, 9, 3): optuna.distributions.IntDistribution(3, 9, step=3),
    }
    for domain, expected in as_optunas.items():
        assert distribution_of(domain) == expected


# --- what cannot work -----------------------------------------------------------------------------


def test_a_configuration_that_cannot_work_is_told_and_another_one_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vary = {"batch_size": tune.choice([16, 32]), "microbatch_size": tune.choice([8, 32])}
    ours = opened(study(12, vary=vary), tmp_path)
    trials = ours.next(known(tmp_path), 12)
    assert len(trials) == 12
    assert all(t.config.batch_size % t.config.microbatch_size == 0 for t in trials)
    refused = [trial for trial in ours.optuna.get_trials() if "refused" in trial.user_attrs]
    assert refused
    assert {(trial.state, trial.value) for trial in refused} == {(TrialState.COMPLETE, 0.0)}
    assert "which cannot work: microbatch_size must divide batch_size (16), got 32" in caplog.text
    # A later command has the same twelve, and the refused ones do not count.
    assert opened(study(12, vary=vary), tmp_path).next(known(tmp_path), 0) == trials


def test_where_none_can_work_the_search_ends_with_the_reason(tmp_path: Path) -> None:
    def space(trial: Any) -> dict[str, object]:
        return {"momentum": trial.suggest_float("momentum", 1.0, 2.0)}

    with pytest.raises(SpaceFileError, match="100 configurations in a row cannot work; the last: "):
        ask(study(vary={}, space=space), known(tmp_path), room=1)


# --- warm start -----------------------------------------------------------------------------------


def past(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "past" / "trials").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "past" / "trials" / "all.parquet")
    return folder / "past"


def test_past_trials_are_those_that_completed_in_this_space(tmp_path: Path) -> None:
    def row(lr: float, size: int, score: float, status: str = "completed") -> dict[str, Any]:
        return {"base_lr": lr, "batch_size": size, "status": status, "val_auroc": score}

    rows = [
        row(1e-3, 16, 0.5),
        row(1.0, 32, 0.6),
        row(1.0, 32, 0.8),  # another seed
        row(0.1, 16, 0.9, "stopped"),
        row(0.1, 16, math.nan, "diverged"),
        row(0.1, 64, 0.9),
        row(1.01, 16, 0.9),
        row(0.9e-3, 16, 0.9),
    ]
    found = past_scores(past(tmp_path, rows), study())
    assert found == [
        ({"batch_size": 16, "base_lr": 1e-3}, [0.5]),
        ({"batch_size": 32, "base_lr": 1.0}, [pytest.approx(0.7)]),
    ]
    assert {type(params["batch_size"]) for params, _ in found} == {int}
    with pytest.raises(ValueError, match=r"warm_start: .* is not a study's results folder: no tri"):
        past_scores(tmp_path, study())
    elsewhere = study(vary={"base_lr": tune.loguniform(5.0, 6.0)})
    with pytest.raises(ValueError, match="warm_start: no completed trial in"):
        past_scores(tmp_path / "past", elsewhere)


def test_a_warm_start_is_taken_in_once(tmp_path: Path) -> None:
    rows = [{"base_lr": 0.1, "batch_size": 16, "status": "completed", "val_auroc": 0.5}]
    declared = study(warm_start=str(past(tmp_path, rows)))
    for _ in range(2):
        ours = opened(declared, tmp_path)
        assert [t.value for t in ours.optuna.get_trials()] == [0.5]
        assert ours.next(known(tmp_path), 0) == []


def test_a_warm_start_knows_every_objective(tmp_path: Path) -> None:
    row = {"base_lr": 0.1, "batch_size": 16, "status": "completed", "val_auroc": 0.5}
    rows = [row | {"train_wall_s": seconds} for seconds in (10.0, 30.0)]
    declared = study(warm_start=str(past(tmp_path, rows)), objectives=["train_wall_s"])
    ours = opened(declared, tmp_path)
    assert [t.values for t in ours.optuna.get_trials()] == [[0.5, 20.0]]


# --- what Ray asks --------------------------------------------------------------------------------


def test_what_the_tables_hold_is_told_and_not_sent(tmp_path: Path) -> None:
    point = {"batch_size": 32, "base_lr": 0.25}
    declared = study(2, points=[point, point | {"base_lr": 0.5}], seeds=2)
    configs = [replace(declared.base, batch_size=32, base_lr=0.25, seed=seed) for seed in (0, 1)]
    rows = {trial_key(c, "d"): {"status": "completed", "val_auroc": 0.75} for c in configs}
    ours = ByHand(declared, tmp_path, rows)
    first = ours.suggest("a")
    (sent,) = ours.sent.values()
    assert first["key"] == sent.key
    assert (sent.config.base_lr, sent.config.seed) == (0.5, 0)
    told, running = ours.told
    assert (told.state, told.value) == (TrialState.COMPLETE, 0.75)
    assert running.state == TrialState.RUNNING
    ours.suggest("b")
    assert ours.suggest("c") is None  # of those under way nothing may yet follow
    for trial_id in ("a", "b"):
        assert len(ours.known.memory["journal"].open) == 1
        ours.end(trial_id, status="completed", val_auroc=1.0)
    assert ours.suggest("c") == "FINISHED"
    assert ours.known.memory["journal"].open == {}
    assert ours.queue.under_way == {}
    assert ours.values() == [0.75, 1.0]


def test_two_trials_of_the_same_parameters_are_trained_once_and_both_are_told(
    tmp_path: Path,
) -> None:
    point = {"batch_size": 32, "base_lr": 0.25}
    declared = study(3, points=[point, point, point])
    ours = ByHand(declared, tmp_path, num_slots=2)
    assert ours.suggest("a") is not None
    assert ours.suggest("b") is None
    assert ours.states() == [TrialState.RUNNING] * 3  # all share what is under way
    ours.end("a", status="diverged", val_auroc=math.nan)
    assert ours.suggest("b") == "FINISHED"
    assert len(ours.sent) == 1
    assert ours.values() == [0.0] * 3
    assert declared.explore.total(declared, ours.known) == 1


def test_evaluations_are_told_to_nobody_on_the_way(tmp_path: Path) -> None:
    ours = ByHand(study(), tmp_path)
    ours.suggest("a")
    ours.queue.on_trial_result("a", {"score": 0.5, "examples_seen": 96, "epoch_row/epoch": 1})
    ours.queue.on_trial_result("unknown", {"score": 0.5, "examples_seen": 96})
    (trial,) = ours.told
    assert trial.intermediate_values == {}
    ours.end("a", status="stopped", val_auroc=0.5, examples_seen=96)
    assert ours.told[0].intermediate_values == {96: 0.5}
    assert (ours.queue.metric, ours.queue.mode) == ("score", "max")
