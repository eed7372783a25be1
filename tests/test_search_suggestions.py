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

from search.execution.schedulers import EarlyStopping, OptunaSearcher, first_rung, scheduler_of
from search.explore import Asha, Grid, HyperBand, Median, Optuna
from search.explore.optuna import JOURNAL, Suggestions, distribution_of, past_scores, sampler_of
from search.explore.plan import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig, trial_key

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
VARY = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(num_configs: int = 4, **changes: Any) -> Study:
    given = {
        n: changes.pop(n) for n in ("points", "space", "objectives", "warm_start") if n in changes
    }
    explore = Optuna(num_configs=num_configs, sampler="random", **given)
    return Study(**({"name": "s", "base": BASE, "vary": VARY, "explore": explore} | changes))


def opened(declared: Study, folder: Path) -> Suggestions:
    return Suggestions(declared, folder / JOURNAL, data_fingerprint="d")


def beside(folder: Path) -> Path:
    """A folder of another study."""
    (folder / "other").mkdir()
    return folder / "other"


# --- ask and tell ---------------------------------------------------------------------------------


def test_what_is_asked_is_planned_with_its_seeds_and_keys(tmp_path: Path) -> None:
    ours = opened(study(2, seeds=3), tmp_path)
    assert ours.planned() == []
    first, second = ours.ask(), ours.ask()
    assert first is not None
    assert second is not None
    assert ours.ask() is None
    assert (first[0], second[0]) == (0, 1)
    assert [t.config.seed for t in first[1]] == [0, 1, 2]
    assert all(t.key == trial_key(t.config, "d") for t in first[1])
    assert ours.planned() == [*first[1], *second[1]]
    assert [t.number for t in ours.asked()] == [0, 1]
    again = opened(study(2, seeds=3), tmp_path)  # another command
    assert again.planned() == ours.planned()
    assert again.unfinished() == [first, second]
    again.tell(0, [{"status": "completed", "val_auroc": 0.5}] * 3)
    assert again.unfinished() == [second]
    assert again.ask() is None


def test_a_later_command_does_not_draw_the_first_ones_again(tmp_path: Path) -> None:
    first = opened(study(4), tmp_path)
    drawn = [first.ask() for _ in range(2)]
    later = opened(study(4), tmp_path)
    drawn += [later.ask() for _ in range(2)]
    lrs = {asked[1][0].config.base_lr for asked in drawn if asked}
    assert len(lrs) == 4
    seeded = opened(study(4), beside(tmp_path))
    same = [seeded.ask() for _ in range(2)]
    assert same == drawn[:2]  # another study of the same seed draws the same


def test_what_was_told_stays_told(tmp_path: Path) -> None:
    ours = opened(study(), tmp_path)
    ours.ask()
    ours.tell(0, [{"status": "completed", "val_auroc": 0.5}])
    ours.tell(0, [{"status": "failed"}])
    (trial,) = ours.optuna.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)


def test_nothing_to_tell_is_a_failure(tmp_path: Path) -> None:
    ours = opened(study(), tmp_path)
    ours.ask()
    ours.tell(0, [])
    assert [t.state for t in ours.optuna.get_trials()] == [TrialState.FAIL]


@pytest.mark.parametrize(
    ("changes", "reported"),
    [({}, {96: 0.5}), ({"seeds": 2}, {}), ({"objectives": ["train_wall_s"]}, {})],
)
def test_scores_on_the_way_are_of_one_seed_and_one_objective(
    changes: dict[str, Any], reported: dict[int, float], tmp_path: Path
) -> None:
    ours = opened(study(**changes), tmp_path)
    ours.ask()
    ours.report(0, 0.5, 96)
    assert ours.optuna.get_trials()[0].intermediate_values == reported


def test_a_stopped_one_is_told_where_it_was_once(tmp_path: Path) -> None:
    ours = opened(study(), tmp_path)
    for number in range(3):
        ours.ask()
        row = {"status": "stopped", "val_auroc": 0.7, "examples_seen": 192}
        if number == 1:
            ours.report(number, 0.6, 96)
        if number == 2:
            del row["examples_seen"]
        ours.tell(number, [row])
    told = ours.optuna.get_trials()
    assert [t.state for t in told] == [TrialState.PRUNED] * 3
    assert [t.intermediate_values for t in told] == [{192: 0.7}, {96: 0.6}, {0: 0.7}]


def test_a_secret_among_the_parameters_is_refused(tmp_path: Path) -> None:
    def space(trial: Any) -> dict[str, object]:
        trial.suggest_categorical("api_key", ["a", "b"])
        return {"base_lr": 0.1}

    ours = opened(study(vary={}, space=space), tmp_path)
    with pytest.raises(ValueError, match="api_key "):
        ours.ask()
    named = opened(study(vary={}, space=lambda _: {"password": "x"}), beside(tmp_path))
    with pytest.raises(ValueError, match="password "):
        named.ask()


