"""Which trials of a study belong to one surface."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_tables import table
from ray import tune

from search.analysis.groups import (
    CHOICES,
    CROSSED,
    analyses,
    exploration_of,
    others_of,
    varied_fields,
    with_steps,
)
from search.execution.provenance import domain_as_json, part_as_json
from search.explore import Ablation, Grid, Optuna, Pbt, Random, Variants
from search.results.tables import commit_study, open_results
from search.study.study import Study
from trainable.config import TrialConfig

GRID = {"batch_size": tune.grid_search([16, 32]), "base_lr": tune.grid_search([0.1, 0.2])}
DRAWN = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}
STEPS = {"plain": {}, "drop": {"dropout": 0.1}, "none": {"train_blocks": None}}


def trials(**columns: Any) -> pd.DataFrame:
    """One cell a row, of as many rows as the columns have."""
    n = max(len(each) for each in columns.values() if isinstance(each, list))
    known = {"batch_size": 16, "base_lr": 0.1, "status": "completed", "seed": 0, "val_auroc": 0.5}
    return pd.DataFrame({**known, "trial_key": [f"k{i}" for i in range(n)], **columns})


def test_every_choice_of_a_trial_tells_surfaces_apart() -> None:
    """A field of the config that differs makes two surfaces, unless it is of a trial's own way."""
    own = {"seed", "microbatch_size", "until_share", "begins_from", "select_by"}
    for name in TrialConfig.__dataclass_fields__:
        found = others_of(trials(**{name: [1, 2]}), {})
        assert found == ([] if name in own | {"batch_size", "base_lr"} else [name])
    assert others_of(trials(data_fingerprint=["a", "b"]), {}) == ["data_fingerprint"]
    assert others_of(trials(host=["a", "b"]), {}) == []
    assert others_of(trials(dropout=[0.1, math.nan]), {}) == ["dropout"]  # nothing is a value too
    assert CROSSED == ("batch_size", "base_lr")
    assert not set(CROSSED) & set(CHOICES)


@pytest.mark.parametrize("kind", ["Random", "Optuna", "Pbt"])
def test_a_searchs_draws_are_one_surface(kind: str) -> None:
    drawn = trials(
        dropout=[0.1, 0.2], optimizer=["sgd", "adam"], dataset=["a", "b"], data_fingerprint=[1, 2]
    )
    about = {
        "explore": f"{kind}(num_configs=2)",
        "vary": {"dropout": "(0.1, 0.2) Float", "optimizer": "['sgd', 'adam'] Categorical"},
    }
    assert exploration_of(about).is_search
    assert others_of(drawn, about) == ["dataset", "data_fingerprint", "optimizer"]
    assert others_of(drawn.assign(optimizer="sgd", dataset="a"), about) == ["data_fingerprint"]


@pytest.mark.parametrize(
    ("explore", "name", "steps"),
    [
        (None, "Grid", {}),
        ("", "Grid", {}),
        ("Grid(widen=1)", "Grid", {}),
        ("Optuna(num_configs=3)", "Optuna", {}),
        (
            "Ablation(steps={'a': {}, 'b': {'dropout': 0.1}, 'c': {'epochs': 3}})",
            "Ablation",
            {"a": {}, "b": {"dropout": 0.1}, "c": {"dropout": 0.1, "epochs": 3}},
        ),
        (
            "Variants(each={'a': {'epochs': 1}, 'b': {'dropout': 0.1}})",
            "Variants",
            {"a": {"epochs": 1}, "b": {"dropout": 0.1}},
        ),
        ("Variants(each=", "Variants", {}),
        ("Variants", "Variants", {}),
        ("Variants()", "Variants", {}),
        ("Ablation(steps=somewhere)", "Ablation", {}),
    ],
)
def test_a_studys_kind_is_read_off_its_declaration(
    explore: str | None, name: str, steps: dict[str, Any]
) -> None:
    """An ablation's steps go on top of each other, variants stand side by side."""
    exploration = exploration_of({"explore": explore})
    assert (exploration.kind, exploration.steps) == (name, steps)


EACH: dict[str, dict[str, Any]] = {"few": {"epochs": 2}, "one": {"train_blocks": None}}


