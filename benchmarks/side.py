"""One side of benchmarks.trial, measured in a process of its own.

    python -m benchmarks.side '{"side": {...}, "work": {...}}'

For each line of standard input it measures once and answers with a line of JSON. Each side has its
own process so that neither its threads nor its memory are the other's.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import PCAM

from benchmarks import plain_training
from trainable.config import TrialConfig
from trainable.data.batches import Place, normalization, seed_for
from trainable.data.cache import Dataset, open_data
from trainable.feed import Feed
from trainable.host.device import keep_freed_memory, set_threads
from trainable.networks.models import build_model
from trainable.record import EpochResult
from trainable.trial import Trial

AUROC_EPOCHS = 2
INPUT_S = 0.5  # passes over the data are counted for at least so long

Measure = Callable[[int], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A way to train. `threads` None leaves torch's default, as a user's loop does.

    `precision` None is the side's own: bf16 with ours, fp32 in torch's memory format elsewhere.
    """

    name: str
    kind: str  # ours, plain or timm
    workers: int = 0
    threads: int | None = None
    processes: int = 1  # so many trials side by side
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured (input, epoch or auroc), on the patches in `root`, with which config."""

    name: str
    measure: str
    root: str
    config: dict[str, Any]


def measure_of(side: Side, work: Work) -> Measure:
    """The function that measures once; its argument is the number of the repetition."""
    config = TrialConfig(**work.config | ({"precision": side.precision} if side.precision else {}))
    data = open_data("pcam", Path(work.root), cache_dir=Path(work.root) / "cache")
    if side.threads is not None:
        set_threads(side.threads)
    made = {
        ("input", True): our_input,
        ("epoch", True): our_epochs,
        ("auroc", True): our_auroc,
        ("input", False): plain_input,
        ("epoch", False): plain_epochs,
        ("auroc", False): plain_auroc,
    }
    return made[work.measure, side.kind == "ours"](side, work, config, data)


def images_per_s(one_pass: Callable[[], Iterable[int]]) -> float:
    """Images a second over as many whole passes as INPUT_S asks for."""
    images, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < INPUT_S:
        images += sum(one_pass())
    return images / spent


# --- ours -----------------------------------------------------------------------------------------


def our_input(side: Side, work: Work, config: TrialConfig, data: Dataset) -> Measure:
    """Batches alone."""
    device = torch.device("cpu")
    keep_freed_memory(device)  # as each trial does
    feed = Feed(config, data, device)
    batches = feed.batches(Place())
    per_epoch = len(data.train.labels_N) // config.batch_size

    def one_pass() -> Iterable[int]:
        return plain_training.counted(islice(batches, per_epoch))

    return lambda number: {"input_images_per_s": images_per_s(one_pass)}


def one_epoch(trial: Trial) -> EpochResult:
    """The trial's next epoch.

    Raises:
        RuntimeError: it diverged.
    """
    result, reason = trial.train_on()
    if result is None:
        raise RuntimeError(reason)
    return result


def our_epochs(side: Side, work: Work, config: TrialConfig, data: Dataset) -> Measure:
    """Epochs of one trial, and its evaluation."""
    trial = Trial(config, data, torch.device("cpu"), None)

    def once(number: int) -> dict[str, float]:
        result = one_epoch(trial)
        started = time.perf_counter()
        trial.evaluation.evaluate(trial.feed.val)
        eval_s = time.perf_counter() - started
        images = len(data.train.labels_N) // config.batch_size * config.batch_size
        return {
            "train_images_per_s": result.images_per_s,
            "eval_images_per_s": len(data.val.labels_N) / eval_s,
            "epoch_images_per_s": images / result.epoch_wall_s,
        }

    return once


def our_auroc(side: Side, work: Work, config: TrialConfig, data: Dataset) -> Measure:
    """What a trial of some epochs reaches, each repetition with its own seed."""

    def once(seed: int) -> dict[str, float]:
        trial = Trial(replace(config, seed=seed), data, torch.device("cpu"), None)
        results = [one_epoch(trial) for _ in range(AUROC_EPOCHS)]
        return {"val_auroc": results[-1].val_auroc}

    return once


# --- the reference --------------------------------------------------------------------------------


def plain_loaders(
    side: Side, work: Work, config: TrialConfig, data: Dataset
) -> tuple[plain_training.Batches, plain_training.Batches]:
    """Batches for training and for evaluation."""
    mean, std = normalization(config, data.mean, data.std)
    root, size = Path(work.root), config.batch_size
    as_is = plain_training.transform_of("none", mean, std)
    val = plain_training.loader(root, "val", as_is, batch_size=size, workers=side.workers)
    if side.kind == "timm":
        train = plain_training.timm_loader(
            PCAM(root, "train"), mean=mean, std=std, batch_size=size, workers=side.workers
        )
        return train, val
    augmented = plain_training.transform_of(config.augment, mean, std)
    train = plain_training.loader(root, "train", augmented, batch_size=size, workers=side.workers)
    return train, val


def plain_input(side: Side, work: Work, config: TrialConfig, data: Dataset) -> Measure:
    """Batches alone."""
    train, _ = plain_loaders(side, work, config, data)
    return lambda number: {
        "input_images_per_s": images_per_s(lambda: plain_training.counted(train))
    }


def plain_model(config: TrialConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The same network as ours, from the same weights, with the same optimizer."""
    torch.manual_seed(seed_for(config.seed, "weights"))
    model = build_model(config, num_classes=2)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.SGD(trained, lr=config.base_lr, momentum=config.momentum)


def plain_epochs(side: Side, work: Work, config: TrialConfig, data: Dataset) -> Measure:
    """Epochs of the reference's loop, and its evaluation."""
    train, val = plain_loaders(side, work, config, data)
    model, optimizer = plain_model(config)
    in_bf16 = side.precision == "bf16"
    if in_bf16:
        model = model.to(memory_format=torch.channels_last)

    def once(number: int) -> dict[str, float]:
        started = time.perf_counter()
        plain_training.train_epoch(model, train, optimizer, in_bf16=in_bf16)
        train_s = time.perf_counter() - started
        plain_training.evaluate(model, val, in_bf16=in_bf16)
        epoch_s = time.perf_counter() - started
        images = len(data.train.labels_N) // config.batch_size * config.batch_size
        return {
            "train_images_per_s": images / train_s,
            "eval_images_per_s": len(data.val.labels_N) / (epoch_s - train_s),
            "epoch_images_per_s": images / epoch_s,
        }

    return once


def plain_auroc(side: Side, work: Work, config: TrialConfig, data: Dataset) -> Measure:
    """What the reference's loop reaches, each repetition with its own seed."""
    train, val = plain_loaders(side, work, config, data)

    def once(seed: int) -> dict[str, float]:
        model, optimizer = plain_model(replace(config, seed=seed))
        for _ in range(AUROC_EPOCHS):
            plain_training.train_epoch(model, train, optimizer)
        return {"val_auroc": plain_training.evaluate(model, val)}

    return once


def main() -> None:
    """Measure once for each line that is asked."""
    request = json.loads(sys.argv[1])
    measure = measure_of(Side(**request["side"]), Work(**request["work"]))
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(int(line))), flush=True)


if __name__ == "__main__":
    main()
