"""When a CUDA graph of an update is tried and taken; on a GPU, that it gives the plain numbers."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainable.config import OPTIMIZERS, TrialConfig
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.networks.models import bare_network, draws, set_training
from trainable.record import TrialResult
from trainable.training import graph
from trainable.training.graph import (
    MOST_IMAGES,
    TIMES,
    UpdateGraph,
    captured,
    graph_if_faster,
    may_be_graphed,
)
from trainable.training.optim import CAPTURABLE
from trainable.trial import Trial

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("device", "images", "may_be"),
    [(CUDA, 16, True), (CUDA, MOST_IMAGES, True), (CUDA, MOST_IMAGES + 1, False), (CPU, 16, False)],
)
def test_a_graph_is_for_small_batches_on_a_gpu(
    device: torch.device, images: int, may_be: bool
) -> None:
    assert may_be_graphed(device, images=images) == may_be


def test_stochastic_depth_draws_until_its_blocks_are_frozen() -> None:
    model = bare_network("efficientnet_b0")
    assert draws(model.features)  # type: ignore[arg-type]
    assert not draws(bare_network("resnet18"))
    model.features.requires_grad_(False)
    set_training(model)
    assert not draws(model.features)  # type: ignore[arg-type]


def test_a_cpu_has_no_graph(tiny_config: TrialConfig, tiny_data: Dataset) -> None:
    trial = Trial(tiny_config, tiny_data, CPU, None)
    trial.train_on()
    assert trial.step.graph is None
    assert trial.step.paths == []


class Work:
    """An update of two weights whose seconds are counted: one if eager, less as a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5) -> None:
        self.now, self.seconds = 0.0, seconds
        self.weights, self.lr = torch.tensor([1.0, 2.0]), torch.tensor(0.25)
        self.state = [self.weights, self.lr]
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(graph, "time", clock)

    def update(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.now += 1
        self.weights.sub_(self.lr * (inputs.sum() + torch.rand(())) * targets.sum())
        return self.weights.sum()

    def captured(self, update: Any, inputs: Tensor, targets: Tensor) -> UpdateGraph:
        """What a capture returns, on a CPU."""
        inputs, targets, sums = inputs.clone(), targets.clone(), torch.zeros(())

        def replay() -> None:
            before = self.now
            sums.copy_(update(inputs, targets))
            self.now = before + self.seconds

        return UpdateGraph(inputs, targets, sums, replay)


INPUTS, TARGETS = torch.tensor([1.0, 3.0]), torch.tensor([1, 1])


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [(0.5, True), (0.94, True), (0.96, False)],  # five in a hundred faster, and no less
)
def test_a_graph_is_taken_where_it_is_faster(
    seconds: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch, seconds)
    monkeypatch.setattr(graph, "captured", work.captured)
    drawn = torch.get_rng_state()
    made = graph_if_faster(work.update, work.state, [work.lr], INPUTS, TARGETS)
    assert (made is not None) == taken
    assert work.now >= 1 + TIMES  # measured after the first, which is slower
    assert work.weights.tolist() == [1.0, 2.0]
    assert work.lr.item() == 0.25
    assert torch.equal(torch.get_rng_state(), drawn)


def other_sums(work: Work, graphed: UpdateGraph) -> None:
    graphed.sums.add_(1e-6)


def other_weights(work: Work, graphed: UpdateGraph) -> None:
    work.weights.add_(1e-6)


def a_rate_of_its_own(work: Work, graphed: UpdateGraph) -> None:
    """As if the rate had been a number when it was captured."""
    work.weights.sub_((0.25 - work.lr) * 4)


def a_draw_more(work: Work, graphed: UpdateGraph) -> None:
    torch.rand(())


