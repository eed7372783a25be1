"""The live table and the plain lines, word for word, of made-up events at a stopped clock."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from search.execution import progress
from search.execution.progress import RECENT_ROWS, Progress, clock
from search.study.explorer import PlannedTrial
from search.study.shown import show
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none", epochs=5)
PLANNED = {
    "a": PlannedTrial("a", replace(BASE, batch_size=16, base_lr=0.3)),
    "b": PlannedTrial("b", replace(BASE, batch_size=256, base_lr=1e-4, seed=1)),
    "c": PlannedTrial("c", replace(BASE, batch_size=32, base_lr=10.0), "+ warmup"),
    "d": PlannedTrial("d", replace(BASE, batch_size=64, base_lr=3.0, epochs=None, updates=40)),
}
COMPLETED = {
    "status": "completed",
    "reason": "",
    "epochs_completed": 5,
    "val_auroc": 0.87654321,
    "train_wall_s": 12.34,
}
DIVERGED = {
    "status": "diverged",
    "reason": "the loss is NaN at epoch 2",
    "epochs_completed": 1,
    "val_auroc": None,
    "train_wall_s": 3.0,
}
FAILED = {"status": "failed", "reason": "ValueError: [bold]no[/bold] \\[x] (traceback: e.txt)"}
STOPPED = {"status": "stopped", "reason": "at rung 1", "epochs_completed": 1, "val_auroc": 0.5}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(progress, "time", stopped)
    return stopped


def made(console: Console, **changes: Any) -> Progress:
    fields: dict[str, Any] = {
        "console": console,
        "varied": ["batch_size", "base_lr"],
        "metric": "val_auroc",
        "total": 8,
        "done_before": 3,
        "started": 1000.0,
    }
    return Progress(**(fields | changes))


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_in_a_pipe_each_ended_trial_is_one_plain_line(stopped_clock: Clock) -> None:
    # Narrower than the lines: in a log file none of them is broken.
    written = io.StringIO()
    with made(Console(file=written, width=40)) as shown:
        shown.epoch_ended(PLANNED["a"], {"epoch": 1, "val_auroc": 0.5, "train_loss": 0.7})
        shown.trial_ended(PLANNED["a"], COMPLETED)
        shown.trial_ended(PLANNED["b"], DIVERGED)
        shown.trial_ended(PLANNED["c"], FAILED)
        shown.trial_ended(PLANNED["d"], STOPPED)
    assert written.getvalue() == (
        "[4/8] batch_size=16 base_lr=0.3 seed=0: completed val_auroc=0.8765 12.3 s\n"
        "[5/8] batch_size=256 base_lr=0.0001 seed=1: diverged val_auroc=- 3.0 s "
        "(the loss is NaN at epoch 2)\n"
        "[6/8] + warmup: batch_size=32 base_lr=10 seed=0: failed val_auroc=- "
        "(ValueError: [bold]no[/bold] \\[x] (traceback: e.txt))\n"
        "[7/8] batch_size=64 base_lr=3 seed=0: stopped val_auroc=0.5 (at rung 1)\n"
    )


def test_the_live_table_shows_what_ended_then_what_runs(stopped_clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    shown = made(console)
    shown.live = object()  # type: ignore[assignment]  # on a terminal: no lines beside the table
    shown.epoch_ended(PLANNED["a"], {"epochs_seen": 5.0, "val_auroc": 0.8, "train_loss": 0.40004})
    shown.epoch_ended(PLANNED["d"], {"epochs_seen": 0.625, "val_auroc": 0.51, "train_loss": 0.7})
    shown.epoch_ended(
        PLANNED["d"], {"epochs_seen": 1.25, "val_auroc": 0.61234567, "train_loss": 0.6543}
    )
    shown.trial_ended(PLANNED["b"], DIVERGED)
    shown.trial_ended(PLANNED["a"], COMPLETED)
    stopped_clock.now += 100
    console.print(shown.render())
    # 5 of 8 done: 25 of the bar's 40 characters. Two took 100 s, so the other three take 150 s.
    assert lines(console.export_text()) == [
        "━" * 25 + " " * 15 + " 5/8 trials 1:40 elapsed 2:30 left",
        "batch_size  base_lr  seed  epoch  train_loss  val_auroc     status",
        "       256   0.0001     1    1/5           -          -   diverged",
        "        16      0.3     0    5/5         0.4     0.8765  completed",
        "        64        3     0   1.25      0.6543     0.6123    running",
    ]


def test_before_its_first_evaluation_a_trial_is_shown_as_started(stopped_clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    shown = made(console, total=2, done_before=0)
    console.print(shown.render())
    assert lines(console.export_text())[-1] == "starting workers, which import torch"
    shown.trial_started(PLANNED["a"])
    shown.trial_started(PLANNED["d"])
    shown.epoch_ended(PLANNED["d"], {"epochs_seen": 0.5, "val_auroc": 0.51, "train_loss": 0.7})
    shown.trial_started(PLANNED["d"])  # anew, after its worker was lost
    console.print(shown.render())
    assert lines(console.export_text())[1:] == [
        "batch_size  base_lr  seed  epoch  train_loss  val_auroc   status",
        "        16      0.3     0    -/5           -          -  started",
        "        64        3     0    0.5         0.7       0.51  running",
    ]


def test_before_a_trial_has_ended_nothing_is_said_of_the_time_left(stopped_clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    shown = made(console, varied=["optimizer"], metric="val_loss", total=2, done_before=0)
    shown.epoch_ended(PLANNED["a"], {"epochs_seen": 1.0, "val_loss": float("nan")})
    stopped_clock.now += 3723
    console.print(shown.render())
    assert lines(console.export_text()) == [
        " " * 40 + " 0/2 trials 1:02:03 elapsed",
        "optimizer  seed  epoch  train_loss  val_loss   status",
        "      sgd     0    1/5           -         -  running",
    ]


def test_the_table_keeps_the_last_trials_that_ended(stopped_clock: Clock) -> None:
    planned = [PlannedTrial(str(n), replace(BASE, seed=n)) for n in range(20)]
    shown = made(Console(file=io.StringIO()), total=20, done_before=0)
    for n in range(20):
        shown.trial_ended(planned[n], COMPLETED)
    assert [trial.key for trial, _ in shown.recent] == [str(n) for n in range(20 - RECENT_ROWS, 20)]
    assert RECENT_ROWS == 8


def test_on_a_terminal_the_table_is_drawn_and_no_line_is_printed(stopped_clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system=None)
    with made(console) as shown:
        shown.trial_ended(PLANNED["a"], COMPLETED)
        assert shown.live is not None
        assert shown.live.is_started
        stopped_clock.now += 10
    assert not shown.live.is_started
    said = written.getvalue()
    assert "[4/8]" not in said
    # The last picture is left on the screen, below whatever was drawn before it.
    last = said[said.rindex("trials") :]
    assert last.startswith("trials 0:10 elapsed 0:40 left")
    assert "        16      0.3     0    5/5           -     0.8765  completed" in last


def test_colours_tell_the_statuses_apart(stopped_clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system="standard")
    shown = made(console)
    shown.live = object()  # type: ignore[assignment]
    for key, row in (("a", COMPLETED), ("b", DIVERGED), ("c", FAILED), ("d", STOPPED)):
        shown.trial_ended(PLANNED[key], row)
    console.print(shown.render())
    # ANSI: 32 green, 33 yellow, 31 red, 36 cyan.
    for code, status in ((32, "completed"), (33, "diverged"), (31, "failed"), (36, "stopped")):
        assert re.search(rf"\x1b\[{code}m *{status}\x1b\[0m", written.getvalue())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.123456, "0.1235"),
        (1e-5, "1e-05"),
        (3.0, "3"),
        (256, "256"),
        (123456, "123456"),
        (True, "True"),
        ("sgd", "sgd"),
    ],
)
def test_a_value_is_shown_in_four_digits_or_as_a_dash(value: object, said: str) -> None:
    assert show(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3599.7, "1:00:00")],
)
def test_the_clock_carries_over(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_one_trial_is_counted_in_the_singular(stopped_clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(made(console, total=1, done_before=0).render())
    assert "0/1 trial " in console.export_text()
