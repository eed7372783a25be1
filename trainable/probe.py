"""A few timed updates of a trial, for an estimate of what a study will cost."""

import io
import time
from dataclasses import dataclass, replace

import torch

from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.device import pick_device
from trainable.trial import Trial

WARMUP_UPDATES, LEAST_S = 1, 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a config costs: training speed, and the bytes of a checkpoint."""

    images_per_s: float
    checkpoint_bytes: int


def probe(config: TrialConfig, data: Dataset, *, num_threads: int) -> Measured:
    """Run a few updates from scratch on training images, as often as needed, and time them."""
    device = pick_device()
    torch.set_num_threads(num_threads)
    trial = Trial(replace(config, train_images=2 * config.batch_size), data, device, None)
    for done, (images_BCHW, labels_B) in enumerate(trial.batches()):
        if done == WARMUP_UPDATES:
            started = _now(device)
        trial.step.update(images_BCHW, labels_B, config.base_lr * 1e-6)
        timed = done + 1 - WARMUP_UPDATES
        if timed >= 1 and (seconds := _now(device) - started) >= LEAST_S:
            break
    packed = io.BytesIO()
    torch.save([trial.weights(), trial.weights(), trial.step.state_dict()], packed)
    return Measured(
        images_per_s=config.batch_size * timed / seconds, checkpoint_bytes=packed.tell()
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
