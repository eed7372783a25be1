"""The preview of cost: its arithmetic against brute force, its record against a run."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from commands import SMALL, SPACES, Run
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from rich.console import Console

from search.execution.cost_estimate import (
    Share,
    estimate,
    kind_of,
    kinds_of,
    most_similar,
    num_evaluations,
    rungs_of,
    trained_share,
    trial_cost_s,
)
from search.execution.dry_run import FILE, Plan, _shares, compare_estimate
from search.execution.preflight import Ready
from search.explore import Optuna, Pbt
from search.results import tables
from search.results.tables import Results
from search.study.explorer import PlannedTrial, Tables
from search.study.shown import duration
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.evaluation import Evaluation
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.probe import Measured
from trainable.training.noise import NoiseSums
from trainable.training.step import Step
from trainable.trial import Trial

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)


def measured(**changes: Any) -> Measured:
    same = {"images_per_s": 100.0, "train_images": 640, "eval_s": 0.5, "test_s": 2.0}
    more = {"start_s": 1.0, "save_s": 0.1, "checkpoint_bytes": 10, "weights_bytes": 5}
    return Measured(**(same | more | {"device": "d"} | changes))


@pytest.mark.parametrize(
    "change",
    [{"base_lr": 0.5}, {"momentum": 0.1}, {"seed": 3}, {"until_share": 0.5, "begins_from": "k"}],
)
def test_what_leaves_the_speed_as_it_is_makes_no_kind(change: dict[str, Any]) -> None:
    assert kind_of(replace(BASE, **change)) == kind_of(BASE)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 32}, {"augment": "none"}, {"precision": "fp32"}, {"mixup_alpha": 0.2}],
)
def test_what_changes_the_speed_makes_a_kind(change: dict[str, Any]) -> None:
    assert kind_of(replace(BASE, **change)) != kind_of(BASE)
    assert kind_of(replace(BASE, mixup_alpha=0.2)) == kind_of(replace(BASE, mixup_alpha=0.4))


def test_a_cut_of_the_kinds_leaves_no_network_and_no_batch_size_out() -> None:
    cells = [(m, b) for m in ("plain", "residual") for b in (16, 32, 64)]
    shares = [
        Share(replace(BASE, model=model, batch_size=batch, width=width), width / 100)
        for model, batch in cells
        for width in range(10, 40)
    ]
    kinds = list(kinds_of(shares).values())
    assert len(kinds) == len(shares)
    assert {c.model for c in kinds[:2]} == {"plain", "residual"}
    assert {(c.model, c.batch_size) for c in kinds[:6]} == set(cells)
    assert {c.width for c in kinds[:6]} == {39}  # the one that is trained most


def test_states_are_saved_on_a_clock_and_at_the_end() -> None:
    config = replace(BASE, epochs=50)
    timed = replace(measured(), save_s=100.0)
    train_s, every = trial_cost_s(config, timed)
    none_s = trial_cost_s(config, replace(timed, save_s=0.0))[1]
    assert every - none_s == pytest.approx(50 * 100.0)

    def saved(every_s: float) -> float:
        return (trial_cost_s(config, timed, checkpoint_every_s=every_s)[1] - none_s) / 100.0

    assert saved(2 * train_s) == pytest.approx(1)
    assert saved(train_s / 3.5) == pytest.approx(4)
    assert saved(train_s / 1000) == pytest.approx(50)  # no more often than it is evaluated


def test_a_kind_that_is_not_timed_counts_as_its_nearest() -> None:
    timed = [
        kind_of(replace(BASE, **change))
        for change in (
            {"batch_size": 16},
            {"batch_size": 128},
            {"batch_size": 100, "precision": "fp32"},
        )
    ]
    assert most_similar(kind_of(replace(BASE, batch_size=100)), timed) == timed[1]
    assert most_similar(kind_of(replace(BASE, batch_size=20)), timed) == timed[0]
    other = kind_of(replace(BASE, batch_size=16, precision="fp32"))
    assert most_similar(other, timed) == timed[2]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"epochs": 5, "eval_epochs": 2},
        {"epochs": None, "updates": 11},
        {"epochs": None, "updates": 12, "eval_updates": 4},
        {"epochs": None, "updates": 13, "eval_updates": 4},
        {"epochs": None, "examples": 200},
        {"epochs": 4, "decay": "batch_growth", "num_steps": 1, "step_factor": 0.5},
    ],
)
def test_evaluations_are_as_many_as_a_trial_makes(
    change: dict[str, Any], tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    config = replace(tiny_config, warmup_epochs=0.0, **change)
    results_of = list(finetune(config, data=tiny_data))
    images = len(tiny_data.train.labels_N)
    total = results_of[-1].examples_seen
    assert num_evaluations(config, train_images=images, total_images=total) == len(results_of)


def test_a_trials_cost_by_hand() -> None:
    config = replace(BASE, batch_size=64, epochs=4, eval_epochs=2)
    training_s, beside_s = trial_cost_s(config, measured())
    assert training_s == pytest.approx(4 * 640 / 100 + 2 * 0.5)
    assert beside_s == pytest.approx(1.0 + 2.0 + 2 * 0.1)
    timed_s, _ = trial_cost_s(replace(BASE, epochs=None, seconds=32.0, batch_size=64), measured())
    assert timed_s == pytest.approx(32.0 + 5 * 0.5)  # 3,200 images are five epochs


def test_the_sum_over_shares_slots_and_gpus() -> None:
    config = replace(BASE, batch_size=64, epochs=1)
    one = 640 / 100 + 0.5
    other = 1.0 + 2.0 + 0.1
    total = estimate(
        [Share(config, 2.0), Share(config, 0.5)],
        {kind_of(config): measured()},
        num_trials=3,
        num_slots=2,
        num_at_once=3,
        gpu_share=0.5,
        worker_start_s=7.0,
        keep_weights=True,
    )
    assert total.train_s == pytest.approx(2.5 * one)
    assert total.other_s == pytest.approx(2.5 * other)
    assert total.wall_s == pytest.approx(7.0 + 2 * 2.5 * (one + other) / 3)
    assert total.gpu_hours == pytest.approx(2.5 * (one + other) * 0.5 / 3600)
    assert total.disk_bytes == pytest.approx(3 * 25_000 + 2 * 3 * 10 + 2.5 * 5)
    assert total.kept_disk_bytes == pytest.approx(3 * 25_000 + 2.5 * 5)
    assert total.saved_share == 0


@pytest.mark.parametrize(("grace", "factor"), [(100, 3), (111, 3), (250, 4), (500, 2), (900, 3)])
def test_rungs_are_rays(grace: int, factor: int) -> None:
    scheduler = AsyncHyperBandScheduler(
        time_attr="t", metric="m", mode="max", max_t=1000, grace_period=grace,
        reduction_factor=factor, stop_last_trials=False,
    )  # fmt: skip
    of_ray = sorted(at / 1000 for at, _ in scheduler._brackets[0]._rungs if at < 1000)
    assert rungs_of(grace=grace, total=1000, factor=factor) == pytest.approx(of_ray)


@pytest.mark.parametrize("num_trials", [1, 2, 7, 9, 27, 40, 81])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_what_stopping_leaves_is_what_halving_trains(num_trials: int, factor: int) -> None:
    """Unit by unit: whoever is not among the best at a rung trains no further."""
    budget, grace = 720, 80
    rungs = rungs_of(grace=grace, total=budget, factor=factor)
    scores = {trial: random.Random(trial).random() for trial in range(num_trials)}
    alive, trained, at = list(scores), 0, grace
    for unit in range(1, budget + 1):
        trained += len(alive)
        if unit == at:
            kept = max(1, len(alive) // factor)
            alive = sorted(alive, key=scores.__getitem__, reverse=True)[:kept]
            at *= factor
    expected = trained / (num_trials * budget)
    assert trained_share(num_trials, rungs, factor=factor) == pytest.approx(expected)


def test_stopping_by_batch_size_weighs_each_group_by_its_time() -> None:
    slow, fast = replace(BASE, batch_size=16), replace(BASE, batch_size=64)
    shares = [Share(slow)] * 3 + [Share(fast)] * 9
    timed = {kind_of(slow): measured(images_per_s=10.0), kind_of(fast): measured()}
    slow_s, fast_s = (trial_cost_s(c, timed[kind_of(c)])[0] for c in (slow, fast))
    rungs = [1 / 9, 1 / 3]
    total = estimate(
        shares, timed, num_trials=12, num_slots=1, num_at_once=1, gpu_share=0.0, worker_start_s=0.0,
        keep_weights=False, rungs=rungs, factor=3.0, by_batch_size=True,
    )  # fmt: skip
    left = [trained_share(n, rungs, factor=3.0) for n in (3, 9)]
    saved_s = 3 * slow_s * (1 - left[0]) + 9 * fast_s * (1 - left[1])
    assert total.saved_share == pytest.approx(saved_s / (3 * slow_s + 9 * fast_s))


def searched(**explore: Any) -> Study:
    vary = {"batch_size": tune.choice([16, 32, 64]), "base_lr": tune.loguniform(0.01, 1.0)}
    vary = {} if "space" in explore else vary
    return Study(name="s", base=BASE, vary=vary, seeds=2, explore=Optuna(num_configs=10, **explore))


def still_to_train(
    study: Study, *, num_later: int, asked: Sequence[PlannedTrial] = ()
) -> list[Share]:
    """What a dry run prices of a search whose trials so far have all ended."""
    results = Results("s", Folder("/r/s"))
    known = Tables(data_fingerprint="d", folder=results.folder, asked=list(asked))
    ready = Ready(
        study=study,
        data=None,
        data_folder=None,
        data_fingerprint="d",
        train_images=100,
        results=results,
    )
    return _shares(ready, known, Plan(asked=asked, todo=[], num_later=num_later), {})


def test_draws_stand_for_what_is_left_and_points_for_themselves() -> None:
    point = {"batch_size": 64, "base_lr": 0.123}
    study = searched(points=[point, point | {"base_lr": 0.5}])
    tried = replace(BASE, batch_size=64, base_lr=0.123)
    asked = [PlannedTrial(f"k{seed}", replace(tried, seed=seed)) for seed in (0, 1)]
    shares = still_to_train(study, num_later=18, asked=asked)
    assert sum(share.count for share in shares) == pytest.approx(9 * 2)
    counts = {share.config.base_lr: 0.0 for share in shares}
    for share in shares:
        counts[share.config.base_lr] += share.count
    assert counts[0.5] == pytest.approx(2.0)
    assert 0.123 not in counts
    drawn = [share for share in shares if share.config.base_lr != 0.5]
    assert {share.config.batch_size for share in drawn} == {16, 32, 64}
    assert len({share.config.base_lr for share in drawn}) > 100  # for eight that are to come


def test_a_population_draws_its_later_generations() -> None:
    study = replace(searched(), explore=Pbt(size=4, generations=5))
    shares = still_to_train(study, num_later=4 * 4 * 2)  # the first generation is planned
    assert sum(share.count for share in shares) == pytest.approx(4 * 4 * 2 / 5)
    assert {share.config.batch_size for share in shares} == {16, 32, 64}


def test_draws_of_a_function_reach_every_branch() -> None:
    def space(trial: Any) -> dict[str, object]:
        model = trial.suggest_categorical("model", ["plain", "residual"])
        if model == "residual":
            return {"model": model, "batch_size": trial.suggest_categorical("b", [8, 128])}
        return {"model": model, "batch_size": 32}

    kinds = {
        (share.config.model, share.config.batch_size)
        for share in still_to_train(searched(space=space), num_later=20)
    }
    assert kinds == {("plain", 32), ("residual", 8), ("residual", 128)}


def test_a_draw_that_cannot_be_is_named() -> None:
    study = searched(space=lambda trial: {"base_lr": -trial.suggest_float("lr", 1, 2)})
    with pytest.raises(SpaceFileError, match=r"the search may choose .*base_lr must be > 0"):
        still_to_train(study, num_later=20)


def test_what_is_timed_is_what_a_trial_takes(
    tiny_config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only work moves: an image trained is a second, one evaluated a quarter."""
    from trainable import probe
    from trainable.host import device

    now_s = 0.0

    def work(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    clock = SimpleNamespace(perf_counter=lambda: now_s)
    monkeypatch.setattr(device, "time", clock)
    update, evaluate, measure = Step.update, Evaluation.evaluate, Evaluation.measure_noise

    def timed_update(self: Step, inputs: Any, labels: Any, lr: float) -> Any:
        work(len(labels))
        return update(self, inputs, labels, lr)

    def timed_evaluate(self: Evaluation, split: Any) -> Any:
        work(len(split) / 4)
        return evaluate(self, split)

    def timed_noise(self: Evaluation, number: int) -> NoiseSums:
        work(64)  # of 96 training images, the least that noise is measured on
        return measure(self, number)

    monkeypatch.setattr(Step, "update", timed_update)
    monkeypatch.setattr(Evaluation, "evaluate", timed_evaluate)
    monkeypatch.setattr(Evaluation, "measure_noise", timed_noise)
    config = replace(tiny_config, width=4, epochs=3)
    timed = probe.probe(config, tiny_data, num_threads=1)
    training_s, _ = trial_cost_s(config, timed)
    assert training_s == pytest.approx(3 * (96 + 32 / 4 + 64))
    assert timed.test_s == pytest.approx(32 / 4)
    assert timed.train_images == 96
    taken_s = sum(result.epoch_wall_s for result in finetune(config, data=tiny_data))
    assert taken_s == pytest.approx(training_s)


def test_a_part_of_a_large_split_stands_for_it(
    tiny_config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainable import feed, probe

    monkeypatch.setattr(feed, "INFERENCE_BATCH", {"cpu": 8})
    monkeypatch.setattr(probe, "LEAST_S", 0.0)
    seen = []

    def evaluate(self: Evaluation, split: Any) -> None:
        seen.append(len(split))

    monkeypatch.setattr(Evaluation, "evaluate", evaluate)
    ticks = iter(range(100))
    monkeypatch.setattr(probe, "device_time_s", lambda device: float(next(ticks)))
    trial = Trial(tiny_config, tiny_data, probe.pick_device(), None)
    assert probe._evaluation_s(trial) == pytest.approx(32 / 8)  # a second for 8 of 32 images
    assert seen == [8, 8]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (12.4, "12 s"), (59.7, "1 m 00 s"), (190, "3 m 10 s"), (3725, "1 h 02 m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def compared(folder: Path, record: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    opened = tables.open_results(str(folder), "s")
    (folder / "s" / FILE).write_text(json.dumps(record))
    planned = [PlannedTrial(row["trial_key"], BASE) for row in rows]
    console = Console(record=True, width=200)
    compare_estimate(console, opened, planned, pd.DataFrame(rows))
    return console.export_text()


def test_only_what_was_to_run_is_compared_and_once(tmp_path: Path) -> None:
    record = {"to_run": ["b", "c"], "done": ["a"], "num_later": 0, "num_trials": 2}
    record |= {"train_s": 190.0, "train_s_before": 30.0}
    seconds = {"a": 1000.0, "b": 120.0, "c": 80.0}
    same = {"status": "completed", "until_share": 1.0}
    rows = [{"trial_key": k, "train_wall_s": seconds[k], **same} for k in seconds]
    said = compared(tmp_path, record, rows)
    assert said == ("the estimate was 12 % too high: 3 m 10 s of training, 2 m 50 s measured\n")
    written = json.loads((tmp_path / "s" / FILE).read_text())
    assert written["measured_train_s"] == 170.0
    assert written["estimate_over_measured"] == pytest.approx(190 / 170)
    assert compared(tmp_path, written, rows) == ""
    assert compared(tmp_path, record, rows[:2]) == ""  # c is not planned any more
    rows[2]["status"] = "interrupted"
    assert compared(tmp_path, record, rows) == ""
    rows[2]["status"] = "stopped"
    assert "1 of 2 trials ended before their budget" in compared(tmp_path, record, rows)
    # What a search chose later is all that was not done then.
    later = record | {"to_run": [], "num_later": 2}
    assert "12 % too high" in compared(tmp_path, later, rows)
    assert math.isclose(written["train_s"], 190.0)


@pytest.mark.ray
def test_a_dry_run_then_a_run_leaves_the_record(tmp_path: Path, run_joined: Run) -> None:
    dry = run_joined(SMALL, tmp_path, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "0 done, 4 to run (dry run: nothing was trained)" in dry.stdout
    before = json.loads((tmp_path / "small" / FILE).read_text())
    assert len(before["to_run"]) == 4
    assert {kind["batch_size"] for kind in before["kinds"]} == {32, 64}
    assert before["train_s"] > 0
    assert before["wall_s"] > before["train_s"] / before["num_slots"]
    assert "in packs" not in dry.stdout
    done = run_joined(SMALL, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = pd.read_parquet(tmp_path / "small" / "trials").set_index("trial_key")
    after = json.loads((tmp_path / "small" / FILE).read_text())
    assert after["measured_train_s"] == pytest.approx(
        trials.loc[before["to_run"], "train_wall_s"].sum()
    )
    assert any(line.startswith("the estimate was ") for line in done.stdout.splitlines())


@pytest.mark.ray
def test_a_search_is_timed_at_every_batch_size(tmp_path: Path, run_joined: Run) -> None:
    dry = run_joined(SPACES / "searched.py", tmp_path, "--dry-run", "--set", "pack=2")
    assert dry.returncode == 0, dry.stderr
    assert "every trial is timed alone: in packs they take less" in dry.stdout
    assert "0 done, 8 to run" in dry.stdout
    assert "plain at batch 32:" in dry.stdout
    assert "plain at batch 64:" in dry.stdout
    assert "of the training saved by stopping" in dry.stdout
    record = json.loads((tmp_path / "searched" / FILE).read_text())
    assert (record["num_trials"], record["num_later"]) == (8, 8)
    assert not (tmp_path / "searched" / "optuna.journal").exists()
