"""`--set`: fields of the study, of its parts and of its trial, as people type them."""

from dataclasses import replace
from typing import Any

import pytest
from ray import tune

from search.explore import Asha, Grid, HyperBand, Leaders, Median, Optuna, Pbt, Random
from search.study.settings import OWN_FIELDS, apply_settings, value_for, value_of
from search.study.space_file import SpaceFileError
from search.study.study import TRIAL_FIELDS, Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=9)
GRID = {"batch_size": tune.grid_search([16, 32]), "base_lr": tune.grid_search([0.1, 1.0])}
DRAWN = {"batch_size": tune.choice([16, 32]), "base_lr": tune.loguniform(1e-3, 1.0)}


def study(**changes: Any) -> Study:
    declared = {"name": "a", "base": BASE, "vary": DRAWN, "explore": Optuna(num_configs=4)}
    return Study(**(declared | changes))


# --- parts of the study ---------------------------------------------------------------------------


def test_parts_of_a_study_are_set_and_keep_their_other_fields() -> None:
    explore = Optuna(num_configs=4, sampler="random", sampling_seed=3)
    stop = Asha(reduction_factor=2, by_batch_size=True)
    declared = study(explore=explore, stop=stop, leaders=Leaders(top=2, seeds=3))
    settings = ["explore.num_configs=16", "stop.reduction_factor=4", "leaders.seeds=5"]
    changed = apply_settings(declared, settings)
    assert changed.explore == Optuna(num_configs=16, sampler="random", sampling_seed=3)
    assert changed.stop == Asha(reduction_factor=4, by_batch_size=True)
    assert changed.leaders == Leaders(top=2, seeds=5)
    assert (changed.base, changed.vary, changed.seeds) == (declared.base, declared.vary, 1)
    assert (declared.explore, declared.stop) == (explore, stop)


@pytest.mark.parametrize(
    ("changes", "setting", "expected"),
    [
        ({"vary": GRID, "explore": Grid()}, "explore.widen=2", Grid(widen=2)),
        ({}, "explore.sampler=gp", Optuna(num_configs=4, sampler="gp")),
        ({}, "explore.warm_start=NONE", Optuna(num_configs=4)),
        ({"explore": Random(num_configs=2)}, "explore.num_configs=3", Random(num_configs=3)),
        ({"explore": Pbt()}, "explore.quantile=0.5", Pbt(quantile=0.5)),
    ],
)
def test_every_explorers_fields_can_be_set(
    changes: dict[str, Any], setting: str, expected: object
) -> None:
    assert apply_settings(study(**changes), [setting]).explore == expected


@pytest.mark.parametrize("stop", [Asha(), HyperBand(), Median()])
def test_every_stoppers_fields_can_be_set(stop: Any) -> None:
    changed: Any = apply_settings(
        study(stop=stop), ["stop.by_batch_size=TRUE", "stop.grace_share=0.25"]
    ).stop
    assert (type(changed), changed.by_batch_size, changed.grace_share) == (type(stop), True, 0.25)


