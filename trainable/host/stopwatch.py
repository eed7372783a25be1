"""A clock that is read after every update, and keeps a GPU busy meanwhile."""

from collections import deque
from collections.abc import Callable

import torch

LAG = 4  # updates that the host may be ahead of the GPU


class Stopwatch:
    """Seconds since it was made. On a GPU, up to an update a few before the last one.

    To wait for the GPU after each update would leave it idle until the host has launched the next.
    `clock` is what is read on a CPU.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        """Start."""
        self.clock, self.started_s = clock, clock()
        self.events: deque[torch.cuda.Event] | None = None
        self.seconds = 0.0
        if device.type == "cuda":
            self.events = deque()
            self.first = _marked()

    def after_update(self) -> float:
        """The seconds as far as they are known, after an update."""
        if self.events is None:
            return self.clock() - self.started_s
        self.events.append(_marked())
        if len(self.events) > LAG:
            done = self.events.popleft()
            done.synchronize()
            self.seconds = self.first.elapsed_time(done) / 1000
        return self.seconds


def _marked() -> torch.cuda.Event:
    """The place in the GPU's queue of work that is reached now."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
