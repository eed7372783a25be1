"""How many trials an hour a pack trains, beside the same trials one by one on the same cores.

    uv run python -m benchmarks.packs [--repeats 3] [--only vgg16_k4 ...]

Both sides train the same trials, which differ in their learning rate alone, from first weights to
the last evaluation, without Ray: random bytes of PatchCamelyon's shape at their defaults, so in
bf16. On a CPU there is a process a core, each with one thread and K trials; both sides have them at
the same time, so that caches and memory are shared alike. The sides take turns, after a short first
turn that is not counted, and each figure is the median of the turns' ratios. A trial has few images
here, so that its start, which packs do not share, weighs more than in a study. Equal numbers of
both sides are checked. On a GPU there is one process, each trial has 32 times as many images, and
numbers are not checked. Last line: one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from rich.console import Console
from rich.table import Table

from benchmarks.flops import random_bytes, vgg16_config
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.host.device import device_name, pick_device, set_threads
from trainable.pack import Member, Terms, train_pack
from trainable.record import TrialResult

LOWEST_LR, HIGHEST_LR = 1e-5, 1e-3
GPU_TIMES = 32  # as many training images on a GPU, where a trial would else be its start alone


@dataclass(frozen=True)
class Work:
    """Trials of one kind: `count` of them, each with so many images."""

    what: str
    count: int
    train_images: int
    eval_images: int
    epochs: int
    config: dict[str, Any]


SMALL = {"model": "plain", "pretrained": "none", "augment": "hflip+vflip+shift"}
WORKS = {
    "vgg16_k4": Work("VGG16, two trained blocks, batch 16", 4, 128, 64, 1, {"batch_size": 16}),
    "resnet18_k4": Work(
        "ResNet-18, all trained, batch 32",
        4,
        512,
        128,
        1,
        {"model": "resnet18", "pretrained": "none", "batch_size": 32},
    ),
    "small_k8": Work("small network, batch 64", 8, 2048, 512, 3, SMALL | {"batch_size": 64}),
}


def configs_of(work: Work, weights: Path) -> list[TrialConfig]:
    """The trials of a work, from the lowest to the highest learning rate."""
    base = vgg16_config(weights, batch_size=16, augment="hflip+vflip+shift")
    if work.config.get("pretrained") == "none":
        base = replace(base, train_blocks=None, pretrained="none", model=work.config["model"])
    times = GPU_TIMES if pick_device().type == "cuda" else 1
    base = replace(
        base,
        **work.config,
        epochs=work.epochs,
        train_images=times * work.train_images,
        eval_images=work.eval_images,
        precise_bn_images=0,
    )
    lrs = [
        LOWEST_LR * (HIGHEST_LR / LOWEST_LR) ** (i / (work.count - 1)) for i in range(work.count)
    ]
    return [replace(base, base_lr=lr) for lr in lrs]


def train(configs: list[TrialConfig], size: int, threads: int) -> tuple[float, list[float]]:
    """Seconds for these trials in packs of `size`, and their validation losses."""
    set_threads(threads)
    data = _data(configs[0])
    terms = Terms(data=data, device=pick_device())
    losses = [0.0] * len(configs)
    started = time.perf_counter()
    for first in range(0, len(configs), size):
        members = [Member(config=config) for config in configs[first : first + size]]
        for index, outcome in train_pack(members, terms):
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, TrialResult):
                losses[first + index] = outcome.val_loss
    return time.perf_counter() - started, losses


def _data(config: TrialConfig) -> Dataset:
    return random_bytes(max(config.train_images or 0, config.eval_images or 0))


def seconds(pool: ProcessPoolExecutor, configs: list[TrialConfig], size: int, cores: int) -> Any:
    """The mean seconds of processes that train these trials side by side, and the losses."""
    futures = [pool.submit(train, configs, size, 1) for _ in range(cores)]
    answers = [future.result() for future in futures]
    return statistics.mean(s for s, _ in answers), answers[0][1]


def ratio(
    pool: ProcessPoolExecutor, work: Work, weights: Path, *, cores: int, repeats: int
) -> tuple[float, float, float]:
    """Median ratio of trials an hour, and the medians of seconds one by one and packed.

    Raises:
        ValueError: the trials of a pack came to other numbers.
    """
    configs = configs_of(work, weights)
    short = [replace(c, train_images=2 * c.batch_size, epochs=1) for c in configs[:2]]
    seconds(pool, short, 1, cores)
    alone_s, packed_s = [], []
    expected: list[float] = []
    for turn in range(repeats):
        for size in (1, work.count) if turn % 2 == 0 else (work.count, 1):
            spent_s, losses = seconds(pool, configs, size, cores)
            print(f"{work.what}: packs of {size}, {spent_s:.1f} s", file=sys.stderr)
            (alone_s if size == 1 else packed_s).append(spent_s)
            expected = expected or losses
            if losses != expected and pick_device().type == "cpu":
                raise ValueError(f"a pack came to {losses}, its trials alone to {expected}")
    ratios = [one / pack for one, pack in zip(alone_s, packed_s, strict=True)]
    return statistics.median(ratios), statistics.median(alone_s), statistics.median(packed_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--only", nargs="+", choices=list(WORKS), default=list(WORKS))
    arguments = parser.parse_args()
    console = Console()
    cores = 1 if pick_device().type == "cuda" else len(os.sched_getaffinity(0))
    table = Table(title=f"{cores} process(es), {device_name(pick_device())}", box=None)
    for heading in ("", "trials", "one by one, s", "pack, s", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    figures = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool,
    ):
        weights = Path(scratch) / "vgg16.pt"
        torch.manual_seed(0)
        torch.save(zoo.vgg16(weights=None).state_dict(), weights)
        for name in arguments.only:
            work = WORKS[name]
            value, one_s, pack_s = ratio(
                pool, work, weights, cores=cores, repeats=arguments.repeats
            )
            console.print(f"{name}: {value:.2f}", highlight=False)  # the whole takes a while
            table.add_row(
                work.what, str(work.count), f"{one_s:.1f}", f"{pack_s:.1f}", f"{value:.2f}"
            )
            figures[f"pack_{name}_ratio"] = round(value, 3)
    console.print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
