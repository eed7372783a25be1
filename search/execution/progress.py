"""What is going on, while it goes on: a live table, or plain lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.execution.filling import Filling
from search.study.explorer import PlannedTrial
from search.study.shown import number_of, show

if TYPE_CHECKING:
    from search.execution.logs import Log

RECENT_ROWS = 8
STATUS_STYLES = {"completed": "green", "diverged": "yellow", "failed": "red", "stopped": "cyan"}


@dataclass
class Progress:
    """The state of a screen: which trials run, which ended last, how many there are."""

    console: Console
    varied: Sequence[str]
    metric: str
    total: int
    done_before: int
    running: dict[str, tuple[PlannedTrial, Mapping[str, Any]]] = field(default_factory=dict)
    recent: list[tuple[PlannedTrial, Mapping[str, Any]]] = field(default_factory=list)
    filling: Filling | None = None
    log: "Log | None" = None
    ended: int = 0
    started: float = field(default_factory=time.monotonic)
    live: Live | None = None

    def __enter__(self) -> "Progress":
        """Begin to draw."""
        if self.console.is_terminal:
            self.live = Live(console=self.console, get_renderable=self.render, refresh_per_second=2)
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last picture on the screen."""
        if self.live is not None:
            self.live.stop()

    def trial_started(self, trial: PlannedTrial) -> None:
        """A worker began with a trial; one that goes on after a lost worker stays as it is."""
        if self.filling is not None and trial.key not in self.running:
            self.filling.started(trial)
        if self.log is not None:
            self.log.started(trial)
        self.running.setdefault(trial.key, (trial, {"status": "started"}))

    def note(self, sentence: str) -> None:
        """Something that the user may want to act on, above the table."""
        self.console.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM came."""
        self.console.print(
            "stopping: what was trained is kept; another Ctrl-C does not wait for the workers",
            style="yellow",
            highlight=False,
        )

    def epoch_ended(self, trial: PlannedTrial, row: Mapping[str, Any]) -> None:
        """A trial reported an evaluation."""
        self.running[trial.key] = (trial, row)
        if self.log is not None:
            self.log.evaluated(trial, row)

    def trial_ended(self, trial: PlannedTrial, row: Mapping[str, Any]) -> None:
        """A trial reported its end."""
        _, last = self.running.pop(trial.key, (trial, {}))
        # A trial's end has scores of its best epoch, but no training loss: that of its last report.
        row = {"train_loss": last.get("train_loss"), **row}
        self.recent = [*self.recent[-RECENT_ROWS + 1 :], (trial, row)]
        self.ended += 1
        if self.filling is not None:
            self.filling.ended(trial, row)
        if self.log is not None:
            self.log.ended(trial, row)
        if self.live is None:
            line = self._line(trial, row)
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the trials that ended; None before the first has."""
        if not self.ended:
            return None
        num_left = self.total - self.done_before - self.ended
        return (time.monotonic() - self.started) / self.ended * num_left

    def name_of(self, trial: PlannedTrial) -> str:
        """What the screen calls a trial: the values of what varies."""
        names = [*self.varied, "seed"]
        values = " ".join(f"{name}={show(getattr(trial.config, name))}" for name in names)
        part = trial.step or trial.variant
        return f"{part}: {values}" if part else values

    def as_json(self) -> dict[str, Any]:
        """What is going on, for other programs: counts, seconds left, running and last trials."""
        return {
            "total": self.total,
            "ended": self.done_before + self.ended,
            "seconds_left": self.seconds_left,
            "fields": [*self.varied, "seed"],
            "running": [self._row(*pair) for pair in list(self.running.values())],
            "surface": None if self.filling is None else self.filling.as_json(),
            "recent": [self._row(*pair) for pair in reversed(self.recent)],
        }

    def _row(self, trial: PlannedTrial, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{name: getattr(trial.config, name) for name in [*self.varied, "seed"]},
            "epoch": row.get("epochs_seen", row.get("epochs_completed")),
            "score": row.get(self.metric),
            "status": row.get("status", "running"),
            "reason": row.get("reason") or "",
        }

    def _line(self, trial: PlannedTrial, row: Mapping[str, Any]) -> str:
        values = self.name_of(trial)
        score = show(row.get(self.metric))
        reason = f" ({row['reason']})" if row.get("reason") else ""
        wall = f" {row['train_wall_s']:.1f} s" if row.get("train_wall_s") else ""
        return (
            f"[{self.done_before + self.ended}/{self.total}] {values}: {row['status']} "
            f"{self.metric}={score}{wall}{reason}"
        )

    def render(self) -> Group:
        """The whole screen: a bar, then running trials, then those that ended last."""
        total, done = self.total, self.done_before + self.ended
        elapsed, left = time.monotonic() - self.started, self.seconds_left
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=total, completed=done, width=40),
            f"{done}/{number_of(total, 'trial')}",
            Text(f"{clock(elapsed)} elapsed"),
            Text("" if left is None else f"{clock(left)} left"),
        )
        table = Table(box=None, pad_edge=False)
        for name in [*self.varied, "seed"]:
            table.add_column(name, justify="right")
        for name in ("epoch", "train_loss", self.metric, "status"):
            table.add_column(name, justify="right")
        for trial, row in [*self.recent, *self.running.values()]:
            config = trial.config
            epoch = row.get("epochs_seen", row.get("epochs_completed"))
            budget = f"/{config.epochs}" if config.epochs else ""
            status = row.get("status", "running")
            table.add_row(
                *(show(getattr(config, name)) for name in [*self.varied, "seed"]),
                f"{show(epoch)}{budget}",
                show(row.get("train_loss")),
                show(row.get(self.metric)),
                Text(status, STATUS_STYLES.get(status, "bold")),
            )
        if not self.running and not self.ended:
            return Group(bar, table, Text("starting workers, which import torch", "dim"))
        surface = None if self.filling is None else self.filling.table()
        return Group(bar, *([surface] if surface else []), table)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