@pytest.mark.parametrize("fault", [other_sums, other_weights, a_rate_of_its_own, a_draw_more])
def test_a_graph_with_other_numbers_is_not_taken(
    fault: Callable[[Work, UpdateGraph], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)

    def faulty(*arguments: Any) -> UpdateGraph:
        made = work.captured(*arguments)

        def replay() -> None:
            made.replay()
            fault(work, made)

        return replace(made, replay=replay)

    monkeypatch.setattr(graph, "captured", faulty)
    assert graph_if_faster(work.update, work.state, [work.lr], INPUTS, TARGETS) is None
    assert work.weights.tolist() == [1.0, 2.0]
    assert work.lr.item() == 0.25


@pytest.mark.parametrize("error", [RuntimeError("cannot be captured"), torch.OutOfMemoryError()])
def test_what_cannot_be_captured_has_no_graph(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)

    def fails(*_: object) -> UpdateGraph:
        work.weights.add_(1)
        raise error

    monkeypatch.setattr(graph, "captured", fails)
    assert graph_if_faster(work.update, work.state, [work.lr], INPUTS, TARGETS) is None
    assert work.weights.tolist() == [1.0, 2.0]


def test_a_graph_takes_batches_of_its_own_size_and_type() -> None:
    made = UpdateGraph(INPUTS, TARGETS, torch.zeros(3), lambda: None)
    assert made.fits(INPUTS + 1, TARGETS)
    assert not made.fits(INPUTS[:1], TARGETS[:1])
    assert not made.fits(INPUTS, TARGETS.float())  # mixed labels


def test_a_failed_capture_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's own part on the CPU: its pool is closed, and an empty capture ends after it."""
    done: list[object] = []

    class Capture:
        def __init__(self, made: object, pool: object = None, **_: object) -> None:
            self.pool = pool

        def __enter__(self) -> None:
            done.append(("capture", self.pool))

        def __exit__(self, *_: object) -> None:
            done.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *words, name=name: done.append((name, *words)))

    def fails(inputs: Tensor, _: Tensor) -> Tensor:
        raise RuntimeError(f"{len(inputs)} cannot be captured")

    with pytest.raises(RuntimeError, match="2 cannot be captured"):
        captured(fails, INPUTS, TARGETS)
    closed = [("_cuda_endAllocateToPool", None, (0, 7)), ("_cuda_releasePool", None, (0, 7))]
    assert done == [("capture", (0, 7)), "end", *closed, ("capture", None), "end"]


