"""Our networks layer by layer, against what their description says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from trainable.config import TrialConfig
from trainable.networks.models import build_model
from trainable.networks.plain import ResidualBlock

SCRATCH = TrialConfig(model="plain", pretrained="none", width=8)


def convolutions(model: nn.Module) -> list[tuple[int, int, int]]:
    """Inputs, outputs and stride of each, as they are listed."""
    found = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [(m.in_channels, m.out_channels, m.stride[0]) for m in found]


STEM = (3, 8, 2)
LAYERS = {
    1: [(8, 8, 1)],
    2: [(8, 8, 1), (8, 16, 2)],
    3: [(8, 8, 1), (8, 16, 2), (16, 32, 2)],
    6: [(8, 8, 1)] * 2 + [(8, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1)],
    7: [(8, 8, 1)] * 3 + [(8, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1)],
}
# Blocks of two, the last of one where the depth is odd: a stage begins with the first block in it.
BLOCKS = {
    1: [[(8, 8, 1)]],
    2: [[(8, 8, 1), (8, 8, 1)]],
    3: [[(8, 8, 1), (8, 8, 1)], [(8, 32, 2)]],
    5: [[(8, 8, 1), (8, 8, 1)], [(8, 16, 2), (16, 16, 1)], [(16, 32, 2)]],
    6: [[(8, 8, 1)] * 2, [(8, 16, 2), (16, 16, 1)], [(16, 32, 2), (32, 32, 1)]],
    8: [[(8, 8, 1)] * 2] * 2 + [[(8, 16, 2), (16, 16, 1)], [(16, 32, 2), (32, 32, 1)]],
}


@pytest.mark.parametrize("depth", LAYERS)
def test_a_plain_network_is_a_stem_and_three_stages(depth: int) -> None:
    model = build_model(replace(SCRATCH, depth=depth, dropout=0.3), num_classes=5)
    assert convolutions(model) == [STEM, *LAYERS[depth]]
    names = [name for name, _ in model.get_submodule("features").named_children()]
    assert names == ["stem", *(f"block{i}" for i in range(1, depth + 1))]
    head = model.get_submodule("classifier")
    assert isinstance(head, nn.Sequential)
    assert (head[0].p, head[1].in_features, head[1].out_features) == (
        0.3,
        LAYERS[depth][-1][1],
        5,
    )


@pytest.mark.parametrize("depth", BLOCKS)
def test_a_residual_network_has_its_convolutions_in_blocks_of_two(depth: int) -> None:
    model = build_model(replace(SCRATCH, model="residual", depth=depth), num_classes=5)
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    assert [convolutions(block) for block in blocks] == BLOCKS[depth]
    assert convolutions(model)[0] == STEM
    assert model(torch.zeros(2, 3, 33, 33)).shape == (2, 5)
    for block in blocks:
        parts = list(block.convolutions)
        assert [len(part) for part in parts] == [3] * (len(parts) - 1) + [2]  # type: ignore[arg-type]


@pytest.mark.parametrize(("stride", "widen"), [(1, 0), (2, 0), (1, 4), (2, 4)])
def test_a_block_adds_its_input_averaged_and_filled_with_zeros(stride: int, widen: int) -> None:
    x = torch.randn(2, 4, 5, 5)
    convolution = nn.Conv2d(4, 4 + widen, 3, stride=stride, padding=1)
    block = ResidualBlock(nn.Sequential(convolution), nn.ReLU(), stride, widen)
    shortcut = torch.zeros(2, 4 + widen, *convolution(x).shape[2:])
    for i in range(shortcut.shape[2]):
        for j in range(shortcut.shape[3]):
            rows, columns = (slice(k * stride, k * stride + stride) for k in (i, j))
            shortcut[:, :4, i, j] = x[:, :, rows, columns].mean((2, 3))
    torch.testing.assert_close(block(x), (convolution(x) + shortcut).clamp(min=0))


@pytest.mark.parametrize(("kernel_size", "norm"), [(1, "batch"), (3, "none"), (5, "batch")])
def test_a_convolution_keeps_the_size_and_has_a_bias_where_nothing_else_has(
    kernel_size: int, norm: str
) -> None:
    config = replace(SCRATCH, kernel_size=kernel_size, norm=norm)
    model = build_model(config, num_classes=2)
    sizes: list[Any] = []
    for block in model.get_submodule("features").children():
        block.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
        layers = [type(m) for m in block.children()]
        assert layers == [nn.Conv2d, *([nn.BatchNorm2d] if norm == "batch" else []), nn.ReLU]
        convolution = next(iter(block.children()))
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.kernel_size == (kernel_size, kernel_size)
        assert (convolution.bias is not None) == (norm == "none")
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(16, 16), (16, 16), (8, 8), (4, 4)]
