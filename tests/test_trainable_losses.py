"""Losses, mixing, the head's lr and the noise scale, against formulas in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.evaluation import Evaluation
from trainable.finetune import finetune
from trainable.networks.models import build_model, head_of
from trainable.training import noise
from trainable.training.losses import mix, num_correct, smoothing_of, training_loss
from trainable.training.noise import NoiseSums
from trainable.training.optim import build_optimizer, set_lr

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


def test_mixup_and_cutmix_together_take_turns_by_chance() -> None:
    # Of images of one value each mixup makes values in between, CutMix none.
    torch.manual_seed(3)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    config = replace(SCRATCH, mixup_alpha=0.7, cutmix_alpha=0.7)
    cut = 0
    for _ in range(200):
        mixed, shares = mix(config, images, torch.arange(4), num_classes=4)
        assert shares.shape == (4, 4)
        cut += bool((mixed == mixed.round()).all())
    assert 70 < cut < 130  # a fair coin leaves this once in 100 000


# Of what a box leaves whose sides are sqrt(1 - lambda) of the image's and whose centre is anywhere,
# so that the edge may cut it off (Yun 2019): 400 000 boxes drawn with torch.distributions.
CUTMIX_VARIANCE = {0.1: 0.0736, 8.0: 0.0133}


@pytest.mark.parametrize("way", ["mixup_alpha", "cutmix_alpha"])
@pytest.mark.parametrize("alpha", [0.1, 8.0])
def test_alpha_is_that_of_the_beta_from_which_lambda_comes(way: str, alpha: float) -> None:
    # The variance of Beta(a, a) is 1 / (4 (2 a + 1)); one batch, one lambda.
    torch.manual_seed(0)
    images, labels = torch.zeros(2, 1, 64, 64), torch.arange(2)
    shares = [
        float(mix(replace(SCRATCH, **{way: alpha}), images, labels, num_classes=2)[1][0, 0])
        for _ in range(300)
    ]
    found = torch.tensor(shares)
    if way == "mixup_alpha":
        assert float(found.mean()) == pytest.approx(0.5, abs=0.1)
        assert float(found.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.3)
    else:
        assert float(found.var()) == pytest.approx(CUTMIX_VARIANCE[alpha], rel=0.4)


def test_num_correct_counts_mixed_labels_by_their_share() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert num_correct(logits, torch.tensor([0, 0])) == 1
    assert num_correct(logits, torch.tensor([0, 1])) == 2
    assert num_correct(logits, torch.tensor([[0.7, 0.3], [0.6, 0.4]])) == pytest.approx(1.1)


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
            model,
            [w],
            lambda first, last, x=x, labels=labels: (x[first:last], labels[first:last]),  # type: ignore[misc]
            lambda x, _: 0.5 * (w - x).square().sum(1).mean(),
            num_images=256,
            microbatch_size=32,
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
    monkeypatch.setattr(Evaluation, "measure_noise", lambda *_: NoiseSums())
    without = list(finetune(config, data=tiny_data))
    assert [r.val_loss for r in without] == [r.val_loss for r in results]


def test_a_mixing_distribution_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[float] = []
    init = v2.MixUp.__init__

    def counted(self: v2.MixUp, *, alpha: float, num_classes: int) -> None:
        built.append(alpha)
        init(self, alpha=alpha, num_classes=num_classes)

    monkeypatch.setattr(v2.MixUp, "__init__", counted)
    config = replace(SCRATCH, mixup_alpha=0.123456)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    torch.manual_seed(0)
    first, second = (mix(config, images, labels, num_classes=2)[0] for _ in range(2))
    assert built == [0.123456]
    assert not torch.equal(first, second)  # drawn anew all the same
