"""The largest usable learning rate of a config: a range test, and a search for stable rates.

Rates are the ones that the optimizer gets; `LrRange.peak_per_base` converts them to base rates. The
rate is constant here: with warmup a trial may remain stable at a higher peak.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainable.config import TrialConfig
from trainable.data.batches import Place, seed_for
from trainable.data.cache import Dataset
from trainable.host.device import pick_device
from trainable.training.schedule import peak_lr
from trainable.trial import Trial

Floats = NDArray[np.float64]

LOWEST_LR, HIGHEST_LR = 1e-6, 1e2
RANGE_UPDATES, STABLE_UPDATES = 80, 30
COMPARED_UPDATES = 10  # the last updates, over which the loss is averaged
SMOOTHING = 0.8
# Shares of the initial loss: a smaller fall does not count; a larger rise ends the range test.
FALLEN, RISEN = 0.01, 3.0
CLEARLY_ABOVE = 1.1
BLOWN_UP = 10.0  # times the initial loss: after such a rise units are lost, even if it recovers
RESOLUTION = 1.2  # the search ends when the unstable rate is at most so many times the stable one


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """Rates of one config, as the optimizer gets them; the base rate is `lr / peak_per_base`.

    `steepest_lr` is where the loss falls fastest in the range test; None if it does not fall.
    `stable_lr` is the largest stable rate that was tested, `unstable_lr` the smallest unstable one;
    None if the search reached `LOWEST_LR` or `HIGHEST_LR` without finding one.
    """

    peak_per_base: float
    steepest_lr: float | None
    stable_lr: float | None
    unstable_lr: float | None


def find_lr_range(config: TrialConfig, data: Dataset, *, num_threads: int) -> LrRange:
    """Test learning rates of a config, always from the same weights and on the same batches.

    The range test raises the rate geometrically from `LOWEST_LR` to `HIGHEST_LR` in `RANGE_UPDATES`
    updates. It ends when the loss is not finite, or far above the initial loss.

    A rate is called stable if, in `STABLE_UPDATES` updates at that constant rate, every loss is
    finite and at most `BLOWN_UP` times the initial loss, and the mean of the last
    `COMPARED_UPDATES` losses is at most `CLEARLY_ABOVE` times the loss of the initial weights on
    the same batches. A slower divergence is not detected; and stable does not mean that it learns.

    Raises:
        DataError, ValueError: the same errors as a trial's.
    """
    torch.set_num_threads(num_threads)
    constant = replace(config, decay="constant", warmup_epochs=0.0, warmup_share=0.0)
    trial = Trial(constant, data, pick_device(), None)
    trial.step.may_try_graph = False  # the optimizer's state is replaced too often for one
    initial = copy.deepcopy((trial.model.state_dict(), trial.step.state_dict()))
    # A rate of 0 changes no weights: these are the initial weights' losses on each batch.
    initial_N = np.array(list(losses(trial, initial, np.zeros(RANGE_UPDATES))))
    lrs_N = np.geomspace(LOWEST_LR, HIGHEST_LR, RANGE_UPDATES)
    changes = _range_test(losses(trial, initial, lrs_N), initial_N)
    tested_N = lrs_N[: max(len(changes), 1)]

    def is_stable(lr: float) -> bool:
        trained = []
        for loss in losses(trial, initial, np.full(STABLE_UPDATES, lr)):
            if not loss <= BLOWN_UP * initial_N.mean():  # also if it is NaN
                return False
            trained.append(loss)
        compared = slice(STABLE_UPDATES - COMPARED_UPDATES, STABLE_UPDATES)
        return bool(np.mean(trained[compared]) <= CLEARLY_ABOVE * initial_N[compared].mean())

    stable_lr, unstable_lr = largest_stable(is_stable, start=float(tested_N[-1]))
    return LrRange(
        peak_per_base=peak_lr(config) / config.base_lr,
        steepest_lr=steepest(
            lrs_N[: len(changes)], np.array(changes), fall=FALLEN * float(initial_N.mean())
        ),
        stable_lr=stable_lr,
        unstable_lr=unstable_lr,
    )


def _range_test(losses_N: Iterable[float], initial_N: Floats) -> list[float]:
    """Each loss minus the initial weights' loss on its batch, until it has risen too far."""
    changes: list[float] = []
    smooth = 0.0
    for loss, initial_loss in zip(losses_N, initial_N, strict=True):
        if not math.isfinite(loss - initial_loss):
            break
        changes.append(loss - initial_loss)
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * changes[-1]
        if smooth > RISEN * initial_N.mean():
            break
    return changes


def losses(
    trial: Trial, initial: tuple[dict[str, Any], dict[str, Any]], lrs: Iterable[float]
) -> Iterator[float]:
    """Train from the states of model and step in `initial`; yield each loss before its update.

    Everything is reset: weights, optimizer, batches, and the random numbers of dropout and mixing.
    """
    microbatch_size = trial.step.microbatch_size
    trial.model.load_state_dict(initial[0])
    trial.step.load_state_dict(copy.deepcopy(initial[1]))  # Adagrad would update its sums in place
    trial.step.microbatch_size = microbatch_size  # keep the size that fits in memory
    trial.place = Place()
    torch.manual_seed(seed_for(trial.config.seed, "dropout", 1))
    trial.step.set_training()
    for lr, (inputs_B, labels_B) in zip(lrs, trial.feed.batches(trial.place), strict=False):
        yield trial.step.update(inputs_B, labels_B, float(lr))[0].item() / len(labels_B)


def smoothed(values_N: Floats) -> Floats:
    """Exponential moving average with bias correction (Kingma & Ba 2015, section 3)."""
    averages, average = [], 0.0
    for count, value in enumerate(values_N, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * float(value)
        averages.append(average / (1 - SMOOTHING**count))
    return np.array(averages)


def steepest(lrs_N: Floats, changes_N: Floats, *, fall: float) -> float | None:
    """The lr at which the loss falls fastest per factor of lr; None if it falls less than `fall`.

    `changes_N` is each update's loss minus the loss of the initial weights on the same batch (Smith
    2017, arXiv:1506.01186, uses the loss itself, which is noisy with small batches).
    """
    # A moving average lags behind. The rates are averaged too, so that both lag equally.
    log_lrs_N, change_N = smoothed(np.log(lrs_N)), smoothed(changes_N)
    bottom = int(change_N.argmin()) if len(change_N) else 0
    if bottom == 0 or change_N[bottom] > -fall:
        return None
    slope_N = np.gradient(change_N[: bottom + 1], log_lrs_N[: bottom + 1])
    return math.exp(log_lrs_N[slope_N.argmin()])


def largest_stable(
    is_stable: Callable[[float], bool], *, start: float
) -> tuple[float | None, float | None]:
    """The largest stable and the smallest unstable rate, at most a factor of `RESOLUTION` apart.

    Doubles or halves the rate from `start` until it finds both, then bisects in log lr. One of the
    two is None if the search reaches its bound first. Assumes that every rate above an unstable one
    is unstable.
    """
    stable: float | None = None
    unstable: float | None = None
    lr = start
    while stable is None or unstable is None:
        if is_stable(lr):
            stable = lr
            if lr >= HIGHEST_LR:
                return stable, None
            lr = min(2 * lr, HIGHEST_LR)
        else:
            unstable = lr
            if lr <= LOWEST_LR:
                return None, unstable
            lr = max(lr / 2, LOWEST_LR)
    while unstable / stable > RESOLUTION:
        lr = math.sqrt(stable * unstable)
        if is_stable(lr):
            stable = lr
        else:
            unstable = lr
    return stable, unstable
