"""Learning rate and batch size of every update: batch-size rule, warmup, decay. No torch."""

import math
from dataclasses import dataclass

from trainable.config import TrialConfig, warmup_epochs_of


def peak_lr(config: TrialConfig) -> float:
    """The learning rate that the optimizer gets at the end of warmup.

    `base_lr` x k for the linear rule (Goyal et al. 2017, arXiv:1706.02677), x sqrt(k) for the
    square-root rule (Krizhevsky 2014, arXiv:1404.5997) and Malladi's (2022, arXiv:2205.10287),
    with k = batch / reference batch.
    """
    k = config.batch_size / config.reference_batch_size
    factors = {"constant": 1.0, "sqrt": math.sqrt(k), "linear": k, "malladi": math.sqrt(k)}
    return config.base_lr * factors[config.lr_scaling]


def weight_decay_of(config: TrialConfig) -> float:
    """The optimizer's weight decay at this batch size, as `weight_decay_scaling` says.

    Decoupled decay at the peak lr takes the share lr x weight_decay of a weight in an update, and
    so averages updates over tau = B / (lr x weight_decay x N) epochs of N images (Wang & Aitchison
    2024, arXiv:2405.13698). The L2 penalty of SGD does the same at lr / (1 - momentum).
    `inverse_lr` keeps the share per update, `timescale` keeps tau: with the peak lr x r and the
    batch size x k of the reference, weight_decay x 1/r and x k/r. A batch that grows in a trial
    stands for an lr that falls, and lengthens tau as that would.
    """
    k = config.batch_size / config.reference_batch_size
    r = peak_lr(config) / config.base_lr
    factors = {"constant": 1.0, "inverse_lr": 1 / r, "timescale": k / r}
    return config.weight_decay * factors[config.weight_decay_scaling]


def ema_decay_at(config: TrialConfig, batch_size: int) -> float:
    """The decay of the average of weights in an update with so many images.

    Busbridge et al. 2023 (arXiv:2307.13813): decay^k at k times the batch size has the same
    half-life in images.
    """
    if config.ema_scaling == "constant":
        return config.ema_decay
    return math.pow(config.ema_decay, batch_size / config.reference_batch_size)


def adam_constants(config: TrialConfig) -> tuple[tuple[float, float], float]:
    """Adam's betas and eps at this batch size.

    Malladi's rule scales 1 - beta by k and eps by 1/sqrt(k). beta^k has the same half-life in
    images (Marek et al. 2025, arXiv:2507.07101, for beta2), and 1 - k (1 - beta) is its first
    order.
    """
    k = config.batch_size / config.reference_batch_size
    if config.beta_scaling != "constant":
        beta1 = math.pow(config.beta1, k) if config.beta_scaling == "half_life" else config.beta1
        return (beta1, math.pow(config.beta2, k)), config.eps
    if config.lr_scaling != "malladi":
        return (config.beta1, config.beta2), config.eps
    betas = (1 - k * (1 - config.beta1), 1 - k * (1 - config.beta2))
    return betas, config.eps / math.sqrt(k)


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """A trial's budget and warmup in one unit: training images seen, or seconds.

    An epoch consists of `train_images // batch_size` full batches.
    """

    unit: str
    total: float
    warmup: float
    train_images: int


def timetable(config: TrialConfig, *, train_images: int) -> Timetable:
    """The timetable of a config for `train_images` training images."""
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
    """The learning rate of the update that starts at `position`, in the timetable's unit.

    During a warmup of m updates the rate is (update + 1) / m of the peak. With a budget in seconds
    it grows with the elapsed share of the warmup. The decay starts after the warmup, and its length
    T does not include the warmup (He et al. 2019, arXiv:1812.01187, sections 3.1 and 5.1).
    """
    peak = peak_lr(config)
    if position < table.warmup:
        one_update = config.batch_size if table.unit == "images" else 0.001 * table.warmup
        return peak * min((position + one_update) / table.warmup, 1.0)
    t = min((position - table.warmup) / max(table.total - table.warmup, 1e-12), 1.0)
    if config.decay == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * t))
    if config.decay == "polynomial":
        return peak * math.pow(1.0 - t, config.power)
    if config.decay == "step":
        # At equal shares of the whole budget: 30, 60, 90 of 120 epochs in He et al.
        num_drops = _steps_passed(config, position / table.total)
        return peak * math.pow(config.step_factor, num_drops)
    return peak


def _steps_passed(config: TrialConfig, share: float) -> int:
    return min(int(share * (config.num_steps + 1) + 1e-9), config.num_steps)


def images_kept_together(config: TrialConfig) -> int:
    """How many images of a batch stay in one of several ranks.

    They are those of a microbatch, or of a ghost, where they are normalized together.
    """
    if config.norm == "batch":
        return config.microbatch_size or 1
    return config.ghost_batch_size if config.norm == "ghost" else 1


def growth(config: TrialConfig, epoch: int, *, train_images: int) -> tuple[int, float]:
    """Batch size and factor of the lr in an epoch (from 1) with `decay=batch_growth`.

    When the step schedule would multiply the lr by q < 1, the batch size is divided by q instead.
    The batch size never exceeds a tenth of the training images; after that the lr falls (Smith et
    al. 2018, arXiv:1711.00489).
    """
    if config.decay != "batch_growth" or config.epochs is None:
        return config.batch_size, 1.0
    passed = _steps_passed(config, (epoch - 1) / config.epochs)
    factor = math.pow(config.step_factor, -passed)
    largest = max(config.batch_size, train_images // 10)
    size = min(round(config.batch_size * factor), largest)
    return size, (size / config.batch_size) / factor
