"""Every choice that is declared can be made: samplers, objectives, explorers, stoppers, retries.

Each test goes through the declaration itself, so that a choice that is added later is tried too.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from helpers import batches_of, no_tables, ready_of
from optuna.trial import TrialState
from ray import tune

from search import explore
from search.execution.queue import Queue
from search.execution.schedulers import scheduler_of
from search.explore import Leaders, Optuna
from search.explore.ask import ask, total
from search.explore.journal import Journal, distribution_of, sampler_of
from search.explore.optuna import OBJECTIVES, SAMPLERS
from search.results.tables import STATUSES, TRIALS, ending_of, open_results
from search.session import RETRIES, known_trials
from search.study.domains import draw, perturbed, probes
from search.study.explorer import PlannedTrial
from search.study.study import Study
from trainable.config import SCORES, SCORES_OF, TrialConfig
from trainable.record import WORST

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
# CMA-ES takes two numbers at least, and leaves choices to random draws.
NUMBERS = {
    "batch_size": tune.randint(8, 65),
    "base_lr": tune.loguniform(1e-3, 1.0),
    "momentum": tune.uniform(0.5, 0.99),
    "augment": tune.choice(["none", "hflip"]),
}
ORDERED = {name: domain for name, domain in NUMBERS.items() if name != "augment"}
NEED = {"nsga2": {"objectives": ["train_wall_s"]}}  # what a sampler is for
NUM_CONFIGS = 12  # TPE and GP draw the first ten at random


class Search:
    """A study's queue as Ray drives it, one trial after the other; its recorder is the test."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.tables = no_tables(folder)
        self.sent: list[PlannedTrial] = []
        first = ask(study, self.tables, 0)
        self.queue = Queue(study, self.tables, first, send=self._send, slots=lambda: 1)

    def _send(self, planned: Sequence[PlannedTrial]) -> dict[str, Any]:
        self.sent += planned
        return {"key": planned[0].key}

    def suggest(self, trial_id: str) -> TrialConfig | None:
        if self.queue.suggest(trial_id) == "FINISHED":
            return None
        return self.sent[-1].config

    def end(self, trial_id: str, **row: Any) -> None:
        key = self.queue.under_way[trial_id][0]
        self.tables.ended[key] = ending_of(row, metric=self.study.metric)
        self.queue.on_trial_complete(trial_id)

    @property
    def journal(self) -> Journal:
        """What the search knows once it was told of all that ended; it chooses nothing."""
        explore = self.study.explore
        if "journal" not in self.tables.memory:
            began = Journal(self.study, explore, self.tables.folder, data_fingerprint="d")  # type: ignore[arg-type]
            self.tables.memory["journal"] = began
        explore.next(self.study, self.tables, 0)
        journal: Journal = self.tables.memory["journal"]
        return journal

    def told(self) -> list[optuna.trial.FrozenTrial]:
        return self.journal.optuna.get_trials()


