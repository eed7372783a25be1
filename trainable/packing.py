"""Which trials may train together in a pack: those whose images and networks are the same."""

from collections.abc import Hashable
from dataclasses import fields

from trainable.config import CLASSIFICATION, TrialConfig

# What leaves images, augmentation, frozen blocks and the number of updates as they are.
MAY_DIFFER = frozenset(
    {
        "base_lr",
        "lr_scaling",
        "reference_batch_size",
        "optimizer",
        "momentum",
        "nesterov",
        "beta1",
        "beta2",
        "eps",
        "beta_scaling",
        "weight_decay",
        "weight_decay_scaling",
        "no_bias_decay",
        "head_lr_factor",
        "layer_decay",
        "clip_grad_norm",
        "warmup_epochs",
        "warmup_share",
        "warmup_scaling",
        "early_stop_patience",
        "label_smoothing",
        "smoothing_convention",
        "ema_decay",
        "ema_scaling",
        "select_by",
    }
)
_ALIKE = tuple(f.name for f in fields(TrialConfig) if f.name not in MAY_DIFFER)


def shares_work(config: TrialConfig) -> bool:
    """Whether trials of a pack share more than their images: the output of frozen blocks."""
    mixes = config.mixup_alpha or config.cutmix_alpha
    is_apart = config.task == CLASSIFICATION and not mixes and not config.distill_from
    return is_apart and config.train_blocks is not None


def pack_key(config: TrialConfig) -> Hashable | None:
    """What the trials of a pack have in common; None for a trial that trains alone.

    Alone are those with a budget in seconds, whose clock others would use up, and those that are
    parts of another: each begins from a state of its own.
    """
    if config.seconds is not None or config.begins_from or config.until_share < 1:
        return None
    return tuple(getattr(config, name) for name in _ALIKE)
