"""How high a learning rate a config stands: a range test, and the largest stable rate.

Rates are what the optimizer gets; `LrRange.peak_per_base` turns them into base rates. Nothing is
warmed up and nothing decays here: a trial with warmup may stand a higher peak.
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
from trainable.networks.models import set_training
from trainable.training.schedule import peak_lr
from trainable.trial import Trial

Floats = NDArray[np.float64]

LOWEST_LR, HIGHEST_LR = 1e-6, 1e2
RANGE_UPDATES, STABLE_UPDATES = 80, 30
COMPARED_UPDATES = 10  # the last of a stable training, over which its loss is averaged
SMOOTHING = 0.8
FALLEN, RISEN = 0.01, 3.0  # shares of the starting loss: less is no fall; more ends a range test
CLEARLY_ABOVE = 1.1
BLOWN_UP = 10.0  # times the starting loss: what ends well after that has lost units on the way
RESOLUTION = 1.2  # unstable / stable rate at which the search is content


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """Rates of one config, as the optimizer gets them; the base rate is `lr / peak_per_base`.

    `steepest_lr` is where the loss falls fastest in the range test, None where it does not fall.
    `stable_lr` is the largest rate found stable and `unstable_lr` the smallest found not to be;
    None where the search met `HIGHEST_LR` or `LOWEST_LR` first.
    """

    peak_per_base: float
    steepest_lr: float | None
    stable_lr: float | None
    unstable_lr: float | None


def find_lr_range(config: TrialConfig, data: Dataset, *, num_threads: int) -> LrRange:
    """Test a config's learning rates, each time from the same weights and on the same batches.

    The range test raises the rate geometrically from `LOWEST_LR` to `HIGHEST_LR` in
    `RANGE_UPDATES` updates, and ends where the loss is no longer finite or far above its start.

    A rate is stable at which, in a training of `STABLE_UPDATES` at that constant rate, no loss is
    `BLOWN_UP` times its start or not finite, and the last `COMPARED_UPDATES` losses are on average
    at most `CLEARLY_ABOVE` times what the initial weights lose on the same batches. What diverges
    more slowly counts as stable; stable does not mean that it learns.

    Raises:
        DataError, ValueError: as a trial does.
    """
    torch.set_num_threads(num_threads)
    constant = replace(config, decay="constant", warmup_epochs=0.0, warmup_share=0.0)
    trial = Trial(constant, data, pick_device(), None)
    initial = copy.deepcopy((trial.model.state_dict(), trial.step.state_dict()))
    # A rate of 0 changes no weights: what they lose on each batch, to compare with.
    initial_N = np.array(list(losses(trial, initial, np.zeros(RANGE_UPDATES))))
    lrs_N = np.geomspace(LOWEST_LR, HIGHEST_LR, RANGE_UPDATES)
    changes: list[float] = []
    smooth = 0.0
    for loss, before in zip(losses(trial, initial, lrs_N), initial_N, strict=True):
        if not math.isfinite(loss - before):
            break
        changes.append(loss - before)
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * changes[-1]
        if smooth > RISEN * initial_N.mean():
            break
    tested_N = lrs_N[: max(len(changes), 1)]

    def is_stable(lr: float) -> bool:
        trained = []
        for loss in losses(trial, initial, np.full(STABLE_UPDATES, lr)):
            if not loss <= BLOWN_UP * initial_N.mean():  # nor where it is NaN
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


def losses(
    trial: Trial, initial: tuple[dict[str, Any], dict[str, Any]], lrs: Iterable[float]
) -> Iterator[float]:
    """Loss of each update's batch before the update, from `initial`: state of model and of step.

    Everything starts anew: weights, optimizer, batches, and the draws of dropout and mixing.
    """
    microbatch_size = trial.step.microbatch_size
    trial.model.load_state_dict(initial[0])
    trial.step.load_state_dict(copy.deepcopy(initial[1]))  # Adagrad's sums are taken as they are
    trial.step.microbatch_size = microbatch_size  # what fits in memory was learnt, and stays
    trial.place = Place()
    torch.manual_seed(seed_for(trial.config.seed, "dropout", 1))
    set_training(trial.model)
    for lr, (inputs_B, labels_B) in zip(lrs, trial.feed.batches(trial.place), strict=False):
        yield trial.step.update(inputs_B, labels_B, float(lr))[0].item() / len(labels_B)


def smoothed(values_N: Floats) -> Floats:
    """Exponential moving average, corrected for its start from 0 (Kingma & Ba 2015, section 3)."""
    averages, average = [], 0.0
    for count, value in enumerate(values_N, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * float(value)
        averages.append(average / (1 - SMOOTHING**count))
    return np.array(averages)


def steepest(lrs_N: Floats, changes_N: Floats, *, fall: float) -> float | None:
    """The lr at which the loss falls fastest per factor of lr; None where it hardly falls.

    `changes_N` is each update's loss less what the initial weights lose on its batch (Smith 2017,
    arXiv:1506.01186, takes the loss itself, which a small batch makes noisy); less
    than `fall` of it is no fall.
    """
    # The average lags behind; that of the rates lags as much, so the two belong together.
    log_lrs_N, change_N = smoothed(np.log(lrs_N)), smoothed(changes_N)
    bottom = int(change_N.argmin()) if len(change_N) else 0
    if bottom == 0 or change_N[bottom] > -fall:
        return None
    slope_N = np.gradient(change_N[: bottom + 1], log_lrs_N[: bottom + 1])
    return math.exp(log_lrs_N[slope_N.argmin()])


def largest_stable(
    is_stable: Callable[[float], bool], *, start: float
) -> tuple[float | None, float | None]:
    """The largest rate found stable and the smallest found unstable, `RESOLUTION` apart at most.

    Doubles or halves from `start` until the edge is passed, then bisects in log lr. One of the two
    is None where all rates up or down to the bound were alike. Takes for granted that what is
    above an unstable rate is unstable.
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
