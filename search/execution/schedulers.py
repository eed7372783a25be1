"""What Ray Tune asks: a searcher for suggestions, a scheduler that knows the schedule."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from search.explore import Asha, HyperBand, Median, Stopper
from search.explore.optuna import Suggestions
from search.explore.plan import PlannedTrial
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.training.schedule import timetable


class OptunaSearcher(Searcher):
    """Hands Optuna's configurations to Ray Tune, seed by seed, and their endings back."""

    def __init__(
        self,
        suggestions: Suggestions,
        send: Callable[[PlannedTrial], dict[str, Any]],
        held: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Go on with what an earlier command left unfinished; `held` are rows of ended trials."""
        super().__init__(metric="score", mode="max")
        self.suggestions, self.send, self.held = suggestions, send, dict(held)
        self.queue: list[tuple[int, PlannedTrial]] = []
        self.open: dict[int, list[PlannedTrial]] = {}
        self.running: dict[str, tuple[int, PlannedTrial]] = {}
        for number, planned in suggestions.unfinished():
            self._enqueue(number, planned)

    def _enqueue(self, number: int, planned: list[PlannedTrial]) -> None:
        self.open[number] = planned
        self.queue += [(number, p) for p in planned if p.key not in self.held]
        self._tell_if_ended(number)

    def _tell_if_ended(self, number: int) -> None:
        planned = self.open[number]
        if all(p.key in self.held for p in planned):
            self.suggestions.tell(number, [self.held[p.key] for p in planned])
            del self.open[number]

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config, or that there are no more."""
        while not self.queue:
            asked = self.suggestions.ask()
            if asked is None:
                return Searcher.FINISHED
            self._enqueue(*asked)  # nothing is queued of one that the tables know already
        number, planned = self.queue.pop(0)
        self.running[trial_id] = (number, planned)
        return {"trial": self.send(planned)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An evaluation."""
        if _row(result, "epoch_row") and trial_id in self.running:
            number, _ = self.running[trial_id]
            self.suggestions.report(number, result["score"], result["examples_seen"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial's end: by itself, by the scheduler, or by an error."""
        number, planned = self.running.pop(trial_id)
        if error or not result:
            ending: Mapping[str, Any] = {"status": "failed"}
        else:
            so_far = {**_row(result, "epoch_row"), "status": "stopped"}
            ending = _row(result, "trial_row") or so_far
        self.held[planned.key] = ending
        self._tell_if_ended(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the tables are what a later command goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


def first_rung(study: Study, configs: Sequence[TrialConfig], *, train_images: int) -> int:
    """Training images before which no trial is stopped: the grace share, and all warmup."""
    if study.stop is None:
        return 0
    tables = [timetable(config, train_images=train_images) for config in configs]
    grace = max(study.stop.grace_share * table.total for table in tables)
    return int(max(grace, *(table.warmup for table in tables)))


def scheduler_of(
    study: Study, configs: Sequence[TrialConfig], *, train_images: int
) -> "EarlyStopping | None":
    """The scheduler that a study's `stop` asks for, its rungs on the scale of images.

    Raises:
        ValueError: the budget is in seconds, in which images are not known beforehand.
    """
    if study.stop is None:
        return None
    if any(config.seconds is not None for config in configs):
        raise ValueError(
            "stop counts training images: give a budget in epochs, updates or examples"
        )
    tables = [timetable(config, train_images=train_images) for config in configs]
    return EarlyStopping(
        study.stop,
        grace=first_rung(study, configs, train_images=train_images),
        total=int(max(table.total for table in tables)),
    )


def _row(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A reported row: Ray hands searchers its results flattened, `trial_row/status`."""
    flat = {key.partition("/")[2]: v for key, v in result.items() if key.startswith(f"{name}/")}
    return dict(result.get(name, flat))


@dataclass(frozen=True, eq=False)
class _Past:
    """What a scheduler asks of a trial, for one that ended in an earlier command."""

    trial_id: str
    config: Mapping[str, Any]


class EarlyStopping(FIFOScheduler):
    """A scheduler of Ray's, one for all or one a batch size; remembers why it stopped whom."""

    def __init__(self, stop: Stopper, *, grace: int, total: int) -> None:
        """Rungs from `grace` to `total` training images."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.stop, self.grace, self.total = stop, grace, total
        self.inner: dict[int, Any] = {}
        self.reasons: dict[str, str] = {}

    def _of(self, trial: Any) -> Any:
        batch_size = trial.config["trial"]["config"]["batch_size"]
        group = batch_size if self.stop.by_batch_size else 0
        if group not in self.inner:
            self.inner[group] = self._new()
        return self.inner[group]

    def _new(self) -> Any:
        shared: dict[str, Any] = {"time_attr": "examples_seen", "metric": "score", "mode": "max"}
        if isinstance(self.stop, Asha | HyperBand):
            factor = self.stop.reduction_factor
            fit = int(math.log(self.total / self.grace) / math.log(factor) + 1e-9) + 1
            return AsyncHyperBandScheduler(
                **shared,
                max_t=self.total,
                grace_period=self.grace,
                reduction_factor=factor,
                brackets=fit if isinstance(self.stop, HyperBand) else 1,
                stop_last_trials=False,  # a schedule that decays is let to its end
            )
        # It would pause a trial to let others catch up, after each evaluation.
        never_pause: dict[str, Any] = {"min_time_slice": math.inf}
        return MedianStoppingRule(
            **shared,
            **never_pause,
            grace_period=self.grace,
            min_samples_required=self.stop.min_trials,
            hard_stop=True,
        )

    def learn(self, key: str, batch_size: int, evaluations: Sequence[Mapping[str, float]]) -> None:
        """Take in a trial of an earlier command: its `score` and `examples_seen`, oldest first."""
        past = _Past(key, {"trial": {"config": {"batch_size": batch_size}}})
        inner = self._of(past)
        inner.on_trial_add(None, past)
        for each in evaluations:
            if isinstance(self.stop, Median):
                inner.on_trial_complete(None, past, dict(each))  # adds to what it knows, no more
            else:
                inner.on_trial_result(None, past, dict(each))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        # It has ended, or this was its last evaluation: stopping it would only lose its test.
        end = trial.config["trial"].get("total_images", self.total)
        if "trial_row" in result or result["examples_seen"] >= end:
            return self.CONTINUE
        decision: str = self._of(trial).on_trial_result(tune_controller, trial, result)
        if decision == self.STOP:
            name = type(self.stop).__name__.lower()
            self.reasons[trial.trial_id] = f"{name} at {result['examples_seen']} images"
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial ended."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial was taken away."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """For Ray's log."""
        return f"{type(self.stop).__name__}: {len(self.reasons)} stopped"
