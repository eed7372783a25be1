"""A few updates and one evaluation of a trial: how long they take, how much memory they hold."""

import io
import math
import time
from dataclasses import dataclass, replace

import torch

from trainable.config import TrialConfig
from trainable.data.batches import DeviceSplit
from trainable.data.cache import Dataset
from trainable.feed import IMAGES_AT_ONCE
from trainable.host.device import device_name, memory_held_gib, pick_device, set_threads
from trainable.networks.models import set_training
from trainable.training import noise
from trainable.training.schedule import growth
from trainable.trial import Trial

WARMUP_UPDATES = {"cpu": 1, "cuda": 3}
LEAST_S = 0.5
MEMORY_UPDATES = 3  # the optimizer's state is made in the first


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a config costs on this device.

    `eval_s` is one evaluation while a trial trains: the validation split and the noise scale.
    `start_s` is what a trial takes before its first update in a process that has torch already,
    `save_s` what packing a checkpoint takes, without writing it.
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
    """What a trial needs of a GPU at its most, with CUDA's own, and what the GPU has."""

    need_gib: float
    total_gib: float


def measure_memory(config: TrialConfig, data: Dataset, *, num_threads: int) -> MemoryUse:
    """Run a few updates, a part of an evaluation and the noise scale, with all data on the GPU.

    Raises:
        DataError: the data is too small for the batch.
        ValueError: there is no GPU; the network, its weights or its teacher do not fit.
    """
    device = pick_device()
    if device.type != "cuda":
        raise ValueError("Ray has a GPU for the trial and torch sees none: it is a build for CPUs")
    set_threads(num_threads)
    num_images = config.train_images or len(data.train.labels_N)
    largest, _ = growth(config, config.epochs or 1, train_images=num_images)
    if largest > config.batch_size:
        config = replace(config, batch_size=largest, decay="constant")
    trial = Trial(replace(config, eval_updates=MEMORY_UPDATES), data, device, None)
    test = data.test and trial.feed.on_device(data.test, config.eval_images)
    trial.feed.keeps_features = False  # a trial keeps them where there is room to spare
    trial.feed.val = _part(
        trial.feed.val, IMAGES_AT_ONCE[device.type]
    )  # a view: the whole stays there
    trial.train_on()
    need_gib, total_gib = memory_held_gib(device)
    del test  # held until here, as it is at a trial's end
    return MemoryUse(need_gib=need_gib, total_gib=total_gib)


def probe(config: TrialConfig, data: Dataset, *, num_threads: int) -> Measured:
    """Set the trial up, run a few updates and an evaluation, and time each; nothing is kept.

    Evaluation is timed on a part of a large split, and its time taken to grow with the images.

    Raises:
        DataError: the data is too small for the batch.
        ValueError: the network, its weights, its teacher or the device do not fit.
    """
    device = pick_device()
    set_threads(num_threads)
    started = _now(device)
    trial = Trial(config, data, device, None)
    start_s = _now(device) - started
    images_per_s = _images_per_s(trial)
    val_s = _evaluation_s(trial)
    noise_s = noise.probe_images(len(trial.train)) / images_per_s
    num_test = 0 if data.test is None else len(data.test.labels_N)
    num_test = min(num_test, config.eval_images or num_test)
    packed, weights = io.BytesIO(), io.BytesIO()
    started = _now(device)
    torch.save([trial.weights(), trial.weights(), trial.step.state_dict()], packed)
    save_s = _now(device) - started
    torch.save(trial.weights(), weights)
    return Measured(
        images_per_s=images_per_s,
        train_images=len(trial.train),
        eval_s=val_s + noise_s,
        test_s=val_s * num_test / len(trial.feed.val),
        start_s=start_s,
        save_s=save_s,
        checkpoint_bytes=packed.tell(),
        weights_bytes=weights.tell(),
        device=device_name(device),
    )


def _images_per_s(trial: Trial) -> float:
    """Speed of training after the first updates, with a rate that changes next to nothing."""
    warmup = WARMUP_UPDATES.get(trial.device.type, 1)
    set_training(trial.model)
    timed = images = 0
    started = seconds = 0.0
    for update, (inputs_B, labels_B) in enumerate(trial.feed.batches(trial.place), start=1):
        trial.step.update(inputs_B, labels_B, trial.config.base_lr * 1e-6)
        if update == warmup:
            started = _now(trial.device)
        timed = update - warmup
        images += len(labels_B) if timed > 0 else 0
        # The clock waits for a GPU, which training does not: it is read less and less often.
        if timed > 0 and timed & (timed - 1) == 0:
            seconds = _now(trial.device) - started
            if seconds >= LEAST_S:
                break
    return images / seconds


def _evaluation_s(trial: Trial) -> float:
    """Seconds of the validation split, from as large a part of it as takes long enough."""
    num_images, size = len(trial.feed.val), trial.feed.at_once
    trial.evaluate(_part(trial.feed.val, size))  # the first one loads what it needs
    while True:
        part = _part(trial.feed.val, size)
        started = _now(trial.device)
        trial.evaluate(part)
        seconds = _now(trial.device) - started
        if seconds >= LEAST_S or len(part) == num_images:
            return seconds * num_images / len(part)
        size *= 4


def _part(split: DeviceSplit, num_images: int) -> DeviceSplit:
    """About so many images, evenly spread over the split; a view, no copy."""
    step = math.ceil(len(split) / num_images)
    return DeviceSplit(images_NHWC=split.images_NHWC[::step], labels_N=split.labels_N[::step])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
