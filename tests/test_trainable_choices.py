"""Every choice that TrialConfig declares does what it says: the declaration itself is gone through.

A choice or a field with choices that is added later fails here until it has its formula.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from scipy.special import erf
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy, group_norm

from trainable.config import (
    ACTIVATIONS,
    AUGMENTATIONS,
    BUDGETS,
    OPTIMIZERS,
    OWN_MODELS,
    SCORES,
    SCORES_OF,
    TrialConfig,
    warmup_epochs_of,
)
from trainable.data.augment import COLUMNS, DRAWS, augment
from trainable.data.cache import embedded
from trainable.host.device import set_precision
from trainable.networks.models import available_weights, build_model, pretrained_network
from trainable.networks.plain import ResidualBlock, activation_of
from trainable.training.losses import smoothing_of, training_loss
from trainable.training.optim import build_optimizer
from trainable.training.schedule import ema_decay_at, growth, lr_at, peak_lr, timetable
from trainable.training.step import Step
from trainable.training.task import TASKS
from trainable.trial import Trial

CPU = torch.device("cpu")
SCRATCH = TrialConfig(model="plain", pretrained="none", precision="fp32", augment="none")
GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


# --- fields with choices --------------------------------------------------------------------------


def check_norm(norm: str, folder: Path) -> None:
    """The first layer's, on images of which each half has another mean."""
    if norm == "none":
        network = build_model(replace(SCRATCH, norm="none"), num_classes=2)
        assert [type(m).__name__ for m in network.features.stem] == ["Conv2d", "ReLU"]  # type: ignore
        assert network.get_parameter("features.stem.0.bias") is not None
        return
    original = torchvision.models.resnet18()
    original.bn1.running_mean.copy_(randn(64))
    torch.save(original.state_dict(), folder / "resnet18")
    config = replace(SCRATCH, model="resnet18", pretrained=str(folder / "resnet18"), norm=norm)
    config = replace(config, batch_size=8, ghost_batch_size=4)
    layer = build_model(config, num_classes=2).train().get_submodule("bn1")
    x = torch.cat([randn(4, 64, 3, 3), 3 + 2 * randn(4, 64, 3, 3)])
    mean = original.bn1.running_mean
    assert mean is not None
    formulas: dict[str, Callable[[], Tensor]] = {
        "batch": lambda: batch_norm(x, None, None, training=True),
        "sync": lambda: batch_norm(x, None, None, training=True),  # on one device; else in _ranks
        "ghost": lambda: torch.cat([batch_norm(h, None, None, training=True) for h in x.split(4)]),
        "group": lambda: group_norm(x, 32),
        "frozen": lambda: (x - mean[:, None, None]) / (1 + 1e-5) ** 0.5,
    }
    torch.testing.assert_close(layer(x), formulas[norm](), rtol=1e-4, atol=1e-4)


