"""The time and memory that a few updates and one evaluation of a trial take."""

import io
import math
from dataclasses import dataclass, replace

import torch

from trainable.config import TrialConfig
from trainable.data.batches import DeviceSplit
from trainable.data.cache import Dataset
from trainable.feed import INFERENCE_BATCH
from trainable.host.device import (
    device_name,
    device_time_s,
    memory_held_gib,
    pick_device,
    set_threads,
)
from trainable.training import noise
from trainable.training.schedule import growth
from trainable.trial import Trial

WARMUP_UPDATES = {"cpu": 1, "cuda": 3}
LEAST_S = 0.5
MEMORY_UPDATES = 3  # the first one creates the optimizer's state


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a config costs on this device.

    `eval_s` is the time of one evaluation during training: the validation split, the noise scale
    and BatchNorm's precise statistics. `start_s` is the time before the first update, in a process
    that has imported torch; `save_s` is the time to serialize a checkpoint, without writing it.
    """

    images_per_s: float
    train_images: int
    eval_s: float
    test_s: float
    start_s: float
    save_s: float
    checkpoint_bytes: int
    weights_bytes: int
    device: str


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """A trial's peak GPU memory, including CUDA's own, and the GPU's total memory."""

    need_gib: float
    total_gib: float


def measure_memory(config: TrialConfig, data: Dataset, *, num_threads: int) -> MemoryUse:
    """Run a few updates, a part of an evaluation and the noise scale, with all data on the GPU.

    Raises:
        DataError: the data is too small for the batch.
        ValueError: there is no GPU, or the config does not fit its network, weights or teacher.
    """
    device = pick_device()
    if device.type != "cuda":
        raise ValueError(
            "Ray assigned a GPU, but PyTorch finds none: install a PyTorch build with CUDA"
        )
    set_threads(num_threads)
    num_images = config.train_images or len(data.train.labels_N)
    largest, _ = growth(config, config.epochs or 1, train_images=num_images)
    if largest > config.batch_size:
        config = replace(config, batch_size=largest, decay="constant")
    trial = Trial(replace(config, eval_updates=MEMORY_UPDATES), data, device, None)
    test = data.test and trial.feed.on_device("test", config.eval_images)
    trial.feed.keeps_features = False  # optional: a trial keeps them only if they fit
    # A view: the whole split stays in memory.
    trial.feed.val = _part(trial.feed.val, INFERENCE_BATCH[device.type])
    trial.train_on()
    need_gib, total_gib = memory_held_gib(device)
    del test  # kept until here, as at the end of a trial
    return MemoryUse(need_gib=need_gib, total_gib=total_gib)


def probe(config: TrialConfig, data: Dataset, *, num_threads: int) -> Measured:
    """Time the set-up of a trial, a few updates and an evaluation; nothing is saved.

    Only a part of a large split is evaluated: the time is assumed proportional to the images.

    Raises:
        DataError: the data is too small for the batch.
        ValueError: the config does not fit its network, weights, teacher or device.
    """
    device = pick_device()
    set_threads(num_threads)
    started = device_time_s(device)
    trial = Trial(config, data, device, None)
    start_s = device_time_s(device) - started
    images_per_s = _images_per_s(trial)
    val_s = _evaluation_s(trial)
    trial.evaluation.refresh_statistics(trial.step.evaluated)  # the first one is slower
    started = device_time_s(device)
    trial.evaluation.refresh_statistics(trial.step.evaluated)
    statistics_s = device_time_s(device) - started
    noise_s = noise.probe_images(len(trial.train)) / images_per_s
    num_test = 0 if data.test is None else len(data.test.labels_N)
    num_test = min(num_test, config.eval_images or num_test)
    packed, weights = io.BytesIO(), io.BytesIO()
    started = device_time_s(device)
    torch.save([trial.weights(), trial.weights(), trial.step.state_dict()], packed)
    save_s = device_time_s(device) - started
    torch.save(trial.weights(), weights)
    return Measured(
        images_per_s=images_per_s,
        train_images=len(trial.train),
        eval_s=val_s + statistics_s + noise_s,
        test_s=val_s * num_test / len(trial.feed.val),
        start_s=start_s,
        save_s=save_s,
        checkpoint_bytes=packed.tell(),
        weights_bytes=weights.tell(),
        device=device_name(device),
    )


def _images_per_s(trial: Trial) -> float:
    """Speed of training after the first updates, with a tiny learning rate."""
    warmup = WARMUP_UPDATES.get(trial.device.type, 1)
    trial.step.set_training()
    timed = images = 0
    started = seconds = 0.0
    for update, (inputs_B, labels_B) in enumerate(trial.feed.batches(trial.place), start=1):
        trial.step.update(inputs_B, labels_B, trial.config.base_lr * 1e-6)
        if update == warmup:
            started = device_time_s(trial.device)
        timed = update - warmup
        images += len(labels_B) if timed > 0 else 0
        # The clock waits for the GPU, which slows training down. So read it after 1, 2, 4, 8 ...
        if timed > 0 and timed & (timed - 1) == 0:
            seconds = device_time_s(trial.device) - started
            if seconds >= LEAST_S:
                break
    return images / seconds


def _evaluation_s(trial: Trial) -> float:
    """Seconds for the validation split, extrapolated from a part that takes at least `LEAST_S`."""
    num_images, size = len(trial.feed.val), trial.feed.chunk_size
    trial.evaluation.evaluate(_part(trial.feed.val, size))  # the first one is slower
    while True:
        part = _part(trial.feed.val, size)
        started = device_time_s(trial.device)
        trial.evaluation.evaluate(part)
        seconds = device_time_s(trial.device) - started
        if seconds >= LEAST_S or len(part) == num_images:
            return seconds * num_images / len(part)
        size *= 4


def _part(split: DeviceSplit, num_images: int) -> DeviceSplit:
    """About `num_images` images at equal distances in the split; a view, not a copy."""
    return split.every(math.ceil(len(split) / num_images))
