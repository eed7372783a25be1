"""BatchNorm over the images that all ranks of a trial have in memory (norm=sync).

torch.nn.SyncBatchNorm does not work on a CPU, and a rank that runs out of memory would leave the
others waiting in it for ever. Here they are told, and all of them try again with fewer images.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from trainable.host.ranks import ALONE, Ranks


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d, in training mode with the mean and variance over the images of all ranks."""

    ranks = ALONE

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        if not self.training or self.ranks.size == 1:
            return super().forward(input)
        mean_C, variance_C, count = statistics_of_all(input.detach(), self.ranks)
        self._move_statistics(mean_C, variance_C * count / (count - 1).clamp(min=1))
        normalized: Tensor = _Normalize.apply(
            input, self.weight, self.bias, mean_C, variance_C, count, self.eps, self.ranks
        )
        return normalized

    @torch.no_grad()
    def _move_statistics(self, mean_C: Tensor, variance_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # a cumulative average
                momentum = 1 / self.num_batches_tracked.item()
        if momentum is not None:
            self.running_mean.lerp_(mean_C, momentum)
            self.running_var.lerp_(variance_C, momentum)


def statistics_of_all(images_BCHW: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) over the images of all ranks, and over how many numbers.

    From each rank's own mean and variance: a difference of large sums would lose digits.
    """
    x = images_BCHW
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    channels = x.shape[1]
    own_variance_C, own_mean_C = torch.var_mean(x, (0, 2, 3), correction=0)
    own_count = own_mean_C.new_tensor([x.numel() / channels])
    table = own_mean_C.new_zeros(ranks.size, 2 * channels + 1)
    table[ranks.rank] = torch.cat([own_count, own_mean_C, own_variance_C])
    table = ranks.exchange(table.flatten()).view(ranks.size, -1).to(own_mean_C.dtype)
    count_R1, mean_RC, variance_RC = table.split([1, channels, channels], dim=1)
    count = count_R1.sum()
    mean_C = (count_R1 * mean_RC).sum(0) / count
    variance_C = (count_R1 * (variance_RC + (mean_RC - mean_C).square())).sum(0) / count
    return mean_C, variance_C, count


def num_exchanged(model: nn.Module, size: int) -> int:
    """The most numbers that a layer of the network exchanges at once; 0 without such layers."""
    layers = [module for module in model.modules() if isinstance(module, SyncBatchNorm2d)]
    return max((size * (2 * layer.num_features + 1) for layer in layers), default=0)


def synchronize(model: nn.Module, ranks: Ranks) -> None:
    """Let the layers of the network exchange with these ranks."""
    for module in model.modules():
        if isinstance(module, SyncBatchNorm2d):
            module.ranks = ranks


class _Normalize(torch.autograd.Function):
    """Normalization by given statistics, whose gradient knows that they are those of the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        variance_C: Tensor,
        count: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, variance_C, count)
        ctx.eps, ctx.ranks = eps, ranks
        return batch_norm(x, mean_C, variance_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight_C, mean_C, variance_C, count = ctx.saved_tensors
        scale_C = torch.ones_like(mean_C) if weight_C is None else weight_C
        # As if the statistics were constants: the sums over this rank's images are by-products.
        dx, times_x_C, sum_C = torch.ops.aten.native_batch_norm_backward(
            gradients[0],
            x,
            scale_C,
            mean_C,
            variance_C,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        if ctx.needs_input_grad[0]:
            sums = ctx.ranks.exchange(torch.cat([sum_C, times_x_C])).to(mean_C.dtype)
            all_sum_C, all_times_x_C = sums.chunk(2)
            inverse_C = (variance_C + ctx.eps).rsqrt()
            share_C = scale_C * inverse_C / count
            constant_C = share_C * (all_sum_C - mean_C * inverse_C * all_times_x_C)
            slope_C = share_C * inverse_C * all_times_x_C
            dx = dx - (constant_C[:, None, None] + slope_C[:, None, None] * x).to(dx.dtype)
        by_weight_C = times_x_C if ctx.needs_input_grad[1] else None
        by_bias_C = sum_C if ctx.needs_input_grad[2] else None
        return dx, by_weight_C, by_bias_C, None, None, None, None, None
