"""A CUDA graph of a network's forward and backward pass: one launch instead of a hundred.

At small batches a GPU waits for the host to launch kernels. A graph replays the same kernels on the
same numbers; it is used where a short measurement finds it right and faster.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainable.networks.models import draws

MOST_IMAGES = 256  # above, launching takes a small part of an update
TIMES = 10
LEAST_GAIN = 1.05


def may_be_graphed(model: nn.Module, device: torch.device, *, images: int) -> bool:
    """Whether measuring is worth it: on a GPU, a small batch, and nothing drawn in the network."""
    return device.type == "cuda" and images <= MOST_IMAGES and not draws(model)


def graph_if_faster(
    model: nn.Module, inputs: Tensor, labels_B: Tensor, *, dtype: torch.dtype | None
) -> Callable[[Tensor], Tensor] | None:
    """The network as a graph for inputs of this shape; None where it is no faster or not the same.

    `dtype` is that of autocast, None without it. The network must be in training mode; its
    weights, gradients and statistics, and what is drawn later, stay as they are.
    """
    generator = torch.cuda.get_rng_state(inputs.device)
    buffers = [(each, each.clone()) for each in model.buffers()]
    trained = [each for each in model.parameters() if each.requires_grad]
    network = nn.Sequential(model)  # its own forward is replaced, the model's is not

    def autocast(*, cache: bool) -> torch.autocast:
        return torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=cache)

    def gradients(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with autocast(cache=True):
            logits_BK = forward(inputs)
        loss = nn.functional.cross_entropy(logits_BK.float(), labels_B)
        return list(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))

    def seconds(forward: Callable[[Tensor], Tensor]) -> float:
        gradients(forward)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(TIMES):
            gradients(forward)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    try:
        eager_s = seconds(model)
        expected = gradients(model)
        with autocast(cache=False):
            graphed: Any = torch.cuda.make_graphed_callables(network, (inputs.clone(),))
        got = [each.clone() for each in gradients(graphed)]
        same = all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        return graphed if same and seconds(graphed) * LEAST_GAIN < eager_s else None
    except RuntimeError:  # something in the network cannot be captured, or memory ran out
        return None
    finally:
        torch.cuda.set_rng_state(generator, inputs.device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