def declared(sampler: str = "random", **changes: Any) -> Study:
    asked = Optuna(num_configs=NUM_CONFIGS, sampler=sampler, **NEED.get(sampler, {}))
    return Study(**({"name": "s", "base": BASE, "vary": NUMBERS, "explore": asked} | changes))


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_every_sampler_suggests_and_is_told(sampler: str, tmp_path: Path) -> None:
    ours = Search(declared(sampler), tmp_path)
    name = sampler.replace("nsga2", "nsgaii")
    assert type(ours.journal.optuna.sampler).__name__.lower() == f"{name}sampler"
    configs = []
    for i in range(NUM_CONFIGS):
        config = ours.suggest(f"t{i}")
        assert config is not None
        assert 8 <= config.batch_size <= 64
        assert 1e-3 <= config.base_lr <= 1.0
        assert 0.5 <= config.momentum <= 0.99
        configs.append(config)
        ended = {"status": "completed", "train_wall_s": float(i)}
        ours.end(f"t{i}", val_auroc=0.9 - abs(config.base_lr - 0.1), **ended)
    assert ours.suggest("more") is None
    assert len(set(configs)) == NUM_CONFIGS
    assert [t.state for t in ours.told()] == [TrialState.COMPLETE] * NUM_CONFIGS
    for config, trial in zip(configs, ours.told(), strict=True):
        assert trial.values[0] == pytest.approx(0.9 - abs(config.base_lr - 0.1))


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_every_sampler_draws_by_the_studys_seed(sampler: str) -> None:
    def drawn(seed: int, *, asked: int = 0) -> list[float]:
        given = Optuna(num_configs=9, sampler=sampler, sampling_seed=seed)
        ours = optuna.create_study(sampler=sampler_of(given, sampler, asked=asked))
        return [ours.ask().suggest_float("x", 0.0, 1.0) for _ in range(2)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(3, asked=2) not in (drawn(3), drawn(3)[::-1])  # a later command draws others


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"vary": ORDERED}, "gp"),
        ({"vary": ORDERED, "explore": Optuna(num_configs=200)}, "gp"),
        ({"vary": ORDERED, "explore": Optuna(num_configs=201)}, "tpe"),  # it would take too long
        ({"vary": ORDERED, "stop": explore.Asha()}, "tpe"),  # learns from stopped trials
        ({"vary": NUMBERS}, "tpe"),  # of augmentations none is between two others
        (
            {"vary": ORDERED, "explore": Optuna(num_configs=9, objectives=["train_wall_s"])},
            "tpe",
        ),
        ({"vary": ORDERED, "explore": Optuna(num_configs=9, sampler="cmaes")}, "cmaes"),
    ],
)
def test_the_sampler_that_fits_is_chosen(
    changes: dict[str, Any], name: str, tmp_path: Path
) -> None:
    made = Search(declared("auto", **changes), tmp_path).journal.optuna.sampler
    assert type(made).__name__.lower() == f"{name}sampler"


def test_cmaes_draws_by_its_covariance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cmaes

    drawn = []
    ask = cmaes.CMA.ask
    monkeypatch.setattr(cmaes.CMA, "ask", lambda self: drawn.append(1) or ask(self))
    ours = Search(declared("cmaes"), tmp_path)
    for i in range(4):
        ours.suggest(f"t{i}")
        ours.end(f"t{i}", status="completed", val_auroc=0.5)
    assert len(drawn) == 3  # of the first alone there is nothing to learn


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_told_and_less_of_it_is_better(objective: str, tmp_path: Path) -> None:
    asked = Optuna(num_configs=3, sampler="nsga2", objectives=[objective])
    ours = Search(declared(explore=asked), tmp_path)
    assert objective in TRIALS.names
    for i, (score, cost) in enumerate([(0.9, 10.0), (0.8, 1.0), (0.7, 5.0)]):
        ours.suggest(f"t{i}")
        ours.end(f"t{i}", status="completed", val_auroc=score, **{objective: cost})
    best = {tuple(trial.values) for trial in ours.journal.optuna.best_trials}
    assert best == {(0.9, 10.0), (0.8, 1.0)}


# --- explorers ------------------------------------------------------------------------------------

GRID = {"batch_size": tune.grid_search([16, 32]), "base_lr": tune.grid_search([0.1, 0.2, 0.4])}
DRAWN = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}
# How each is declared, and how many trials it plans with two seeds before any has ended.
EXPLORERS: dict[type, tuple[dict[str, Any], dict[str, Any], int]] = {
    explore.Grid: ({}, GRID, 2 * 6),
    explore.Ablation: ({"steps": {"a": {}, "b": {"decay": "step"}}}, GRID, 2 * 2 * 6),
    explore.Variants: ({"each": {"few": {"epochs": 2}, "many": {"epochs": 4}}}, GRID, 2 * 2 * 6),
    explore.Branch: ({"at": 0.5}, GRID, 2 * 1),  # the trunk
    explore.Random: ({"num_configs": 5}, DRAWN, 2 * 5),
    explore.Optuna: ({"num_configs": 5}, DRAWN, 0),
    explore.Pbt: ({"size": 4, "generations": 3}, DRAWN, 2 * 4),
    explore.Ridge: ({"num_trials": 5}, DRAWN, 0),
}


