"""What a study asks for, whichever way it explores: leaders, later commands, shared trials."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import batches_of, end, no_tables
from ray import tune
from rich.console import Console

from search.analysis.groups import exploration_of
from search.execution.dry_run import plan_of, print_plan
from search.execution.provenance import part_as_json
from search.execution.queue import Queue
from search.explore import Ablation, Grid, Leaders, Optuna, Pbt, Random, Variants
from search.explore.ask import ask, total
from search.explore.plan import combinations, num_asked, trials_of, values_of
from search.report.terminal import print_answer
from search.results import tables as results_tables
from search.results.tables import TRIALS
from search.study.explorer import PlannedTrial, Tables
from search.study.preview import as_preview
from search.study.settings import apply_settings
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
GRID = {"batch_size": tune.grid_search([16, 64]), "base_lr": tune.grid_search([0.1, 0.2, 0.4])}
DRAWN = {"batch_size": tune.choice([16, 64]), "base_lr": tune.loguniform(1e-3, 1.0)}
STEPS = {"a": {}, "b": {"decay": "step"}, "a again": {"decay": BASE.decay}}


@dataclass(frozen=True, kw_only=True)
class Halving:
    """An explorer of a user's own: each lr is half the last one, while that makes it better."""

    first_lr: float
    most: int = 6

    def domains(self, vary: Mapping[str, object]) -> dict[str, Any]:
        return values_of(vary)

    def check(self, study: Study) -> None:
        if "base_lr" in study.vary:
            raise ValueError("Halving chooses base_lr itself")

    def configs(self, study: Study) -> list[TrialConfig]:
        values = [{**combination, "base_lr": self.first_lr} for combination in self._others(study)]
        return [replace(study.base, **changes) for changes in values]

    def _others(self, study: Study) -> list[dict[str, Any]]:
        return combinations(study.vary)

    def examples(self, study: Study, tables: Tables, num: int) -> list[TrialConfig]:
        return []

    def total(self, study: Study, tables: Tables) -> int:
        return num_asked(study, tables)

    def next(self, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
        seeds = range(study.seeds)
        if not tables.asked:
            return trials_of(tables, self.configs(study), seeds=seeds)
        own = [trial for trial in tables.asked if trial.config.seed < study.seeds]
        lrs = sorted({trial.config.base_lr for trial in own})
        if any(trial.key not in tables.ended for trial in own) or len(lrs) == self.most:
            return []
        means = {
            lr: sum(tables.ended[t.key][study.metric] for t in own if t.config.base_lr == lr)
            for lr in lrs
        }
        if len(lrs) > 1 and means[lrs[0]] <= means[lrs[1]]:
            return []
        configs = [replace(config, base_lr=lrs[0] / 2) for config in self.configs(study)]
        return trials_of(tables, configs, seeds=seeds)


# Each way to explore, with what varies and how many trials it comes to, two seeds each.
EXPLORERS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "grid": (Grid(), GRID, 2 * 6),
    "wider and finer": (Grid(widen=1, refine=1), GRID, 2 * (6 + 2 * 2)),
    "random": (Random(num_configs=5), DRAWN, 2 * 5),
    "optuna": (Optuna(num_configs=5, sampler="random"), DRAWN, 2 * 5),
    "ablation": (Ablation(steps=STEPS), GRID, 2 * 2 * 6),
    "variants": (Variants(each={"few": {"epochs": 2}, "many": {}}), GRID, 2 * 2 * 6),
    "own": (Halving(first_lr=0.4), {"batch_size": GRID["batch_size"]}, 2 * 2 * 3),
}
LEADERS = Leaders(top=2, seeds=4)


def study(name: str, **changes: Any) -> Study:
    explore, vary, _ = EXPLORERS[name]
    return Study(**({"name": "s", "base": BASE, "vary": vary, "explore": explore} | changes))


def score(config: TrialConfig) -> float:
    """The best lr is 0.2, larger batches are better; later seeds are better than the first ones."""
    return 0.8 - abs(config.base_lr - 0.2) + config.batch_size / 1e4 + config.seed / 1e3


def keys(batches: list[list[PlannedTrial]]) -> list[str]:
    return [trial.key for batch in batches for trial in batch]


# --- leaders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLORERS)
def test_leaders_come_after_every_explorer(name: str, tmp_path: Path) -> None:
    declared = study(name, seeds=2, leaders=LEADERS)
    batches = batches_of(declared, score, tables=no_tables(tmp_path))
    own, more = batches[:-1], batches[-1]
    assert len(set(keys(own))) == EXPLORERS[name][2]
    assert {trial.config.seed for batch in own for trial in batch} == {0, 1}
    assert sorted(trial.config.seed for trial in more) == [2, 2, 3, 3]
    configs = {replace(trial.config, seed=0) for batch in own for trial in batch}
    best = sorted(configs, key=score, reverse=True)[:2]
    assert {replace(trial.config, seed=0) for trial in more} == set(best)
    (tmp_path / "b").mkdir()
    without = batches_of(replace(declared, leaders=None), score, tables=no_tables(tmp_path / "b"))
    assert [t.key for batch in without for t in batch] == keys(own)


