"""How fast trials train on a GPU: by batch size, with CUDA graphs and packs, beside plain loops.

    python -m benchmarks.gpu [--seconds 400] [--out gpu.json]

VGG16 with its last two blocks trained and dropout 0.5, on random bytes of PatchCamelyon's shape. A
row is one epoch, the second of a training, so that graphs are captured and cuDNN is warm. Seconds
are those of an epoch of all 262,144 patches and of one trial, extrapolated from fewer: with K
trials in a pack, a K-th of what all take. Utilization is the floating-point operations that are
done in it, those of the frozen blocks once a pack, over what a large product of bf16 matrices
reaches on the same card. Batches that are too large for a CUDA graph have no row without one.

The plain loops are what a user writes (benchmarks/gpu_loops.py): torchvision's transforms in a
DataLoader, or timm's loader, in fp32 as they come and at our precision and memory format. Ours is
deterministic, its default, but for rows that say otherwise.

The most important rows come first. Each is printed, and kept in `--out`, when it is done; after
`--seconds` no other is begun. What fails is a row with its error. Last line: one JSON object.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_loops
from benchmarks.flops import (
    PCAM_IMAGES,
    PCAM_PX,
    flop_per_image,
    matmul_peak_flop_per_s,
    random_bytes,
    random_vgg16,
    vgg16_config,
)
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.host.device import device_name, pick_device
from trainable.networks.models import bare_network, blocks_of, freeze_all_but, replace_head
from trainable.pack import Member, Terms, train_pack
from trainable.record import EpochResult
from trainable.training import graph

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
# Of an epoch: enough updates to be steady, and not too many images.
LEAST_IMAGES, MOST_IMAGES, EPOCH_UPDATES = 8192, 32_768, 128
DROPOUT = 0.5
FIRST, REST = (16, 256, 1024), (32, 64, 128, 512)  # batch sizes
COLUMNS = ("batch size", "", "trials", "graph", "precision", "epoch and trial, s", "of the peak")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one row measures: ours, or a plain loop in fp32 or at our precision."""

    side: str  # ours, torchvision or timm
    batch_size: int
    pack: int = 1
    graphs: bool = True
    deterministic: bool = True
    precision: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images a second of all trials together; seconds of an epoch of PatchCamelyon and trial."""

    images_per_s: float
    epoch_s: float
    utilization: float
    paths: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case with its speed, or why there is none."""

    case: Case
    speed: Speed | None = None
    error: str = ""


def cases() -> Iterator[Case]:
    """All cases, the most important ones first."""
    yield from _ours(FIRST, packs=(1, 8))
    yield from _ours(FIRST, packs=(1, 8), graphs=False)
    yield from _loops(16, 256)
    yield from _ours(FIRST, deterministic=False)
    yield from _ours(REST, packs=(1, 8))
    yield from _ours(BATCH_SIZES, packs=(4,))
    yield from _ours(REST, packs=(1, 8), graphs=False)
    yield from _loops(1024, 64)
    yield from _ours(BATCH_SIZES, packs=(4,), graphs=False)


def _ours(
    batch_sizes: Iterable[int],
    *,
    packs: Iterable[int] = (1,),
    graphs: bool = True,
    deterministic: bool = True,
) -> Iterator[Case]:
    for batch_size in batch_sizes:
        for pack in packs if graphs or batch_size <= graph.MOST_IMAGES else ():
            yield Case(
                side="ours",
                batch_size=batch_size,
                pack=pack,
                graphs=graphs,
                deterministic=deterministic,
            )


def _loops(*batch_sizes: int) -> Iterator[Case]:
    for batch_size in batch_sizes:
        for precision in ("fp32", "bf16"):
            for side in ("torchvision", "timm"):
                yield Case(side=side, batch_size=batch_size, precision=precision)


def images_of(batch_size: int) -> int:
    """Images of a measured epoch."""
    return min(max(LEAST_IMAGES, EPOCH_UPDATES * batch_size), MOST_IMAGES)


def flop_of(config: TrialConfig, pack: int) -> float:
    """Floating-point operations an image and trial: the frozen blocks' once a pack."""
    with torch.device("meta"):
        model = bare_network(config.model)
        replace_head(model, num_classes=2, dropout=config.dropout)
    if config.train_blocks is not None:
        freeze_all_but(model, config.train_blocks)
    whole = flop_per_image(model)
    frozen = [m for block in blocks_of(model) for m in block if not _is_trained(block)]
    return whole - frozen_flop_per_image(nn.Sequential(*frozen)) * (1 - 1 / pack)


def _is_trained(block: list[nn.Module]) -> bool:
    return any(parameter.requires_grad for module in block for parameter in module.parameters())