def is_explorer(kind: type) -> bool:
    return all(callable(getattr(kind, name, None)) for name in ("next", "configs"))


def is_stopper(kind: type) -> bool:
    return hasattr(kind, "grace_share")


DECLARATIONS = [getattr(explore, name) for name in explore.__all__]
KINDS = [kind for kind in DECLARATIONS if is_explorer(kind)]
STOPPERS = [kind for kind in DECLARATIONS if is_stopper(kind)]


def test_what_a_space_file_can_name_is_an_explorer_a_stopper_or_leaders() -> None:
    assert set(filter(is_explorer, DECLARATIONS)) == set(EXPLORERS)
    assert set(filter(is_stopper, DECLARATIONS)) == {
        explore.Asha,
        explore.Forecast,
        explore.HyperBand,
        explore.Median,
    }
    others = [kind for kind in DECLARATIONS if not is_explorer(kind) and not is_stopper(kind)]
    assert others == [Leaders]


@pytest.mark.parametrize("kind", KINDS)
def test_every_explorer_plans_its_trials(kind: type, tmp_path: Path) -> None:
    given, vary, num_planned = EXPLORERS[kind]
    seeds = 1 if kind is explore.Ridge else 2  # it repeats trials itself
    study = Study(name="s", base=BASE, vary=vary, explore=kind(**given), seeds=seeds)
    known = no_tables(tmp_path)
    planned = ask(study, known, 0)
    assert len({trial.key for trial in planned}) == len(planned) == num_planned
    assert sorted({trial.config.seed for trial in planned}) == ([0, 1] if planned else [])
    assert study.configs  # a preflight checks at least one trial
    sizes = {kind: num_planned, explore.Optuna: 2 * 5, explore.Pbt: 2 * 4 * 3}
    sizes |= {explore.Branch: 2 * (1 + 6), explore.Ridge: 5}
    assert total(study, known) == sizes[kind]
    # Without a result nothing more is asked for; with all of them, what was announced.
    assert planned == [] or ask(study, known, 1) == []
    every = batches_of(study, lambda config: config.base_lr / 9, tables=no_tables(tmp_path))
    assert len({trial.key for batch in every for trial in batch}) == sizes[kind]
    if kind is explore.Pbt:
        assert [len(batch) for batch in every] == [num_planned] * 3


# --- stoppers -------------------------------------------------------------------------------------


