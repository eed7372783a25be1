"""Seconds after each update: as they are on a CPU, a few updates behind on a GPU."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from trainable.host.stopwatch import LAG, Stopwatch


def test_on_a_cpu_it_is_the_clock() -> None:
    ticks = count(10.0, 2.0)
    stopwatch = Stopwatch(torch.device("cpu"), lambda: next(ticks))
    assert [stopwatch.after_update() for _ in range(3)] == [2.0, 4.0, 6.0]


def test_on_a_gpu_it_waits_for_an_update_a_few_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of half a second, on a queue that the host fills at once."""
    made: list[int] = []
    waited: list[int] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.number = len(made)

        def record(self) -> None:
            made.append(self.number)

        def synchronize(self) -> None:
            waited.append(self.number)

        def elapsed_time(self, later: "Event") -> float:
            return 500.0 * (later.number - self.number)

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(Event=Event))
    stopwatch = Stopwatch(torch.device("cuda"), lambda: 0.0)
    seconds = [stopwatch.after_update() for _ in range(LAG + 3)]
    assert seconds == [0.0] * LAG + [0.5, 1.0, 1.5]
    assert waited == [1, 2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_never_runs_ahead() -> None:
    device = torch.device("cuda")

    def now() -> float:
        torch.cuda.synchronize()
        return float(next(ticks))

    ticks = count()
    stopwatch = Stopwatch(device, now)
    a = torch.randn(2048, 2048, device=device)
    read_s = []
    for _ in range(20):
        a = (a @ a).tanh()
        read_s.append(stopwatch.after_update())
    assert read_s == sorted(read_s)
    assert read_s[-1] > 0
