"""Recorded trainings replayed with a simulated clock: nothing is trained.

A scheduler gets the scores that Ray Tune would give it at the same moments: one after each epoch,
never a whole curve.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna

from benchmarks.curves import Curve, Recording
from search.execution.schedulers import EarlyStopping
from search.explore import Asha, Optuna
from search.explore.journal import Journal, params_of
from search.study.domains import is_log
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host.storage import folder_at

CONFIGS, WORKERS, SCALE = 81, 9, 1000
GRACE, FACTOR = 1 / 9, 3

Stop = Callable[[str, float, float], bool]  # name, share of its training done, score -> stop?
Next = Callable[[], tuple[str, Curve] | None]
Ended = Callable[[str, Curve, int, bool], None]  # name, curve, epochs with a score, stopped?


@dataclass(frozen=True)
class Replay:
    """The cost and the best scores of a replay.

    `spent` counts the epochs of all workers. `improvements` has (epochs spent so far, score) of
    each training that ran to its end and was better than all before it.
    """

    spent: int
    improvements: tuple[tuple[int, float], ...]

    @property
    def best(self) -> float:
        """The best final score; 0 if no training ran to its end."""
        return self.improvements[-1][1] if self.improvements else 0.0

    def epochs_to(self, score: float) -> float:
        """Epochs spent until a final score of at least `score`; infinite if there is none."""
        reached = (float(spent) for spent, best in self.improvements if best >= score)
        return next(reached, math.inf)


def replay(next_curve: Next, stop: Stop, ended: Ended = lambda *_: None) -> Replay:
    """Replay the curves from `next_curve`, epoch by epoch, on parallel workers."""
    spent, clock, order = 0, 0, 0
    improvements: list[tuple[int, float]] = []
    events: list[tuple[int, int, str, Curve, int]] = []

    def start() -> None:
        nonlocal order
        if (chosen := next_curve()) is not None:
            order += 1
            heapq.heappush(events, (clock + 1, order, *chosen, 1))

    for _ in range(WORKERS):
        start()
    while events:
        clock, _, name, curve, done = heapq.heappop(events)
        spent += 1
        diverged = done > len(curve.scores)
        over = diverged or done == curve.epochs
        score = 0.0 if diverged else curve.scores[done - 1]
        if over and not diverged and (not improvements or score > improvements[-1][1]):
            improvements.append((spent, score))
        stopped = not over and stop(name, done / curve.epochs, score)
        if over or stopped:
            ended(name, curve, min(done, len(curve.scores)), stopped)
            start()
        else:
            order += 1
            heapq.heappush(events, (clock + 1, order, name, curve, done + 1))
    return Replay(spent, tuple(improvements))


def never(name: str, share: float, score: float) -> bool:
    """All trials run to their end."""
    return False


def our_asha() -> Stop:
    """Our scheduler, which gets each score as Ray Tune would give it."""
    scheduler = EarlyStopping(Asha(reduction_factor=FACTOR), grace=int(GRACE * SCALE), total=SCALE)
    controller = SimpleNamespace(get_live_trials=list)
    trials: dict[str, Any] = {}

    def stop(name: str, share: float, score: float) -> bool:
        if name not in trials:
            config = {"key": name, "batch_size": 1, "whole": False, "total_images": SCALE}
            trials[name] = SimpleNamespace(trial_id=name, config=config)
            scheduler.on_trial_add(controller, trials[name])
        result = {"score": score, "examples_seen": int(SCALE * share)}
        return bool(scheduler.on_trial_result(controller, trials[name], result) == "STOP")

    return stop


def optunas_pruner() -> Stop:
    """The peer: optuna.pruners.SuccessiveHalvingPruner with the same rungs."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=int(GRACE * SCALE), reduction_factor=FACTOR
    )
    study = optuna.create_study(direction="maximize", pruner=pruner)
    trials: dict[str, optuna.Trial] = {}

    def stop(name: str, share: float, score: float) -> bool:
        if name not in trials:
            trials[name] = study.ask()
        trials[name].report(score, int(SCALE * share))
        pruned = trials[name].should_prune()
        if pruned:
            study.tell(trials[name], state=optuna.trial.TrialState.PRUNED)
        return pruned

    return stop


def in_order(curves: Sequence[Curve]) -> Next:
    """The curves in their order."""
    left = [(f"t{i}", curve) for i, curve in enumerate(curves)]
    return lambda: left.pop(0) if left else None


def search(recording: Recording, sampler: str, seed: int, folder: Path) -> Replay:
    """Our sampler and our ASHA on all curves: each suggestion takes the nearest unused curve."""
    explore = Optuna(num_configs=CONFIGS, sampler=sampler, sampling_seed=seed)
    study = Study(
        name=f"{recording.name}_{sampler}{seed}",
        base=TrialConfig(dataset="synthetic", model="plain", pretrained="none"),
        vary=recording.domains,
        explore=explore,
        stop=Asha(reduction_factor=FACTOR),
        metric="val_accuracy",
    )
    results = folder_at(str(folder / study.name))
    journal = Journal(study, explore, results, data_fingerprint="replay")
    nearest = _nearest(recording)
    numbers: dict[str, int] = {}

    def next_curve() -> tuple[str, Curve] | None:
        if journal.num_chosen == CONFIGS:
            return None
        number, (planned,) = journal.choose()
        numbers[f"t{number}"] = number
        curve = nearest(asdict(planned.config))
        # The sampler learns from the config that was trained, not from the one it suggested.
        trial = journal.optuna.trials[number]
        trained = params_of(study.vary, {name: curve.config[name] for name in study.vary})
        for parameter, distribution in journal.space.items():
            value = distribution.to_internal_repr(trained[parameter])
            journal.optuna._storage.set_trial_param(trial._trial_id, parameter, value, distribution)
        return f"t{number}", curve

    def ended(name: str, curve: Curve, done: int, stopped: bool) -> None:
        diverged = not stopped and done < curve.epochs
        status = "stopped" if stopped else "diverged" if diverged else "completed"
        # A share of 1, as trials report it.
        row = {"status": status, "val_accuracy": curve.scores[done - 1] / 100}
        journal.tell(numbers[name], [row | {"examples_seen": done}])

    return replay(next_curve, our_asha(), ended)


def _nearest(recording: Recording) -> Callable[[dict[str, Any]], Curve]:
    """A function that returns the unused curve with the nearest config, and marks it as used."""

    def on_scale(config: dict[str, Any]) -> list[float]:
        """A config's numbers; logarithms of those with a logarithmic domain."""
        return [
            math.log(config[name]) if is_log(domain) else config[name]
            for name, domain in recording.domains.items()
        ]

    space_CF = np.array([on_scale(curve.config) for curve in recording.curves])
    width_F = np.ptp(space_CF, 0)
    free = np.ones(len(recording.curves), bool)

    def nearest(config: dict[str, Any]) -> Curve:
        distance_C = np.square((space_CF - np.array(on_scale(config))) / width_F).sum(1)
        index = int(np.where(free, distance_C, np.inf).argmin())
        free[index] = False
        return recording.curves[index]

    return nearest