def check_activation(activation: str, _: Path) -> None:
    x = np.linspace(-3, 3, 13)
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017
    formulas = {
        "sigmoid": 1 / (1 + np.exp(-x)),
        "tanh": (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
        "relu": np.maximum(x, 0),
        "leaky_relu": np.where(x > 0, x, 0.1 * x),
        "prelu": np.where(x > 0, x, 0.25 * x),
        "elu": np.where(x > 0, x, np.exp(x) - 1),
        "selu": scale * np.where(x > 0, x, alpha * (np.exp(x) - 1)),
        "gelu": x * (1 + erf(x / math.sqrt(2))) / 2,
    }
    made = activation_of(activation)
    got = made(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(got, formulas[activation], atol=1e-6)
    assert activation_of(activation) is not made  # PReLU's slope is each layer's own
    # Weights begin with a deviation of gain / sqrt(n); n: fan in, for Xavier the mean of both.
    torch.manual_seed(0)
    config = replace(SCRATCH, width=64, depth=2, activation=activation)
    network = build_model(config, num_classes=2)
    assert sum(type(m) is type(made) for m in network.modules()) == 3
    gains = {"sigmoid": 1.0, "tanh": 5 / 3, "selu": 1.0}
    saturating = activation in ("sigmoid", "tanh")
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        n = 9 * (conv.in_channels + saturating * conv.out_channels) / (1 + saturating)
        expected = gains.get(activation, math.sqrt(2)) / math.sqrt(n)
        assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.06)


def check_lr_scaling(rule: str, _: Path) -> None:
    optimizer = "adam" if rule == "malladi" else "sgd"
    config = TrialConfig(
        lr_scaling=rule, optimizer=optimizer, base_lr=0.3, batch_size=64, reference_batch_size=1024
    )
    k = 1 / 16
    factors = {"constant": 1.0, "sqrt": k**0.5, "linear": k, "malladi": k**0.5}
    assert peak_lr(config) == pytest.approx(0.3 * factors[rule])
    built = build_optimizer(config, nn.Linear(2, 2), lr=1.0)
    if rule == "malladi":
        assert built.defaults["betas"] == pytest.approx((1 - 0.1 * k, 1 - 0.001 * k))
        assert built.defaults["eps"] == pytest.approx(4e-8)
    else:
        adam = build_optimizer(replace(config, optimizer="adam"), nn.Linear(2, 2), lr=1.0)
        assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def check_optimizer(name: str, _: Path) -> None:
    """Which class it is; its steps are those of its library in test_trainable_optim.py."""
    classes = {"sgd": "SGD", "rmsprop": "RMSprop", "adamw": "AdamW"}
    classes |= {"schedulefree_sgd": "SGDScheduleFree", "schedulefree_adamw": "AdamWScheduleFree"}
    built = build_optimizer(
        replace(SCRATCH, optimizer=name, decay="constant"), nn.Linear(2, 2), lr=0.1
    )
    assert type(built).__name__ == classes.get(name, name.capitalize())
    assert built.param_groups[0]["lr"] == 0.1


def check_weight_decay_scaling(rule: str, _: Path) -> None:
    config = TrialConfig(
        optimizer="adamw", weight_decay=0.1, batch_size=64, reference_batch_size=1024
    )
    config = replace(config, weight_decay_scaling=rule, lr_scaling="sqrt")
    expected = {"constant": 0.1, "inverse_lr": 0.1 * 4, "timescale": 0.1 * 4 / 16}[rule]
    built = build_optimizer(config, nn.Linear(2, 2), lr=1.0)
    decays = sorted(g["weight_decay"] for g in built.param_groups)
    assert decays == pytest.approx([0.0, expected])


def check_beta_scaling(rule: str, _: Path) -> None:
    config = TrialConfig(
        optimizer="adam", beta_scaling=rule, batch_size=64, reference_batch_size=1024
    )
    powers = {"constant": (1, 1), "half_life": (1 / 16, 1 / 16), "beta2_half_life": (1, 1 / 16)}
    expected = tuple(beta**k for beta, k in zip((0.9, 0.999), powers[rule], strict=True))
    built = build_optimizer(config, nn.Linear(2, 2), lr=1.0)
    assert built.defaults["betas"] == pytest.approx(expected)
    assert built.defaults["eps"] == 1e-8


def check_ema_scaling(rule: str, _: Path) -> None:
    config = TrialConfig(ema_decay=0.99, ema_scaling=rule, reference_batch_size=1024)
    expected = {"constant": 0.99, "half_life": 0.99 ** (1 / 16)}[rule]
    assert ema_decay_at(config, 64) == pytest.approx(expected)


def check_warmup_scaling(scaling: str, _: Path) -> None:
    config = TrialConfig(warmup_scaling=scaling, warmup_epochs=2, batch_size=1024, epochs=20)
    epochs = {"constant": 2.0, "linear": 8.0}[scaling]
    assert warmup_epochs_of(config) == epochs
    assert timetable(config, train_images=4096).warmup == epochs * 4096


def check_decay(decay: str, _: Path) -> None:
    config = TrialConfig(
        decay=decay,
        base_lr=0.8,
        batch_size=256,
        epochs=40,
        warmup_epochs=8,
        num_steps=3,
        step_factor=0.5,
        power=2.0,
    )
    images = 100 * 256
    table = timetable(config, train_images=images)
    for epoch in (0, 8, 12, 24, 35):  # at its beginning; the decay takes 32 epochs after warmup
        t = (epoch - 8) / 32
        formulas = {
            "cosine": (1 + math.cos(math.pi * t)) / 2,
            "step": 0.5 ** math.floor(epoch / 10),
            "polynomial": (1 - t) ** 2,
            "constant": 1.0,
            "batch_growth": 1.0,
        }
        expected = 0.8 * (formulas[decay] if epoch >= 8 else 1 / 800)
        assert lr_at(config, table, epoch * images) == pytest.approx(expected)
        sizes = {"batch_growth": 256 * 2 ** math.floor(epoch / 10)}
        size, factor = growth(config, epoch + 1, train_images=images)
        assert (size, factor) == (sizes.get(decay, 256), 1.0)


def check_smoothing_convention(convention: str, _: Path) -> None:
    logits, labels = randn(6, 3), torch.arange(6) % 3
    wrong = {"paper": 0.3 / 2, "torch": 0.3 / 3}[convention]
    target = torch.full((6, 3), wrong)
    target[torch.arange(6), labels] = 1 - 2 * wrong
    config = replace(SCRATCH, label_smoothing=0.3, smoothing_convention=convention)
    smoothing = smoothing_of(config, num_classes=3)
    got = training_loss(logits, labels, smoothing=smoothing, config=config)
    torch.testing.assert_close(got, cross_entropy(logits, target))


def check_precision(precision: str, _: Path) -> None:
    settings = (
        (torch.backends.cuda.matmul, "allow_tf32", precision == "tf32"),
        (torch.backends.cudnn, "allow_tf32", precision == "tf32"),
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "deterministic", True),
    )
    before = [getattr(at, name) for at, name, _ in settings]
    fills = torch.utils.deterministic.fill_uninitialized_memory
    try:
        set_precision(precision, torch.device("cuda"), deterministic=False)
        assert torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.deterministic
        assert not torch.are_deterministic_algorithms_enabled()
        for at, name, wanted in settings:
            setattr(at, name, not wanted)  # what a trial before has left
        set_precision(precision, torch.device("cuda"))
        assert [getattr(at, name) for at, name, _ in settings] == [each[2] for each in settings]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills
        for (at, name, _), value in zip(settings, before, strict=True):
            setattr(at, name, value)
    if precision == "fp16":
        with pytest.raises(ValueError, match="precision=fp16 needs a GPU"):
            set_precision(precision, CPU)
        return
    set_precision(precision, CPU)
    config = replace(SCRATCH, precision=precision)
    network = build_model(config, num_classes=2)
    step = Step(config, network, num_classes=2, device=CPU)
    dtypes = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
    with step.autocast():
        assert network(torch.randn(4, 3, 16, 16)).dtype == dtypes[precision]
    assert not step.scaler.is_enabled()


