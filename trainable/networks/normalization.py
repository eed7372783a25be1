"""Replacements of BatchNorm (ghost, group, sync, frozen), and precise statistics."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from trainable.config import TrialConfig
from trainable.networks.sync_norm import SyncBatchNorm2d

GROUPS = 32  # Wu & He 2018


def part_momentum(momentum: float, *, done: int, size: int, total: int) -> float:
    """The momentum of one part of a batch of `total` images, after `done` images of it.

    With these momenta the parts together move the running statistics as far as one batch does, and
    towards the mean of the parts' statistics, each weighted by its images.
    """
    return momentum * size / ((1 - momentum) * total + momentum * (done + size))


@contextmanager
def as_part_of_batch(
    layers: Sequence[nn.BatchNorm2d], *, done: int, size: int, total: int
) -> Iterator[None]:
    """In this context the running statistics take a microbatch as a part of its batch."""
    if size == total:
        yield
        return
    momenta = [layer.momentum for layer in layers]
    try:
        for layer, momentum in zip(layers, momenta, strict=True):
            if momentum is not None:
                layer.momentum = part_momentum(momentum, done=done, size=size, total=total)
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


class GhostBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over parts of `ghost_size` images (Hoffer et al. 2017, arXiv:1705.08741).

    In training mode each part is normalized by its own mean and variance. The running statistics
    move once, towards the mean of the parts' statistics. In evaluation mode it is BatchNorm. The
    parts have (nearly) equal sizes: if `ghost_size` does not divide the batch, the number of parts
    is rounded up.
    """

    ghost_size: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        if not self.training or len(input) <= self.ghost_size:
            return super().forward(input)
        parts = input.chunk(math.ceil(len(input) / self.ghost_size))
        if self.momentum is None:  # a cumulative average
            return torch.cat([super(GhostBatchNorm2d, self).forward(part) for part in parts])
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normalized: list[Tensor] = []
        done = 0
        for part in parts:
            output = batch_norm(
                part,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=True,
                momentum=part_momentum(self.momentum, done=done, size=len(part), total=len(input)),
                eps=self.eps,
            )
            normalized.append(output)
            done += len(part)
        return torch.cat(normalized)


def apply_norm(model: nn.Module, config: TrialConfig) -> None:
    """Replace every BatchNorm2d by the layer that `norm` names; keep weights and statistics.

    Raises:
        ValueError: the network has no BatchNorm2d.
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
    if config.norm == "sync":
        sync = SyncBatchNorm2d(size, eps=layer.eps, momentum=layer.momentum)
        sync.load_state_dict(layer.state_dict())
        return _like(sync, layer)
    if config.norm == "frozen":
        from torchvision.ops import FrozenBatchNorm2d  # a second that others need not wait

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
    """`new`, followed by the dropout and activation that timm's fused layers contain."""
    parts = [getattr(old, name, None) for name in ("drop", "act")]
    return nn.Sequential(new, *(p for p in parts if p is not None)) if any(parts) else new


def trained_batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers whose statistics training changes."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.weight.requires_grad
    ]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of all BatchNorm layers."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    pairs = [(layer.running_mean, layer.running_var) for layer in layers]
    return [statistic for pair in pairs for statistic in pair if statistic is not None]


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running statistics with the current weights, as means over these batches.

    Like torch.optim.swa_utils.update_bn, but frozen layers keep theirs and dropout is off. The mean
    is E[mu_B], the variance E[s_B^2]. This leaves out the variance of mu_B, which Wu & Johnson 2021
    (arXiv:2105.07576, section 3) include; with batches of 256 images it is below 1 %.
    """
    layers = trained_batchnorms(model)
    if not layers:
        return
    model.eval()
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.train()
        for number, images_BCHW in enumerate(batches, 1):
            for layer in layers:
                layer.momentum = 1 / number  # a cumulative mean; the first replaces what was there
            model(images_BCHW)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
