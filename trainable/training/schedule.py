"""Learning rate and batch of every update: batch-size rule, warmup, decay. No torch."""

import math
from dataclasses import dataclass

from trainable.config import TrialConfig, warmup_epochs_of


def peak_lr(config: TrialConfig) -> float:
    """What the optimizer gets at the end of warmup.

    `base_lr` x k for the linear rule (Goyal et al. 2017, arXiv:1706.02677), x sqrt(k) for the
    square-root rule (Krizhevsky 2014, arXiv:1404.5997) and Malladi's (2022, arXiv:2205.10287),
    with k = batch / reference batch.
    """
    k = config.batch_size / config.reference_batch_size
    factors = {"constant": 1.0, "sqrt": math.sqrt(k), "linear": k, "malladi": math.sqrt(k)}
    return config.base_lr * factors[config.lr_scaling]


def adam_constants(config: TrialConfig) -> tuple[tuple[float, float], float]:
    """Betas and eps of Adam; under Malladi's rule 1 - beta grows with k, eps falls with sqrt(k)."""
    if config.lr_scaling != "malladi":
        return (config.beta1, config.beta2), config.eps
    k = config.batch_size / config.reference_batch_size
    betas = (1 - k * (1 - config.beta1), 1 - k * (1 - config.beta2))
    return betas, config.eps / math.sqrt(k)


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """A trial's budget and warmup in one unit: training images seen, or seconds.

    An epoch is the `train_images // batch` full batches that fit in it.
    """

    unit: str
    total: float
    warmup: float
    train_images: int


def timetable(config: TrialConfig, *, train_images: int) -> Timetable:
    """The budget of a config for so many training images."""
    batch = config.batch_size
    epoch_images = train_images // batch * batch
    if config.seconds is not None:
        total, unit = config.seconds, "seconds"
    elif config.epochs is not None:
        total, unit = float(config.epochs * epoch_images), "images"
        if config.decay == "batch_growth":
            epochs = range(1, config.epochs + 1)
            sizes = [growth(config, e, train_images=train_images)[0] for e in epochs]
            total = float(sum(train_images // size * size for size in sizes))
    elif config.updates is not None:
        total, unit = float(config.updates * batch), "images"
    else:
        total, unit = float(math.ceil((config.examples or 0) / batch) * batch), "images"
    if config.warmup_share:
        warmup = config.warmup_share * total
        warmup = warmup if unit == "seconds" else round(warmup / batch) * float(batch)
    else:
        warmup = float(round(warmup_epochs_of(config) * (epoch_images // batch)) * batch)
    return Timetable(unit=unit, total=total, warmup=warmup, train_images=train_images)


def lr_at(config: TrialConfig, table: Timetable, position: float) -> float:
    """The learning rate of the update that begins at `position`, in the timetable's unit.

    Warmup over the first m updates is (update + 1) / m of the peak, or share of warmup's seconds;
    the decay starts after it, and its length T leaves warmup out (He et al. 2019,
    arXiv:1812.01187, sections 3.1 and 5.1).
    """
    peak = peak_lr(config)
    if position < table.warmup:
        ahead = config.batch_size if table.unit == "images" else 0.001 * table.warmup
        return peak * min((position + ahead) / table.warmup, 1.0)
    t = min((position - table.warmup) / max(table.total - table.warmup, 1e-12), 1.0)
    if config.decay == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * t))
    if config.decay == "polynomial":
        return peak * math.pow(1.0 - t, config.power)
    if config.decay == "step":
        # The drops are at shares of the whole budget: 30, 60, 90 of 120 epochs in He et al.
        passed = _steps_passed(config, position / table.total)
        return peak * math.pow(config.step_factor, passed)
    return peak


def _steps_passed(config: TrialConfig, share: float) -> int:
    return min(int(share * (config.num_steps + 1) + 1e-9), config.num_steps)


def growth(config: TrialConfig, epoch: int, *, train_images: int) -> tuple[int, float]:
    """Batch and factor of the lr in an epoch (from 1) under `decay=batch_growth`.

    Where the step schedule would multiply the lr by q < 1, the batch is divided by q; once it
    would pass a tenth of the training images it stays, and the lr falls instead (Smith et al.
    2018, arXiv:1711.00489).
    """
    if config.decay != "batch_growth" or config.epochs is None:
        return config.batch_size, 1.0
    passed = _steps_passed(config, (epoch - 1) / config.epochs)
    wanted = math.pow(config.step_factor, -passed)
    largest = max(config.batch_size, train_images // 10)
    size = min(round(config.batch_size * wanted), largest)
    return size, (size / config.batch_size) / wanted