@pytest.mark.parametrize(
    ("explore", "vary"),
    [
        (Grid(widen=1), GRID),
        (Ablation(steps=STEPS), GRID),
        (Variants(each=EACH), GRID),
        (Random(num_configs=3, points=[{"base_lr": 0.1, "batch_size": 16}]), DRAWN),
        (Random(num_configs=3), GRID),  # which makes choices of them
        (Optuna(num_configs=3), DRAWN),
        (Optuna(num_configs=3, space=dict), {}),
        (Optuna(num_configs=3, space=lambda trial: {}), {}),
        (Pbt(), DRAWN),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_old_record_and_a_new_one_tell_the_same(
    explore: Any, vary: dict[str, Any], tmp_path: Path
) -> None:
    """`explore` was the declaration's repr before it was JSON; both are read back from the file."""
    study = Study(name="s", base=TrialConfig(), vary=vary, explore=explore)
    varied = {name: domain_as_json(domain) for name, domain in study.vary.items()}
    read = []
    for recorded in (repr(explore), part_as_json(explore)):
        results = open_results(str(tmp_path), "s")
        commit_study(results, {"explore": recorded, "vary": varied})
        read.append(exploration_of(json.loads((tmp_path / "s" / "study.json").read_text())))
    old, new = read
    assert old == new
    kind = type(explore).__name__
    assert new.kind == kind
    assert new.is_search == (kind in ("Random", "Optuna", "Pbt"))
    dropped = {"dropout": 0.1}
    together = {"plain": {}, "drop": dropped, "none": {**dropped, "train_blocks": None}}
    assert new.steps == {"Ablation": together, "Variants": EACH}.get(kind, {})


def test_the_record_says_which_trials_each_step_asked_for() -> None:
    """A trial's own microbatch is in its column, so the field that a variant sets is not."""
    rows = trials(microbatch_size=[16, 32, 16, 32])
    each = {"whole": {}, "accumulated": {"microbatch_size": 16}}
    about = {
        "explore": {"kind": "Variants", "each": each},
        "step_trials": {"whole": ["k0", "k1"], "accumulated": ["k0", "k2"]},
    }
    named = with_steps(rows, about)
    assert list(zip(named["step"], named["trial_key"], strict=True)) == [
        *(("whole", "k0"), ("whole", "k1"), ("accumulated", "k0"), ("accumulated", "k2")),
    ]
    assert others_of(named, about) == ["step"]


def test_a_trial_belongs_to_the_steps_whose_fields_it_has() -> None:
    rows = trials(dropout=[0.0, 0.1, 0.1, 0.2], train_blocks=[2.0, 2.0, math.nan, 2.0])
    about = {
        "explore": f"Ablation(steps={STEPS!r})",
        "base": {"dropout": 0.0, "train_blocks": 2.0},
    }
    named = with_steps(rows, about)
    assert named[["trial_key", "step"]].to_numpy().tolist() == [
        *(["k0", "plain"], ["k1", "drop"], ["k2", "none"]),
    ]
    again = {"plain": {}, "same": {}}
    twice = with_steps(rows.head(1), {"explore": f"Variants(each={again!r})", "base": {}})
    assert twice["step"].tolist() == ["plain", "same"]
    assert with_steps(rows, {}).columns.tolist() == [*rows.columns, "step"]
    assert with_steps(rows, {}).empty
    # What a step changes, its name says; what else varies, it does not.
    more = named.assign(optimizer=["a", "b", "b"])
    assert others_of(more, about) == ["step", "optimizer"]


def test_what_varies_is_named_or_else_what_is_crossed() -> None:
    rows = trials(dropout=[0.1, 0.2], batch_size=[16, 32], seed=[0, 1])
    assert varied_fields(rows) == ["batch_size", "dropout"]
    assert varied_fields(trials(seed=[0, 1])) == ["batch_size", "base_lr"]
    assert varied_fields(pd.DataFrame({"base_lr": [0.1]})) == ["base_lr"]


@pytest.mark.parametrize(("mode", "order"), [("max", ["b", "a", "c"]), ("min", ["a", "b", "c"])])
def test_the_surface_with_the_best_mean_comes_first(mode: str, order: list[str]) -> None:
    parts = [
        table({(16, 0.1): [0.5], (16, 0.2): [0.6]}, optimizer="a"),
        table({(16, 0.1): [0.7], (16, 0.2): [0.8]}, optimizer="b"),
        table({(16, 0.1): ["failed"]}, optimizer="c"),
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["trial_key"] = rows.index.astype(str)
    evaluations = pd.DataFrame(
        {"trial_key": rows["trial_key"], "epoch": 1, "updates": 5, "examples_seen": 80.0}
    ).assign(lr=1.0, epoch_wall_s=1.0, val_auroc=0.5, dropout=0.0)
    found = analyses(rows, evaluations, {}, metric="val_auroc", mode=mode)
    assert [each.of for each in found] == [{"optimizer": name} for name in order]
    assert [len(each.trials) for each in found] == [1 if n == "c" else 2 for n in order]
    assert {each.mode for each in found} == {mode}
    assert {each.lr_name for each in found} == {"base_lr"}
    (alone,) = analyses(parts[0], None, {}, metric="val_auroc", mode=mode, lr="base_lr")
    assert alone.of == {}
    (of_lr,) = analyses(
        parts[0].rename(columns={"base_lr": "rate"}), None, {}, metric="val_auroc", mode=mode,
        lr="rate",
    )  # fmt: skip
    assert of_lr.lr_name == "rate"


def test_each_surface_has_the_evaluations_of_its_own_trials() -> None:
    """A test score is none of an evaluation's: there is no cost of it."""
    rows = pd.concat(
        [
            table({(16, 0.1): [0.5], (32, 0.1): [0.6]}, optimizer="a", test_auroc=0.4),
            table({(16, 0.1): [0.7], (32, 0.1): [0.8]}, optimizer="b", test_auroc=0.3),
        ],
        ignore_index=True,
    )
    rows["trial_key"] = rows.index.astype(str)
    evaluations = pd.DataFrame(
        {
            "trial_key": rows["trial_key"], "epoch": 1, "lr": 1.0, "epoch_wall_s": 1.0,
            "updates": [10, 20, 30, 40], "examples_seen": [100.0, 200, 300, 400],
            "val_auroc": rows["val_auroc"],
        }
    )  # fmt: skip
    b, a = analyses(rows, evaluations, {}, metric="val_auroc", mode="max")
    assert a.needed["updates"].tolist() == [10, 20]
    assert b.needed["updates"].tolist() == [30, 40]
    for each in analyses(rows, evaluations, {}, metric="test_auroc", mode="max"):
        assert each.needed.empty
        assert (
            each.front.why
            == "no evaluations during training are recorded with their number of updates"
        )