def test_points_are_first_and_in_order(tmp_path: Path) -> None:
    points = [{"batch_size": 32, "base_lr": lr} for lr in (0.25, 0.5)]
    ours = opened(study(3, points=points), tmp_path)
    asked = [ours.ask() for _ in range(3)]
    configs = [each[1][0].config for each in asked if each]
    assert [(c.batch_size, c.base_lr) for c in configs[:2]] == [(32, 0.25), (32, 0.5)]
    assert configs[2].base_lr not in (0.25, 0.5)


def test_tpes_first_third_is_random() -> None:
    for num_configs, startup in ((4, 10), (31, 10), (34, 11), (90, 30)):
        made: Any = sampler_of(Optuna(num_configs=num_configs), asked=0)
        assert made._n_startup_trials == startup


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
        assert ours.planned() == []


def test_a_warm_start_knows_every_objective(tmp_path: Path) -> None:
    row = {"base_lr": 0.1, "batch_size": 16, "status": "completed", "val_auroc": 0.5}
    rows = [row | {"train_wall_s": seconds} for seconds in (10.0, 30.0)]
    declared = study(warm_start=str(past(tmp_path, rows)), objectives=["train_wall_s"])
    ours = opened(declared, tmp_path)
    assert [t.values for t in ours.optuna.get_trials()] == [[0.5, 20.0]]


# --- what Ray asks --------------------------------------------------------------------------------


class Driven:
    """A searcher, and what it sent."""

    def __init__(self, declared: Study, folder: Path, held: Any = ()) -> None:
        self.sent: list[PlannedTrial] = []
        self.suggestions = opened(declared, folder)
        self.searcher = OptunaSearcher(self.suggestions, self._send, dict(held))

    def _send(self, planned: PlannedTrial) -> dict[str, Any]:
        self.sent.append(planned)
        return {"key": planned.key}


def test_what_the_tables_hold_is_told_and_not_sent(tmp_path: Path) -> None:
    point = {"batch_size": 32, "base_lr": 0.25}
    declared = study(2, points=[point, point | {"base_lr": 0.5}], seeds=2)
    configs = [replace(BASE, batch_size=32, base_lr=0.25, seed=seed) for seed in (0, 1)]
    rows = {trial_key(c, "d"): {"status": "completed", "val_auroc": 0.75} for c in configs}
    ours = Driven(declared, tmp_path, rows)
    assert ours.searcher.suggest("a") == {"trial": {"key": ours.sent[0].key}}
    assert (ours.sent[0].config.base_lr, ours.sent[0].config.seed) == (0.5, 0)
    told, running = ours.suggestions.optuna.get_trials()
    assert (told.state, told.value) == (TrialState.COMPLETE, 0.75)
    assert running.state == TrialState.RUNNING
    ours.searcher.suggest("b")
    assert ours.searcher.suggest("c") == "FINISHED"
    for trial_id in ("a", "b"):
        assert len(ours.searcher.open) == 1
        ours.searcher.on_trial_complete(
            trial_id, {"trial_row": {"status": "completed", "val_auroc": 1.0}}
        )
    assert ours.searcher.open == {}
    assert ours.searcher.running == {}
    assert [t.value for t in ours.suggestions.optuna.get_trials()] == [0.75, 1.0]


def test_evaluations_are_reported_and_other_results_are_not(tmp_path: Path) -> None:
    ours = Driven(study(), tmp_path)
    ours.searcher.suggest("a")
    seen = {"score": 0.5, "examples_seen": 96}
    ours.searcher.on_trial_result("a", {**seen, "epoch_row/val_auroc": 0.5})
    ours.searcher.on_trial_result(
        "a", {"score": 0.9, "examples_seen": 192, "trial_row/status": "x"}
    )
    ours.searcher.on_trial_result("unknown", {**seen, "epoch_row/val_auroc": 0.5})
    (trial,) = ours.suggestions.optuna.get_trials()
    assert trial.intermediate_values == {96: 0.5}
    stopped = {**seen, "epoch_row/val_auroc": 0.5, "epoch_row/examples_seen": 96}
    ours.searcher.on_trial_complete("a", stopped)
    assert ours.searcher.held[ours.sent[0].key] == {
        "val_auroc": 0.5,
        "examples_seen": 96,
        "status": "stopped",
    }
    assert (ours.searcher.metric, ours.searcher.mode) == ("score", "max")


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
    made = scheduler_of(declared, [short, long], train_images=320)
    assert made is not None
    assert (made.grace, made.total, made.stop) == (800, 3200, declared.stop)


class Played:
    """A trial as a scheduler sees it."""

    def __init__(self, trial_id: str, batch_size: int = 16) -> None:
        self.trial_id = trial_id
        self.config = {"trial": {"config": {"batch_size": batch_size}}}


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
