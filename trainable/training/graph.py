"""A CUDA graph of a whole update: one launch instead of some hundreds.

With small batches a GPU waits for the host to launch kernels. A graph replays the same kernels with
one launch. It is used if a short measurement shows that it is faster and gives the same bits.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_IMAGES = 256  # with more images, launching takes a small part of an update
TIMES = 10
LEAST_GAIN = 1.05
KIND = "cuda"  # of devices that have graphs

Update = Callable[[Tensor, Tensor], Tensor]  # inputs and targets of a batch to sums


@dataclass(frozen=True)
class UpdateGraph:
    """An update with memory of its own for inputs (B, ...), targets (B, ...) and sums."""

    inputs: Tensor
    targets: Tensor
    sums: Tensor
    replay: Callable[[], None]

    def fits(self, inputs: Tensor, targets: Tensor) -> bool:
        """Whether it is of batches of this size and kind."""
        return all(
            (own.shape, own.dtype) == (given.shape, given.dtype)
            for own, given in ((self.inputs, inputs), (self.targets, targets))
        )

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Update with a batch; returns a copy of the sums."""
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.replay()
        return self.sums.clone()


def may_be_graphed(device: torch.device, *, images: int) -> bool:
    """Whether to measure a graph: on a GPU, with a small batch."""
    return device.type == KIND and images <= MOST_IMAGES


def graph_if_faster(
    update: Update, state: Sequence[Tensor], lrs: Sequence[Tensor], inputs: Tensor, targets: Tensor
) -> UpdateGraph | None:
    """The update as a graph for batches of this shape; None if it is slower or not the same.

    `update` changes `state` in place at the rates `lrs`, which are of the state too. The same means
    equal bits after two updates at two rates. State and random generator stay as they are.
    """
    before = [tensor.clone() for tensor in state]
    generator = _random_state(inputs.device)

    def restore() -> None:
        with torch.no_grad():
            for tensor, start in zip(state, before, strict=True):
                tensor.copy_(start)
        _set_random_state(generator, inputs.device)

    def two_updates(run: Update) -> Tensor:
        restore()
        first = run(inputs, targets).clone()
        for lr in lrs:
            lr.mul_(0.5)  # a graph would not see a rate that is not read from its tensor
        return torch.stack([first, run(inputs, targets)])

    def seconds(run: Update) -> float:
        run(inputs, targets)
        _wait(inputs.device)
        started = time.perf_counter()
        for _ in range(TIMES):
            run(inputs, targets)
        _wait(inputs.device)
        return time.perf_counter() - started

    try:
        eager_s = seconds(update)
        expected = [two_updates(update), *(tensor.clone() for tensor in state)]
        graph = captured(update, inputs, targets)
        replayed = [two_updates(graph), *state]
        is_same = all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))
        return graph if is_same and seconds(graph) * LEAST_GAIN < eager_s else None
    except RuntimeError:  # an operation cannot be captured, or memory ran out
        return None
    finally:
        restore()


def captured(update: Update, inputs: Tensor, targets: Tensor) -> UpdateGraph:
    """The update as a graph, which captures it and does not run it.

    Raises:
        RuntimeError: it cannot be captured. The process can go on drawing and capturing.
    """
    inputs, targets = inputs.clone(), targets.clone()
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        # Other threads, such as the one that writes checkpoints, may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            sums = update(inputs, targets)
    except RuntimeError:
        _mend(pool, inputs.device)
        raise
    return UpdateGraph(inputs, targets, sums, graph.replay)


def _mend(pool: tuple[int, int], device: torch.device) -> None:
    """Undo what a failed capture leaves behind.

    Its memory pool may still be open. And the random generator believes that it is captured, so
    that it refuses to draw: the end of a capture of nothing corrects that.
    """
    with suppress(RuntimeError):  # it was closed
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the graph is empty
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            pass


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