def frozen_flop_per_image(prefix: nn.Module) -> float:
    """Those of a forward pass of modules on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prefix(torch.empty(2, 3, PCAM_PX, PCAM_PX, device="meta"))
    return float(counter.get_total_flops() / 2)


def our_images_per_s(
    config: TrialConfig, data: Dataset, case: Case, device: torch.device
) -> tuple[float, str]:
    """Images a second in the second epoch, of the pack's trials together; and the fast paths.

    Each trial of a pack reports images over its own share of the time: that is this figure.

    Raises:
        Exception: what ended a trial.
    """
    config = replace(config, deterministic=case.deterministic)
    members = [
        Member(config=replace(config, base_lr=config.base_lr * (1 + index / 10)))
        for index in range(case.pack)
    ]
    speeds, paths = [], ""
    most, graph.MOST_IMAGES = graph.MOST_IMAGES, graph.MOST_IMAGES if case.graphs else 0
    try:
        for _, outcome in train_pack(members, Terms(data=data, device=device)):
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, EpochResult):
                speeds += [outcome.images_per_s] if outcome.epoch == 2 else []
            elif outcome.status == "diverged" or outcome.pack_size < case.pack:
                raise RuntimeError(outcome.reason or f"{case.pack} trials do not fit together")
            else:
                paths = outcome.fast_paths
    finally:
        graph.MOST_IMAGES = most
    return statistics.median(speeds), paths


def measured(case: Case, config: TrialConfig, peak_flop_per_s: float, data: Dataset) -> Row:
    """The row of a case on this process's GPU; an error of the case is the row's."""
    device = pick_device()
    config = replace(config, batch_size=case.batch_size, precision=case.precision)
    try:
        if case.side == "ours":
            images_per_s, paths = our_images_per_s(config, data, case, device)
        else:
            images_per_s, paths = gpu_loops.images_per_s(case.side, config, data, device), ""
        speed = Speed(
            images_per_s=images_per_s,
            epoch_s=PCAM_IMAGES / images_per_s,
            utilization=images_per_s * flop_of(config, case.pack) / peak_flop_per_s,
            paths=paths,
        )
    except Exception as error:
        return Row(case=case, error=f"{type(error).__name__}: {error}"[:500])
    finally:
        gc.collect()  # a CUDA graph goes with its cycle alone
        torch.cuda.empty_cache()
    return Row(case=case, speed=speed)


def rows_in_time(measure: Callable[[Case], Row], *, seconds: float) -> Iterator[Row]:
    """A row for each case that is begun within so many seconds."""
    started = time.monotonic()
    for case in cases():
        if time.monotonic() - started > seconds:
            print(f"time is up: {case} and what follows it is not measured", file=sys.stderr)
            return
        yield measure(case)


def flat(row: Row) -> dict[str, Any]:
    """A row as JSON has it; a plain loop has no settings of ours."""
    case = asdict(row.case)
    if row.case.side != "ours":
        case = {name: case[name] for name in ("side", "batch_size", "precision")}
    speed = asdict(row.speed) if row.speed else {}
    return case | speed | ({"error": row.error} if row.error else {})


def as_json(rows: Iterable[Row], about: dict[str, Any]) -> str:
    """All rows, and what they were measured on."""
    return json.dumps(about | {"rows": [flat(row) for row in rows]})


def keep(text: str, path: Path) -> None:
    """Replace a file; a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def table_of(rows: Iterable[Row], title: str) -> Table:
    """One line a row, by batch size."""
    table = Table(title=title, box=None)
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda r: (r.case.batch_size, r.case.side, r.case.pack)):
        case, speed = row.case, row.speed
        side = case.side if case.deterministic else f"{case.side}, fastest kernels"
        graphed = "yes" if speed and "cuda_graph" in speed.paths else ""
        cells = (f"{speed.epoch_s:.2f}", f"{speed.utilization:.1%}") if speed else ("failed", "")
        table.add_row(str(case.batch_size), side, str(case.pack), graphed, case.precision, *cells)
    return table


def base_config(folder: Path) -> TrialConfig:
    """What all cases train, with random weights that are written to a folder."""
    config = vgg16_config(random_vgg16(folder), batch_size=16, augment="hflip+vflip+shift")
    return replace(config, dropout=DROPOUT, epochs=2, eval_images=256, precise_bn_images=0)


def main() -> None:
    """Measure until the time is up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--seconds", type=float, default=400.0, help="no row is begun after these")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    arguments = parser.parse_args()
    device = pick_device()
    if device.type != "cuda":
        print("benchmarks.gpu needs a GPU, and PyTorch finds none here", file=sys.stderr)
        raise SystemExit(2)
    peak = matmul_peak_flop_per_s(device)
    about = {
        "device": device_name(device),
        "torch": torch.__version__,
        "peak_tflop_per_s": round(peak / 1e12, 1),
    }
    data_of = cache(random_bytes)
    with tempfile.TemporaryDirectory() as folder:
        config = base_config(Path(folder))
        rows = list[Row]()

        def measure(case: Case) -> Row:
            return measured(case, config, peak, data_of(images_of(case.batch_size)))

        for row in rows_in_time(measure, seconds=arguments.seconds):
            rows.append(row)
            print(json.dumps(flat(row)), file=sys.stderr, flush=True)
            if arguments.out:
                keep(as_json(rows, about), arguments.out)
    console = Console(width=110)
    console.print(table_of(rows, f"{about['device']}, {about['peak_tflop_per_s']} TFLOP/s in bf16"))
    print(as_json(rows, about))


if __name__ == "__main__":
    main()