# --- trials, with graphs that are the update itself -----------------------------------------------


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that graphs replay; this CPU is taken for a device that has them."""
    sizes: list[int] = []

    def fake(update: Any, inputs: Tensor, targets: Tensor) -> UpdateGraph:
        sums = torch.zeros(3)
        inputs, targets = inputs.clone(), targets.clone()

        def replay() -> None:
            sizes.append(len(inputs))
            sums.copy_(update(inputs, targets))

        return UpdateGraph(inputs, targets, sums, replay)

    monkeypatch.setattr(graph, "KIND", "cpu")
    monkeypatch.setattr(graph, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(graph, "captured", fake)
    return sizes


MEASURED = 2 + 1 + TIMES  # replays before the graph is taken


def trained(config: TrialConfig, data: Dataset, device: torch.device = CPU) -> list[Any]:
    """The numbers of each evaluation and of the test split, and the fast paths."""
    rows: list[Any] = []
    outcomes = finetune(config, data=data, device=device)
    while True:
        try:
            row = next(outcomes)
        except StopIteration as end:
            result: TrialResult = end.value
            return [*rows, result.test_auroc, result.fast_paths]
        rows.append((row.train_loss, row.train_accuracy, row.grad_norm, row.val_loss, row.lr))


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.0},
        {"momentum": 0.9, "weight_decay": 0.01, "head_lr_factor": 3.0, "nesterov": True},
        {"optimizer": "adam", "clip_grad_norm": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "no_bias_decay": True, "dropout": 0.0},
        {"ema_decay": 0.8},
        {"ema_decay": 0.8, "precise_bn_images": 0, "model": "resnet18", "image_size": 32},
        {"mixup_alpha": 0.2, "label_smoothing": 0.1},
    ],
)
def test_a_trial_with_a_graph_has_the_numbers_of_one_without(
    changes: dict[str, Any],
    tiny_config: TrialConfig,
    tiny_data: Dataset,
    replays: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(tiny_config, **{"dropout": 0.5} | changes)
    with_graph = trained(config, tiny_data)
    updates = config.epochs * (96 // 16)  # type: ignore[operator]
    assert len(replays) == MEASURED + updates - 1  # the first one makes the optimizer's state
    monkeypatch.setattr(graph, "captured", refused)
    without = trained(config, tiny_data)
    assert with_graph[:-1] == without[:-1]
    assert with_graph[-1] == f"{without[-1]}+cuda_graph"


def refused(*_: object) -> UpdateGraph:
    raise RuntimeError("cannot be captured")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_optimizers_that_count_in_tensors_have_a_graph(
    optimizer: str, tiny_config: TrialConfig, tiny_data: Dataset, replays: list[int]
) -> None:
    decay = "constant" if optimizer.startswith("schedulefree") else "cosine"
    config = replace(tiny_config, optimizer=optimizer, decay=decay, base_lr=1e-3)
    trial = Trial(config, tiny_data, CPU, None)
    trial.train_on()
    may_be = optimizer in ("sgd", "adam", "adamw")
    assert isinstance(trial.step.optimizer, CAPTURABLE) == may_be
    assert (trial.step.graph is not None) == may_be == bool(replays)


def test_a_batch_in_parts_or_of_another_size_has_no_graph(
    tiny_config: TrialConfig, tiny_data: Dataset, replays: list[int]
) -> None:
    parts = Trial(replace(tiny_config, microbatch_size=8), tiny_data, CPU, None)
    parts.train_on()
    assert parts.step.graph is None
    assert not replays
    growing = replace(tiny_config, decay="batch_growth", num_steps=1, step_factor=0.5, epochs=2)
    trained(replace(growing, batch_size=4, warmup_epochs=0.0), tiny_data)
    assert set(replays) == {4}
    assert len(replays) == MEASURED + 96 // 4 - 1  # the second epoch has batches of 8
    replays.clear()
    whole = Trial(tiny_config, tiny_data, CPU, None)
    whole.train_on()
    before = len(replays)
    whole.step.microbatch_size = 8  # memory ran out, in an evaluation say
    whole.train_on()
    assert len(replays) == before > MEASURED


def test_a_restored_optimizer_has_no_old_graph(
    tiny_config: TrialConfig, tiny_data: Dataset, replays: list[int]
) -> None:
    trial = Trial(tiny_config, tiny_data, CPU, None)
    trial.train_on()
    assert trial.step.graph is not None
    trial.step.load_state_dict(trial.step.state_dict())
    assert trial.step.graph is None
    lrs = [group["lr"] for group in trial.step.optimizer.param_groups]
    assert all(isinstance(lr, Tensor) for lr in lrs)
    assert len({id(lr) for lr in lrs}) == len(lrs)


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam", "clip_grad_norm": 0.1},
        {"optimizer": "adamw", "ema_decay": 0.8},
        {"ema_decay": 0.8, "precise_bn_images": 0, "model": "resnet18", "image_size": 32},
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_trial_with_a_graph_has_the_numbers_of_one_without(
    precision: str,
    changes: dict[str, Any],
    tiny_config: TrialConfig,
    tiny_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Taken however much faster it is: that the clock decides is tested above, without a GPU.
    monkeypatch.setattr(graph, "LEAST_GAIN", 0.0)
    config = replace(tiny_config, precision=precision, **{"dropout": 0.5} | changes)
    with_graph = trained(config, tiny_data, CUDA)
    monkeypatch.setattr(graph, "captured", refused)
    without = trained(config, tiny_data, CUDA)
    assert with_graph[:-1] == without[:-1]
    assert with_graph[-1] == f"{without[-1]}+cuda_graph"


@pytest.mark.gpu
@NEEDS_GPU
def test_on_a_gpu_a_failed_capture_leaves_the_process_sound() -> None:
    inputs, targets = torch.ones(4, device=CUDA), torch.ones(4, device=CUDA)
    weights = torch.zeros(4, device=CUDA)

    def cannot(inputs: Tensor, targets: Tensor) -> Tensor:
        weights.add_(nn.functional.dropout(inputs))
        return weights.sum() * weights.sum().item()  # it would have to wait for the GPU

    def can(inputs: Tensor, targets: Tensor) -> Tensor:
        weights.add_(nn.functional.dropout(inputs))
        return weights.sum()

    for _ in range(3):
        with pytest.raises(RuntimeError):
            captured(cannot, inputs, targets)
        torch.manual_seed(0)
        drawn = torch.rand(8, device=CUDA)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(8, device=CUDA), drawn)
        torch.manual_seed(1)
        weights.zero_()
        expected = [can(inputs, targets).item() for _ in range(5)]
        made = captured(can, inputs, targets)
        torch.manual_seed(1)
        weights.zero_()
        assert [made(inputs, targets).item() for _ in range(5)] == expected
        del made
        torch.cuda.empty_cache()
