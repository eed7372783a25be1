"""Searching: each trap of Ray's stock classes, sprung by them and not by ours."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.execution.tune_controller import _get_max_pending_trials
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule
from ray.tune.search import SearchGenerator
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from trainings import ByHand

from cluster.connect import Cluster
from search.execution.progress import Progress
from search.execution.recorder import Setting
from search.execution.runner import run_trials
from search.execution.schedulers import EarlyStopping, first_rung, scheduler_of
from search.explore import Asha, Grid, HyperBand, Leaders, Median, Optuna, Random
from search.explore.ask import ask
from search.explore.optuna import JOURNAL
from search.results import tables
from search.study.explorer import Tables
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import folder_at
from trainable.record import finite_score

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
VARY = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(**changes: Any) -> Study:
    explore = Optuna(num_configs=4, sampler="random")
    return Study(**({"name": "s", "base": BASE, "vary": VARY, "explore": explore} | changes))


# --- the traps ------------------------------------------------------------------------------------


def test_a_diverged_trial_teaches_the_sampler_where_the_stock_one_runs_for_ever(
    tmp_path: Path,
) -> None:
    stock = OptunaSearch(
        {"lr": optuna.distributions.FloatDistribution(0.1, 1.0)}, metric="score", mode="max"
    )
    stock.suggest("a")
    stock.on_trial_complete("a", {"score": math.nan})
    assert [t.state for t in stock._ot_study.get_trials()] == [TrialState.RUNNING]

    ours = ByHand(study(), tmp_path)
    ours.suggest("a")
    ours.end("a", status="diverged", val_auroc=math.nan)
    assert ours.states() == [TrialState.COMPLETE]
    assert ours.values() == [0.0]


def test_a_stopped_trial_is_pruned_where_the_stock_one_is_complete(tmp_path: Path) -> None:
    stock = OptunaSearch(
        {"lr": optuna.distributions.FloatDistribution(0.1, 1.0)}, metric="score", mode="max"
    )
    stock.suggest("a")
    stock.on_trial_complete("a", {"score": 0.6, "training_iteration": 1})
    assert [t.state for t in stock._ot_study.get_trials()] == [TrialState.COMPLETE]

    ours = ByHand(study(), tmp_path)
    ours.suggest("a")
    ours.end("a", status="stopped", val_auroc=0.6, examples_seen=100)
    assert ours.states() == [TrialState.PRUNED]
    assert ours.told[0].intermediate_values == {100: 0.6}


class Played:
    """A trial as a scheduler sees it."""

    def __init__(self, trial_id: str, batch_size: int = 16) -> None:
        self.trial_id = trial_id
        self.config = {
            "key": trial_id,
            "batch_size": batch_size,
            "total_images": 10_000,
            "whole": False,
        }


def play(
    scheduler: Any, scores: dict[str, float], *, seen: int, batches: dict[str, int]
) -> set[str]:
    """The trials that are stopped when each reports one score at `seen` images, in order."""
    stopped = set()
    controller = SimpleNamespace(get_live_trials=list)
    for name, score in scores.items():
        trial = Played(name, batches.get(name, 16))
        scheduler.on_trial_add(controller, trial)
        result = {"score": score, "examples_seen": seen, "training_iteration": 1}
        if scheduler.on_trial_result(controller, trial, result) == "STOP":
            stopped.add(name)
    return stopped


def test_a_diverged_trial_is_stopped_where_stock_asha_lets_nan_run() -> None:
    stock = AsyncHyperBandScheduler(
        time_attr="examples_seen", metric="score", mode="max", grace_period=10, max_t=100
    )
    names = {f"t{i}": 0.8 - 0.01 * i for i in range(6)}
    assert "nan" not in play(stock, {**names, "nan": math.nan}, seen=10, batches={})
    ours = EarlyStopping(Asha(), grace=10, total=100)
    worst = finite_score("val_auroc", {"val_auroc": math.nan})
    assert "nan" in play(ours, {**names, "nan": worst}, seen=10, batches={})
    assert ours.reasons["nan"] == "asha at 10 images"


def test_grid_words_are_a_choice_to_a_search_where_the_stock_one_refuses_them() -> None:
    with pytest.raises(ValueError, match=r"[Gg]rid"):
        OptunaSearch(metric="score", mode="max").convert_search_space(
            {"lr": tune.grid_search([1, 2])}
        )
    declared = study(vary={"base_lr": tune.grid_search([0.1, 0.2])})
    drawn = replace(declared, explore=Random(num_configs=20)).configs
    assert {config.base_lr for config in drawn} == {0.1, 0.2}


def test_every_score_that_is_told_is_finite() -> None:
    assert finite_score("val_auroc", {"val_auroc": 0.7}) == 0.7
    assert finite_score("val_loss", {"val_loss": 0.7}) == -0.7
    for row in ({}, {"val_loss": math.inf}, {"val_loss": 0.1, "status": "diverged"}):
        assert finite_score("val_loss", row) == -1e6


# --- Optuna ---------------------------------------------------------------------------------------


def test_a_search_asks_for_so_many_and_no_more(tmp_path: Path) -> None:
    ours = ByHand(study(), tmp_path)
    for i in range(4):
        assert ours.suggest(f"t{i}")["key"] in ours.sent
    assert ours.suggest("t4") is None
    assert len(ours.told) == 4
    for i in range(4):
        ours.end(f"t{i}", status="completed", val_auroc=0.5)
    assert ours.suggest("t4") == "FINISHED"
    configs = [p.config for p in ours.sent.values()]
    assert all(c.batch_size in (16, 32) and 1e-3 <= c.base_lr <= 1.0 for c in configs)


def test_seeds_are_paired_and_their_mean_is_told(tmp_path: Path) -> None:
    ours = ByHand(study(seeds=3), tmp_path)
    for i in range(3):
        ours.suggest(f"t{i}")
    configs = [p.config for p in ours.sent.values()]
    assert {replace(c, seed=0) for c in configs} == {configs[0]}
    assert [c.seed for c in configs] == [0, 1, 2]
    for i, score in enumerate((0.6, 0.7, 0.8)):
        assert ours.states()[0] == TrialState.RUNNING
        ours.end(f"t{i}", status="completed", val_auroc=score)
    assert ours.values()[0] == pytest.approx(0.7)


def test_a_killed_search_goes_on_with_what_it_learned(tmp_path: Path) -> None:
    first = ByHand(study(), tmp_path, num_slots=3)
    for i in range(3):
        first.suggest(f"t{i}")
    first.end("t0", status="completed", val_auroc=0.9)
    assert first.states() == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]
    keys = list(first.sent)
    # Killed: t1 ended and its row was written, but Optuna was not told; t2 was under way.
    ended = {
        keys[0]: {"status": "completed", "val_auroc": 0.9},
        keys[1]: {"status": "completed", "val_auroc": 0.6},
    }
    second = ByHand(study(), tmp_path, ended, num_slots=2)
    assert second.states() == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
    assert second.values()[:2] == [0.9, 0.6]
    assert second.suggest("a")["key"] == keys[2]
    assert second.suggest("b")["key"] not in keys
    assert second.suggest("c") is None
    assert len(second.known.asked) == 4
    for trial_id in ("a", "b"):
        second.end(trial_id, status="completed", val_auroc=0.5)
    assert second.suggest("c") == "FINISHED"


def test_a_failed_trial_is_retried_and_the_sampler_learns_how_it_went_then(
    tmp_path: Path,
) -> None:
    first = ByHand(study(), tmp_path)
    for i in range(4):
        first.suggest(f"t{i}")
        first.end(f"t{i}", status="failed" if i == 1 else "completed", val_auroc=0.5)
    assert first.suggest("t4") == "FINISHED"
    assert first.states()[1] == TrialState.FAIL
    # `--retry failed`: the tables count it as not ended.
    keys = list(first.sent)
    ended = {key: row for key, row in first.known.ended.items() if row["status"] != "failed"}
    retried = ByHand(study(), tmp_path, ended)
    assert retried.suggest("a")["key"] == keys[1]
    assert retried.suggest("b") is None
    retried.end("a", status="completed", val_auroc=0.9)
    assert retried.suggest("b") == "FINISHED"
    assert retried.values()[1] == 0.9
    assert len(retried.known.asked) == len(retried.told) == 4


def test_points_come_first(tmp_path: Path) -> None:
    point = {"batch_size": 32, "base_lr": 0.25}
    ours = ByHand(study(explore=Optuna(num_configs=2, points=[point])), tmp_path)
    ours.suggest("a")
    (planned,) = ours.sent.values()
    assert (planned.config.batch_size, planned.config.base_lr) == (32, 0.25)


def past_study(folder: Path, lrs: list[float]) -> Path:
    opened = tables.open_results(str(folder), "past")
    for i, lr in enumerate(lrs):
        config = asdict(replace(BASE, batch_size=16, base_lr=lr))
        row = {"study": "past", "trial_key": f"k{i}", "attempt": 1, "status": "completed"}
        tables.commit_trial(opened, {**config, **row, "val_auroc": 0.5 + i / 10})
    return folder / "past"


def test_warm_start_knows_another_studys_trials(tmp_path: Path) -> None:
    past = past_study(tmp_path, [0.1, 0.2, 50.0])
    ours = ByHand(study(explore=Optuna(num_configs=2, warm_start=str(past))), tmp_path)
    # The third lies outside of the space; the last is the first that this study asks for.
    assert ours.values() == [0.5, 0.6, None]
    for trial_id in ("a", "b"):  # what was known does not count as tried
        ours.suggest(trial_id)
        ours.end(trial_id, status="completed", val_auroc=0.5)
    assert ours.suggest("c") == "FINISHED"
    declared = study(explore=Optuna(num_configs=2, warm_start=str(past)))
    outside = replace(declared, vary={"base_lr": tune.loguniform(100.0, 200.0)})
    with pytest.raises(SpaceFileError, match="no completed trial in"):
        ByHand(outside, tmp_path / "past")


def conditional(trial: Any) -> dict[str, object]:
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam"])
    lr = trial.suggest_float("base_lr", *((1e-5, 1e-2) if optimizer == "adam" else (1e-3, 1.0)))
    momentum = (
        {"momentum": trial.suggest_float("momentum", 0.5, 0.99)} if optimizer == "sgd" else {}
    )
    return {"optimizer": optimizer, "base_lr": lr, **momentum}


def test_conditional_spaces_are_optunas_own(tmp_path: Path) -> None:
    declared = study(vary={}, explore=Optuna(num_configs=20, sampler="random", space=conditional))
    ours = ByHand(declared, tmp_path)
    for i in range(20):
        ours.suggest(f"t{i}")
    by_optimizer = {"sgd": [], "adam": []}  # type: ignore[var-annotated]
    for planned in ours.sent.values():
        by_optimizer[planned.config.optimizer].append(planned.config)
    assert all(c.momentum == 0.9 and c.base_lr <= 1e-2 for c in by_optimizer["adam"])
    assert len({c.momentum for c in by_optimizer["sgd"]}) == len(by_optimizer["sgd"]) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"explore": Optuna(num_configs=2), "vary": {}}, "takes its space from `vary` or"),
        (
            {"explore": Optuna(num_configs=2, objectives=["train_wall_s"]), "seeds": 2},
            "several objectives go with one seed",
        ),
        (
            {"explore": Random(num_configs=2, points=[{"base_lr": 0.1}])},
            "points: each gives all that varies",
        ),
        ({"leaders": Leaders(seeds=2), "seeds": 2}, "their seeds must be more than the study's"),
        ({"vary": {"base_lr": tune.uniform(-1.0, 1.0)}}, "base_lr must be > 0, got -1.0"),
    ],
)
def test_searches_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        study(**changes)
    assert message in str(caught.value)


def test_names_of_explorers_are_checked() -> None:
    with pytest.raises(ValueError, match="sampler must be one of auto, tpe, gp"):
        Optuna(num_configs=2, sampler="bayes")
    with pytest.raises(ValueError, match="objectives must be of train_wall_s"):
        Optuna(num_configs=2, objectives=["speed"])
    with pytest.raises(ValueError, match=r"grace_share must be from 0\.1"):
        Asha(grace_share=0.01)
    with pytest.raises(ValueError, match="num_configs must be a whole number >= 1"):
        Random(num_configs=0)


def test_a_search_keeps_every_slot_busy_where_the_stock_one_has_one_trial_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "32"
    with monkeypatch.context() as patch:
        patch.delenv("TUNE_MAX_PENDING_TRIALS_PG")
        stock = SearchGenerator(OptunaSearch(metric="m", mode="max"))
        assert _get_max_pending_trials(stock) == 1
    declared = study(explore=Optuna(num_configs=9, sampler="random"))
    known = Tables(data_fingerprint="d", folder=folder_at(str(tmp_path)))
    setting = Setting(
        study=declared,
        results=tables.open_results(str(tmp_path), declared.name),
        tables=known,
        data_folder=None,
        dataset="synthetic",
        split="given",
        data_fingerprint="d",
        train_images=100,
        attempts={},
    )
    cluster = Cluster(address="local", dashboard="", num_nodes=1, num_cpus=4, num_gpus=0)
    progress = Progress(Console(), [], "val_auroc", 9, 0)
    tuner = MagicMock()
    monkeypatch.setattr("search.execution.runner.tune.Tuner", tuner)
    assert not run_trials(setting, ask(declared, known, room=1), cluster, progress)
    made = tuner.call_args.kwargs["tune_config"]
    assert _get_max_pending_trials(SearchGenerator(made.search_alg)) == 32
    assert made.num_samples == -1
    suggested = [made.search_alg.suggest(f"t{i}") for i in range(6)]
    assert [one is not None for one in suggested] == [True] * 4 + [False] * 2
    # What was not asked for yet may learn from these.
    assert len(known.memory["journal"].optuna.get_trials()) == 4


# --- stopping early -------------------------------------------------------------------------------


def test_no_rung_before_warmup_ends_or_a_tenth_of_the_budget() -> None:
    grid = {"batch_size": tune.grid_search([16, 32])}
    declared = study(vary=grid, explore=Grid(), stop=Asha(grace_share=0.1))
    configs = declared.configs
    assert first_rung(declared, configs, train_images=320) == int(0.1 * 9 * 320)
    warm = [replace(c, warmup_epochs=2) for c in configs]
    assert first_rung(declared, warm, train_images=320) == 2 * 320
    timed = replace(BASE, epochs=None, seconds=5.0)
    with pytest.raises(ValueError, match="stop counts training images"):
        replace(declared, base=timed)
    assert scheduler_of(replace(declared, stop=None), train_images=320) is None


def test_stratified_asha_compares_a_batch_size_with_itself() -> None:
    # Small batches have made more updates at a rung and are ahead there, whatever their end.
    scores = {f"small{i}": 0.9 - i / 100 for i in range(6)} | {
        f"large{i}": 0.6 - i / 100 for i in range(6)
    }
    batches = {name: 16 if name.startswith("small") else 256 for name in scores}
    one_for_all = EarlyStopping(Asha(), grace=10, total=1000)
    stopped = play(one_for_all, scores, seen=10, batches=batches)
    assert {n for n in scores if n.startswith("large")} <= stopped
    stratified = EarlyStopping(Asha(by_batch_size=True), grace=10, total=1000)
    stopped = play(stratified, scores, seen=10, batches=batches)
    assert "large0" not in stopped
    assert {n[:5] for n in stopped} == {"small", "large"}


def test_median_stops_what_lags_behind() -> None:
    scheduler = EarlyStopping(Median(min_trials=3), grace=10, total=100)
    scores = {"a": 0.8, "b": 0.8, "c": 0.8, "d": 0.3}
    assert play(scheduler, scores, seen=20, batches={}) == {"d"}


def test_what_another_attempt_reports_again_counts_once() -> None:
    scheduler = EarlyStopping(Median(min_trials=3), grace=10, total=100)
    trial = Played("a")
    scheduler.on_trial_add(None, trial)
    for seen in (20, 40, 20, 40, 60):  # its worker was lost after 40 images
        result = {"score": 0.8, "examples_seen": seen}
        assert scheduler.on_trial_result(Waiting(), trial, result) == "CONTINUE"
    (reported,) = scheduler.inner[0]._results.values()
    assert [result["examples_seen"] for result in reported] == [20, 40, 60]


class Waiting:
    """A controller with a trial that waits for its turn."""

    def get_live_trials(self) -> list[Any]:
        return [SimpleNamespace(status="PENDING")]


def test_median_never_pauses_where_the_stock_rule_does() -> None:
    stock = MedianStoppingRule(
        time_attr="examples_seen", metric="score", mode="max", grace_period=10
    )
    result = {"score": 0.5, "examples_seen": 20}
    assert stock.on_trial_result(Waiting(), Played("a"), result) == "PAUSE"
    ours = EarlyStopping(Median(), grace=10, total=100)
    assert ours.on_trial_result(Waiting(), Played("a"), result) == "CONTINUE"


@pytest.mark.parametrize("stop", [Asha(), HyperBand(), Median(min_trials=3)])
def test_a_later_command_compares_with_the_trials_of_an_earlier_one(stop: Any) -> None:
    np.random.seed(0)  # Ray draws each trial's bracket from the global generator
    seen = [12, 40, 100]
    fresh = EarlyStopping(stop, grace=11, total=100)
    learned = EarlyStopping(stop, grace=11, total=100)
    for i in range(60):
        rows = [{"score": 0.8 + i / 1000, "examples_seen": n} for n in seen]
        config = {"batch_size": 16, "total_images": 100}
        learned.learn(f"past{i}", config, rows, status="stopped")
    alone = Played("alone")
    fresh.on_trial_add(None, alone)
    worse = {"score": 0.3, "examples_seen": 40}
    assert fresh.on_trial_result(Waiting(), alone, worse) == "CONTINUE"
    verdicts: dict[float, set[str]] = {}
    for i in range(60):
        trial = Played(f"worse{i}")
        learned.on_trial_add(None, trial)
        verdict = learned.on_trial_result(Waiting(), trial, worse)
        verdicts.setdefault(first_rung_of(learned, trial), set()).add(verdict)
    # At 40 images the brackets that begin at 11 and 33 compare, the one at 99 does not yet.
    later = {33: {"STOP"}, 99: {"CONTINUE"}} if isinstance(stop, HyperBand) else {}
    assert verdicts == {11: {"STOP"}, **later}


def first_rung_of(scheduler: EarlyStopping, trial: Played) -> float:
    """Where a trial is first compared."""
    if isinstance(scheduler.stop, Median):
        return scheduler.grace
    milestone: float = scheduler.inner[0]._trial_info[trial.trial_id]._rungs[-1][0]
    return milestone


@pytest.mark.parametrize(
    ("total", "firsts"), [(89, [10, 30]), (90, [10, 30, 90]), (91, [10, 30, 90])]
)
def test_hyperband_spreads_trials_over_brackets_that_begin_ever_later(
    total: int, firsts: list[float]
) -> None:
    np.random.seed(0)
    scheduler = EarlyStopping(HyperBand(reduction_factor=3), grace=10, total=total)
    scores = {f"t{i}": 0.9 - (i * 7 % 40) / 100 for i in range(40)}
    stopped = play(scheduler, scores, seen=10, batches={})
    begins = {name: first_rung_of(scheduler, Played(name)) for name in scores}
    assert sorted(set(begins.values())) == firsts
    # A trial of the first bracket stops where it is below the upper third of those before it
    # (Li et al. 2020, algorithm 2); the other brackets compare no one yet.
    before: list[float] = []
    expected = set()
    for name, score in scores.items():
        if begins[name] == 10:
            if before and score < np.percentile(before, 100 * (1 - 1 / 3)):
                expected.add(name)
            before.append(score)
    assert stopped == set(scheduler.reasons) == expected
    assert 0 < len(expected) < len(before) < 40


def test_a_last_bracket_is_not_lost_to_rounding() -> None:
    assert math.log(243) / math.log(3) < 5  # 4.999999999999999
    scheduler = EarlyStopping(HyperBand(reduction_factor=3), grace=10, total=2430)
    scheduler.on_trial_add(None, Played("a"))
    assert len(scheduler.inner[0]._brackets) == 6  # first rungs at 10, 30, 90, 270, 810 and 2430


def test_bohb_is_tpe_with_hyperband(tmp_path: Path) -> None:
    declared = study(explore=Optuna(num_configs=4, sampler="tpe"), stop=HyperBand())
    assert scheduler_of(declared, train_images=320) is not None
    ours = ByHand(declared, tmp_path)
    ours.suggest("a")
    ours.end("a", status="stopped", val_auroc=0.6, examples_seen=320)
    (told,) = ours.told
    assert told.state == TrialState.PRUNED
    assert told.intermediate_values == {320: 0.6}  # what TPE models by length


def test_what_has_ended_by_itself_is_not_stopped() -> None:
    scheduler = EarlyStopping(Asha(), grace=10, total=100)
    result = {"trial_row/status": "failed", "score": 0.0, "examples_seen": 10}
    assert scheduler.on_trial_result(None, Played("a"), result) == "CONTINUE"


# --- the dashboard ------------------------------------------------------------------------------


def test_optuna_dashboard_opens_the_journal(tmp_path: Path) -> None:
    ours = ByHand(study(), tmp_path)
    ours.suggest("a")
    ours.end("a", status="completed", val_auroc=0.75)
    assert ours.values() == [0.75]
    dashboard = Path(sys.executable).parent / "optuna-dashboard"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [dashboard, str(tmp_path / JOURNAL), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
                    studies = json.load(answer)["study_summaries"]
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.3)
        assert [s["study_name"] for s in studies] == ["s"]
        url = f"http://127.0.0.1:{port}/api/studies/{studies[0]['study_id']}"
        with urllib.request.urlopen(url) as answer:
            (trial,) = json.load(answer)["trials"]
        assert (trial["state"], trial["values"]) == ("Complete", [0.75])
    finally:
        server.terminate()
        server.wait(timeout=10)
