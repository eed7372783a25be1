"""The one Searcher: hands a study's trials to Ray Tune, whichever way they are chosen."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from search.explore.ask import ask
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study


class Queue(Searcher):
    """Trials that wait, and those under way; asks the study for more when none waits.

    Each key is sent once: whoever else asks for it reads its ending in the tables.
    """

    def __init__(
        self,
        study: Study,
        tables: Tables,
        trials: Sequence[PlannedTrial],
        *,
        send: Callable[[PlannedTrial], dict[str, Any]],
        slots: Callable[[], int],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with the trials that were asked for already.

        `send` makes what a worker is told of a trial; `slots` says how many run side by side now;
        `settle` waits until the tables know of all that ended.
        """
        super().__init__(metric="score", mode="max")
        self.study, self.tables, self.send, self.slots = study, tables, send, slots
        self.settle = settle
        self.sent: set[str] = set()
        self.under_way: dict[str, str] = {}
        self.waiting: deque[PlannedTrial] = deque()
        self.finished = False
        self._enqueue(trials)

    def _enqueue(self, trials: Sequence[PlannedTrial]) -> None:
        for trial in trials:
            if trial.key not in self.sent and trial.key not in self.tables.ended:
                self.sent.add(trial.key)
                self.waiting.append(trial)

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while those under way decide what comes; or that this is all."""
        if not self.waiting:
            self.settle()
            self._enqueue(ask(self.study, self.tables, self._room()))
        if self.waiting:
            trial = self.waiting.popleft()
            self.under_way[trial_id] = trial.key
            return self.send(trial)
        self.finished = not self.under_way
        return Searcher.FINISHED if self.finished else None

    def _room(self) -> int:
        return max(0, self.slots() - len(self.under_way))

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
