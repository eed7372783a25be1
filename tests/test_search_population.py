"""Population based training: who is replaced by whom, and that a member's state is handed on."""

import itertools
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import SPACES, Run
from helpers import Score, batches_of, end, no_tables
from ray import tune

from search.analysis.leaderboard import lineage
from search.explore import Asha, Leaders, Pbt
from search.explore.ask import ask
from search.study.domains import perturbed
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.checkpoint import load
from trainable.config import TrialConfig, trial_key
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.record import EpochResult, TrialResult

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
VARY = {"batch_size": tune.choice([16, 32, 64]), "base_lr": tune.loguniform(1e-3, 1.0)}
PBT = Pbt(size=8, generations=3, quantile=0.25)


def study(**changes: Any) -> Study:
    return Study(**({"name": "s", "base": BASE, "vary": VARY, "explore": PBT} | changes))


def members(**changes: Any) -> tuple[Study, Tables, list[PlannedTrial]]:
    """A first generation, which has not ended."""
    declared, known = study(**changes), no_tables()
    return declared, known, list(ask(declared, known, 1))


def falling(first: list[PlannedTrial]) -> Score:
    """Scores that fall with a member's index."""
    scores = {trial.config: 0.9 - i / 100 for i, trial in enumerate(first)}
    return lambda config: scores[config]


def test_the_worst_quarter_goes_on_from_the_best_quarter() -> None:
    declared, known, planned = members()
    end(known, planned, declared, falling(planned))
    again = replace(known, asked=list(planned))
    new = ask(declared, known, 1)
    assert len({t.key for t in new}) == 8
    assert {t.config.until_share for t in new} == {2 / 3}
    best, worst = {t.key for t in planned[:2]}, {t.key for t in planned[-2:]}
    begins = [t.config.begins_from for t in new]
    assert not worst & set(begins)
    assert len(set(begins)) == 6  # six members that stay; two more from the best two
    assert {b for b in begins if begins.count(b) > 1} <= best
    by_key = {t.key: t.config for t in planned}
    stayed = [t.config for t in new if begins.count(t.config.begins_from) == 1]
    for config in stayed:
        before = by_key[str(config.begins_from)]
        assert (config.batch_size, config.base_lr) == (before.batch_size, before.base_lr)
    assert new == ask(declared, again, 1)
    assert all(t.key == trial_key(t.config, "d") for t in new)


def test_a_diverged_or_failed_member_is_replaced_too() -> None:
    declared, known, planned = members()
    lost = {planned[0].key: "diverged", planned[3].key: "failed"}
    end(known, planned, declared, falling(planned))
    for trial in (planned[0], planned[3]):
        end(known, [trial], declared, falling(planned), lambda c: lost[trial_key(c, "d")])
    new = ask(declared, known, 1)
    assert len(new) == 8
    assert not set(lost) & {t.config.begins_from for t in new}


def test_nobody_left_and_the_last_generation_end_it() -> None:
    declared, known, planned = members()
    end(known, planned, declared, falling(planned), lambda _: "diverged")
    assert ask(declared, known, 1) == []
    known = no_tables()
    scores = itertools.count()
    batches = batches_of(declared, lambda _: 0.5 + next(scores) / 1000, tables=known)
    every = [trial for batch in batches for trial in batch]
    assert len(every) == 24
    assert sum(t.config.until_share == 1.0 for t in every) == 8
    assert ask(declared, known, 1) == []
    table = pd.DataFrame([{**asdict(t.config), "trial_key": t.key} for t in every])
    assert list(lineage(table, every[-1].key)["until_share"]) == [1 / 3, 2 / 3, 1.0]


def test_each_seed_is_a_population_of_its_own() -> None:
    declared, known, planned = members(seeds=2)
    scores = itertools.count()
    end(known, planned, declared, lambda _: next(scores) / 100)
    new = ask(declared, known, 1)
    seed_of = {t.key: t.config.seed for t in planned}
    assert len(new) == 16
    assert all(seed_of[str(t.config.begins_from)] == t.config.seed for t in new)


def test_a_population_goes_on_while_another_is_under_way() -> None:
    declared, known, planned = members(seeds=2)
    first = [trial for trial in planned if trial.config.seed == 0]
    end(known, first[:-1], declared, falling(planned))
    assert ask(declared, known, 1) == []  # a member is under way
    end(known, first[-1:], declared, falling(planned))
    second = ask(declared, known, 1)
    assert [t.config.seed for t in second] == [0] * 8
    assert ask(declared, known, 1) == []
    end(known, second, declared, falling(second))
    third = ask(declared, known, 1)
    assert {(t.config.seed, t.config.until_share) for t in third} == {(0, 1.0)}
    # What the other seed comes to is what it would have come to at the first one's side.
    end(known, [t for t in planned if t.config.seed == 1], declared, falling(planned))
    late = ask(declared, known, 1)
    together, beside, again = members(seeds=2)
    end(beside, again, together, falling(again))
    assert late == [t for t in ask(together, beside, 1) if t.config.seed == 1]


