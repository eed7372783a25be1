"""How fast one trial trains, beside a loop as a user of torchvision or timm would write it.

    uv run python -m benchmarks.trial [--data ../shared/data/pcam_small] [--repeats 3]

All sides read the same patches, in batches of the same size, through the same augmentations, with
the same network, first weights, optimizer and learning rate; ours is in bf16 and channels_last, as
a trial is by default, the reference in fp32 and torch's default format. Epochs are measured at
equal precision as well: ours in fp32, and the reference in bf16 and channels_last. Each side has a
process of its own, and they are measured in turns, so that whatever else the machine does meets all
alike; a first time is not counted. The reference has torch's default threads, and 0, 1 and 2
workers of which the best counts; ours has one thread or one a core, of which the best counts too.

"With evaluation" is training images over the seconds of training and evaluation, in which ours also
measures the gradient noise; from the second evaluation on it has the features of frozen blocks
already. Memory is the most that was seen, every half second, of a process with its workers, where a
page that some of them share counts once. `--out` keeps the rows (Parquet) and the chart. Last line:
one JSON object. benchmarks.gpu measures on a GPU.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data_memory import data_memory_ratio
from benchmarks.flops import random_vgg16, vgg16_config
from benchmarks.plain_training import write_patches
from benchmarks.side import AUROC_EPOCHS, Side, Work
from benchmarks.turns import measured
from trainable.data.cache import Dataset, open_data
from trainable.host.device import device_name

if TYPE_CHECKING:
    import altair as alt  # needed for the chart alone

FLIPS, AFFINE = "hflip+vflip+shift", "hflip+vflip+shift+rotate+zoom"
CORES = len(os.sched_getaffinity(0))
TRAIN_IMAGES, VAL_IMAGES = 1984, 512  # whole batches of 64: no side leaves images out
WORKS = {
    "input_flips": "batches alone, flips and shift",
    "input_affine": "batches alone, flips, shift, rotation and zoom",
    "epoch_small": "small network, batch 64, flips and shift",
    "epoch_vgg16_b16": "VGG16, two trained blocks, batch 16, flips and shift",
}
MEASURES = {
    "input_images_per_s": "input",
    "train_images_per_s": "training",
    "eval_images_per_s": "evaluation",
    "epoch_images_per_s": "with evaluation",
}
OURS = tuple(
    Side(name=f"ours, {n} thread{'s' * (n > 1)}", kind="ours", threads=n)
    for n in sorted({1, CORES})
)
PAIR = Side(name="ours, two trials side by side", kind="ours", threads=1, processes=2)
PLAIN = tuple(Side(name=f"torchvision, {n} workers", kind="plain", workers=n) for n in (0, 1, 2))
# At the other's precision and memory format.
OURS_FP32 = tuple(replace(side, name=f"{side.name}, fp32", precision="fp32") for side in OURS)
PLAIN_BF16 = tuple(
    replace(side, name=f"{side.name}, bf16, channels_last", precision="bf16") for side in PLAIN
)
TIMM = tuple(
    Side(name=f"timm, {n} workers (flips only)", kind="timm", workers=n) for n in (0, 1, 2)
)

SMALL: dict[str, Any] = {
    "model": "plain",
    "pretrained": "none",
    "batch_size": 64,
    "base_lr": 0.05,
    "lr_scaling": "constant",
    "decay": "constant",
    "epochs": 100,
}

Row = dict[str, Any]


def measure_of(work: str) -> str:
    """What the figure of a work is made of."""
    return "input_images_per_s" if work.startswith("input") else "train_images_per_s"


def median(frame: pd.DataFrame, work: str, measure: str, side: Side) -> float:
    """Over the repetitions."""
    mine = frame[(frame["work"] == work) & (frame["side"] == side.name)]
    return float(mine[measure].median())


def best(frame: pd.DataFrame, work: str, measure: str, sides: Sequence[Side]) -> Side:
    """The fastest of some sides."""
    return max(sides, key=lambda side: median(frame, work, measure, side))


def ratio(
    frame: pd.DataFrame,
    work: str,
    measure: str,
    ours: Sequence[Side] = OURS,
    plain: Sequence[Side] = PLAIN,
) -> float:
    """Our best single trial over the reference with its best number of workers."""
    our_best, plain_best = (
        median(frame, work, measure, best(frame, work, measure, sides)) for sides in (ours, plain)
    )
    return our_best / plain_best


def table_of(frame: pd.DataFrame, work: str, what: str) -> Table:
    """One row a side: images a second and memory."""
    mine = frame[frame["work"] == work].dropna(axis=1, how="all")
    shown = [name for name in MEASURES if name in mine]
    reference = {name: median(frame, work, name, best(frame, work, name, PLAIN)) for name in shown}
    table = Table(title=f"{what}: images/s (x torchvision's best)", box=None)
    for heading in ("", *(MEASURES[name] for name in shown), "threads", "peak memory, GiB"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for side, group in mine.groupby("side", sort=False):
        cells = [
            f"{group[name].median():,.{0 if reference[name] > 100 else 1}f} "
            f"({group[name].median() / reference[name]:.2f})"
            for name in shown
        ]
        peak = f"{group['peak_memory_gib'].max():.2f}"
        table.add_row(str(side), *cells, f"{group['threads'].iloc[0]}", peak)
    return table


def auroc_table(frame: pd.DataFrame) -> Table:
    """What both reach after as many epochs."""
    mine = frame[frame["work"] == "auroc_small"]
    seeds = mine["repetition"].nunique()
    title = f"small network, {AUROC_EPOCHS} epochs on {TRAIN_IMAGES} patches, {seeds} seeds"
    table = Table(title=title, box=None)
    for heading in ("", "validation AUROC, mean", "standard deviation", "lowest", "highest"):
        table.add_column(heading, justify="right" if heading else "left")
    for side, group in mine.groupby("side", sort=False):
        scores = group["val_auroc"]
        cells = (scores.mean(), scores.std(), scores.min(), scores.max())
        table.add_row(str(side), *(f"{score:.4f}" for score in cells))
    return table


def chart_of(frame: pd.DataFrame) -> "alt.VConcatChart":
    """Images a second of each side: the median a bar, every repetition a point."""
    import altair as alt

    colours = alt.Scale(domain=["ours", "plain", "timm"], range=["#d95f02", "#7570b3", "#1b9e77"])
    panels = []
    for work, what in WORKS.items():
        name = measure_of(work)
        side = alt.Y("side:N", title=None, sort=None, axis=alt.Axis(labelLimit=0))
        shown = alt.Chart(frame[frame["work"] == work]).encode(side)
        bars = shown.mark_bar(opacity=0.6).encode(
            alt.X(f"median({name}):Q", title=f"{MEASURES[name]}, images/s"),
            alt.Color("kind:N", legend=None, scale=colours),
        )
        points = shown.mark_point(color="black", size=12).encode(alt.X(f"{name}:Q"))
        panels.append((bars + points).properties(title=what, width=480))
    chart: alt.VConcatChart = alt.vconcat(*panels)
    return chart


def compare(
    source: Dataset, folder: Path, repeats: int, seeds: int, console: Console
) -> pd.DataFrame:
    """Measure every work on all of its sides, each table when it is done.

    One row a repetition and side.
    """
    sizes = {"many": (TRAIN_IMAGES, VAL_IMAGES), "some": (512, 256), "few": (64, 32)}
    for name, (train_images, val_images) in sizes.items():
        write_patches(source, folder / name, train_images=train_images, val_images=val_images)
        # Decoded here: no side's memory and time is to have it.
        open_data("pcam", folder / name, cache_dir=folder / name / "cache")
    weights = random_vgg16(folder)
    # The other sides evaluate with the running averages of BatchNorm's statistics.
    small = SMALL | {"augment": FLIPS, "precise_bn_images": 0}
    vgg16 = asdict(vgg16_config(weights, batch_size=16, augment=FLIPS))
    rows: list[Row] = []

    def run(name: str, measure: str, size: str, config: Row, sides: Sequence[Side]) -> None:
        work = Work(name=name, measure=measure, root=str(folder / size), config=config)
        times = seeds if measure == "auroc" else repeats
        rows.extend(measured(work, sides, times, warm_up=measure != "auroc"))
        if name in WORKS:
            console.print(table_of(pd.DataFrame(rows), name, WORKS[name]))

    run("input_flips", "input", "many", small, (*PLAIN, *TIMM, *OURS, PAIR))
    run("input_affine", "input", "many", small | {"augment": AFFINE}, (*PLAIN, *OURS, PAIR))
    frame = pd.DataFrame(rows)
    timm = best(frame, "input_flips", "input_images_per_s", TIMM)
    equal = *OURS_FP32, *PLAIN_BF16
    run("epoch_small", "epoch", "some", small, (*PLAIN, timm, *OURS, PAIR, *equal))
    run("epoch_vgg16_b16", "epoch", "few", vgg16, (*PLAIN, *OURS, *equal))
    frame = pd.DataFrame(rows)
    plain, ours = (best(frame, "epoch_small", "train_images_per_s", s) for s in (PLAIN, OURS))
    run("auroc_small", "auroc", "many", small, (plain, ours))
    return pd.DataFrame(rows)


def main() -> None:
    """Measure every work on all sides and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial")
    default = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "pcam_small"
    parser.add_argument("--data", type=Path, help=f"PatchCamelyon in any layout; {default}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison of scores")
    parser.add_argument("--out", type=Path, help="Parquet file for the rows; the chart is a PNG")
    arguments = parser.parse_args()
    folder = arguments.data or (default if default.is_dir() else None)
    source = open_data("pcam", folder) if folder else open_data("synthetic")
    origin = f"patches of {folder}" if folder else "no real patches found: synthetic patches"
    console = Console()
    console.width = max(console.width, 110)  # in a pipe too, a side is one line
    with tempfile.TemporaryDirectory() as name:
        frame = compare(source, Path(name), arguments.repeats, arguments.seeds, console)
        held = data_memory_ratio(source, Path(name) / "memory")
    console.print(auroc_table(frame))
    print(f"{origin}; {CORES} cores of {device_name(torch.device('cpu'))}")
    if arguments.out:
        frame.to_parquet(arguments.out)
        chart_of(frame).save(str(arguments.out.with_suffix(".png")), scale_factor=2)
    figures: dict[str, Any] = {
        f"{work}_ratio": round(ratio(frame, work, measure_of(work)), 2) for work in WORKS
    }
    for work in ("epoch_small", "epoch_vgg16_b16"):
        measure = measure_of(work)
        figures[f"{work}_fp32_ratio"] = round(ratio(frame, work, measure, OURS_FP32, PLAIN), 2)
        figures[f"{work}_bf16_ratio"] = round(ratio(frame, work, measure, OURS, PLAIN_BF16), 2)
    figures["two_trials_data_memory_ratio"] = round(held, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
