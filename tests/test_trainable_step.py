"""Every trick, against something that is not our code, or that would fail if it did nothing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from trainable import noise
from trainable.config import ACTIVATIONS, TrialConfig
from trainable.data.cache import Dataset, open_data
from trainable.finetune import finetune
from trainable.losses import mix, right_answers, smoothing_of, training_loss
from trainable.metrics import auroc_interval, score
from trainable.models import build_model, check_model, head_of, last_gammas
from trainable.normalization import GhostBatchNorm2d, apply_norm, precise_statistics
from trainable.optim import build_optimizer, set_lr
from trainable.step import Step
from trainable.storage import Folder
from trainable.teacher import KEPT, kept_network, load_teacher, resolve_teacher
from trainable.trial import Trial

SCRATCH = TrialConfig(model="plain", pretrained="none", precision="fp32", augment="none")
CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)


def batch(n: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(n, 3, size, size, generator=GENERATOR)
    return images, torch.arange(n) % 2


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "giga_macs", "million_parameters"),
    [
        # He et al. 2019, table 5.
        ("timm/resnet50", 224, 4.1, 25),
        ("timm/resnet50c", 224, 4.3, 25),
        ("timm/resnet50d", 224, 4.3, 25),
        # Howard et al. 2017, table 8; Szegedy et al. 2015 and torchvision's model card.
        ("timm/mobilenetv1_100", 224, 0.569, 4.2),
        ("inception_v3", 299, 5.71, 23.8),
    ],
)
def test_networks_cost_what_their_papers_say(
    name: str, size: int, giga_macs: float, million_parameters: float
) -> None:
    with torch.device("meta"):
        config = replace(SCRATCH, model=name)
        model = build_model(config, num_classes=1000).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.02)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert parameters == pytest.approx(million_parameters, rel=0.03)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("model", ["plain", "residual"])
def test_own_networks_with_every_activation(activation: str, model: str) -> None:
    torch.manual_seed(0)
    config = replace(SCRATCH, model=model, activation=activation, depth=7, kernel_size=5)
    network = build_model(config, num_classes=3)
    out = network(torch.randn(4, 3, 33, 33))
    assert out.shape == (4, 3)
    assert out.isfinite().all()
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 8


def test_shortcuts_add_no_parameters() -> None:
    sizes = {
        model: sum(
            p.numel()
            for p in build_model(
                replace(SCRATCH, model=model, depth=12), num_classes=2
            ).parameters()
        )
        for model in ("plain", "residual")
    }
    assert sizes["plain"] == sizes["residual"]


@pytest.mark.parametrize("seed", [0, 1])
def test_deep_plain_networks_learn_worse_than_residual_ones(seed: int) -> None:
    # He et al. 2016, figure 1: more layers raise the training error, shortcuts bring it down.
    data = open_data("digits")
    base = replace(SCRATCH, dataset="digits", width=8, batch_size=64, base_lr=0.4, epochs=3)

    def last_loss(model: str, depth: int) -> float:
        config = replace(base, model=model, depth=depth, seed=seed)
        return list(finetune(config, data=data))[-1].train_loss

    deep = last_loss("plain", 40)
    assert deep > last_loss("plain", 6) + 1.0
    assert deep > last_loss("residual", 40) + 0.5


@pytest.mark.parametrize("model", ["residual", "resnet18", "timm/resnet26d"])
def test_zero_gamma_makes_every_block_its_shortcut(model: str) -> None:
    config = replace(SCRATCH, model=model, depth=6)
    started = build_model(replace(config, zero_gamma=True), num_classes=2)
    gammas = last_gammas(started)
    assert gammas
    assert all((gamma == 0).all() for gamma in gammas)
    plain = build_model(config, num_classes=2)
    assert all((gamma == 1).all() for gamma in last_gammas(plain))
    # What the block's convolutions do makes no difference at the start.
    images = torch.randn(2, 3, 64, 64)
    started.eval()
    before = started(images)
    for name, parameter in started.named_parameters():
        if "conv2" in name or "convolutions.0.0" in name:
            parameter.data.mul_(3.0)
    assert torch.equal(before, started(images))


def test_zero_gamma_is_refused_where_there_is_no_block() -> None:
    with pytest.raises(ValueError, match="zero_gamma needs residual blocks"):
        check_model(replace(SCRATCH, model="vgg16", zero_gamma=True), num_classes=2, image_size=96)


# --- normalization -------------------------------------------------------------------------------


def test_ghost_batchnorm_is_a_loop_of_batchnorms() -> None:
    ghost = GhostBatchNorm2d(3)
    ghost.ghost_size = 8
    one_by_one = nn.BatchNorm2d(3)
    one_by_one.momentum = 0.1 / 4
    images, _ = batch(32)
    images += torch.arange(32.0)[:, None, None, None]
    expected = torch.cat([one_by_one(part) for part in images.split(8)])
    assert torch.allclose(ghost(images), expected, atol=1e-6)
    assert torch.allclose(ghost.running_mean, one_by_one.running_mean)
    assert torch.allclose(ghost.running_var, one_by_one.running_var)
    assert not torch.allclose(expected, nn.BatchNorm2d(3)(images), atol=0.1)
    ghost.eval()
    assert torch.equal(ghost(images), one_by_one.eval()(images))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("ghost", "GhostBatchNorm2d"), ("group", "GroupNorm"), ("frozen", "FrozenBatchNorm2d")],
)
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/efficientnet_b0"])
def test_norms_replace_every_batchnorm(norm: str, kind: str, name: str) -> None:
    torch.manual_seed(0)
    original = build_model(replace(SCRATCH, model=name), num_classes=2).eval()
    config = replace(
        SCRATCH, model=name, norm=norm, pretrained="file" if norm == "frozen" else "none"
    )
    network = build_model(replace(SCRATCH, model=name), num_classes=2)
    network.load_state_dict(original.state_dict())
    apply_norm(network, config)
    kinds = [type(m).__name__ for m in network.modules()]
    assert kinds.count(kind) == sum(isinstance(m, nn.BatchNorm2d) for m in original.modules())
    images = torch.randn(2, 3, 64, 64)
    same = torch.allclose(network.eval()(images), original(images), atol=1e-4)
    assert same == (norm != "group")
    if norm == "frozen":
        assert (
            torch.allclose(network.train()(images), original(images), atol=1e-4)
            or "efficient" in name
        )


def test_a_network_without_batchnorm_has_none_to_replace() -> None:
    with pytest.raises(ValueError, match="norm=group replaces BatchNorm, and vgg16 has none"):
        check_model(replace(SCRATCH, model="vgg16", norm="group"), num_classes=2, image_size=96)


def test_precise_statistics_are_torchs_update_bn() -> None:
    torch.manual_seed(0)
    ours = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    theirs = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    theirs.load_state_dict(ours.state_dict())
    batches = [torch.randn(8, 3, 64, 64) * (i + 1) for i in range(4)]
    precise_statistics(ours, batches)
    update_bn(batches, theirs)
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, theirs.state_dict()[name], atol=1e-5), name
    assert all(m.momentum == 0.1 for m in ours.modules() if isinstance(m, nn.BatchNorm2d))


# --- losses --------------------------------------------------------------------------------------


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


# --- optimizers ----------------------------------------------------------------------------------


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


# --- the step ------------------------------------------------------------------------------------


def step_of(**changes: Any) -> Step:
    torch.manual_seed(0)
    config = replace(SCRATCH, norm="none", batch_size=16, **changes)
    return Step(config, build_model(config, num_classes=2), num_classes=2, device=CPU)


def weights_after(step: Step, updates: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(updates):
        images = torch.randn(16, 3, 16, 16, generator=generator)
        step.update(images, torch.arange(16) % 2, 0.05)
    return {n: p.detach().clone() for n, p in step.model.named_parameters()}


def assert_close(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-6), name


@pytest.mark.parametrize("microbatch_size", [8, 2, 1])
def test_microbatches_change_nothing_without_batchnorm(microbatch_size: int) -> None:
    whole = weights_after(step_of())
    assert_close(whole, weights_after(step_of(microbatch_size=microbatch_size)))
    mixed = weights_after(step_of(mixup_alpha=0.5, label_smoothing=0.1))
    torch.manual_seed(0)
    split = step_of(mixup_alpha=0.5, label_smoothing=0.1, microbatch_size=microbatch_size)
    assert_close(mixed, weights_after(split))


def limit_memory(model: nn.Module, images: int) -> None:
    """Stands in for CUDA memory: more images at once do not fit."""

    def refuse(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > images:
            raise torch.OutOfMemoryError(f"{len(arguments[0])} images do not fit")

    model.register_forward_pre_hook(refuse)


def test_out_of_memory_halves_the_microbatch_and_keeps_the_batch() -> None:
    whole = weights_after(step_of())
    short = step_of()
    limit_memory(short.model, 5)
    assert_close(whole, weights_after(short))
    assert (short.microbatch_size, short.oom_retries) == (4, 2)


def test_when_one_image_does_not_fit_it_is_an_error() -> None:
    short = step_of()
    limit_memory(short.model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        weights_after(short)


def test_out_of_memory_is_on_record(
    tiny_data: Dataset, tiny_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*arguments: Any, **named: Any) -> nn.Module:
        model = build_model(*arguments, **named)
        limit_memory(model, 32)  # evaluation takes 32 at once here
        model.register_forward_pre_hook(
            lambda m, a: limit_training(m, a[0])  # type: ignore[func-returns-value]
        )
        return model

    def limit_training(model: nn.Module, images: torch.Tensor) -> None:
        if model.training and len(images) > 4:
            raise torch.OutOfMemoryError

    monkeypatch.setattr("trainable.trial.build_model", built)
    trial = finetune(replace(tiny_config, norm="none", epochs=1), data=tiny_data)
    result = next(trial)
    assert result.microbatch_size == 4
    with pytest.raises(StopIteration) as end:
        next(trial)
    assert end.value.value.microbatch_size == 4
    assert end.value.value.accumulation_steps == 4
    assert end.value.value.oom_retries == 2


def test_clipping_shortens_the_gradient() -> None:
    free, clipped = step_of(momentum=0.0), step_of(momentum=0.0, clip_grad_norm=1e-3)
    start = {n: p.detach().clone() for n, p in free.model.named_parameters()}
    moved = []
    for step in (free, clipped):
        after = weights_after(step, updates=1)
        moved.append(math.sqrt(sum(float((after[n] - start[n]).square().sum()) for n in start)))
    assert moved[1] == pytest.approx(0.05 * 1e-3, rel=1e-3)
    assert moved[0] > 100 * moved[1]


def test_average_of_weights_is_the_recursion() -> None:
    step = step_of(ema_decay=0.9)
    images, labels = torch.randn(16, 3, 16, 16, generator=GENERATOR), torch.arange(16) % 2
    expected: torch.Tensor | None = None
    for _ in range(4):
        step.update(images, labels, 0.1)
        weight = step.model.get_parameter("classifier.1.weight").detach().clone()
        expected = weight if expected is None else 0.9 * expected + 0.1 * weight
    got = step.evaluated.get_parameter("classifier.1.weight")
    assert torch.allclose(got, expected, atol=1e-6)
    assert not torch.allclose(got, weight, atol=1e-4)


# --- the gradient noise scale --------------------------------------------------------------------


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


# --- scores --------------------------------------------------------------------------------------


def test_delongs_interval_is_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.4).astype(np.int64)
    margin = (rng.standard_normal(400) + 1.2 * labels).astype(np.float32)
    logits = np.stack([np.zeros(400, np.float32), margin], 1)
    low, high = auroc_interval(logits, labels)
    assert low < score(logits, labels).auroc < high
    resampled = bootstrap(
        (np.arange(400),),
        lambda i: roc_auc_score(labels[i], margin[i]),
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx((resampled.low, resampled.high), abs=0.006)


def test_interval_for_several_classes_is_the_bootstraps() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 300)
    logits = rng.standard_normal((300, 4)).astype(np.float32)
    logits[np.arange(300), labels] += 1
    low, high = auroc_interval(logits, labels)
    areas = []
    for _ in range(600):
        i = rng.integers(0, 300, 300)
        areas.append(score(logits[i], labels[i]).auroc)
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=0.012)


def test_counts_and_calibration() -> None:
    logits = np.array([[2, 0], [0, 2], [0, 2], [2, 0], [0, 2]], np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    got = score(logits, labels)
    counts = got.true_positives, got.false_positives, got.true_negatives, got.false_negatives
    assert counts == (2, 1, 1, 1)
    # All five have confidence 0.8808 and three are right: |0.8808 - 0.6|.
    assert got.calibration_error == pytest.approx(0.2808, abs=1e-4)


# --- teachers ------------------------------------------------------------------------------------


def kept_trial(data: Dataset, config: TrialConfig, folder: Path) -> Path:
    list(finetune(config, data=data, checkpoint_folder=Folder(str(folder)), keep_weights=True))
    return folder / KEPT


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_kept_weights_are_the_whole_network(
    norm: str, tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, epochs=2, norm=norm, ghost_batch_size=8)
    path = kept_trial(tiny_data, config, tmp_path)
    network, classes = kept_network(path)
    assert classes == 2
    teacher = load_teacher(str(path), num_classes=2)
    images = torch.randn(3, 3, 48, 48)
    assert torch.equal(network.eval()(images), teacher(images))
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="knows 2 classes, the data has 3"):
        load_teacher(str(path), num_classes=3)


def test_a_teacher_pulls_the_student_towards_it(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    path = kept_trial(tiny_data, replace(tiny_config, epochs=6), tmp_path)
    teacher = load_teacher(str(path), num_classes=2)
    base = replace(tiny_config, seed=3, augment="none", dropout=0.0)
    taught = replace(
        base, distill_from=resolve_teacher(str(path)), distill_temperature=2.0, distill_weight=5.0
    )
    distance = {}
    for name, config in (("alone", base), ("taught", taught)):
        trial = Trial(config, tiny_data, CPU, None)
        while not trial.is_over:
            trial.train_on()
        trial.model.eval()
        images = trial.train.images_NHWC.permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            p, q = (m(images).softmax(1) for m in (trial.model, teacher))
        distance[name] = float((p - q).abs().mean())
    assert distance["taught"] < distance["alone"]


def test_teachers_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distill_from names the file"):
        resolve_teacher(str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match="is not a study's results folder"):
        resolve_teacher(str(tmp_path))
    rubbish = tmp_path / "weights.pt"
    rubbish.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not the kept weights of a trial"):
        load_teacher(str(rubbish), num_classes=2)


def test_a_teacher_by_network_and_file(tmp_path: Path) -> None:
    network = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    path = tmp_path / "r18.pth"
    torch.save(network.state_dict(), path)
    teacher = load_teacher(resolve_teacher(f"resnet18:{path}"), num_classes=2)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(teacher(images), network.eval()(images))
