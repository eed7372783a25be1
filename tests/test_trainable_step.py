"""One update: microbatches, out of memory, clipping, averaged weights."""

import io
import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from trainable.config import OPTIMIZERS, TrialConfig
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.networks.models import build_model
from trainable.training import step as step_module
from trainable.training.schedule import ema_decay_at
from trainable.training.snapshot import Snapshot
from trainable.training.step import Step

SCRATCH = TrialConfig(model="plain", pretrained="none", precision="fp32", augment="none")
CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)


def batch(n: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(n, 3, size, size, generator=GENERATOR)
    return images, torch.arange(n) % 2


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


@pytest.mark.parametrize(("images", "microbatch_size"), [(10, 3), (7, 4), (16, 5), (5, 8), (4, 4)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_unequal_parts_weigh_as_much_as_their_images(
    images: int, microbatch_size: int, clip: float
) -> None:
    step = step_of(momentum=0.0, clip_grad_norm=clip)
    step.microbatch_size = microbatch_size
    by_hand = deepcopy(step.model)
    images_BCHW = torch.randn(images, 3, 16, 16, generator=GENERATOR)
    labels_B = (torch.arange(images) ** 2 // 3) % 2
    logits_BK = by_hand(images_BCHW)
    loss_B = nn.functional.cross_entropy(logits_BK, labels_B, reduction="none")
    gradients = torch.autograd.grad(loss_B.mean(), list(by_hand.parameters()))
    norm = math.sqrt(sum(float(each.square().sum()) for each in gradients))
    shortened = clip / norm if clip else 1.0
    assert shortened <= 1.0
    got = step.update(images_BCHW, labels_B, 0.3).tolist()
    right = int((logits_BK.argmax(1) == labels_B).sum())
    assert got == pytest.approx([loss_B.sum().item(), right, norm], rel=1e-5)
    pairs = zip(step.model.parameters(), by_hand.parameters(), gradients, strict=True)
    for after, before, gradient in pairs:
        expected = before - 0.3 * shortened * gradient
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


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


def test_after_out_of_memory_the_same_is_drawn_again() -> None:
    """And what the parts before it left is forgotten: memory runs out after dropout has drawn."""
    images, labels = batch(16)

    def updated(*, runs_out: bool) -> list[torch.Tensor]:
        step = step_of(dropout=0.5, microbatch_size=4 if runs_out else 2)
        parts: list[int] = []

        def refuse(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            parts.append(len(given[0]))
            if len(parts) == 3 and runs_out:
                raise torch.OutOfMemoryError

        step.model.get_submodule("classifier.1").register_forward_pre_hook(refuse)
        torch.manual_seed(1)
        sums = step.update(images, labels, 0.3)
        assert parts == ([4, 4, 4] if runs_out else []) + [2] * 8
        return [sums, *step.model.state_dict().values(), torch.rand(3)]

    for plain, short in zip(updated(runs_out=False), updated(runs_out=True), strict=True):
        assert torch.equal(plain, short)


def normed_step(norm: str, **changes: Any) -> Step:
    """A network whose first BatchNorm gets numbers that no weight changes: its input is fixed."""
    torch.manual_seed(0)
    config = replace(SCRATCH, norm=norm, batch_size=96, ghost_batch_size=32, **changes)
    return Step(config, build_model(config, num_classes=2), num_classes=2, device=CPU)


def first_norm(step: Step) -> nn.BatchNorm2d:
    return next(m for m in step.model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("norm", ["batch", "ghost"])
@pytest.mark.parametrize("microbatch_size", [96, 48, 32, 12, 7, 1])
def test_statistics_move_once_a_batch_however_it_is_parted(norm: str, microbatch_size: int) -> None:
    step = normed_step(norm)
    step.microbatch_size = microbatch_size
    layer = first_norm(step)
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    generator = torch.Generator().manual_seed(3)
    mean, variance = torch.zeros(16), torch.ones(16)
    for _ in range(2):
        seen.clear()
        images = torch.randn(96, 3, 16, 16, generator=generator) + 3
        images *= torch.arange(1, 97)[:, None, None, None] / 50
        step.update(images, torch.arange(96) % 2, 0.01)
        parts = [
            part
            for x in seen
            for part in (x.chunk(math.ceil(len(x) / 32)) if norm == "ghost" else [x])
        ]
        shares = [len(part) / 96 for part in parts]
        batch_mean = sum(s * p.mean((0, 2, 3)) for s, p in zip(shares, parts, strict=True))
        batch_var = sum(s * p.var((0, 2, 3)) for s, p in zip(shares, parts, strict=True))
        mean, variance = 0.9 * mean + 0.1 * batch_mean, 0.9 * variance + 0.1 * batch_var
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, variance, rtol=1e-4, atol=1e-5)
    assert layer.momentum == 0.1


def test_ghost_batchnorm_is_the_same_in_any_memory() -> None:
    """Microbatches of whole ghosts: the same ghosts, so the same weights and statistics."""
    images = torch.randn(96, 3, 16, 16, generator=GENERATOR)
    images *= torch.arange(1, 97)[:, None, None, None] / 50
    states = []
    for memory in (96, 64, 32):
        step = normed_step("ghost")
        step.microbatch_size = memory
        for _ in range(3):
            step.update(images, torch.arange(96) % 2, 0.05)
        states.append({n: v for n, v in step.model.state_dict().items() if "tracked" not in n})
    for state in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_halved_microbatch_holds_whole_ghosts() -> None:
    """96 becomes 64, not 48 with ghosts of 24; below the ghost's own size there is no choice."""
    for fits, expected in ((95, 64), (63, 32), (31, 16)):
        step = normed_step("ghost")
        limit_memory(step.model, fits)
        images, labels = batch(96)
        sizes: list[int] = []
        first_norm(step).register_forward_pre_hook(lambda _, a, s=sizes: s.append(len(a[0])))
        step.update(images, labels, 0.1)
        assert step.microbatch_size == expected
        assert sum(sizes) == 96
    plain = normed_step("batch")
    limit_memory(plain.model, 95)
    plain.update(*batch(96), 0.1)
    assert plain.microbatch_size == 48


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_a_failed_attempt_leaves_statistics_as_they_were(norm: str) -> None:
    images, labels = batch(96)

    def updated(*, runs_out: bool) -> dict[str, torch.Tensor]:
        step = normed_step(norm)
        step.microbatch_size = 64 if runs_out else 32
        parts: list[int] = []

        def refuse(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            parts.append(len(given[0]))
            if len(parts) == 2 and runs_out:
                raise torch.OutOfMemoryError

        step.model.get_submodule("classifier.1").register_forward_pre_hook(refuse)
        step.update(images, labels, 0.3)
        assert parts == ([64, 32] if runs_out else []) + [32] * 3
        return {name: value.clone() for name, value in step.model.state_dict().items()}

    plain, short = updated(runs_out=False), updated(runs_out=True)
    for name, value in plain.items():
        assert torch.equal(value, short[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_snapshot_has_the_random_state_of_the_gpu() -> None:
    device = torch.device("cuda")
    snapshot = Snapshot(nn.BatchNorm2d(3).to(device), device)
    snapshot.take()
    drawn = torch.rand(5, device=device)
    snapshot.restore()
    assert torch.equal(torch.rand(5, device=device), drawn)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizers_first_step_may_run_out_of_memory(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-way, with weights changed and a state begun: both are as before, and it goes on."""
    changes = {"optimizer": optimizer, "decay": "constant"}
    expected = weights_after(step_of(**changes, microbatch_size=8))
    take_step, taken = step_module.take_step, [0]

    def runs_out_once(of: torch.optim.Optimizer) -> None:
        take_step(of)
        taken[0] += 1
        if taken[0] == 1:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(step_module, "take_step", runs_out_once)
    step = step_of(**changes)
    got = weights_after(step)
    assert taken == [4]
    assert (step.microbatch_size, step.oom_retries) == (8, 1)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def test_memory_is_halved_of_what_was_tried() -> None:
    # A batch of 5 in parts of up to 16 was tried whole: 3 are next, then 2, then 1.
    step = step_of()
    limit_memory(step.model, 1)
    images, labels = batch(5)
    step.update(images, labels, 0.1)
    assert (step.microbatch_size, step.oom_retries) == (1, 3)


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


def test_an_average_by_half_life_follows_the_size_of_each_batch() -> None:
    """Busbridge et al. 2023: decay^k for a batch of k times the reference's images."""
    step = step_of(ema_decay=0.9, ema_scaling="half_life", reference_batch_size=16)
    expected: torch.Tensor | None = None
    for size in (16, 8, 32, 16):
        step.update(*batch(size), 0.1)
        weight = step.model.get_parameter("classifier.1.weight").detach().clone()
        decay = 0.9 ** (size / 16)
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    got = step.evaluated.get_parameter("classifier.1.weight")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_a_batch_that_grows_is_averaged_by_its_size(
    tiny_config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decays: list[float] = []

    def noted(config: TrialConfig, batch_size: int) -> float:
        decays.append(ema_decay_at(config, batch_size))
        return decays[-1]

    monkeypatch.setattr(step_module, "ema_decay_at", noted)
    changes: dict[str, Any] = {"decay": "batch_growth", "num_steps": 1, "step_factor": 0.5}
    config = replace(tiny_config, batch_size=4, epochs=2, warmup_epochs=0.0, **changes)
    config = replace(
        config, ema_decay=0.8, ema_scaling="half_life", reference_batch_size=4, norm="none"
    )
    list(finetune(config, data=tiny_data))
    assert sorted(set(decays)) == pytest.approx([0.64, 0.8])


def test_an_average_of_weights_has_an_average_of_statistics() -> None:
    """Without precise ones: those of the live network belong to other weights."""
    step = normed_step("batch", ema_decay=0.9, precise_bn_images=0)
    live, averaged = (
        next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        for model in (step.model, step.evaluated)
    )
    expected: dict[str, torch.Tensor] = {}
    for _ in range(4):
        step.update(torch.randn(96, 3, 16, 16, generator=GENERATOR) + 2, batch(96)[1], 0.1)
        for name in ("running_mean", "running_var"):
            value = getattr(live, name).clone()
            expected[name] = 0.9 * expected[name] + 0.1 * value if name in expected else value
    for name, value in expected.items():
        torch.testing.assert_close(getattr(averaged, name), value)
        assert not torch.allclose(getattr(averaged, name), getattr(live, name), rtol=1e-3)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_a_step_goes_on_from_its_state_with_its_own_settings(layer_decay: float) -> None:
    changes: dict[str, Any] = {"optimizer": "adam", "ema_decay": 0.9, "layer_decay": layer_decay}
    first = step_of(weight_decay=0.1, **changes)
    first.microbatch_size, first.oom_retries = 4, 2
    weights_after(first)
    packed = io.BytesIO()
    torch.save(first.state_dict(), packed)
    packed.seek(0)
    again = step_of(weight_decay=0.1, **changes)
    other = step_of(weight_decay=0.2, beta1=0.5, **changes)
    for step in (again, other):
        step.model.load_state_dict(first.model.state_dict())
        step.load_state_dict(torch.load(packed, weights_only=True))
        packed.seek(0)
        assert (step.microbatch_size, step.oom_retries) == (4, 2)
    expected = weights_after(first)
    assert_close(weights_after(again), expected)
    assert_close(again.evaluated.state_dict(), first.evaluated.state_dict())
    assert {group["weight_decay"] for group in other.optimizer.param_groups} == {0.2, 0.0}
    assert {group["betas"] for group in other.optimizer.param_groups} == {(0.5, 0.999)}


def test_a_teachers_opinion_is_asked_of_the_same_images_and_not_trained() -> None:
    step = step_of(momentum=0.0)
    step.config = replace(step.config, distill_from="x", distill_temperature=2.0)
    torch.manual_seed(7)
    teacher = build_model(replace(SCRATCH, norm="none"), num_classes=2)
    step.teacher = teacher
    images, labels = batch(8)
    loss, logits = step.loss(images, labels)
    p = (teacher(images) / 2).softmax(1).detach()
    q = (step.model(images) / 2).log_softmax(1)
    opinion = (p * (p.log() - q)).sum(1).mean()
    expected = nn.functional.cross_entropy(step.model(images), labels) + 4 * opinion
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, step.model(images).detach())
    assert not logits.requires_grad
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_an_average_the_network_itself_is_evaluated() -> None:
    step = step_of()
    assert step.evaluated is step.model
    assert (step.average, step.teacher, step.paths) == (None, None, [])
    assert step.microbatch_size == 16
    assert step_of(microbatch_size=4).microbatch_size == 4
