"""The search for the ridge: what it asks for, how it goes on, when it ends, what it refuses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import end, no_tables
from ray import tune

from search.analysis.humps.posterior import fit, moments
from search.explore import Asha, Leaders, Ridge
from search.explore.ask import ask, total
from search.explore.ridge_search import lrs_of, settings_of
from search.study.explorer import PlannedTrial, Tables
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.training.schedule import peak_lr

BASE = TrialConfig(
    dataset="synthetic", model="plain", pretrained="none", epochs=9, lr_scaling="linear"
)
SIZES = (16, 32, 64, 128, 256)
VARY = {"batch_size": tune.choice(list(SIZES)), "base_lr": tune.loguniform(0.01, 10.0)}


def study(**changes: Any) -> Study:
    declared = {"name": "s", "base": BASE, "vary": VARY, "explore": Ridge(num_trials=20)}
    return Study(**(declared | changes))


def best_lr(batch_size: int) -> float:
    """The peak lr at the top."""
    return float(0.1 * (batch_size / 64) ** 0.6)


def score(config: TrialConfig, noise: float = 0.0) -> float:
    octaves = math.log2(peak_lr(config) / best_lr(config.batch_size))
    rng = np.random.default_rng([config.seed, config.batch_size, int(1e6 * config.base_lr)])
    smooth = 0.86 - 0.004 * octaves**2 if octaves < 3 else 0.55
    return smooth + noise * float(rng.standard_normal())


def run(declared: Study, known: Tables, slots: int, noise: float = 0.0) -> list[PlannedTrial]:
    """The trials in the order of asking, `slots` of them at a time."""
    running: list[PlannedTrial] = []
    every: list[PlannedTrial] = []
    while new := ask(declared, known, slots - len(running)) or running:
        if new is not running:
            every += new
            running += [trial for trial in new if trial.key not in known.ended]
        assert len(running) <= slots
        if running:
            first, *running = running
            end(known, [first], declared, lambda config: score(config, noise))
    return every


def test_twenty_trials_find_the_ridge(tmp_path: Path) -> None:
    declared, known = study(), no_tables(tmp_path)
    trials = run(declared, known, slots=2)
    assert len(trials) == len({trial.key for trial in trials}) == 20 == total(declared, known)
    (setting,) = settings_of(declared)
    rows = [(t.config.batch_size, peak_lr(t.config), score(t.config)) for t in trials]
    table = pd.DataFrame(rows, columns=["batch_size", "lr", "score"])
    mean, _ = moments(fit(table, setting.frame), setting.b, setting.x)
    octaves = []
    for size in SIZES:
        row = np.flatnonzero(setting.b == np.log2(size))
        octaves.append(abs(setting.x[row[mean[row].argmax()]] - np.log2(best_lr(size))))
    assert np.mean(octaves) < 0.7


def test_it_asks_for_as_many_as_there_is_room_for(tmp_path: Path) -> None:
    declared, known = study(), no_tables(tmp_path)
    first = ask(declared, known, 8)
    assert len({trial.key for trial in first}) == 8
    assert {trial.config.batch_size for trial in first[:3]} == {16, 64, 256}
    assert ask(declared, known, 0) == []
    end(known, first[:1], declared, score)
    assert len(ask(declared, known, 1)) == 1


def test_noise_makes_it_repeat_cells_with_other_seeds(tmp_path: Path) -> None:
    declared, known = study(explore=Ridge(num_trials=40)), no_tables(tmp_path)
    trials = run(declared, known, slots=2, noise=0.01)
    seeds: dict[tuple[int, float], list[int]] = {}
    for trial in trials:
        cell = (trial.config.batch_size, trial.config.base_lr)
        seeds.setdefault(cell, []).append(trial.config.seed)
    assert all(of_cell == list(range(len(of_cell))) for of_cell in seeds.values())
    assert max(map(len, seeds.values())) > 1


def test_the_same_command_goes_on_where_it_was(tmp_path: Path) -> None:
    declared, known = study(), no_tables(tmp_path)
    first = run(study(explore=Ridge(num_trials=9)), known, slots=2)
    assert len(first) == 9
    again = no_tables(tmp_path)
    again.ended.update(known.ended)
    lost = first[-1].key
    del again.ended[lost]  # it was under way
    asked = ask(declared, again, 1)
    assert [trial.key for trial in asked] == [trial.key for trial in first]
    end(again, [first[-1]], declared, score)
    more = run(declared, again, slots=2)
    assert len(more) == 11
    assert not {trial.key for trial in more} & {trial.key for trial in first}


def test_it_ends_once_it_knows_enough(tmp_path: Path) -> None:
    declared = study(explore=Ridge(num_trials=80, until=3.0))
    known = no_tables(tmp_path)
    trials = run(declared, known, slots=1)
    assert 5 <= len(trials) < 60
    assert total(declared, known) == len(trials)


def test_each_optimizer_has_a_ridge_of_its_own(tmp_path: Path) -> None:
    vary = {**VARY, "nesterov": tune.choice([False, True])}
    declared, known = study(vary=vary, explore=Ridge(num_trials=24)), no_tables(tmp_path)
    assert len(settings_of(declared)) == 2
    trials = run(declared, known, slots=2)
    num = sum(trial.config.nesterov for trial in trials)
    assert 6 <= num <= 18
    assert {t.config.batch_size for t in trials[:3]} == {16, 64, 256}


def test_divergence_at_high_rates_is_no_failure(tmp_path: Path) -> None:
    declared, known = study(), no_tables(tmp_path)
    every: list[PlannedTrial] = []
    while new := ask(declared, known, 1):
        every += new
        above = peak_lr(new[0].config) > best_lr(new[0].config.batch_size)
        status = "diverged" if above else "completed"
        end(known, new, declared, score, lambda _, status=status: status)
    assert len(every) == 20
    statuses = [known.ended[trial.key]["status"] for trial in every]
    assert statuses.count("completed") >= 8


def test_a_cell_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    """All trials of the largest batch size run out of memory: the others get the rest."""
    declared, known = study(), no_tables(tmp_path)
    every: list[PlannedTrial] = []
    while new := ask(declared, known, 1):
        every += new
        failed = new[0].config.batch_size == 256
        end(
            known,
            new,
            declared,
            score,
            lambda _, failed=failed: "failed" if failed else "completed",
        )
    cells = [(t.config.batch_size, t.config.base_lr) for t in every if t.config.batch_size == 256]
    assert len(cells) == len(set(cells)) == 2
    assert len(every) == 20


def test_it_ends_where_every_cell_failed(tmp_path: Path) -> None:
    lrs = {"batch_size": tune.choice([16, 32]), "base_lr": tune.grid_search([0.1, 0.2, 0.4])}
    declared, known = study(vary=lrs), no_tables(tmp_path)
    every: list[PlannedTrial] = []
    while new := ask(declared, known, 1):
        every += new
        end(known, new, declared, score, lambda _: "failed")
    assert len(every) == 4 == total(declared, known)  # two of each batch size


def test_the_learning_rates_of_a_range() -> None:
    lrs = lrs_of(tune.loguniform(0.01, 10.0))
    assert lrs[0] == 0.01
    assert lrs[-1] == 10.0
    assert len(lrs) == 25
    assert len(lrs_of(tune.loguniform(0.1, 0.4))) == 8
    assert lrs_of(tune.choice([0.3, 0.1, 1.0])) == [0.1, 0.3, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"batch_size": tune.choice([16, 32])}}, "Ridge needs base_lr in `vary`"),
        (
            {"vary": {**VARY, "momentum": tune.uniform(0.1, 0.9)}},
            "momentum: Ridge takes tune.grid_search or tune.choice",
        ),
        ({"vary": {**VARY, "base_lr": tune.choice([0.1, 1.0])}}, "at least 3 learning rates"),
        ({"seeds": 3}, "leave out seeds and leaders"),
        ({"leaders": Leaders(top=1, seeds=3)}, "leave out seeds and leaders"),
        ({"stop": Asha()}, "Ridge needs final scores, or forecasts of them"),
        ({"explore": {"num_trials": 0}}, "num_trials"),
        ({"explore": {"num_trials": 9, "until": 1.0}}, "until is a factor above 1"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    def made() -> Study:
        explore = {"explore": Ridge(**changes["explore"])} if "explore" in changes else {}
        return study(**(changes | explore))

    with pytest.raises((ValueError, SpaceFileError), match=message):
        made()
