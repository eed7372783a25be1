"""A few timed updates of a trial, for an estimate of what a study will cost."""

import io
import time
from dataclasses import dataclass, replace
from itertools import islice

import torch

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.device import pick_device
from trainable.trial import Trial

WARMUP_UPDATES, TIMED_UPDATES = 1, 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a config costs: training speed, and the bytes of a checkpoint."""

    images_per_s: float
    checkpoint_bytes: int


def probe(config: TrialConfig, data: Dataset) -> Measured:
    """Run a few updates from scratch on the first training images and time them."""
    device = pick_device()
    images = config.batch_size * (WARMUP_UPDATES + TIMED_UPDATES)
    trial = Trial(replace(config, train_images=images), data, device, None)
    started = 0.0
    for done, (images_BCHW, labels_B) in enumerate(
        islice(trial.batches(), WARMUP_UPDATES + TIMED_UPDATES)
    ):
        if done == WARMUP_UPDATES:
            started = _now(device)
        trial.step.update(images_BCHW, labels_B, config.base_lr * 1e-6)
    seconds = max(_now(device) - started, 1e-9)
    packed = io.BytesIO()
    torch.save([trial.weights(), trial.weights(), trial.step.state_dict()], packed)
    return Measured(
        images_per_s=config.batch_size * max(done - WARMUP_UPDATES + 1, 1) / seconds,
        checkpoint_bytes=packed.tell(),
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