@pytest.mark.parametrize("name", EXPLORERS)
def test_leaders_wait_while_a_trial_is_under_way(name: str, tmp_path: Path) -> None:
    declared = study(name, seeds=2, leaders=LEADERS)
    whole = no_tables(tmp_path)
    own = batches_of(declared, score, tables=whole)[:-1]
    last = own[-1][-1].key
    ended = {key: whole.ended[key] for key in keys(own) if key != last}
    known = replace(no_tables(tmp_path), ended=ended)
    for _ in range(2):
        ask(declared, known, 9)
        assert {trial.key for trial in known.asked} == set(keys(own))
    known.ended[last] = whole.ended[last]
    assert sorted(trial.config.seed for trial in ask(declared, known, 9)) == [2, 2, 3, 3]


def test_leaders_do_not_make_a_grid_widen_further() -> None:
    """Their seeds are worse at the best lr: with them another one, on the edge, would be best."""
    declared = study("wider and finer", explore=Grid(widen=2), leaders=Leaders(top=2, seeds=3))

    def worse(config: TrialConfig) -> float:
        return 0.0 if config.seed else score(config)

    batches = batches_of(declared, worse)
    assert [len(batch) for batch in batches] == [6, 4]
    assert {trial.config.base_lr for trial in batches[1]} == {0.2}


@pytest.mark.parametrize("ended_before_the_queue_knows", [False, True])
def test_leaders_wait_for_a_search_that_has_no_room(
    ended_before_the_queue_knows: bool, tmp_path: Path
) -> None:
    """All trials so far have ended, and the searcher is not yet told that a slot is free."""
    declared = study("optuna", leaders=Leaders(top=1, seeds=2))
    known = no_tables(tmp_path)
    sent: list[PlannedTrial] = []

    def send(trials: Sequence[PlannedTrial]) -> dict[str, Any]:
        sent.extend(trials)
        return {}

    queue = Queue(declared, known, ask(declared, known, 1), send=send, slots=lambda: 1)
    for number in range(5):
        queue.suggest(str(number))
        end(known, sent[-1:], declared, score)
        if ended_before_the_queue_knows and number < 4:
            assert queue.suggest("early") is None
        queue.on_trial_complete(str(number))
    assert [trial.config.seed for trial in sent] == [0] * 5
    queue.suggest("leader")
    assert sent[-1].config == replace(max((t.config for t in sent[:5]), key=score), seed=1)
    end(known, sent[-1:], declared, score)
    queue.on_trial_complete("leader")
    assert queue.suggest("more") == "FINISHED"
    assert queue.finished


