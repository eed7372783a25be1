"""Stops a trial whose forecast is below the best of its batch size."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.execution.in_order import ENDED_AS, HOST_FAILED, InOrder
from search.execution.packs import key_of, keys_of, stop
from search.explore import Forecast
from search.explore.forecast import Curve, Predicted, forecast


class ForecastStopping(InOrder):
    """A scheduler that knows the curves of all trials; remembers why it stopped whom."""

    def __init__(self, stop: Forecast, *, grace: int) -> None:
        """Stops nothing before `grace` training images."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.stop, self.grace = stop, grace
        self.curves: dict[str, Curve] = {}  # of trials under way, by their keys
        self.ended: list[Curve] = []  # of trials that completed
        self.reasons: dict[str, str] = {}
        self.forecasts: dict[str, Predicted] = {}  # of trials that were stopped

    def learn(
        self,
        key: str,
        config: Mapping[str, Any],
        evaluations: Sequence[Mapping[str, float]],
        *,
        status: str,
    ) -> None:
        """Take in a trial of an earlier command: its `score` and `examples_seen`, oldest first."""
        for evaluation in evaluations:
            self._hear(key, config, evaluation)
        self._end(key, status)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        key = key_of(trial, result)
        if HOST_FAILED in result or key in self.reasons:
            return self.CONTINUE  # an error of its host says nothing of the trial
        if ENDED_AS in result:
            self._end(key, result[ENDED_AS])
            return self.CONTINUE
        images = result["examples_seen"]
        is_new = self._hear(key, trial.config, result)
        is_last = images >= trial.config["total_images"]
        if not is_new or is_last or trial.config["whole"] or images < self.grace:
            return self.CONTINUE
        curve = self.curves[key]
        rivals = [c.scores[-1] for c in self.ended if c.batch_size == curve.batch_size]
        if not rivals or len(self.ended) < self.stop.min_trials:
            return self.CONTINUE
        predicted = forecast(curve, self.ended)
        if predicted.high >= max(rivals):
            return self.CONTINUE
        del self.curves[key]
        self.forecasts[key] = predicted
        self.reasons[key] = f"forecast at {images} images"
        return stop(trial, key)

    def _hear(self, key: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
        """Note an evaluation; False for one that a next attempt reports again."""
        curve = self.curves.get(key, Curve(config["batch_size"], (), ()))
        share = result["examples_seen"] / config["total_images"]
        if curve.shares and share <= curve.shares[-1]:
            return False
        best = max((*curve.scores[-1:], result["score"]))
        self.curves[key] = Curve(curve.batch_size, (*curve.shares, share), (*curve.scores, best))
        return True

    def _end(self, key: str, status: str) -> None:
        curve = self.curves.pop(key, None)
        if curve is not None and status == "completed":
            self.ended.append(curve)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """It ended: what it reported last has said so."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial was taken away."""
        for key in keys_of(trial):
            self.curves.pop(key, None)

    def debug_string(self) -> str:
        """For Ray's log."""
        return f"Forecast: {len(self.reasons)} stopped"
