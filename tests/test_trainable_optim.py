"""Every declared optimizer against torch's or timm's built by hand, and against its formula."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from timm.optim import param_groups_layer_decay
from timm.optim.lamb import Lamb
from timm.optim.lars import Lars
from torch import nn, optim

from trainable.config import OPTIMIZERS, SCHEDULE_FREE, TrialConfig
from trainable.networks.models import freeze_all_but, head_of
from trainable.training.optim import (
    build_optimizer,
    parameter_groups,
    set_lr,
    to_evaluation,
    to_training,
)
from trainable.training.schedule import peak_lr

# No value is a default, of ours or of the libraries: one that is lost on the way shows.
CONFIG = TrialConfig(
    model="plain",
    pretrained="none",
    momentum=0.7,
    beta1=0.6,
    beta2=0.8,
    eps=0.05,
    weight_decay=0.03,
    decay="constant",  # which schedule-free optimizers need
)
GRADIENTS = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)) * 0.3
LRS = (0.1, 0.2, 0.05)

Groups = list[dict[str, Any]]
BY_HAND: dict[str, Callable[[Groups, bool], optim.Optimizer]] = {
    "sgd": lambda g, n: optim.SGD(g, lr=1, momentum=0.7, nesterov=n, foreach=False, fused=False),
    "adam": lambda g, _: optim.Adam(g, lr=1, betas=(0.6, 0.8), eps=0.05, foreach=False),
    "adamw": lambda g, _: optim.AdamW(g, lr=1, betas=(0.6, 0.8), eps=0.05, foreach=False),
    "rmsprop": lambda g, _: optim.RMSprop(g, lr=1, momentum=0.7, eps=0.05, foreach=False),
    "adagrad": lambda g, _: optim.Adagrad(g, lr=1, eps=0.05, foreach=False),
    "lars": lambda g, n: Lars(g, lr=1, momentum=0.7, nesterov=n, always_adapt=True, foreach=False),
    "lamb": lambda g, _: Lamb(
        g, lr=1, betas=(0.6, 0.8), eps=0.05, always_adapt=True, max_grad_norm=None, foreach=False
    ),
    "schedulefree_sgd": lambda g, _: SGDScheduleFree(g, lr=1, momentum=0.7, foreach=False),
    "schedulefree_adamw": lambda g, _: AdamWScheduleFree(
        g, lr=1, betas=(0.6, 0.8), eps=0.05, foreach=False
    ),
}


def layer() -> nn.Linear:
    made = nn.Linear(4, 1)
    made.weight.data = torch.tensor([[3.0, -4.0, 1.0, 2.0]])
    made.bias.data = torch.tensor([1.5])
    return made


def give_gradient(model: nn.Linear, update: int) -> None:
    model.weight.grad = GRADIENTS[update, :1].clone()
    model.bias.grad = GRADIENTS[update, 1, :1].clone()


def trained(config: TrialConfig) -> list[torch.Tensor]:
    """Weight and bias after each of three updates."""
    model = layer()
    optimizer = build_optimizer(config, model, lr=LRS[0])
    after = []
    for update, lr in enumerate(LRS):
        set_lr(optimizer, lr)
        to_training(optimizer)
        give_gradient(model, update)
        optimizer.step()
        after.append(torch.cat([model.weight.detach()[0], model.bias.detach()]))
    return after


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [(name, False) for name in OPTIMIZERS] + [("sgd", True), ("lars", True)],
)
def test_every_optimizer_takes_the_steps_of_its_library(name: str, nesterov: bool) -> None:
    model = layer()
    by_hand = BY_HAND[name](
        [
            {"params": [model.weight], "weight_decay": 0.03},
            {"params": [model.bias], "weight_decay": 0.0},
        ],
        nesterov,
    )
    to_training(by_hand)
    got = trained(replace(CONFIG, optimizer=name, nesterov=nesterov))
    for update, lr in enumerate(LRS):
        for group in by_hand.param_groups:
            group["lr"] = lr
        give_gradient(model, update)
        by_hand.step()
        expected = torch.cat([model.weight.detach()[0], model.bias.detach()])
        torch.testing.assert_close(got[update], expected, rtol=1e-5, atol=1e-6)


def test_optimizers_take_three_steps_of_their_formulas() -> None:
    """By hand, on a weight that decays: the second step is the first that shows a memory."""
    m, b1, b2, eps, wd = 0.7, 0.6, 0.8, 0.05, 0.03
    gradients = GRADIENTS[:, 0].double().numpy()
    start = np.array([3.0, -4.0, 1.0, 2.0])
    norm = np.linalg.norm

    def run(name: str) -> np.ndarray:
        w, first, second = start.copy(), np.zeros(4), np.zeros(4)
        for t, (g, lr) in enumerate(zip(gradients, LRS, strict=True), 1):
            d = g + wd * w
            if name.startswith("sgd"):
                first = m * first + d
                w = w - lr * (d + m * first if "nesterov" in name else first)
            elif name.startswith("lars"):  # You et al. 2017: trust 0.001 |w| / (|g| + wd |w|)
                d = d * 0.001 * norm(w) / (norm(g) + wd * norm(w))
                first = m * first + d
                w = w - lr * (d + m * first if "nesterov" in name else first)
            elif name == "rmsprop":
                second = 0.99 * second + 0.01 * d**2
                first = m * first + d / (np.sqrt(second) + eps)
                w = w - lr * first
            elif name == "adagrad":
                second = second + d**2
                w = w - lr * d / (np.sqrt(second) + eps)
            else:
                d = d if name == "adam" else g
                first = b1 * first + (1 - b1) * d
                second = b2 * second + (1 - b2) * d**2
                step = first / (1 - b1**t) / (np.sqrt(second / (1 - b2**t)) + eps)
                if name == "adamw":
                    w = w * (1 - lr * wd)
                if name == "lamb":  # You et al. 2020: the step's length is the weight's
                    step = step + wd * w
                    step = step * norm(w) / norm(step)
                w = w - lr * step
        return w

    others = [name for name in OPTIMIZERS if name not in SCHEDULE_FREE]
    for name in (*others, "sgd nesterov", "lars nesterov"):
        kind, _, nesterov = name.partition(" ")
        got = trained(replace(CONFIG, optimizer=kind, nesterov=bool(nesterov)))[-1][:4]
        np.testing.assert_allclose(got.numpy(), run(name), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("lrs", [(0.1, 0.1, 0.1), (0.05, 0.1, 0.2)])  # and in a warmup
@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_optimizers_keep_the_papers_three_sequences(
    name: str, lrs: tuple[float, ...]
) -> None:
    """Defazio et al. 2024, algorithm 1: z takes the steps, x is their average, y in between."""
    beta, wd = (0.7 if name == "schedulefree_sgd" else 0.6), 0.03
    model = layer()
    optimizer = build_optimizer(replace(CONFIG, optimizer=name), model, lr=lrs[0])
    x = z = np.array([3.0, -4.0, 1.0, 2.0])
    second, weight_sum = np.zeros(4), 0.0
    for t, lr in enumerate(lrs, 1):
        set_lr(optimizer, lr)
        to_training(optimizer)
        y = (1 - beta) * z + beta * x
        np.testing.assert_allclose(model.weight.detach()[0].numpy(), y, atol=2e-6)
        give_gradient(model, t - 1)
        gradient = GRADIENTS[t - 1, 0].double().numpy()
        optimizer.step()
        if name == "schedulefree_adamw":
            second = 0.8 * second + 0.2 * gradient**2
            gradient = gradient / (np.sqrt(second / (1 - 0.8**t)) + 0.05)
        z = z - lr * (gradient + wd * y)
        weight_sum += max(lrs[:t]) ** 2
        c = max(lrs[:t]) ** 2 / weight_sum
        x = (1 - c) * x + c * z
        to_evaluation(optimizer)
        np.testing.assert_allclose(model.weight.detach()[0].numpy(), x, atol=2e-6)


def lars_of_the_paper(
    start: np.ndarray, gradients: np.ndarray, *, lr: float, decay: float
) -> np.ndarray:
    """You et al. 2017, algorithm 1, with eta = 0.001 and a momentum of 0.7."""
    w, velocity = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        local_lr = 0.001 * np.sqrt(w @ w) / (np.sqrt(gradient @ gradient) + decay * np.sqrt(w @ w))
        velocity = 0.7 * velocity + lr * local_lr * (gradient + decay * w)
        w = w - velocity
    return w


def lamb_of_the_paper(
    start: np.ndarray, gradients: np.ndarray, *, lr: float, decay: float
) -> np.ndarray:
    """You et al. 2020, algorithm 2, with phi(z) = z; CONFIG's betas and eps."""
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, gradient in enumerate(gradients, 1):
        m = 0.6 * m + 0.4 * gradient
        v = 0.8 * v + 0.2 * gradient**2
        ratio = (m / (1 - 0.6**t)) / (np.sqrt(v / (1 - 0.8**t)) + 0.05)
        direction = ratio + decay * w
        w = w - lr * np.sqrt(w @ w) / np.sqrt(direction @ direction) * direction
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("scale", [1.0, 100.0])  # of the gradients: neither clips them
@pytest.mark.parametrize(
    ("name", "paper"), [("lars", lars_of_the_paper), ("lamb", lamb_of_the_paper)]
)
def test_lars_and_lamb_adapt_every_layer_as_their_papers_do(
    name: str, paper: Callable[..., np.ndarray], scale: float, weight_decay: float
) -> None:
    model = layer()
    lr = 5.0 if name == "lars" else 0.1
    optimizer = build_optimizer(
        replace(CONFIG, optimizer=name, weight_decay=weight_decay), model, lr=lr
    )
    starts = [model.weight.detach()[0].double().numpy(), model.bias.detach().double().numpy()]
    taken: list[list[np.ndarray]] = [[], []]
    for update in range(3):
        give_gradient(model, update)
        for parameter, gradients in zip((model.weight, model.bias), taken, strict=True):
            assert parameter.grad is not None
            parameter.grad *= scale
            gradients.append(parameter.grad.double().numpy().reshape(-1).copy())
        optimizer.step()
    decays = (weight_decay, 0.0)  # a bias does not decay, and its step is adapted all the same
    got = (model.weight.detach()[0], model.bias.detach())
    for values, start, gradients, decay in zip(got, starts, taken, decays, strict=True):
        expected = paper(start, np.stack(gradients), lr=lr, decay=decay)
        assert np.abs(expected - start).max() > 1e-3
        np.testing.assert_allclose(values.double().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_weight_of_zero_takes_the_step_unadapted(name: str) -> None:
    """The papers' formulas would leave it at zero for ever."""
    model = layer()
    model.bias.data.zero_()
    optimizer = build_optimizer(replace(CONFIG, optimizer=name), model, lr=0.1)
    give_gradient(model, 0)
    gradient = float(GRADIENTS[0, 1, 0])
    optimizer.step()
    step = gradient if name == "lars" else gradient / (abs(gradient) + 0.05)
    assert model.bias.item() == pytest.approx(-0.1 * step, rel=1e-5)


OTHERS = {"momentum": 0.5, "beta1": 0.3, "beta2": 0.5, "eps": 0.5, "weight_decay": 0.3}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("field", OTHERS)
def test_a_field_changes_the_optimizers_that_it_names(field: str, name: str) -> None:
    meaning = next(each.metadata["meaning"] for each in fields(TrialConfig) if each.name == field)
    named = [each for each in OPTIMIZERS if re.search(rf"\b{each}\b", meaning)] or OPTIMIZERS
    config = replace(CONFIG, optimizer=name)
    changed = trained(replace(config, **{field: OTHERS[field]}))[-1]
    assert torch.equal(changed, trained(config)[-1]) == (name not in named)


def test_malladis_constants_reach_adam() -> None:
    # k = 2: 1 - beta doubles, eps falls by sqrt(2).
    changes = {"lr_scaling": "malladi", "batch_size": 512, "beta1": 0.7, "beta2": 0.9}
    for name in ("adam", "adamw"):
        optimizer = build_optimizer(replace(CONFIG, optimizer=name, **changes), layer(), lr=0.1)
        assert optimizer.defaults["betas"] == pytest.approx((0.4, 0.8))
        assert optimizer.defaults["eps"] == pytest.approx(0.05 / 2**0.5)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_betas_by_half_life_reach_the_optimizer(name: str) -> None:
    changes = {"optimizer": name, "beta_scaling": "half_life", "batch_size": 512}
    optimizer = build_optimizer(replace(CONFIG, **changes), layer(), lr=0.1)
    betas = {group["betas"] for group in optimizer.param_groups}
    assert list(betas) == [pytest.approx((0.6**2, 0.8**2))]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("rule", ["constant", "inverse_lr", "timescale"])
def test_weights_shrink_as_the_rule_of_their_decay_says(rule: str, name: str) -> None:
    """Without gradients, over an epoch of 1024 images; sgd without momentum, by its L2 penalty."""

    def left(batch_size: int, updates: int) -> float:
        model = layer()
        config = replace(
            CONFIG, optimizer=name, momentum=0.0, lr_scaling="sqrt", weight_decay_scaling=rule
        )
        config = replace(config, batch_size=batch_size, base_lr=0.002)
        optimizer = build_optimizer(config, model, lr=peak_lr(config))
        set_lr(optimizer, peak_lr(config))
        for _ in range(updates):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
        return -np.log(float((model.weight[0, 0] / 3.0).detach()))

    # A quarter of the reference's batch: half its lr, and four times as many updates an epoch.
    per_update = left(64, 1) / left(256, 1)
    per_epoch = left(64, 16) / left(256, 4)
    expected = {"constant": (0.5, 2.0), "inverse_lr": (1.0, 4.0), "timescale": (0.25, 1.0)}[rule]
    assert (per_update, per_epoch) == (
        pytest.approx(expected[0], rel=0.02),
        pytest.approx(expected[1], rel=0.02),
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_update_is_one_kernel_where_torch_has_it(name: str) -> None:
    assert build_optimizer(replace(CONFIG, optimizer=name), layer(), lr=0.1).defaults["fused"]


def test_groups_hold_what_is_trained_by_decay_and_lr() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(
        model, weight_decay=0.1, no_bias_decay=True, head=model[2], head_lr_factor=3.0
    )
    got = {id(p): (g["weight_decay"], g["lr_factor"]) for g in groups for p in g["params"]}
    assert got == {
        id(model[1].weight): (0.0, 1.0),
        id(model[1].bias): (0.0, 1.0),
        id(model[2].weight): (0.1, 3.0),
        id(model[2].bias): (0.0, 3.0),
    }
    everything = parameter_groups(model, weight_decay=0.1, no_bias_decay=False)
    assert [(g["weight_decay"], g["lr_factor"]) for g in everything] == [(0.1, 1.0)]
    assert len(everything[0]["params"]) == 4


def factors_of(model: nn.Module, **changes: Any) -> dict[str, tuple[float, float]]:
    """The lr's factor and the weight decay of each trained parameter, by name."""
    config = replace(CONFIG, **{"optimizer": "adamw", "layer_decay": 0.5, **changes})
    optimizer = build_optimizer(config, model, lr=1.0, head=head_of(model))
    set_lr(optimizer, 1.0)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_layers_of_timms_networks_have_timms_rates(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=2)
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(
        model, weight_decay=0.03, no_weight_decay_list=skip, layer_decay=0.5
    )
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in theirs
        for p in group["params"]
    }
    assert len({rate for rate, _ in expected.values()}) > 3
    assert factors_of(model) == expected


def test_blocks_of_torchvisions_networks_are_layers() -> None:
    with torch.device("meta"):
        vgg, resnet, swin, vit = (
            torchvision.models.get_model(name, num_classes=2)
            for name in ("vgg11", "resnet18", "swin_t", "vit_b_16")
        )
    rates = {name: rate for name, (rate, _) in factors_of(vgg).items()}
    assert rates["classifier.6.weight"] == 1.0
    numbers = (0, 3, 6, 8, 11, 13, 16, 18)  # convolutions of five blocks
    powers = (5, 4, 3, 3, 2, 2, 1, 1)
    for number, power in zip(numbers, powers, strict=True):
        assert rates[f"features.{number}.weight"] == rates[f"features.{number}.bias"] == 0.5**power
    rates = {name: rate for name, (rate, _) in factors_of(resnet).items()}
    expected = {"fc": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "bn1": 5, "conv1": 6}
    assert {name.split(".")[0]: rate for name, rate in rates.items()} == {
        name: 0.5**power for name, power in expected.items()
    }
    assert {factors_of(swin)[name][0] for name in ("norm.weight", "head.weight")} == {1.0}
    assert factors_of(vit)["class_token"][0] == factors_of(vit)["conv_proj.weight"][0] == 0.25


def test_layers_keep_their_rates_beside_frozen_ones_and_a_heads_own() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=2)
    whole = factors_of(model)
    freeze_all_but(model, 2)
    parts = factors_of(model, head_lr_factor=10.0)
    assert {name.split(".")[0] for name in parts} == {"layer3", "layer4", "fc"}
    for name, (rate, decay) in parts.items():
        expected = 10.0 if name.startswith("fc") else whole[name][0]
        assert (rate, decay) == (
            expected,
            0.03
            if name.endswith("weight") and "bn" not in name and "downsample.1" not in name
            else 0.0,
        )


def test_a_trial_without_a_decay_of_layers_has_the_groups_that_it_had() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=2)
    groups = parameter_groups(model, weight_decay=0.1, no_bias_decay=True)
    assert [(g["weight_decay"], g["lr_factor"]) for g in groups] == [(0.1, 1.0), (0.0, 1.0)]


def test_what_a_network_says_does_not_decay_does_not() -> None:
    """Position embeddings and class tokens have more than one dimension (timm's transformers)."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, num_classes=2)
    spared = {id(model.pos_embed), id(model.cls_token)}
    for no_bias_decay in (True, False):
        groups = parameter_groups(model, weight_decay=0.1, no_bias_decay=no_bias_decay)
        free = {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}
        assert (spared <= free) == no_bias_decay
        assert id(model.blocks[0].mlp.fc1.weight) not in free
