"""When a CUDA graph is tried; on a GPU, that it gives the plain path's numbers."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.networks.models import bare_network, draws, set_training
from trainable.training.graph import MOST_IMAGES, TIMES, graph_if_faster, may_be_graphed
from trainable.trial import Trial

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "images", "dropout", "may_be"),
    [
        (CUDA, 16, 0.0, True),
        (CUDA, MOST_IMAGES, 0.0, True),
        (CUDA, MOST_IMAGES + 1, 0.0, False),
        (CUDA, 16, 0.5, False),
        (CPU, 16, 0.0, False),
    ],
)
def test_a_graph_is_for_small_batches_without_draws(
    device: torch.device, images: int, dropout: float, may_be: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(dropout), nn.Flatten())
    assert may_be_graphed(model, device, images=images) == may_be


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


class FakeCuda:
    """What a graph asks of CUDA, and a clock on which an eager pass takes a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seconds: float, factor: float) -> None:
        self.now, self.seconds, self.factor = 0.0, seconds, factor
        self.passes = self.captures = 0
        self.error: Exception | None = None
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, _: torch.set_rng_state(s))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", self.make)
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr("trainable.training.graph.time", clock)

    def watch(self, model: nn.Module) -> None:
        """Count the model's own passes, a second each."""

        def eager(*_: object) -> None:
            self.now, self.passes = self.now + 1.0, self.passes + 1

        model.register_forward_pre_hook(eager)

    def make(self, network: nn.Module, samples: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        self.captures += 1
        torch.rand(3)  # a capture may draw
        if self.error is not None:
            raise self.error
        network(samples[0])

        def graph(inputs: Tensor) -> Tensor:
            before = self.now
            out: Tensor = network(inputs) * self.factor
            self.now = before + self.seconds
            return out

        return graph


@pytest.mark.parametrize(
    ("seconds", "factor", "error", "taken"),
    [
        (0.5, 1.0, None, True),
        (0.94, 1.0, None, True),  # 5 % faster, and no less
        (0.96, 1.0, None, False),
        (0.5, 1.01, None, False),  # other gradients
        (0.5, 1.0, RuntimeError("cannot be captured"), False),
        (0.5, 1.0, torch.OutOfMemoryError(), False),
    ],
)
def test_a_graph_is_taken_where_it_is_right_and_faster(
    seconds: float,
    factor: float,
    error: Exception | None,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU, with a graph that is the network itself; the network is left as it was."""
    cuda = FakeCuda(monkeypatch, seconds=seconds, factor=factor)
    cuda.error = error
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    model[0].requires_grad_(False)
    cuda.watch(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    drawn = torch.get_rng_state()
    images, labels = torch.randn(6, 3, 8, 8, generator=torch.Generator()), torch.arange(6) % 2
    graph = graph_if_faster(model, images, labels, dtype=None)
    assert (graph is not None) == taken
    assert cuda.captures == 1
    assert cuda.passes >= 1 + TIMES  # measured after the first pass, which is slower
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_step_uses_its_graph_and_says_so(
    tiny_config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but CUDA's own part, on the CPU: measured once, for whole batches of its size."""
    config = replace(tiny_config, dropout=0.0)
    measured: list[int] = []
    replayed: list[int] = []

    def faster(model: nn.Module, images: Tensor, labels: Tensor, *, dtype: object) -> Any:
        measured.append(len(images))
        assert dtype is None
        return lambda inputs: (replayed.append(len(inputs)), model(inputs))[1]

    plain = [each.val_loss for each in finetune(config, data=tiny_data)]
    monkeypatch.setattr("trainable.training.step.may_be_graphed", lambda *_, images: images == 16)
    monkeypatch.setattr("trainable.training.step.graph_if_faster", faster)
    trial = Trial(config, tiny_data, CPU, None)
    while not trial.is_over:
        trial.train_on()
    assert [each.val_loss for each in trial.results] == plain
    assert measured == [16]
    assert replayed == [16] * 24
    assert trial.finish("").fast_paths == "data_mapped+cuda_graph"
    parts = Trial(replace(config, microbatch_size=8), tiny_data, CPU, None)
    parts.train_on()
    assert measured == [16]  # not of a batch that comes in parts
    assert parts.step.paths == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_leaves_the_network_as_it_was_and_has_its_gradients() -> None:
    torch.manual_seed(0)
    model = bare_network("resnet18").to(CUDA, memory_format=torch.channels_last)
    set_training(model)
    images = torch.randn(16, 3, 64, 64, device=CUDA).to(memory_format=torch.channels_last)
    labels = torch.arange(16, device=CUDA)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    graph = graph_if_faster(model, images, labels, dtype=torch.bfloat16)
    assert graph is not None
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    other = torch.randn_like(images)
    trained = list(model.parameters())
    with torch.autocast("cuda", torch.bfloat16):
        losses = [nn.functional.cross_entropy(f(other).float(), labels) for f in (model, graph)]
    for eager, graphed in zip(
        torch.autograd.grad(losses[0], trained),
        torch.autograd.grad(losses[1], trained),
        strict=True,
    ):
        torch.testing.assert_close(graphed, eager, rtol=0.02, atol=0.02 * float(eager.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_trial_on_a_gpu_ends_alike_with_and_without_graphs(
    tiny_config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, dropout=0.0)

    # Taken however much faster it is: that the clock decides is tested above, without a GPU.
    monkeypatch.setattr("trainable.training.graph.LEAST_GAIN", 0.0)

    def val_losses(paths: str) -> list[float]:
        trial = Trial(config, tiny_data, CUDA, None)
        while not trial.is_over:
            trial.train_on()
        assert trial.finish("").fast_paths == paths
        return [each.val_loss for each in trial.results]

    graphed = val_losses("data_on_gpu+cuda_graph")
    monkeypatch.setattr("trainable.training.step.may_be_graphed", lambda *_, **__: False)
    assert graphed == pytest.approx(val_losses("data_on_gpu"), rel=0.02)
