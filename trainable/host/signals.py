"""What ends a process from outside."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def stop_on_sigterm() -> None:
    """Let SIGTERM stop this process as Ctrl-C does: what is done is kept.

    Signals are the main thread's: in another one nothing changes.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def before_interrupt(action: Callable[[], None]) -> None:
    """Do it when Ctrl-C comes, before what its handler does; only in the main thread."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        return

    def act_and_handle(number: int, frame: FrameType | None) -> None:
        action()
        handler(number, frame)

    signal.signal(signal.SIGINT, act_and_handle)


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Give back the handlers of Ctrl-C and SIGTERM at the end: Ray puts its own there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as `nohup ... &` leaves it in a script
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