class Played:
    """A trial as a scheduler sees it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.config = {"key": trial_id, "batch_size": 16, "total_images": 9 * 896, "whole": False}


@pytest.mark.parametrize("kind", [explore.Asha, explore.HyperBand, explore.Median])
def test_every_stopper_of_rays_ends_the_worse_and_lets_the_better_go_on(kind: type) -> None:
    # Ray draws each trial's bracket from the global generator. HyperBand's last bracket compares
    # nobody before the end; with this seed none of the three worst trials is in it.
    np.random.seed(2)
    study = Study(name="s", base=BASE, vary=GRID, stop=kind())
    scheduler = scheduler_of(study, train_images=896)
    assert scheduler is not None
    total = 9 * 896  # whole batches
    assert (scheduler.grace, scheduler.total) == (total // 9, total)
    controller = SimpleNamespace(get_live_trials=list)
    stopped: set[str] = set()
    scores = {f"t{i:02}": 0.9 - i / 100 for i in range(30)}
    for seen in range(896, total + 1, 896):
        for name, score in scores.items():
            trial = Played(name)
            if seen == 896:
                scheduler.on_trial_add(controller, trial)
            result = {"score": score, "examples_seen": seen, "training_iteration": seen // 896}
            if name in stopped:
                continue
            if scheduler.on_trial_result(controller, trial, result) == "STOP":
                stopped.add(name)
                scheduler.on_trial_complete(controller, trial, result)
    assert "t00" not in stopped  # at the end of its budget too
    assert {"t27", "t28", "t29"} <= stopped
    word = kind.__name__.lower()
    assert set(scheduler.reasons) == stopped
    assert all(reason.startswith(f"{word} at ") for reason in scheduler.reasons.values())
    assert scheduler.debug_string() == f"{kind.__name__}: {len(stopped)} stopped"


@pytest.mark.parametrize("kind", [explore.Asha, explore.HyperBand])
def test_a_trial_at_the_end_of_its_budget_ends_by_itself(kind: type) -> None:
    study = Study(name="s", base=BASE, vary=GRID, stop=kind())
    scheduler = scheduler_of(study, train_images=896)
    assert scheduler is not None
    trial = Played("alone")
    scheduler.on_trial_add(None, trial)
    for seen in (896, 3 * 896, 9 * 896, 9 * 896 + 1):
        result = {"score": 0.5, "examples_seen": seen}
        assert scheduler.on_trial_result(None, trial, result) == "CONTINUE"


# --- what is tried again --------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [None, *RETRIES])
@pytest.mark.parametrize("status", STATUSES)
def test_every_retry_takes_the_endings_that_it_names(
    status: str, retry: str | None, tmp_path: Path
) -> None:
    study = Study(name="s", base=BASE, vary=GRID)
    ready = ready_of(study, open_results(str(tmp_path), "s"))
    (trial, *_) = ask(study, no_tables(), 1)
    row = dict.fromkeys(TRIALS.names) | {"trial_key": trial.key, "status": status}
    again = status == "interrupted" or retry == status
    again |= retry == "all" and status in ("failed", "diverged")
    known = known_trials(ready, pd.DataFrame([row]), retry=retry)
    assert set(known.ended) == (set() if again else {trial.key})


@pytest.mark.parametrize("metric", SCORES)
def test_every_metric_of_a_diverged_trial_is_told_as_the_worst(metric: str, tmp_path: Path) -> None:
    task = next(task for task, scores in SCORES_OF.items() if metric in scores)
    ours = Search(declared(metric=metric, base=replace(BASE, task=task)), tmp_path)
    for i, row in enumerate([{"status": "diverged"}, {"status": "completed", metric: 0.25}]):
        ours.suggest(f"t{i}")
        ours.end(f"t{i}", **row)
    diverged, completed = (trial.value for trial in ours.told())
    assert diverged == WORST[metric]
    assert completed == (-0.25 if metric == "val_loss" else 0.25)
    assert diverged < completed


# --- domains --------------------------------------------------------------------------------------

RANGES: dict[str, Any] = {
    "randint": tune.randint(3, 7),
    "lograndint": tune.lograndint(3, 7),
    "qrandint": tune.qrandint(2, 8, 2),
    "unaligned qrandint": tune.qrandint(3, 11, 4),
    "qrandint in ones": tune.qrandint(3, 7, 1),
    "uniform": tune.uniform(0.25, 0.75),
    "quniform": tune.quniform(0.25, 0.75, 0.25),
    "loguniform": tune.loguniform(0.01, 1.0),
    "choice": tune.choice([1, 5, 9]),
}


@pytest.mark.parametrize("name", RANGES)
def test_optuna_and_pbt_stay_where_ray_draws(name: str) -> None:
    """Ray's own draws are the measure: a randint's upper end is not among them."""
    domain = RANGES[name]
    rng = np.random.RandomState(0)
    rays = [domain.sample(random_state=rng) for _ in range(400)]
    ours = distribution_of(domain)
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optunas = [asked.ask({"x": ours}).params["x"] for _ in range(400)]
    draws = [draw({"x": domain}, rng)["x"] for _ in range(400)]
    changed = rays[:1]
    for _ in range(400):
        changed.append(perturbed(domain, changed[-1], rng, resample=0.2))
    whole = "randint" in name or name in ("choice", "quniform")
    if whole:
        assert set(optunas) == set(rays) == set(draws)
        assert {round(value, 9) for value in changed} <= set(rays)
        assert {min(probes(domain)), max(probes(domain))} == {min(rays), max(rays)}
    else:
        low, high = domain.lower, domain.upper
        assert all(low <= value <= high for value in [*optunas, *draws, *changed])
        assert probes(domain) == [low, high]
        spread = np.log if name == "loguniform" else np.asarray
        for values in (optunas, draws):  # half of the draws lie in the lower half
            middle = (spread(low) + spread(high)) / 2
            assert np.mean(spread(values) < middle) == pytest.approx(0.5, abs=0.1)
    kinds = {type(value) for value in [*optunas, *draws, *changed[1:]]}
    assert kinds <= {int, float}


@pytest.mark.parametrize("domain", [tune.qloguniform(0.1, 1.0, 0.1), tune.qlograndint(2, 8, 2)])
def test_steps_in_a_logarithm_are_refused_before_optuna_does(domain: Any) -> None:
    field = "base_lr" if domain.upper == 1.0 else "batch_size"
    with pytest.raises(ValueError, match="Optuna takes a range in steps or in its logarithm"):
        declared(vary={field: domain})
    drawn = declared(vary={field: domain}, explore=explore.Random(num_configs=2))
    assert len(ask(drawn, no_tables(), 1)) == 2


def test_a_warm_start_takes_a_range_to_its_ends(tmp_path: Path) -> None:
    """And where less is better, the least is the best."""
    rows = [
        {"batch_size": size, "status": "completed", "val_loss": size / 10} for size in range(2, 9)
    ]
    rows += [{"batch_size": 5, "status": "completed", "val_loss": 0.7}]  # another seed of it
    rows += [{"batch_size": 5, "status": "diverged", "val_loss": 9.0}]
    (tmp_path / "past" / "trials").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(tmp_path / "past" / "trials" / "all.parquet")
    asked = Optuna(num_configs=2, warm_start=str(tmp_path / "past"))
    vary = {"batch_size": tune.randint(3, 7)}
    ours = Search(declared(vary=vary, explore=asked, metric="val_loss"), tmp_path)
    told = {trial.params["batch_size"]: trial.value for trial in ours.told()}
    assert told == pytest.approx({3: -0.3, 4: -0.4, 5: -(0.5 + 0.7) / 2, 6: -0.6})
    assert ours.journal.optuna.best_trial.params == {"batch_size": 3}
    assert all(t.user_attrs["warm_start"] == asked.warm_start for t in ours.told())
    assert (ours.tables.asked, ours.journal.num_chosen) == ([], 0)


def test_a_failed_trial_is_told_as_failed_and_not_as_the_worst(tmp_path: Path) -> None:
    ours = Search(declared(), tmp_path)
    ours.suggest("row")
    ours.end("row", status="failed", val_auroc=0.9)
    ours.suggest("lost worker")
    ours.end("lost worker", status="failed")
    assert [t.state for t in ours.told()] == [TrialState.FAIL] * 2
    assert [t.values for t in ours.told()] == [None] * 2


def test_a_trial_that_ended_without_a_row_is_not_told_of(tmp_path: Path) -> None:
    """Such as one of a command that was stopped: a later command goes on with it."""
    ours = Search(declared(), tmp_path)
    ours.suggest("nothing")
    ours.queue.on_trial_complete("nothing", None, error=True)
    assert [t.state for t in ours.told()] == [TrialState.RUNNING]
    later = Search(declared(), tmp_path)
    later.suggest("again")
    assert later.sent == ours.sent
    later.end("again", status="completed", val_auroc=0.75)
    assert [(t.state, t.value) for t in later.told()] == [(TrialState.COMPLETE, 0.75)]


def test_one_failed_seed_leaves_nothing_to_learn_and_a_diverged_one_counts(tmp_path: Path) -> None:
    ours = Search(declared(seeds=2), tmp_path)
    for i, status in enumerate(["failed", "diverged", "stopped"]):
        for j, ending in enumerate(["completed", status]):
            ours.suggest(f"{i}{j}")
            ours.end(f"{i}{j}", status=ending, val_auroc=0.8, examples_seen=640)
    failed, diverged, stopped = ours.told()
    assert (failed.state, failed.values) == (TrialState.FAIL, None)
    assert (diverged.state, diverged.value) == (TrialState.COMPLETE, pytest.approx(0.4))
    assert stopped.state == TrialState.PRUNED
    assert stopped.intermediate_values == {640: 0.8}
