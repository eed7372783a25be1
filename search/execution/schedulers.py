"""What Ray Tune asks after each evaluation: whether the trial goes on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

from search.execution.forecast_stopping import ForecastStopping
from search.execution.in_order import ENDED_AS, HOST_FAILED, InOrder
from search.execution.packs import key_of, keys_of, stop
from search.explore import Asha, Forecast, HyperBand, Median
from search.study.explorer import Stopper
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.training.schedule import timetable


def first_rung(study: Study, configs: Sequence[TrialConfig], *, train_images: int) -> int:
    """Training images before which no trial is stopped: the grace share, and all warmup."""
    if study.stop is None:
        return 0
    tables = [timetable(config, train_images=train_images) for config in configs]
    grace = max(study.stop.grace_share * table.total for table in tables)
    return int(max(grace, *(table.warmup for table in tables)))


def scheduler_of(study: Study, *, train_images: int) -> "EarlyStopping | ForecastStopping | None":
    """The scheduler that a study's `stop` asks for, its rungs on the scale of images."""
    if study.stop is None:
        return None
    tables = [timetable(config, train_images=train_images) for config in study.configs]
    grace = first_rung(study, study.configs, train_images=train_images)
    if isinstance(study.stop, Forecast):
        return ForecastStopping(study.stop, grace=grace)
    total = int(max(table.total for table in tables))
    return EarlyStopping(study.stop, grace=grace, total=total)


@dataclass(frozen=True, eq=False)
class _Member:
    """What a scheduler asks of a trial: of a pack, or of one that ended in an earlier command."""

    trial_id: str
    config: Mapping[str, Any]


class EarlyStopping(InOrder):
    """A scheduler of Ray's, one for all or one a batch size; remembers why it stopped whom.

    Ray's schedulers hear nothing of a trial that is trained whole: they would compare the score at
    its end with others' on the way.
    """

    def __init__(self, stop: Stopper, *, grace: int, total: int) -> None:
        """Rungs from `grace` to `total` training images."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.stop, self.grace, self.total = stop, grace, total
        self.inner: dict[int, Any] = {}
        self.members: dict[str, _Member] = {}  # of trials under way, by their keys
        self.reasons: dict[str, str] = {}  # by key, as the next
        self.heard: dict[str, int] = {}  # images seen at each trial's last evaluation

    def _of(self, trial: Any) -> Any:
        group = trial.config["batch_size"] if self.stop.by_batch_size else 0
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
            min_samples_required=self.stop.min_trials if isinstance(self.stop, Median) else 1,
            hard_stop=True,
        )

    def learn(
        self,
        key: str,
        config: Mapping[str, Any],
        evaluations: Sequence[Mapping[str, float]],
        *,
        status: str,
    ) -> None:
        """Take in a trial of an earlier command: its `score` and `examples_seen`, oldest first."""
        past = _Member(key, config)
        inner = self._of(past)
        inner.on_trial_add(None, past)
        for evaluation in evaluations:
            if isinstance(self.stop, Median):
                inner.on_trial_complete(None, past, dict(evaluation))  # adds to what it knows
            else:
                inner.on_trial_result(None, past, dict(evaluation))

    def _member(self, trial: Any, key: str) -> _Member:
        """A trial of Ray's, or one of the pack that it stands for."""
        return self.members.setdefault(key, _Member(key, trial.config))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins."""
        if not trial.config["whole"]:
            for key in keys_of(trial):
                self._of(trial).on_trial_add(tune_controller, self._member(trial, key))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        key = key_of(trial, result)
        left_its_pack = key in self.reasons and trial.config.get("pack")
        if HOST_FAILED in result or trial.config["whole"] or left_its_pack:
            return self.CONTINUE  # an error of its host says nothing of the trial
        if ENDED_AS in result:
            self._completed(trial, key, result)
            return self.CONTINUE
        # At its last evaluation stopping it would only lose its test. And the next attempt of a
        # lost worker reports again what the trial reported before.
        is_last = result["examples_seen"] >= trial.config["total_images"]
        if is_last or result["examples_seen"] <= self.heard.get(key, -1):
            return self.CONTINUE
        self.heard[key] = result["examples_seen"]
        member = self._member(trial, key)
        decision: str = self._of(trial).on_trial_result(tune_controller, member, result)
        if decision != self.STOP:
            return decision
        if trial.config.get("pack"):
            self._completed(trial, key, result)
        self.reasons[key] = (
            f"{type(self.stop).__name__.lower()} at {result['examples_seen']} images"
        )
        return stop(trial, key)

    def _completed(self, trial: Any, key: str, result: dict[str, Any]) -> None:
        if member := self.members.pop(key, None):
            self._of(trial).on_trial_complete(None, member, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial ended, or all of a pack, most of which have said so."""
        for key in keys_of(trial):
            self._completed(trial, key, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial was taken away."""
        for key in keys_of(trial):
            if member := self.members.pop(key, None):
                self._of(trial).on_trial_remove(tune_controller, member)

    def debug_string(self) -> str:
        """For Ray's log."""
        return f"{type(self.stop).__name__}: {len(self.reasons)} stopped"
