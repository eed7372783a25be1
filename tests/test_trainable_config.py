import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from trainable.config import TrialConfig, augmentations, trial_key, with_seed
from trainable.fields import checked
from trainable.host import credentials


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_lr": 0}, "base_lr must be > 0, got 0"),
        ({"base_lr": float("nan")}, "base_lr must be finite, got nan"),
        ({"base_lr": "fast"}, "base_lr must be a number, got 'fast'"),
        ({"batch_size": 16.5}, "batch_size must be a whole number, got 16.5"),
        ({"batch_size": float("inf")}, "batch_size must be a whole number, got inf"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"no_bias_decay": 1}, "no_bias_decay must be True or False, got 1"),
        ({"momentum": 1.0}, "momentum must be <= 0.9999, got 1.0"),
        (
            {"optimizer": "sdg"},
            "optimizer must be one of sgd, adam, adamw, rmsprop, adagrad, lars, lamb, "
            "schedulefree_sgd, schedulefree_adamw, got 'sdg'",
        ),
        ({"model": ""}, "model must not be empty"),
        ({"augment": "hflip+wave"}, "augment must be none, or any of hflip"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs must be less than epochs (2)"),
        ({"model": "plain"}, "a plain network has no pretrained weights"),
        ({"pretrained": "none", "train_blocks": 2}, "train_blocks=2 freezes pretrained blocks"),
        (
            {"epochs": 2, "updates": 5},
            "set only one of epochs, updates, examples, seconds, got epochs and updates",
        ),
        (
            {"seconds": 9, "warmup_epochs": 1},
            "with a budget in seconds, set warmup_share",
        ),
        (
            {"warmup_share": 0.1, "warmup_epochs": 1},
            "set only one of warmup_epochs and warmup_share",
        ),
        (
            {"warmup_epochs": 5, "warmup_scaling": "linear", "batch_size": 1024},
            "warmup_epochs must",
        ),
        ({"decay": "batch_growth", "updates": 5}, "decay=batch_growth needs a budget in epochs"),
        ({"eval_updates": 5, "eval_epochs": 2}, "set only one of eval_updates and eval_epochs"),
        ({"microbatch_size": 24}, "microbatch_size must divide batch_size (64), got 24"),
        ({"norm": "none"}, "norm='none' is only for model="),
        ({"norm": "frozen", "pretrained": "none"}, "norm='frozen' keeps pretrained statistics"),
        ({"norm": "ghost", "ghost_batch_size": 24}, "ghost_batch_size must divide the microbatch"),
        (
            {"precise_bn_images": 64, "norm": "group"},
            "precise_bn_images is only for norm=batch, norm=ghost and norm=sync",
        ),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"zero_gamma": True}, "zero_gamma is an initialization of residual networks"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs optimizer=sgd or lars"),
        ({"lr_scaling": "malladi"}, "lr_scaling=malladi is only for adam and adamw, got sgd"),
        (
            {"lr_scaling": "malladi", "optimizer": "adam", "batch_size": 2560},
            "lr_scaling=malladi would make beta1 negative: batch_size must be less than 2560",
        ),
        (
            {"optimizer": "adam", "weight_decay_scaling": "timescale"},
            "weight_decay_scaling=timescale is only for sgd, adamw, lamb, schedulefree_sgd, "
            "schedulefree_adamw: adam divides",
        ),
        ({"layer_decay": 1.1}, "layer_decay must be <= 1, got 1.1"),
        (
            {"beta_scaling": "half_life"},
            "beta_scaling=half_life is only for adam, adamw and lamb, got sgd",
        ),
        (
            {"beta_scaling": "half_life", "optimizer": "adam", "lr_scaling": "malladi"},
            "lr_scaling=malladi scales the betas itself: set lr_scaling=sqrt with beta_scaling",
        ),
        (
            {"beta_scaling": "half_life", "optimizer": "adam", "decay": "batch_growth"},
            "beta_scaling=half_life is for one batch size, and decay=batch_growth changes it",
        ),
        (
            {"optimizer": "schedulefree_sgd"},
            "optimizer=schedulefree_sgd goes without a schedule after warmup: set decay='constant'",
        ),
        (
            {"optimizer": "schedulefree_adamw", "decay": "constant", "ema_decay": 0.9},
            "optimizer=schedulefree_adamw evaluates an average of its own: set ema_decay=0",
        ),
        (
            {"optimizer": "schedulefree_sgd", "decay": "constant", "momentum": 0.0},
            "optimizer=schedulefree_sgd needs momentum > 0",
        ),
        (
            {"optimizer": "schedulefree_adamw", "decay": "constant", "beta1": 0.0},
            "optimizer=schedulefree_adamw needs beta1 > 0",
        ),
        (
            {"optimizer": "schedulefree_sgd", "decay": "constant", "precise_bn_images": 0},
            "optimizer=schedulefree_sgd evaluates other weights than it trains",
        ),
        (
            {"optimizer": "schedulefree_adamw", "decay": "constant", "beta_scaling": "half_life"},
            "beta_scaling=half_life is only for adam, adamw and lamb, got schedulefree_adamw",
        ),
        ({"distill_weight": 2.0}, "distill_weight needs a teacher: set distill_from"),
    ],
)
def test_impossible_values_are_refused_with_one_sentence(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^") as caught:
        TrialConfig(**change)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_numbers_of_other_kinds_become_the_fields_own() -> None:
    config = TrialConfig(
        batch_size=np.int64(32), train_images=1e4, base_lr=np.float32(0.5), weight_decay=0
    )  # type: ignore[arg-type]
    assert type(config.batch_size) is type(config.train_images) is int
    assert config.train_images == 10_000
    assert type(config.base_lr) is float
    assert type(config.weight_decay) is float


def test_key_is_the_same_in_every_version_that_gives_the_same_numbers() -> None:
    # A change here makes every study of every user run again: raise RECIPE_VERSION knowingly.
    config = TrialConfig(batch_size=32, base_lr=0.1, seed=3)
    assert trial_key(config, "f" * 64) == "29fae284ad73a426"


def test_a_new_field_with_its_default_leaves_keys_as_they_were() -> None:
    """The keys of configurations from before the fields on scaling, layers and their choices."""
    adam = TrialConfig(optimizer="adamw", weight_decay=0.05, lr_scaling="sqrt", batch_size=32)
    averaged = TrialConfig(ema_decay=0.99, train_blocks=2, head_lr_factor=10.0)
    assert [trial_key(config, "d") for config in (adam, averaged)] == [
        "abe9f7bd549bb6b2",
        "362aeb3da315d301",
    ]


def test_key_tells_apart_what_decides_the_result() -> None:
    configs = [TrialConfig(), TrialConfig(seed=1), TrialConfig(base_lr=0.02)]
    keys = {trial_key(config, data) for config in configs for data in ("a", "b")}
    assert len(keys) == 6
    assert trial_key(TrialConfig(weight_decay=0), "a") == trial_key(TrialConfig(), "a")


def test_a_file_is_known_by_its_content_wherever_it_lies() -> None:
    first, moved, other = (TrialConfig(pretrained=f"/{p}") for p in ("a#1", "b#1", "a#2"))
    assert trial_key(first, "d") == trial_key(moved, "d") != trial_key(other, "d")


def test_augmentations_come_in_the_order_in_which_they_are_applied() -> None:
    assert augmentations("shift+hflip") == ("hflip", "shift")
    assert augmentations("none") == ()


def test_config_needs_no_torch() -> None:
    code = (
        "import sys, trainable.config, trainable.training.schedule; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_default_is_a_value_that_its_field_takes_as_it_is() -> None:
    """So that a config need not check those of its fields that have it."""
    for declared in fields(TrialConfig):
        value = checked(declared, declared.default)
        assert (type(value), value) == (type(declared.default), declared.default)
        assert not (isinstance(value, str) and credentials.in_uri(value))


def test_another_seed_is_all_that_differs() -> None:
    config = TrialConfig(batch_size=64, epochs=3)
    other = with_seed(config, 5)
    assert other == replace(config, seed=5)
    assert config.seed == 0
    assert trial_key(other, "d") == trial_key(replace(config, seed=5), "d")
