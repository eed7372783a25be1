r"""A study on one GPU without Ray: batch sizes by learning rates, those of a batch size packed.

    python -m benchmarks.gpu_study --data FOLDER --weights FILE --out trials.parquet

MobileNet-V2 with ImageNet weights on real PatchCamelyon patches, all of it trained, at batch sizes
16 to 1,024 and seven learning rates each. All batch sizes of a seed come before the next seed. A
pack that would not end within `--seconds`, going by the packs before it, is not begun. The trials
of a finished pack are rows of `--out` at once; a trial that failed is a row with the reason. The
report reads the table:

    python -m search.report --table trials.parquet --batch-size batch_size --lr base_lr \
        --metric val_auroc --out report

Its learning rates are then base rates, for a batch of 256: an exponent of 0 is linear scaling. With
`--lr peak_lr` they are the rates themselves, and it is 1; but no two batch sizes have a rate in
common, so that the report does not test their interaction.
"""

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from trainable.config import TrialConfig
from trainable.data.cache import Dataset, open_data
from trainable.host.device import pick_device
from trainable.pack import Member, Terms, train_pack
from trainable.record import TrialResult
from trainable.training.schedule import peak_lr

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
BASE_LRS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # for a batch of 256, as in spaces/bases.py
SEEDS = 10

Row = dict[str, Any]


def config_of(weights: Path | None, *, epochs: int, **changes: Any) -> TrialConfig:
    """The flagship's recipe (spaces/bases.py), with MobileNet-V2 trained from end to end."""
    config = TrialConfig(
        model="mobilenet_v2",
        pretrained=str(weights) if weights else "none",
        augment="hflip+vflip+shift",
        momentum=0.9,
        weight_decay=1e-4,
        lr_scaling="linear",
        reference_batch_size=256,
        warmup_share=0.1,
        decay="cosine",
        epochs=epochs,
    )
    return replace(config, **changes)


def packs(
    config: TrialConfig,
    batch_sizes: Sequence[int],
    base_lrs: Sequence[float],
    *,
    seeds: int,
    size: int,
) -> Iterator[list[TrialConfig]]:
    """The trials of each pack: one seed after the other, and of each the largest batches first."""
    for seed in range(seeds):
        for batch_size in sorted(batch_sizes, reverse=True):
            alike = replace(config, batch_size=batch_size, seed=seed)
            for first in range(0, len(base_lrs), size):
                yield [replace(alike, base_lr=lr) for lr in base_lrs[first : first + size]]


def train(configs: Sequence[TrialConfig], data: Dataset) -> list[Row]:
    """A row for each trial of a pack: its config and its result, or why it failed."""
    rows: list[Row] = [
        asdict(config) | {"status": "failed", "peak_lr": peak_lr(config)} for config in configs
    ]
    members = [Member(config=config) for config in configs]
    try:
        for index, outcome in train_pack(members, Terms(data=data, device=pick_device())):
            if isinstance(outcome, TrialResult):
                rows[index] |= asdict(outcome)
            elif isinstance(outcome, Exception):
                rows[index]["reason"] = f"{type(outcome).__name__}: {outcome}"
    except Exception as error:  # of all trials that have not ended
        for row in rows:
            if row["status"] == "failed":
                row.setdefault("reason", f"{type(error).__name__}: {error}")
    return rows


def write(rows: Sequence[Row], path: Path) -> None:
    """Replace the table by one with these rows; a reader never sees a part of it."""
    frame = pd.DataFrame(rows)
    frame["pretrained"] = frame["pretrained"].map(lambda file: Path(file).name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    frame.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def expected_s(batch_size: int, trained: Sequence[tuple[int, float]]) -> float:
    """How long a pack takes by (batch size, seconds) of those before it, of the last like it.

    Else of the last one: updates take about as long whatever the batch, so that half the batch
    takes twice as long at most.
    """
    for earlier, spent_s in reversed(trained):
        if earlier == batch_size:
            return spent_s
    last, spent_s = trained[-1] if trained else (batch_size, 0.0)
    return spent_s * max(1.0, last / batch_size)


def study(
    all_packs: Iterable[list[TrialConfig]], data: Dataset, out: Path, *, seconds: float
) -> list[Row]:
    """Train packs while there is time, and write the table after each."""
    started, rows, trained = time.monotonic(), list[Row](), list[tuple[int, float]]()
    for configs in all_packs:
        seed, batch_size = configs[0].seed, configs[0].batch_size
        elapsed_s = time.monotonic() - started
        needed_s = expected_s(batch_size, trained)
        if elapsed_s + needed_s > seconds:
            print(
                f"time is up: seed {seed}, batch size {batch_size} is not begun: it would take "
                f"{needed_s:.0f} s, and {seconds - elapsed_s:.0f} are left"
            )
            break
        rows += train(configs, data)
        write(rows, out)
        trained.append((batch_size, time.monotonic() - started - elapsed_s))
        failed = sum(row["status"] == "failed" for row in rows[-len(configs) :])
        print(
            f"seed {seed}, batch size {batch_size}: {len(configs)} trials in "
            f"{trained[-1][1]:.1f} s{f', {failed} failed' if failed else ''}",
            flush=True,
        )
    print(f"{len(rows)} trials in {out}")
    return rows


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu_study")
    p.add_argument("--data", type=Path, help="PatchCamelyon in any layout; default: synthetic")
    p.add_argument("--weights", type=Path, help="a state_dict of torchvision's mobilenet_v2")
    p.add_argument("--out", type=Path, required=True, help="Parquet file for the rows")
    p.add_argument("--seconds", type=float, default=540.0, help="no pack goes on after these")
    p.add_argument("--pack", type=int, default=7, help="trials that train together")
    p.add_argument("--seeds", type=int, default=SEEDS, help="at most")
    p.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    p.add_argument("--lrs", type=float, nargs="+", default=BASE_LRS, help="for a batch of 256")
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--train-images", type=int, help="of each split, at most; default: all")
    return p


def main() -> None:
    """Train packs until the time is up."""
    a = parser().parse_args()
    name = "pcam" if a.data else "synthetic"
    images = {"train_images": a.train_images, "eval_images": a.train_images}
    config = config_of(a.weights, epochs=a.epochs, dataset=name, **images)
    all_packs = packs(config, a.batch_sizes, a.lrs, seeds=a.seeds, size=a.pack)
    study(all_packs, open_data(name, a.data), a.out, seconds=a.seconds)


if __name__ == "__main__":
    main()
