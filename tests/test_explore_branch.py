"""Branches: trials that all go on from one checkpoint, and how they are read."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from helpers import batches_of, no_tables
from ray import tune

from search.analysis.groups import branches
from search.analysis.surface import usable
from search.explore import Asha, Branch
from search.study import Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", batch_size=16, base_lr=0.1, decay="constant", epochs=4)
VARY = {"batch_size": tune.grid_search([16, 32]), "base_lr": tune.grid_search([0.1, 0.2, 0.4])}


def study(**changes: Any) -> Study:
    return Study(
        **({"name": "s", "base": BASE, "vary": VARY, "explore": Branch(at=0.25)} | changes)
    )


def test_every_combination_goes_on_from_the_trunk_of_its_seed() -> None:
    trunks, *rest = batches_of(study(seeds=2), lambda config: 0.9)
    assert [t.config for t in trunks] == [
        replace(BASE, until_share=0.25, seed=s, select_by="val_auroc") for s in (0, 1)
    ]
    (twelve,) = rest
    assert len(twelve) == 12
    trunk_of = {trial.config.seed: trial.key for trial in trunks}
    for trial in twelve:
        assert trial.config.begins_from == trunk_of[trial.config.seed]
        assert trial.config.until_share == 1.0
    cells = {(t.config.batch_size, t.config.base_lr, t.config.seed) for t in twelve}
    assert len(cells) == 12


def test_a_trunk_may_have_values_of_its_own() -> None:
    branch = Branch(at=0.5, trunk={"batch_size": 8, "base_lr": 0.7})
    (trunk,), branched = batches_of(study(explore=branch), lambda config: 0.9)
    assert (trunk.config.batch_size, trunk.config.base_lr) == (8, 0.7)
    assert {t.config.batch_size for t in branched} == {16, 32}


def test_a_trunk_that_diverged_has_no_branches() -> None:
    def status(config: TrialConfig) -> str:
        if config.until_share == 1:
            return "completed"
        return "diverged" if config.seed == 0 else "stopped"

    trunks, branched = batches_of(study(seeds=2), lambda config: 0.9, status)
    assert len(trunks) == 2
    assert {trial.config.seed for trial in branched} == {1}


def test_more_seeds_later_branch_from_trunks_of_their_own() -> None:
    known = no_tables()
    batches_of(study(seeds=1), lambda config: 0.9, tables=known)
    trained = set(known.ended)
    known.asked.clear()  # as another command begins
    known.memory.clear()
    batches = batches_of(study(seeds=2), lambda config: 0.9, tables=known)
    trials = [trial for batch in batches for trial in batch]
    assert len({t.key for t in trials}) == 14
    assert {t.config.seed for t in trials if t.key not in trained} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"model": tune.grid_search(["plain"])}}, "model: cannot change while a trial"),
        ({"explore": Branch(trunk={"modle": "plain"})}, "modle: cannot change while a trial"),
        ({"explore": Branch(trunk={"base_lr": -1.0})}, "base_lr must be > 0"),
        ({"stop": Asha()}, "goes without stop and leaders"),
        ({"base": replace(BASE, epochs=None, seconds=9.0)}, "not in seconds"),
    ],
)
def test_what_cannot_branch_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


@pytest.mark.parametrize("at", [0.0, 1.0, -1])
def test_a_branch_leaves_within_the_budget(at: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Branch(at=at)


def rows(begins_from: list[str | None]) -> pd.DataFrame:
    n = len(begins_from)
    return pd.DataFrame(
        {
            "trial_key": [f"k{i}" for i in range(n)],
            "seed": 0,
            "status": "completed",
            "val_auroc": 0.9,
            "begins_from": begins_from,
        }
    )


def test_branches_are_cells_and_members_of_a_population_are_not() -> None:
    read = branches(rows([None, "k0", "k0"]))
    assert read["trial_key"].tolist() == ["k1", "k2"]
    assert len(usable(read, metric="val_auroc")) == 2
    populations: list[list[str | None]] = [
        *([None, None, "k1", "k1"], [None, None, "k0", "k1"], [None, "k0", "k1"], [None, None]),
    ]
    for population in populations:
        assert branches(rows(population)).equals(rows(population))
    assert len(branches(rows([None]).drop(columns="begins_from"))) == 1
