"""What Ctrl-C does first."""

import signal
import threading

import pytest

from trainable.host.signals import before_interrupt, handlers_restored


def test_before_an_interrupt_something_else_is_done() -> None:
    done: list[str] = []
    with handlers_restored():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before_interrupt(lambda: done.append("told"))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert done == ["told"]


def test_what_ignores_interrupts_goes_on_to_ignore_them() -> None:
    with handlers_restored():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before_interrupt(lambda: pytest.fail("told"))
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=before_interrupt, args=(lambda: None,))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
