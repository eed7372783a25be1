"""Stand-ins for Ray's Tuner, where what Ray does is not the question.

They ask a study's queue for trials, hand their rows to its callbacks and tell the queue of their
ends, as Ray does. Each score is known in advance.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.execution.queue import Queue
from search.explore.ask import ask
from search.study.explorer import PlannedTrial, Tables
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import folder_at

TUNER = "search.execution.runner.tune.Tuner"  # what trainings are put in the place of
Cell = tuple[int, float, int]  # batch size, base lr to four digits, seed


def cell_of(config: TrialConfig) -> Cell:
    return config.batch_size, round(config.base_lr, 4), config.seed


def score_of(config: TrialConfig) -> float:
    """Best at 0.2 for batch 16 and, a hundredth worse, at 1.6 for batch 64."""
    best, top = (0.2, 0.9) if config.batch_size == 16 else (1.6, 0.89)
    return top - abs(math.log2(config.base_lr / best)) / 20


@dataclass
class Trainings:
    """Trains in no time, `num_slots` trials side by side; keeps what it was asked to.

    It begins all trials that there are, up to `num_slots`, before the oldest of them end: so
    without a limit each of `asked` is what was known to be wanted when all before it had ended.
    """

    endings: Mapping[Cell, str] = field(default_factory=dict)
    raises: BaseException | None = None
    num_slots: int | None = None
    meanwhile: Callable[[], object] = lambda: None
    asked: list[set[Cell]] = field(default_factory=list)
    order: list[tuple[str, Cell]] = field(default_factory=list)
    whole: set[Cell] = field(default_factory=set)
    commands: list[str] = field(default_factory=list)

    def __call__(
        self, trainable: object, *, tune_config: Any, run_config: Any, param_space: Any = None
    ) -> "_Tuner":
        self.commands.append(run_config.name)
        return _Tuner(self, tune_config.search_alg, run_config.callbacks)


@dataclass
class _Tuner:
    trainings: Trainings
    queue: Any
    callbacks: Sequence[Any]
    running: list[Any] = field(default_factory=list)
    num_begun: int = 0

    def fit(self) -> None:
        if self.trainings.raises is not None:
            raise self.trainings.raises
        interrupted = False
        while not interrupted:
            self.trainings.asked.append(set())
            while self._has_room() and self._begin():
                pass
            if not self.trainings.asked[-1]:
                self.trainings.asked.pop()
            if not self.running:
                return
            self.trainings.meanwhile()
            ending = self.running if self.trainings.num_slots is None else self.running[:1]
            self.running = self.running[len(ending) :]
            interrupted = "interrupted" in [self._end(trial) for trial in ending]

    def _has_room(self) -> bool:
        num_slots = self.trainings.num_slots
        return num_slots is None or len(self.running) < num_slots

    def _begin(self) -> bool:
        config = self.queue.suggest(f"t{self.num_begun}")
        if config is None or config == Searcher.FINISHED:
            return False
        metadata = SimpleNamespace(metric_analysis={}, metric_n_steps={}, num_failures=0)
        trial = SimpleNamespace(
            trial_id=f"t{self.num_begun}",
            config=config,
            storage=None,
            trained=TrialConfig(**json.loads(config["task"])["trials"][0]["config"]),
            run_metadata=metadata,
        )
        self.num_begun += 1
        self.running.append(trial)
        cell = cell_of(trial.trained)
        self.trainings.asked[-1].add(cell)
        self.trainings.order.append(("begins", cell))
        if config["whole"]:
            self.trainings.whole.add(cell)
        return True

    def _end(self, trial: Any) -> str:
        config, cell = trial.trained, cell_of(trial.trained)
        status = self.trainings.endings.get(cell, "completed")
        num_epochs = config.epochs if status in ("completed", "failed") else 2
        score = math.nan if status == "diverged" else score_of(config)
        for epoch in range(1, num_epochs + 1):
            seen = {"epoch": epoch, "updates": 10 * epoch, "examples_seen": 100 * epoch}
            speed = {"epoch_wall_s": 1 / num_epochs, "images_per_s": 100.0}
            self._report(trial, {"epoch_row": {"val_auroc": score, **seen, **speed}})
        if status == "interrupted":
            return status
        ended = {"status": status, "reason": "", "epochs_completed": num_epochs}
        more = {"train_wall_s": 1.0, "examples_seen": 100 * num_epochs, "val_auroc": score}
        self._report(trial, {"trial_row": ended | more})
        self.queue.on_trial_complete(trial.trial_id, {}, error=False)
        for callback in self.callbacks:
            callback.on_trial_complete(1, [], trial)
        self.trainings.order.append(("ends", cell))
        return status

    def _report(self, trial: Any, result: dict[str, Any]) -> None:
        self.queue.on_trial_result(trial.trial_id, result)
        for callback in self.callbacks:
            callback.on_trial_result(1, [], trial, result)


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing watches the head of a cluster that is not there, and no report is drawn."""
    monkeypatch.setattr("search.execution.watchdog.head_watched", lambda *_: nullcontext())
    monkeypatch.setattr("search.execution.meanwhile.report_written", lambda *_, **__: nullcontext())
    monkeypatch.setattr("search.report.report.write_report", lambda _: "report.html")
    monkeypatch.setattr("search.report.advised.print_advice", lambda *_: None)


class ByHand:
    """A study's queue whose trials are played by hand; `ended` is what earlier commands trained."""

    def __init__(
        self,
        declared: Study,
        folder: Path,
        ended: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        num_slots: int = 100,
    ) -> None:
        self.study = declared
        self.known = Tables(
            data_fingerprint="d", folder=folder_at(str(folder)), ended=dict(ended or {})
        )
        self.sent: dict[str, PlannedTrial] = {}
        self.queue = Queue(
            declared,
            self.known,
            ask(declared, self.known, room=1),
            send=self._send,
            slots=lambda: num_slots,
        )

    def _send(self, trials: Sequence[PlannedTrial]) -> dict[str, Any]:
        for trial in trials:
            assert trial.key not in self.sent
            self.sent[trial.key] = trial
        keys = [trial.key for trial in trials]
        return {"key": keys[0], "pack": keys if len(keys) > 1 else None}

    def suggest(self, trial_id: str) -> Any:
        return self.queue.suggest(trial_id)

    def end(self, trial_id: str, **row: Any) -> None:
        """The trial's row comes, and then word of its end."""
        for key in self.queue.under_way[trial_id]:
            self.known.ended[key] = row
        self.queue.on_trial_complete(trial_id, {})

    @property
    def told(self) -> list[FrozenTrial]:
        """What Optuna knows by the next question."""
        journal = self.known.memory["journal"]
        assert journal.next(self.known, 0) == []
        trials: list[FrozenTrial] = journal.optuna.get_trials()
        return trials

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.told]

    def values(self) -> list[float | None]:
        return [trial.value for trial in self.told]