def test_a_changed_value_stays_in_its_domain_and_near() -> None:
    rng = np.random.RandomState(0)
    lrs = [perturbed(VARY["base_lr"], 0.9, rng, resample=0.0) for _ in range(50)]
    assert sorted(set(lrs)) == [pytest.approx(0.72), 1.0]
    batches = {perturbed(VARY["batch_size"], 16, rng, resample=0.0) for _ in range(50)}
    assert batches == {16, 32}
    whole = {perturbed(tune.randint(1, 11), 10, rng, resample=0.0) for _ in range(50)}
    assert whole == {10, 8}
    steps = {perturbed(tune.quniform(0, 1, 0.25), 0.5, rng, resample=0.0) for _ in range(50)}
    assert steps <= {0.25, 0.5, 0.75}
    anew = {perturbed(VARY["batch_size"], 16, rng, resample=1.0) for _ in range(50)}
    assert anew == {16, 32, 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"model": tune.choice(["plain", "residual"])}}, "model: cannot change while"),
        ({"vary": {"layer_decay": tune.uniform(0.5, 1)}}, "layer_decay: cannot change while"),
        ({"vary": {}}, "Pbt needs domains"),
        ({"stop": Asha()}, "Pbt goes without stop"),
        ({"leaders": Leaders()}, "Pbt goes without stop and leaders"),
        ({"base": replace(BASE, epochs=None, seconds=9.0)}, "Pbt counts training images"),
        ({"vary": {"until_share": tune.uniform(0.1, 1)}}, "until_share is set by Pbt"),
    ],
)
def test_populations_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


def train(config: TrialConfig, data: Dataset, folder: Path, **more: Any) -> Any:
    """All evaluations and the summary of a trial, its state left in a folder by its key."""
    key = trial_key(config, data.fingerprint)
    epochs = finetune(config, data=data, checkpoint_folder=Folder(str(folder / key)), **more)
    rows: list[EpochResult] = []
    while True:
        try:
            rows.append(next(epochs))
        except StopIteration as end:
            return rows, end.value, key


def in_two(
    config: TrialConfig, data: Dataset, folder: Path, **changes: Any
) -> tuple[list[EpochResult], TrialResult, list[EpochResult], TrialResult]:
    first, ended, key = train(replace(config, until_share=0.5), data, folder)
    start = Folder(str(folder / key))
    second = replace(config, begins_from=key, **changes)
    rows, summary, _ = train(second, data, folder, start_folder=start)
    return first, ended, rows, summary


FREE = {"optimizer": "schedulefree_sgd", "decay": "constant", "layer_decay": 0.7}


@pytest.mark.parametrize("choices", [{}, FREE, {"ema_decay": 0.9, "ema_scaling": "half_life"}])
def test_a_member_that_is_not_changed_trains_as_if_it_were_one_trial(
    choices: dict[str, Any], tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    # Dropout's draws count a trial's evaluations, and so begin anew with each generation.
    config = replace(tiny_config, dropout=0.0, **choices)
    whole, end, _ = train(config, tiny_data, tmp_path)
    first, ended, rows, summary = in_two(config, tiny_data, tmp_path)
    assert (len(first), len(rows)) == (2, 2)
    shown = [f.name for f in fields(EpochResult)]
    timed = {"epoch", "epoch_wall_s", "images_per_s"}
    timed |= {"noise_scale", "noise_trace", "noise_squared_gradient"}  # of other images
    for ours, one in zip([*first, *rows], whole, strict=True):
        for name in set(shown) - timed:
            np.testing.assert_equal(getattr(ours, name), getattr(one, name), name)
    assert ended.status == "stopped"
    assert math.isnan(ended.test_auroc)  # the test split is for the last generation
    assert summary.status == end.status == "completed"
    assert math.isfinite(summary.test_auroc)


@pytest.mark.parametrize("choices", [{}, FREE])
def test_changed_values_take_effect_on_the_way(
    choices: dict[str, Any], tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    changes = {"batch_size": 32, "base_lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}
    config = replace(tiny_config, **choices)
    *_, rows, summary = in_two(config, tiny_data, tmp_path, **changes)
    assert [row.batch_size_now for row in rows] == [32, 32]
    state = next(
        torch_state
        for each in tmp_path.iterdir()
        if (torch_state := _state(each)) is not None and torch_state["momentum"] == 0.5
    )
    assert state["weight_decay"] == 0.0
    assert summary.examples_seen == rows[-1].examples_seen > 0


def _state(folder: Path) -> dict[str, Any] | None:
    state = load(Folder(str(folder)), trial_key=folder.name)
    return state.step["optimizer"]["param_groups"][0] if state else None


def test_a_state_that_is_gone_is_named(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, begins_from="abc")
    with pytest.raises(ValueError, match="last state of trial abc"):
        next(finetune(config, data=tiny_data, start_folder=Folder(str(tmp_path))))


@pytest.mark.ray
def test_a_population_from_the_command(tmp_path: Path, run_here: Run, run_joined: Run) -> None:
    done = run_joined(SPACES / "population.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "how the best came about" in done.stdout
    trials = pd.read_parquet(tmp_path / "population" / "trials")
    assert trials["status"].value_counts().to_dict() == {"stopped": 4, "completed": 4}
    later = trials[trials["status"] == "completed"]
    assert set(later["begins_from"]) < set(trials["trial_key"])
    assert not list(tmp_path.rglob("*.pt"))  # nothing goes on from them any more
    again = run_here(SPACES / "population.py", tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(pd.read_parquet(tmp_path / "population" / "trials")) == 8
    assert "Ray" not in again.stdout  # nothing was trained
