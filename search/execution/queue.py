"""The one Searcher: hands a study's trials to Ray Tune, whichever way they are chosen."""

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ray.tune.search import Searcher

from search.execution.packs import kind_of, pack_size
from search.explore.ask import ask
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study


class Queue(Searcher):
    """Trials that wait, and those under way; asks the study for more when none waits.

    Each key is sent once: whoever else asks for it reads its ending in the tables. Of trials that
    may train together as many are sent at once as the study packs, and no more than leave some for
    every slot.
    """

    def __init__(
        self,
        study: Study,
        tables: Tables,
        trials: Sequence[PlannedTrial],
        *,
        send: Callable[[Sequence[PlannedTrial]], dict[str, Any]],
        slots: Callable[[], int],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with the trials that were asked for already.

        `send` makes what a worker is told of trials; `slots` says how many run side by side now;
        `settle` waits until the tables know of all that ended.
        """
        super().__init__(metric="score", mode="max")
        self.study, self.tables, self.send, self.slots = study, tables, send, slots
        self.settle = settle
        self.sent: set[str] = set()
        self.under_way: dict[str, list[str]] = {}  # by Ray's trial id, keys
        self.waiting: dict[Hashable, deque[PlannedTrial]] = {}  # by kind, the oldest first
        self.finished = False
        self._enqueue(trials)

    def _enqueue(self, trials: Sequence[PlannedTrial]) -> None:
        for trial in trials:
            if trial.key not in self.sent and trial.key not in self.tables.ended:
                self.sent.add(trial.key)
                self._wait(kind_of(self.study, trial), trial)

    def _wait(self, kind: Hashable, trial: PlannedTrial) -> None:
        self.waiting.setdefault(kind, deque()).append(trial)

    def send_alone(self, trials: Sequence[PlannedTrial]) -> None:
        """Send trials once more, each by itself: the worker that trained them together was lost."""
        for trial in trials:
            self._wait(trial.key, trial)

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while those under way decide what comes; or that this is all."""
        if not self.waiting:
            self.settle()
            self._enqueue(ask(self.study, self.tables, self._room()))
        if self.waiting:
            trials = self._next_pack()
            self.under_way[trial_id] = [trial.key for trial in trials]
            return self.send(trials)
        self.finished = not self.under_way
        return Searcher.FINISHED if self.finished else None

    def _next_pack(self) -> list[PlannedTrial]:
        """The trials that waited longest, of one kind."""
        kind, trials = next(iter(self.waiting.items()))
        # Ray asks ahead of time: so those that it was given count as if they were to be shared out.
        num_left = self._num_under_way() + sum(len(others) for others in self.waiting.values())
        most = pack_size(self.study, trials[0].config)
        fair = math.ceil(num_left / max(1, self.slots()))
        num_packs = math.ceil(len(trials) / min(most, fair))
        taken = [trials.popleft() for _ in range(math.ceil(len(trials) / num_packs))]
        if not trials:
            del self.waiting[kind]
        return taken

    def _room(self) -> int:
        most = pack_size(self.study, self.study.base)
        return max(0, self.slots() * most - self._num_under_way())

    def _num_under_way(self) -> int:
        return sum(len(keys) for keys in self.under_way.values())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the recorder takes in every row."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial is no longer under way; how it ended is in the tables by the next question."""
        self.under_way.pop(trial_id, None)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray keeps a copy for a restore, which is not our way to resume."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a later command goes on from the tables."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""
