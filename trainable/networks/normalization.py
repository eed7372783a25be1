"""What BatchNorm becomes: Ghost BatchNorm, GroupNorm, frozen; and statistics taken anew."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torchvision.ops import FrozenBatchNorm2d

from trainable.config import TrialConfig

GROUPS = 32  # Wu & He 2018


class GhostBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over parts of `ghost_size` images (Hoffer et al. 2017, arXiv:1705.08741).

    In training each part is normalized by its own mean and variance. The running statistics take
    the parts one after the other at momentum / parts, so that a batch weighs the same in however
    many parts it comes. In evaluation it is BatchNorm. Parts are equal: a batch that the size
    does not divide is cut into the next number of parts.
    """

    ghost_size: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        if not self.training or len(input) <= self.ghost_size:
            return super().forward(input)
        parts = input.chunk(math.ceil(len(input) / self.ghost_size))
        momentum = self.momentum / len(parts) if self.momentum is not None else None
        if momentum is None:  # cumulative, as precise statistics want it
            return torch.cat([super(GhostBatchNorm2d, self).forward(part) for part in parts])
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normalized = [
            batch_norm(
                part,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=True,
                momentum=momentum,
                eps=self.eps,
            )
            for part in parts
        ]
        return torch.cat(normalized)


def apply_norm(model: nn.Module, config: TrialConfig) -> None:
    """Replace every BatchNorm2d by what `norm` asks for, weights and statistics kept.

    Raises:
        ValueError: the network has none.
    """
    if config.norm in ("batch", "none"):
        return
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if not layers:
        raise ValueError(f"norm={config.norm} replaces BatchNorm, and {config.model} has none")
    for name, layer in layers:
        model.set_submodule(name, _replacement(layer, config))


def _replacement(layer: nn.BatchNorm2d, config: TrialConfig) -> nn.Module:
    size = layer.num_features
    if config.norm == "ghost":
        ghost = GhostBatchNorm2d(size, eps=layer.eps, momentum=layer.momentum)
        ghost.ghost_size = config.ghost_batch_size
        ghost.load_state_dict(layer.state_dict())
        return _like(ghost, layer)
    if config.norm == "frozen":
        frozen = FrozenBatchNorm2d(size, eps=layer.eps)
        state = layer.state_dict()
        state.pop("num_batches_tracked", None)
        frozen.load_state_dict(state)
        return _like(frozen, layer)
    group = nn.GroupNorm(math.gcd(GROUPS, size), size, eps=layer.eps)
    if layer.affine:
        group.weight.data.copy_(layer.weight.data)
        group.bias.data.copy_(layer.bias.data)
    return _like(group, layer)


def _like(new: nn.Module, old: nn.BatchNorm2d) -> nn.Module:
    """`new` in a sequence with the activation that timm's fused layers carry."""
    parts = [getattr(old, name, None) for name in ("drop", "act")]
    return nn.Sequential(new, *(p for p in parts if p is not None)) if any(parts) else new


def trained_batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers whose statistics training changes."""
    return [
        each
        for each in model.modules()
        if isinstance(each, nn.BatchNorm2d) and each.affine and each.weight.requires_grad
    ]


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running statistics as plain means over these batches with the weights as they are.

    As torch.optim.swa_utils.update_bn, but frozen layers keep theirs and dropout is off. With
    mu = E[mu_B]; the variance is E[s_B^2] without the spread of mu_B (Wu & Johnson 2021,
    arXiv:2105.07576, section 3, has it; at 256 images a batch it is below 1 %).
    """
    layers = trained_batchnorms(model)
    if not layers:
        return
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    for images_BCHW in batches:
        model(images_BCHW)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