def test_two_settings_that_are_right_only_together_are_applied_together() -> None:
    declared = study(leaders=Leaders(seeds=3))
    with pytest.raises(SpaceFileError, match="leaders: their seeds must be more than"):
        apply_settings(declared, ["seeds=4"])
    changed = apply_settings(declared, ["seeds=4", "leaders.seeds=6", "leaders.top=1"])
    assert (changed.seeds, changed.leaders) == (4, Leaders(top=1, seeds=6))
    last = apply_settings(declared, ["explore.num_configs=5", "explore.num_configs=6"])
    assert last.explore == Optuna(num_configs=6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("explore.num_configs=0", "num_configs must be a whole number >= 1, got 0"),
        ("explore.num_configs=many", "num_configs must be a whole number >= 1, got 'many'"),
        ("explore.sampler=tpee", "sampler must be one of auto, tpe, gp"),
        ("stop.reduction_factor=4", "the study has no stop, so stop.reduction_factor cannot be"),
        ("leaders.seeds=5", "the study has no leaders, so leaders.seeds cannot be set: add it"),
        # The nearest name that there is.
        ("explore.num_config=16", "did you mean 'explore.num_configs'?"),
        ("explore.samplr=gp", "did you mean 'explore.sampler'?"),
        ("explorer.num_configs=16", "did you mean 'explore.num_configs'?"),
        ("explore=16", "there is no field 'explore'"),
        ("explore.=16", "there is no field 'explore.'"),
        ("stopp.reduction_factor=4", "there is no field 'stopp.reduction_factor'"),
        ("base.epochs=3", "did you mean 'epochs'?"),
        ("btch_size=16", "did you mean 'batch_size'?"),
        ("keep_weight=true", "did you mean 'keep_weights'?"),
        ("metrics=val_loss", "did you mean 'metric'?"),
        ("explore.api_key=x", "explore.api_key"),
    ],
)
def test_a_path_that_is_wrong_names_the_nearest(setting: str, message: str) -> None:
    with pytest.raises(SpaceFileError) as caught:
        apply_settings(study(), [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_that_is_set_is_not_repeated() -> None:
    with pytest.raises(SpaceFileError) as caught:
        apply_settings(study(), ["explore.api_key=hunter2"])
    assert "hunter2" not in str(caught.value)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "TRUE")),
        *((text, False) for text in ("false", "False", "FALSE")),
        *((text, None) for text in ("none", "None", "NONE")),
        ("3", 3),
        ("1e-3", 1e-3),
        ("'3'", "3"),
        ("{16: 0.5}", {16: 0.5}),
        ("adam", "adam"),
        ("truely", "truely"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_a_value_is_read_as_python_writes_it_and_words_in_any_case(
    text: str, value: object
) -> None:
    read = value_of(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("yes", "no"), [("true", "false"), ("True", "False"), ("TRUE", "FALSE"), ("tRuE", "fAlSe")]
)
def test_true_and_false_hold_wherever_they_are_set(yes: str, no: str) -> None:
    changed = apply_settings(study(), [f"no_bias_decay={yes}", f"keep_weights={yes}"])
    assert (changed.base.no_bias_decay, changed.keep_weights) == (True, True)
    back = apply_settings(changed, [f"no_bias_decay={no}", f"keep_weights={no}"])
    assert (back.base.no_bias_decay, back.keep_weights) == (False, False)


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_none_is_nothing_or_the_name_none_as_the_field_has_it(word: str) -> None:
    settings = [f"{name}={word}" for name in ("image_size", "augment", "pretrained", "norm")]
    base = apply_settings(study(), settings).base
    assert (base.image_size, base.augment, base.pretrained, base.norm) == (None, *["none"] * 3)
    listed = apply_settings(study(vary=GRID, explore=Grid()), [f"augment={word},hflip"])
    assert {config.augment for config in listed.configs} == {"none", "hflip"}
    sizes = apply_settings(study(vary=GRID, explore=Grid()), [f"image_size={word},48"])
    assert {config.image_size for config in sizes.configs} == {None, 48}


def test_none_is_nothing_a_name_or_the_zero_that_turns_a_field_off() -> None:
    for name, declared in TrialConfig.__dataclass_fields__.items():
        if name in ("seed", "dataset"):
            continue
        value = value_for(name, "None")
        choices = declared.metadata["choices"]
        if declared.type is str:
            assert value == ("constant" if "constant" in choices else "none"), name
        elif declared.type in (int, float) and declared.metadata["low"] == 0:
            assert value == 0, name
        else:
            assert value is None, name
    assert not set(OWN_FIELDS) & set(TRIAL_FIELDS)  # else a path would have two meanings


@pytest.mark.parametrize(
    ("declared", "settings", "scores"),
    [
        ({}, [], ("val_auroc", "val_auroc")),
        ({"metric": "val_loss"}, [], ("val_loss", "val_loss")),
        ({"select_by": "val_loss"}, [], ("val_loss", "val_loss")),
        ({"metric": "val_loss", "select_by": "val_accuracy"}, [], ("val_loss", "val_accuracy")),
        ({}, ["metric=val_loss"], ("val_loss", "val_loss")),
        ({"metric": "val_loss"}, ["metric=val_auroc"], ("val_auroc", "val_auroc")),
        ({}, ["select_by=val_loss"], ("val_loss", "val_loss")),
        ({}, ["metric=val_loss", "select_by=val_auroc"], ("val_loss", "val_auroc")),
        ({"metric": "val_loss", "select_by": "val_auroc"}, [], ("val_loss", "val_auroc")),
    ],
)
def test_the_score_that_ranks_selects_the_epochs_unless_both_are_given(
    declared: dict[str, str], settings: list[str], scores: tuple[str, str]
) -> None:
    base = replace(BASE, **{k: v for k, v in declared.items() if k == "select_by"})
    ranked = {k: v for k, v in declared.items() if k == "metric"}
    made = Study(name="s", base=base, vary={"base_lr": tune.grid_search([0.1, 0.2])}, **ranked)
    changed = apply_settings(made, settings)
    assert (changed.metric, changed.base.select_by) == scores


# --- what people type -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=0.1", "there is no field 'lr'; did you mean 'base_lr'?"),
        ("LR=0.1", "there is no field 'LR'; did you mean 'base_lr'?"),
        ("bs=32", "there is no field 'bs'; did you mean 'batch_size'?"),
        ("wd=0.1", "there is no field 'wd'; did you mean 'weight_decay'?"),
        ("warmup=1", "there is no field 'warmup'; did you mean 'warmup_epochs'?"),
        ("metric=val_acc", "there is no metric 'val_acc'; did you mean 'val_accuracy'?"),
        ("metric=auc", "there is no metric 'auc'; did you mean 'val_auroc'?"),
        ("metric=test_auroc", "metric 'test_auroc' is of the test split, which may not choose"),
        ("batch_size=none", "batch_size must be a whole number, got None"),
        ("batch_size=1.5e0", "batch_size must be a whole number, got 1.5"),
        ("optimizer=Adamm", "optimizer must be one of"),
    ],
)
def test_short_names_of_fields_and_metrics_name_what_is_meant(setting: str, message: str) -> None:
    with pytest.raises(SpaceFileError) as refused:
        apply_settings(study(), [setting])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("optimizer=Adam", "optimizer", "adam"),
        ("decay=Cosine", "decay", "cosine"),
        ("decay=none", "decay", "constant"),
        ("batch_size=1e2", "batch_size", 100),
        ("train_images=2e3", "train_images", 2000),
        ("image_size=None", "image_size", None),
        ("clip_grad_norm=none", "clip_grad_norm", 0.0),
        ("weight_decay=None", "weight_decay", 0.0),
    ],
)
def test_values_are_taken_as_people_write_them(setting: str, name: str, value: object) -> None:
    found = getattr(apply_settings(study(), [setting]).base, name)
    assert (found, type(found)) == (value, type(value))


def test_whole_numbers_of_a_study_and_its_parts_may_have_an_exponent() -> None:
    declared = study(stop=Asha(), leaders=Leaders(top=2, seeds=3))
    changed = apply_settings(
        declared, ["seeds=1e1", "explore.num_configs=1e2", "stop=none", "leaders=None"]
    )
    assert (changed.seeds, changed.explore) == (10, Optuna(num_configs=100))
    assert (changed.stop, changed.leaders) == (None, None)
    listed = apply_settings(declared, ["batch_size=16,1e2"])
    assert listed.vary["batch_size"].categories == [16, 100]
