"""The learning rates that a study should try, from a quick probe of each of its batch sizes.

    python -m search.suggest spaces/pcam_grid.py
    python -m search.suggest spaces/pcam_grid.py --preview --set optimizer=adam

Each batch size gets a range test and a search for its largest stable rate (trainable/lr_range.py);
nothing is kept and no Ray is started. The suggestion is of rates 1, 3, 10, 30 ... It begins with
the nearest to a tenth of the smallest rate at which a batch size's loss falls fastest (of its
largest stable rate, where that is smaller or the loss does not fall), and ends with the first at
which no batch size was stable: the best rate of each should lie inside, and its edge on the map.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from search.execution.preflight import check_images, check_networks, prepare
from search.results.tables import ResultsError
from search.study.domains import probes
from search.study.shown import print_error, show
from search.study.space_file import SpaceFileError, load_study
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.data.cache import open_data
from trainable.data.sources import DataError

if TYPE_CHECKING:  # it imports torch, which a command with a typing error need not wait for
    from trainable.lr_range import LrRange

OK, NONE_STABLE, INTERRUPTED = 0, 1, 130  # and 2, wrong input


def parser() -> argparse.ArgumentParser:
    """The command's flags, which mean what they mean to search.run."""
    p = argparse.ArgumentParser(
        prog="python -m search.suggest",
        description="Suggest the learning rates of a study. Exit status: 0 done, 1 no rate is "
        "stable, 2 the command, space or data is wrong.",
    )
    p.add_argument("space", type=Path, metavar="SPACE.py", help="the study; Python, executed")
    p.add_argument("--data", type=Path, help="where the data set is; default $DATA_DIR or data/")
    p.add_argument("--preview", action="store_true", help="small network, few images")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="a field of the study or of its trial; a comma list gives values to try",
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as out:  # prepare wants a place for results
            ready = prepare(
                load_study(options.space),
                out=out,
                data=options.data,
                preview=options.preview,
                settings=options.settings,
                console=console,
                space_file=options.space,
            )
        check_images(ready)
        check_networks(ready)
        configs = probed_configs(ready.study)
        _print_study(console, ready.study, ready.data.name)
        ranges = _probe(console, ready.study, configs, ready.data_folder)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SpaceFileError, ResultsError, DataError) as error:
        return print_error("search.suggest", error)
    console.print(_table(ranges))
    ends = suggested_ends(list(ranges.values()))
    if ends is None:
        console.print("no rate that was tested is stable: there is nothing to suggest")
        return NONE_STABLE
    console.print("\nto paste into the study's vary:")
    if options.preview or ready.study.base.dataset == "synthetic":
        console.print(
            "(rates of a preview belong into its preview: a list without tune.grid_search)"
        )
    console.print(
        f"  {line_for(ready.study, *ends)}", highlight=False, soft_wrap=True, markup=False
    )
    return OK


def probed_configs(study: Study) -> list[TrialConfig]:
    """The base trial at each batch size of the study, or at both ends of a range of them.

    Raises:
        SpaceFileError: the base trial cannot have such a batch.
    """
    sizes = {study.base.batch_size}
    if "batch_size" in study.vary:
        sizes = {int(str(size)) for size in probes(study.vary["batch_size"])}
    try:
        return [replace(study.base, batch_size=size) for size in sorted(sizes)]
    except ValueError as error:
        raise SpaceFileError(f"the study's base trial: {error}") from error


def _print_study(console: Console, study: Study, dataset: str) -> None:
    others = [name for name in study.vary if name not in ("batch_size", "base_lr")]
    named = dict.fromkeys(["model", "optimizer", *others])
    values = (f"{n}={show(getattr(study.base, n))}{' (varies)' * (n in others)}" for n in named)
    console.print(
        f"{study.name}  dataset={dataset} {' '.join(values)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _probe(
    console: Console, study: Study, configs: Sequence[TrialConfig], data_folder: Path | None
) -> dict[int, "LrRange"]:
    """The range of each batch size, with a line as each is done.

    Raises:
        SpaceFileError: a trial cannot be made or run.
    """
    from trainable.lr_range import find_lr_range

    base = study.base
    data = open_data(base.dataset, data_folder, split_by=base.split_by, task=base.task)
    ranges = {}
    for config in configs:
        started = time.monotonic()
        try:
            ranges[config.batch_size] = find_lr_range(
                config, data, num_threads=study.cpus_per_trial
            )
        except ValueError as error:
            raise SpaceFileError(str(error)) from error
        console.print(
            f"[{len(ranges)}/{len(configs)}] batch_size={config.batch_size}: "
            f"{time.monotonic() - started:.1f} s",
            highlight=False,
            markup=False,
        )
    return ranges


def _table(ranges: dict[int, "LrRange"]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("\nbatch_size", "steepest\nbase_lr", "\npeak_lr", "largest stable\nbase_lr"):
        table.add_column(name, justify="right")
    table.add_column("\npeak_lr", justify="right")
    table.add_column("\nedge")
    for batch_size, lr_range in ranges.items():
        edge, words = "between two rates tested", ""
        if lr_range.unstable_lr is None:
            edge, words = "hit the highest rate tested", "at least "
        elif lr_range.stable_lr is None:
            edge, words = "hit the lowest rate tested", "below "
        stable = lr_range.stable_lr or lr_range.unstable_lr
        cells = [
            "-" if lr is None else f"{prefix}{lr / unit:.2g}"
            for prefix, lr in (("", lr_range.steepest_lr), (words, stable))
            for unit in (lr_range.peak_per_base, 1.0)
        ]
        table.add_row(str(batch_size), *cells, edge)
    return table


def suggested_ends(ranges: Sequence["LrRange"]) -> tuple[float, float] | None:
    """The lowest and the highest base rate to try, by the rule above, of 1, 3, 10, 30 ...

    None where no batch size has a stable rate.
    """
    lows, highs = [], []
    for lr_range in ranges:
        if lr_range.stable_lr is not None:
            low = min(lr_range.steepest_lr or lr_range.stable_lr, lr_range.stable_lr)
            lows.append(low / lr_range.peak_per_base / 10)
            highs.append((lr_range.unstable_lr or lr_range.stable_lr) / lr_range.peak_per_base)
    if not lows:
        return None
    begin, end = min(lows), max(highs)
    nearest = min(one_three_ten(begin), key=lambda value: abs(math.log(value / begin)))
    return nearest, min(value for value in one_three_ten(end) if value >= end)


def one_three_ten(near: float) -> list[float]:
    """The rates 1, 3, 10, 30 ... from below `near` to above it."""
    exponent = math.floor(math.log10(near))
    return [float(f"{m}e{e}") for e in range(exponent - 1, exponent + 3) for m in (1, 3)]


def line_for(study: Study, low: float, high: float) -> str:
    """The line of a space file: values for a study that goes through them, else a range."""
    if all(isinstance(domain, dict) for domain in study.vary.values()) and study.vary:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [float(f"{m}e{e}") for e in exponents for m in (1, 3)]
        return f'"base_lr": tune.grid_search({[v for v in values if low <= v <= high]}),'
    return f'"base_lr": tune.loguniform({low}, {high}),'


if __name__ == "__main__":
    sys.exit(main())
