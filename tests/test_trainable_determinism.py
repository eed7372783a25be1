"""One seed gives one result, on a GPU too: for which networks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.host.device import pick_device

NETWORKS = (
    *("vgg16", "resnet18", "resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0"),
    *("alexnet", "squeezenet1_0", "convnext_tiny", "timm/resnet18d", "timm/convnext_atto"),
)


def numbers(config: TrialConfig, data: Dataset) -> list[tuple[float, ...]]:
    return [
        (row.train_loss, row.grad_norm, row.val_loss, row.noise_scale)
        for row in finetune(config, data=data, device=pick_device())
    ]


@pytest.mark.parametrize("changes", [{}, {"deterministic": False}, {"optimizer": "adamw"}])
def test_on_a_cpu_one_seed_gives_one_result(
    changes: dict[str, Any], tiny_config: TrialConfig, tiny_data: Dataset
) -> None:
    """Whatever `deterministic` says, which is about GPUs."""
    config = replace(tiny_config, base_lr=0.01, **changes)
    assert numbers(config, tiny_data) == numbers(config, tiny_data)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", NETWORKS)
def test_on_a_gpu_one_seed_gives_one_result(
    model: str, tiny_config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(
        tiny_config,
        model=model,
        width=TrialConfig().width,
        image_size=64,
        precision="bf16",
        base_lr=0.01,
        epochs=2,
    )
    assert numbers(config, tiny_data) == numbers(config, tiny_data)
