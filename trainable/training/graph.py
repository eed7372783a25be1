"""A CUDA graph of a network's forward and backward pass: one launch instead of a hundred.

With small batches a GPU waits for the host to launch kernels. A graph replays the same kernels with
one launch. It is used if a short measurement shows that it is correct and faster.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainable.networks.models import draws

MOST_IMAGES = 256  # with more images, launching takes a small part of an update
TIMES = 10
LEAST_GAIN = 1.05


def may_be_graphed(model: nn.Module, device: torch.device, *, images: int) -> bool:
    """Whether to measure a graph: on a GPU, with a small batch, and a network without dropout."""
    return device.type == "cuda" and images <= MOST_IMAGES and not draws(model)


def graph_if_faster(
    model: nn.Module, inputs: Tensor, labels_B: Tensor, *, dtype: torch.dtype | None
) -> Callable[[Tensor], Tensor] | None:
    """The network as a graph for inputs of this shape; None if it is not faster or not the same.

    `dtype` is that of autocast, None without autocast. The network must be in training mode. Its
    weights, gradients and statistics, and the random generator, stay as they are.
    """
    generator = torch.cuda.get_rng_state(inputs.device)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    network = nn.Sequential(model)  # the forward of this one is replaced, not the model's

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
        replayed = [gradient.clone() for gradient in gradients(graphed)]
        is_same = all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))
        return graphed if is_same and seconds(graphed) * LEAST_GAIN < eager_s else None
    except RuntimeError:  # an operation cannot be captured, or memory ran out
        return None
    finally:
        torch.cuda.set_rng_state(generator, inputs.device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
