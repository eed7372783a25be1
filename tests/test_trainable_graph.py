"""When a CUDA graph is tried; on a GPU, that it gives the plain path's numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.graph import MOST_IMAGES, graph_if_faster, may_be_graphed
from trainable.models import bare_network, draws, set_training
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

    def val_losses() -> list[float]:
        trial = Trial(config, tiny_data, CUDA, None)
        while not trial.is_over:
            trial.train_on()
        return [each.val_loss for each in trial.results]

    graphed = val_losses()
    monkeypatch.setattr("trainable.step.may_be_graphed", lambda *_, **__: False)
    assert graphed == pytest.approx(val_losses(), rel=0.02)
