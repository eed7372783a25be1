"""The learning rate of every update: batch-size rule, warmup, decay. Plain arithmetic, no torch."""

import math

from trainable.config import TrialConfig


def peak_lr(config: TrialConfig) -> float:
    """What the optimizer gets at the end of warmup.

    `base_lr` x k for the linear rule (Goyal et al. 2017, arXiv:1706.02677), x sqrt(k) for the
    square-root rule (Krizhevsky 2014, arXiv:1404.5997), with k = batch / reference batch.
    """
    k = config.batch_size / config.reference_batch_size
    return config.base_lr * {"constant": 1.0, "sqrt": math.sqrt(k), "linear": k}[config.lr_scaling]


def lr_at(config: TrialConfig, update: int, *, updates_per_epoch: int) -> float:
    """The learning rate of an update, counted from 0.

    Warmup over the first m updates is (update + 1) / m of the peak; the cosine
    1/2 (1 + cos(pi t / T)) starts after it and T leaves warmup out (He et al. 2019,
    arXiv:1812.01187, section 3.1 and 5.1).
    """
    peak = peak_lr(config)
    warmup_updates = round(config.warmup_epochs * updates_per_epoch)
    if update < warmup_updates:
        return peak * (update + 1) / warmup_updates
    if config.decay == "constant":
        return peak
    t = update - warmup_updates
    total = config.epochs * updates_per_epoch - warmup_updates
    return peak * 0.5 * (1.0 + math.cos(math.pi * t / total))