# --- a later command ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EXPLORERS, "pbt"])
def test_a_command_where_all_has_ended_asks_for_the_same_and_runs_nothing(
    name: str, tmp_path: Path
) -> None:
    if name == "pbt":
        explore = Pbt(size=4, generations=3)
        declared = Study(name="s", base=BASE, vary=DRAWN, explore=explore, seeds=2)
    else:
        declared = study(name, seeds=2, leaders=LEADERS)
    first = no_tables(tmp_path)
    batches = batches_of(declared, score, tables=first)
    assert batches
    for room in (0, 1, 9):
        again = replace(no_tables(tmp_path), ended=dict(first.ended))
        asked = ask(declared, again, room)
        assert asked == again.asked == first.asked
        assert total(declared, again) == total(declared, first) == len(first.ended)
        assert ask(declared, again, room) == []


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_command_that_goes_on_comes_to_what_the_first_would_have(
    name: str, tmp_path: Path
) -> None:
    declared = study(name, seeds=2, leaders=LEADERS)
    whole = no_tables(tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    batches_of(declared, score, tables=whole)
    (tmp_path / "parts").mkdir()
    known = no_tables(tmp_path / "parts")
    for _ in range(len(whole.ended)):  # each command ends one trial
        known = replace(no_tables(tmp_path / "parts"), ended=dict(known.ended))
        waiting = [t for t in ask(declared, known, 1) if t.key not in known.ended]
        end(known, waiting[:1], declared, score)
    known = replace(no_tables(tmp_path / "parts"), ended=dict(known.ended))
    assert [t for t in ask(declared, known, 1) if t.key not in known.ended] == []
    if name != "optuna":  # whose later commands draw with seeds of their own
        assert set(known.ended) == set(whole.ended)
    assert len(known.ended) == len(whole.ended)


# --- a trial that two steps ask for ---------------------------------------------------------------


def test_a_trial_of_two_steps_is_trained_once_and_both_have_its_ending() -> None:
    declared = study("ablation", vary={}, seeds=2)
    known = no_tables()
    sent: list[PlannedTrial] = []

    def send(trials: Sequence[PlannedTrial]) -> dict[str, Any]:
        sent.extend(trials)
        return {"key": trials[0].key}

    queue = Queue(declared, known, ask(declared, known, 1), send=send, slots=lambda: 9)
    for name in "abcd":
        assert isinstance(queue.suggest(name), dict)
    assert queue.suggest("e") is None  # four are under way
    assert [(trial.step, trial.config.seed) for trial in sent] == [
        *(("a", 0), ("b", 0), ("a", 1), ("b", 1)),
    ]
    steps = [trial.step for trial in known.asked]
    assert steps == ["a", "b", "a again"] * 2
    assert total(declared, known) == 4
    end(known, sent, declared, lambda config: 0.5 + config.seed / 4 + (config.decay == "step") / 8)
    by_step: dict[str, list[float]] = {}
    for trial in known.asked:
        by_step.setdefault(trial.step, []).append(known.ended[trial.key]["val_auroc"])
    assert by_step == {"a": [0.5, 0.75], "b": [0.625, 0.875], "a again": [0.5, 0.75]}


def test_the_terminal_shows_a_shared_trial_in_both_steps(tmp_path: Path) -> None:
    declared = study("ablation", vary={}, seeds=2)
    known = no_tables()
    rows = []
    for trial in {trial.key: trial for trial in ask(declared, known, 1)}.values():
        auroc = 0.5 + trial.config.seed / 4 + (trial.config.decay == "step") / 8
        row = {"trial_key": trial.key, "seed": trial.config.seed, "dataset": "synthetic"}
        rows.append(row | {"status": "completed", "val_auroc": auroc, "test_auroc": auroc})
    console = Console(file=io.StringIO(), width=120)
    opened = results_tables.open_results(str(tmp_path), "s")
    table = pd.DataFrame(rows).reindex(columns=TRIALS.names)
    print_answer(console, declared, table, opened, known.asked)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 completed of 4 trials" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "a 0.6250 0.1768 2 - - 0.6250" in lines
    assert "b 0.7500 0.1768 2 +0.1250 0.0000 0.7500" in lines
    assert "a again 0.6250 0.1768 2 -0.1250 0.0000 0.6250" in lines


def test_a_dry_run_counts_a_shared_trial_once() -> None:
    declared = study("ablation", vary={}, seeds=2)
    known = no_tables()
    asked = ask(declared, known, 0)
    end(known, asked[:1], declared, score)
    plan = plan_of(declared, known, total=total(declared, known))
    console = Console(file=io.StringIO(), width=120)
    print_plan(console, declared, plan)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "s: 4 trials" in text
    assert "1 done, 3 to run" in text


# --- an explorer of a user's own ------------------------------------------------------------------


def test_an_explorer_of_a_users_own_works_as_any() -> None:
    declared = study("own")
    assert [config.base_lr for config in declared.configs] == [0.4, 0.4]
    batches = batches_of(declared, score)
    lrs = [{trial.config.base_lr for trial in batch} for batch in batches]
    assert lrs == [{0.4}, {0.2}, {0.1}]
    changed = apply_settings(declared, ["explore.first_lr=0.8", "explore.most=1"])
    assert changed.explore == Halving(first_lr=0.8, most=1)
    assert [len(batch) for batch in batches_of(changed, score)] == [2]
    with pytest.raises(SpaceFileError, match=r"did you mean 'explore\.first_lr'"):
        apply_settings(declared, ["explore.frist_lr=1"])
    preview = as_preview(declared, dataset="synthetic")
    assert (preview.explore, len(preview.configs)) == (declared.explore, 2)
    recorded = part_as_json(declared.explore)
    assert recorded == {"kind": "Halving", "first_lr": 0.4, "most": 6}
    about = {"explore": recorded, "vary": dict(declared.vary)}
    assert exploration_of(about).kind == "Halving"
    assert not exploration_of(about).is_search


def test_what_an_explorer_of_a_users_own_refuses_is_one_line() -> None:
    with pytest.raises(ValueError, match="Halving chooses base_lr itself"):
        study("own", vary=GRID)
    declared = study("own", explore=Halving(first_lr=5e-324))  # its half is zero
    with pytest.raises(SpaceFileError, match=r"^base_lr must be > 0, got 0\.0$"):
        batches_of(declared, score)