def check_select_by(score: str, _: Path) -> None:
    """The epoch that is the best by this score is no other's."""
    best_at = {each: at for at, each in enumerate(SCORES, 1)}
    results = [
        SimpleNamespace(
            epoch=epoch,
            **{
                each: (1.0 if best_at[each] == epoch else 0.0) * (-1 if each == "val_loss" else 1)
                for each in SCORES
            },
        )
        for epoch in range(1, len(SCORES) + 1)
    ]
    task = next(task for task, scores in SCORES_OF.items() if score in scores)
    config = replace(SCRATCH, task=task, select_by=score)
    trial: Any = SimpleNamespace(config=config, results=results)
    best = Trial.best(trial)
    assert best is not None
    assert best.epoch == best_at[score]


def check_task(task: str, _: Path) -> None:
    """Its loss is that of what the network gives for its embedded data, and small where right."""
    config = replace(SCRATCH, task=task)
    source = embedded("synthetic", task)
    assert source.task == task
    network = build_model(config, num_classes=len(source.classes))
    loss = TASKS[task].loss
    if TASKS[task].takes_targets:
        boxes = torch.tensor([[[2.0, 3, 9, 12, 1]], [[0, 0, 0, 0, 0]]])
        outputs = network(torch.randn(2, 3, 16, 16), boxes)
        assert loss(outputs, boxes, smoothing=0.0, config=config) is outputs
        assert outputs > 0.5
        return
    outputs = network(torch.randn(2, 3, 16, 16))
    targets = outputs.argmax(1)
    assert loss(outputs * 1e6, targets, smoothing=0.0, config=config) < 0.1
    assert loss(-outputs * 1e6, targets, smoothing=0.0, config=config) > 1


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "norm": check_norm,
    "activation": check_activation,
    "lr_scaling": check_lr_scaling,
    "optimizer": check_optimizer,
    "weight_decay_scaling": check_weight_decay_scaling,
    "beta_scaling": check_beta_scaling,
    "ema_scaling": check_ema_scaling,
    "warmup_scaling": check_warmup_scaling,
    "decay": check_decay,
    "smoothing_convention": check_smoothing_convention,
    "precision": check_precision,
    "select_by": check_select_by,
    "task": check_task,
}


@pytest.mark.parametrize(
    ("field", "choice"),
    [(each.name, choice) for each in fields(TrialConfig) for choice in each.metadata["choices"]],
)
def test_every_choice_is_its_formula(field: str, choice: str, tmp_path: Path) -> None:
    CHECKS[field](choice, tmp_path)


def test_the_declaration_is_the_fields() -> None:
    declared = {each.name: each.metadata["choices"] for each in fields(TrialConfig)}
    assert declared["optimizer"] == OPTIMIZERS
    assert declared["activation"] == ACTIVATIONS
    assert declared["select_by"] == tuple(SCORES)
    assert set(CHECKS) == {name for name, choices in declared.items() if choices}


# --- augmentations --------------------------------------------------------------------------------

