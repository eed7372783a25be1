"""The gradient noise scale: the batch size at which a gradient is as much signal as noise.

B_simple = tr(Sigma) / |G|^2 from squared gradient norms at two batch sizes (McCandlish et al. 2018,
arXiv:1812.06162, appendix A.1). Both estimates are unbiased, but their ratio is not. So numerator
and denominator are summed separately over evaluations, and then divided. Gradients are largest at
the beginning: an evaluation counts half after `HALF_LIFE_EVALUATIONS`, so that the ratio is that of
the weights of now.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.host.ranks import ALONE, Ranks

PARTS = 8
HALF_LIFE_EVALUATIONS = 3
SHARE_OF_TRAIN, LEAST_IMAGES, MOST_IMAGES = 1 / 32, 64, 1024


@dataclass(frozen=True)
class NoiseSums:
    """The two estimates of one evaluation, or their weighted sums over evaluations."""

    trace_sigma: float = 0.0
    squared_gradient: float = 0.0

    def __add__(self, other: "NoiseSums") -> "NoiseSums":
        """Add both sums."""
        return NoiseSums(
            self.trace_sigma + other.trace_sigma, self.squared_gradient + other.squared_gradient
        )

    def followed_by(self, new: "NoiseSums") -> "NoiseSums":
        """The running sums after one more evaluation; unchanged if nothing was measured."""
        if new == NoiseSums():
            return self
        kept = 0.5 ** (1 / HALF_LIFE_EVALUATIONS)
        return NoiseSums(kept * self.trace_sigma, kept * self.squared_gradient) + new

    @property
    def scale(self) -> float:
        """B_simple in examples; NaN if the gradient cannot be distinguished from zero."""
        if not self.squared_gradient > 0 or not self.trace_sigma > 0:
            return math.nan
        return self.trace_sigma / self.squared_gradient


def estimate(
    small_squared: float, big_squared: float, *, small_batch: int, big_batch: int
) -> NoiseSums:
    """tr(Sigma) and |G|^2 from the mean squared norms of gradients at two batch sizes."""
    squared = (big_batch * big_squared - small_batch * small_squared) / (big_batch - small_batch)
    trace = (small_squared - big_squared) / (1 / small_batch - 1 / big_batch)
    return NoiseSums(trace, squared)


def probe_images(train_images: int) -> int:
    """Number of images of an estimate: a small share of an epoch, a multiple of `PARTS`."""
    num_images = min(max(int(train_images * SHARE_OF_TRAIN), LEAST_IMAGES), MOST_IMAGES)
    return min(num_images, train_images) // PARTS * PARTS


def measure(
    model: nn.Module,
    parameters: Sequence[Tensor],
    images_between: Callable[[int, int], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_images: int,
    microbatch_size: int,
    ranks: Ranks = ALONE,
) -> NoiseSums:
    """One estimate over the trained parameters, from the parts of a batch of images.

    Ranks share the parts, which are the same however many ranks there are.

    `images_between` returns the inputs and labels between two positions in the batch: at most
    `microbatch_size` at once. In evaluation mode, because BatchNorm and dropout would make the
    examples of a part dependent. Changes neither weights nor gradients. Returns zeros if the loss
    is not finite.
    """
    model.eval()
    size = num_images // PARTS

    def gradients_of(first: int) -> list[Tensor]:
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(first, first + size, microbatch_size):
            end = min(start + microbatch_size, first + size)
            gradients = torch.autograd.grad(
                loss(*images_between(start, end)),
                list(parameters),
                allow_unused=True,
                materialize_grads=True,
            )
            torch._foreach_add_(total, gradients, alpha=(end - start) / size)
        return total

    mean = [torch.zeros_like(parameter) for parameter in parameters]
    small_squared = torch.zeros((), device=parameters[0].device)
    for part in range(ranks.rank, PARTS, ranks.size):
        gradients = gradients_of(part * size)
        small_squared += _squared(gradients) / PARTS
        torch._foreach_add_(mean, gradients, alpha=1 / PARTS)
    for total in (small_squared, *mean):
        ranks.sum_(total)
    sums = estimate(
        float(small_squared),
        float(_squared(mean)),
        small_batch=size,
        big_batch=num_images,
    )
    return sums if _is_finite(sums) else NoiseSums()


def _is_finite(sums: NoiseSums) -> bool:
    return math.isfinite(sums.trace_sigma) and math.isfinite(sums.squared_gradient)


def _squared(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).float().square().sum()
