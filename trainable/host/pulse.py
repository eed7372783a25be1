"""What this process does now, for whoever watches it: a phase, and a count of work done.

One trial runs in a process at a time, so there is one pulse.
"""

from dataclasses import dataclass

# What a worker may be doing; a watcher has a limit for each.
PHASES = ("starting", "opening data", "building", "training", "evaluating", "saving", "reporting")


@dataclass
class Pulse:
    """The trial, its phase, and how often a part of the work was done: a microbatch, a file."""

    trial: str = ""
    phase: str = "starting"
    ticks: int = 0


now = Pulse()


def begin(trial: str) -> None:
    """The process begins with a trial, named by its key."""
    now.trial = trial
    enter("starting")


def enter(phase: str) -> None:
    """The process begins with this phase, one of `PHASES`."""
    now.phase = phase
    now.ticks += 1


def tick() -> None:
    """A part of the phase's work is done."""
    now.ticks += 1