PATCHES = torch.randint(0, 256, (64, 24, 24, 3), dtype=torch.uint8, generator=GENERATOR)
DRAWN = torch.rand(64, DRAWS, generator=GENERATOR)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_changes_images_by_its_own_draws_alone(name: str) -> None:
    out = augment(PATCHES, DRAWN, (name,))
    assert out.shape == PATCHES.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 255
    changed = (out.float() - PATCHES).abs().amax((1, 2, 3)) > 2
    flips = ("hflip", "vflip", "rot180", "erase")  # half of the images
    assert 0.3 < float(changed.float().mean()) < 0.7 if name in flips else changed.sum() >= 60
    own = COLUMNS[name]
    for column in range(DRAWS):
        other = DRAWN.clone()
        other[:, column] = DRAWN[:, column].flip(0)
        alike = torch.equal(augment(PATCHES, other, (name,)), out)
        assert alike == (column not in range(own.start, own.stop)), column


def test_no_augmentation_is_another() -> None:
    """Alone on the same draws, and beside each other one: none is lost in company."""
    alone = {name: augment(PATCHES, DRAWN, (name,)).float() for name in AUGMENTATIONS}
    for at, first in enumerate(AUGMENTATIONS):
        for second in AUGMENTATIONS[at + 1 :]:
            both = augment(PATCHES, DRAWN, (first, second)).float()
            assert not torch.equal(alone[first], alone[second]), (first, second)
            assert not torch.equal(both, alone[first]), (first, second)
            assert not torch.equal(both, alone[second]), (first, second)


def test_every_augmentation_has_draws_of_its_own() -> None:
    taken = [range(DRAWS)[COLUMNS[name]] for name in AUGMENTATIONS]
    assert set(COLUMNS) == set(AUGMENTATIONS)
    assert sorted(column for columns in taken for column in columns) == list(range(DRAWS))


# --- networks and where their weights come from ---------------------------------------------------


@pytest.mark.parametrize("name", [*OWN_MODELS, "resnet18", "timm/resnet18"])
def test_every_kind_of_network_is_built_by_its_name(name: str) -> None:
    model = build_model(replace(SCRATCH, model=name, depth=6), num_classes=3)
    kinds = {
        "plain": lambda m: not any(isinstance(each, ResidualBlock) for each in m.modules()),
        "residual": lambda m: sum(isinstance(each, ResidualBlock) for each in m.modules()) == 3,
        "resnet18": lambda m: type(m) is torchvision.models.ResNet,
        "timm/resnet18": lambda m: type(m) is timm.models.ResNet,
    }
    assert kinds[name](model)


def test_no_weights_are_drawn_from_the_seed_and_a_file_is_loaded(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1()
    path = tmp_path / "weights"
    torch.save(network.state_dict(), path)
    assert available_weights("squeezenet1_1", "none") == "none"
    known = available_weights("squeezenet1_1", str(path))
    assert known.startswith(f"{path}#")
    first = "features.0.weight"
    for pretrained, loaded in (("none", False), (known, True)):
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            config = replace(SCRATCH, model="squeezenet1_1", pretrained=pretrained)
            drawn.append(build_model(config, num_classes=2).get_parameter(first).detach())
        assert torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[0], drawn[2]) == loaded
        assert torch.equal(drawn[0], network.get_parameter(first)) == loaded


def test_imagenet_weights_are_the_first_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch's cache lies a file under the name of the first version alone; there is no net."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    cached = tmp_path / "hub" / "checkpoints"
    cached.mkdir(parents=True)
    network = torchvision.models.mobilenet_v2()
    torch.save(network.state_dict(), cached / "mobilenet_v2-b0353104.pth")
    config = replace(SCRATCH, model="mobilenet_v2", pretrained="imagenet")
    model = build_model(config, num_classes=2)
    first = "features.0.0.weight"
    assert torch.equal(model.get_parameter(first), network.get_parameter(first))
    assert available_weights("mobilenet_v2", "imagenet") == "imagenet"
    assert available_weights("mobilenet_v3_small", "imagenet") == "none"


def test_imagenet_weights_of_timm_come_with_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **named: Any) -> nn.Module:
        asked.append((name, named))
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", create_model)
    pretrained_network("timm/resnet18", dropout=0.3)
    assert asked == [("resnet18", {"pretrained": True, "drop_rate": 0.3})]


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_is_the_trials(budget: str) -> None:
    # 1000 images are 15 updates of 64 an epoch.
    totals = {
        "epochs": ("images", 4 * 15 * 64),
        "updates": ("images", 4 * 64),
        "examples": ("images", 64),  # whole updates
        "seconds": ("seconds", 4.0),
    }
    table = timetable(TrialConfig(batch_size=64, **{budget: 4}), train_images=1000)  # type: ignore[arg-type]
    assert (table.unit, table.total) == totals[budget]
