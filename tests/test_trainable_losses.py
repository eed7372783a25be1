"""Losses, mixing, optimizers and the noise scale, against formulas in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trainable import noise
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.losses import mix, right_answers, smoothing_of, training_loss
from trainable.models import build_model, head_of
from trainable.optim import build_optimizer, set_lr
from trainable.trial import Trial

SCRATCH = TrialConfig(model="plain", pretrained="none", precision="fp32", augment="none")
GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("classes", [2, 5])
def test_smoothing_conventions_in_closed_form(classes: int) -> None:
    logits = torch.randn(7, classes, generator=GENERATOR)
    labels = torch.arange(7) % classes
    log_p = logits.log_softmax(1)
    eps = 0.1
    for convention, wrong, right in (
        ("paper", eps / (classes - 1), 1 - eps),
        ("torch", eps / classes, 1 - eps + eps / classes),
    ):
        target = torch.full((7, classes), wrong)
        target[torch.arange(7), labels] = right
        expected = -(target * log_p).sum(1).mean()
        config = replace(SCRATCH, label_smoothing=eps, smoothing_convention=convention)
        smoothing = smoothing_of(config, num_classes=classes)
        got = training_loss(logits, labels, smoothing=smoothing, config=config)
        assert torch.allclose(got, expected, atol=1e-6)


def test_mixup_mixes_labels_as_it_mixes_images() -> None:
    torch.manual_seed(0)
    images = torch.eye(4)[:, :3, None, None].expand(4, 3, 8, 8).contiguous()
    labels = torch.arange(4) % 3
    lambdas = set()
    for _ in range(5):
        mixed, shares = mix(replace(SCRATCH, mixup_alpha=0.4), images, labels, num_classes=3)
        assert torch.allclose(shares.sum(1), torch.ones(4))
        lam = float(mixed[0, 0, 0, 0])  # image 0 is the first unit vector
        lambdas.add(round(lam, 4))
        one_hot = torch.eye(3)[labels]
        assert torch.allclose(mixed, lam * images + (1 - lam) * images.roll(1, 0), atol=1e-6)
        assert torch.allclose(shares, lam * one_hot + (1 - lam) * one_hot.roll(1, 0), atol=1e-6)
    assert len(lambdas) == 5


def test_cutmix_labels_are_the_shares_of_the_area() -> None:
    torch.manual_seed(1)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    mixed, shares = mix(replace(SCRATCH, cutmix_alpha=1.0), images, torch.arange(4), num_classes=4)
    for i in range(4):
        kept = float((mixed[i, 0] == i).float().mean())
        assert 0 < kept < 1
        assert shares[i, i] == pytest.approx(kept, abs=1e-6)
        assert shares[i, (i - 1) % 4] == pytest.approx(1 - kept, abs=1e-6)
    assert mix(SCRATCH, images, torch.arange(4), num_classes=4)[1].ndim == 1


def test_right_answers_count_mixed_labels_by_their_share() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert right_answers(logits, torch.tensor([0, 0])) == 1
    assert right_answers(logits, torch.tensor([[0.7, 0.3], [0.6, 0.4]])) == pytest.approx(1.1)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_is_the_papers_formula_to_its_gradient(temperature: float) -> None:
    student = torch.randn(6, 3, generator=GENERATOR, requires_grad=True)
    teacher = torch.randn(6, 3, generator=GENERATOR)
    labels = torch.arange(6) % 3
    config = replace(SCRATCH, distill_from="x", distill_temperature=temperature, distill_weight=0.7)
    loss = training_loss(student, labels, smoothing=0.0, config=config, teacher_logits_BK=teacher)
    (ours,) = torch.autograd.grad(loss, student)
    # He et al. 2019, equation 6: l(p, softmax z) + T^2 l(softmax(r/T), softmax(z/T)), l the
    # cross-entropy, which differs from KL by the teacher's entropy.
    p = (teacher / temperature).softmax(1)
    soft = -(p * (student / temperature).log_softmax(1)).sum(1).mean()
    formula = cross_entropy(student, labels) + 0.7 * temperature**2 * soft
    (theirs,) = torch.autograd.grad(formula, student)
    assert torch.allclose(ours, theirs, atol=1e-5)


def after_one_step(config: TrialConfig, w: list[float], g: list[float], lr: float) -> np.ndarray:
    model = nn.Linear(len(w), 1, bias=False)
    model.weight.data = torch.tensor([w])
    optimizer = build_optimizer(config, model, lr=lr)
    set_lr(optimizer, lr)
    model.weight.grad = torch.tensor([g])
    optimizer.step()
    return model.weight.detach().numpy()[0]


def test_optimizers_take_the_step_of_their_formula() -> None:
    w, g, lr, wd = np.array([3.0, 4.0]), np.array([0.6, -0.8]), 0.1, 0.01
    d = g + wd * w
    adam_w = g / (np.abs(g) + 1e-8)
    expected = {
        "sgd": w - lr * d,
        "sgd nesterov": w - lr * (d + 0.9 * d),
        "adam": w - lr * d / (np.abs(d) + 1e-8),
        "adamw": w * (1 - lr * wd) - lr * adam_w,
        "rmsprop": w - lr * d / (np.sqrt(0.01 * d**2) + 1e-8),
        "adagrad": w - lr * d / (np.abs(d) + 1e-8),
        # You et al. 2017: trust 0.001 |w| / (|g| + wd |w|).
        "lars": w - lr * 0.001 * 5 / (1 + wd * 5) * d,
    }
    for name, target in expected.items():
        kind, _, nesterov = name.partition(" ")
        config = replace(
            SCRATCH,
            optimizer=kind,
            weight_decay=wd,
            nesterov=bool(nesterov),
            momentum=0.0 if kind == "rmsprop" else 0.9,
        )
        got = after_one_step(config, w.tolist(), g.tolist(), lr)
        assert np.allclose(got, target, atol=2e-5), name
    # You et al. 2020: the step of Adam plus decay, its length |w|.
    config = replace(SCRATCH, optimizer="lamb", weight_decay=wd)
    moved = w - after_one_step(config, w.tolist(), g.tolist(), lr)
    assert np.linalg.norm(moved) == pytest.approx(lr * 5, rel=1e-3)


def test_the_head_has_its_own_lr() -> None:
    model = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    config = replace(SCRATCH, head_lr_factor=10.0, weight_decay=0.1)
    optimizer = build_optimizer(config, model, lr=1.0, head=head_of(model))
    set_lr(optimizer, 0.2)
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates[id(model.get_parameter("fc.1.weight"))] == (2.0, 0.1)
    assert rates[id(model.get_parameter("fc.1.bias"))] == (2.0, 0.0)
    assert rates[id(model.get_parameter("conv1.weight"))] == (0.2, 0.1)


def test_noise_scale_of_a_linear_gaussian_model_is_known() -> None:
    """loss = |w - x|^2 / 2 with x ~ N(mu, sigma^2 I): G = w - mu, tr(Sigma) = d sigma^2."""
    d, sigma = 50, 2.0
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(d, requires_grad=True)
    mu = torch.full((d,), 0.5)
    model = nn.Identity()
    sums = noise.NoiseSums()
    for _ in range(300):
        x = mu + sigma * torch.randn(256, d, generator=generator)
        labels = torch.zeros(256)
        sums += noise.measure(
            model, [w], x, labels, lambda x, _: 0.5 * (w - x).square().sum(1).mean()
        )
    assert sums.trace_sigma / 300 == pytest.approx(d * sigma**2, rel=0.02)
    assert sums.squared_gradient / 300 == pytest.approx(d * 0.25, rel=0.03)
    assert sums.scale == pytest.approx(d * sigma**2 / (d * 0.25), rel=0.05)


def test_noise_scale_is_nothing_where_the_gradient_is() -> None:
    assert math.isnan(noise.NoiseSums(1.0, -0.1).scale)
    assert math.isnan(noise.NoiseSums().scale)


def test_measuring_noise_changes_no_weight_and_every_trial_reports_it(
    tiny_data: Dataset, tiny_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, epochs=2)
    results = list(finetune(config, data=tiny_data))
    assert any(r.noise_scale > 0 for r in results)
    monkeypatch.setattr(Trial, "_measure_noise", lambda *_: None)
    without = list(finetune(config, data=tiny_data))
    assert [r.val_loss for r in without] == [r.val_loss for r in results]
