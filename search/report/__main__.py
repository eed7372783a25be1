"""The command that writes the report of a study or of your own table.

python -m search.report results/pcam_grid
python -m search.report --table mine.csv --batch-size bs --lr lr --metric val_auc --out mine_report
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from search.analysis.foreign_table import TableError
from search.report.findings import of_table
from search.report.report import write, write_report
from search.results.tables import Results, ResultsError
from trainable.host import storage
from trainable.host.storage import Folder

OK, WRONG_INPUT = 0, 2
WATCH_S = 5  # between two checks of the tables
REFRESH_S = 10  # between two reloads of a watched page


def parser() -> argparse.ArgumentParser:
    """The command's flags. Scripts rely on them: a test checks the list."""
    p = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Write report.html, report.json and charts/ from a study's tables, or from a "
        "table of your own with one row per run. Exit status: 0 written, 2 wrong input.",
    )
    p.add_argument(
        "results",
        nargs="?",
        metavar="RESULTS",
        help="a study's folder, for example results/pcam_grid",
    )
    p.add_argument("--metric", help="default: the study's metric; with --table, a column")
    p.add_argument(
        "--watch", action="store_true", help="write the report again when the tables change"
    )
    p.add_argument("--table", type=Path, metavar="FILE", help="a CSV or Parquet file of your own")
    p.add_argument("--batch-size", metavar="COL", help="column of batch sizes")
    p.add_argument("--lr", metavar="COL", help="column of learning rates")
    p.add_argument(
        "--fields",
        nargs="+",
        metavar="COL",
        help="other columns of numbers that differ from run to run, for example momentum",
    )
    p.add_argument("--seed-column", metavar="COL", default="seed", help="default: seed, if any")
    p.add_argument(
        "--mode",
        choices=("max", "min"),
        help="which values of the metric are best; default: by its name (loss: min, accuracy: max)",
    )
    p.add_argument(
        "--margin",
        type=float,
        help="difference in the metric that does not matter; default: 0.01 for scores from 0 to 1",
    )
    p.add_argument("--out", help="folder to write to; default RESULTS, or the folder of FILE")
    return p


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = parser().parse_args(words)
    console = Console()
    if arguments.margin is not None and not 0 < arguments.margin < math.inf:
        Console(stderr=True).print(
            f"search.report: --margin must be a number above 0, got {arguments.margin:g}",
            style="red",
        )
        return WRONG_INPUT
    try:
        report = _report_table if arguments.table else _report_study
        where = report(arguments, console)
    except KeyboardInterrupt:
        return OK if arguments.watch else 130
    except (ResultsError, TableError, OSError, ValueError) as error:
        Console(stderr=True).print(
            f"search.report: {error}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        return WRONG_INPUT
    console.print(f"report: {where}", soft_wrap=True, highlight=False, markup=False)
    return OK


def _report_table(arguments: argparse.Namespace, console: Console) -> str:
    if arguments.results or arguments.watch:
        raise TableError("--table cannot be combined with RESULTS or --watch: remove them")
    for name in ("batch_size", "lr", "metric"):
        if not getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise TableError(f"--table also needs {flag} COL, the name of one of its columns")
    findings = of_table(
        arguments.table,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        metric=arguments.metric,
        fields=arguments.fields or (),
        seed=arguments.seed_column,
        mode=arguments.mode,
        margin=arguments.margin,
    )
    if arguments.mode is None:
        better, other = ("lower", "max") if findings.mode == "min" else ("higher", "min")
        console.print(
            f"{arguments.metric}: {better} is better, by its name (else add --mode {other})",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return write(findings, storage.folder_at(arguments.out or str(arguments.table.parent)))


def _report_study(arguments: argparse.Namespace, console: Console) -> str:
    if not arguments.results:
        raise ResultsError("give a study's folder, for example results/pcam_grid, or --table FILE")
    for name in ("batch_size", "lr", "fields", "mode"):
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise ResultsError(f"{flag} is only for --table FILE: remove it for a study")
    try:
        folder = storage.folder_at(arguments.results.rstrip("/"))
    except ValueError as error:
        raise ResultsError(str(error)) from error
    if folder.is_local and not Path(folder.uri).is_dir():
        raise ResultsError(
            f"{arguments.results} does not exist: give a folder, for example results/pcam_grid"
        )
    results = Results(folder.name, folder)
    into = storage.folder_at(arguments.out) if arguments.out else folder
    if arguments.watch:
        _watch(results, into, arguments, console)
    return write_report(results, metric=arguments.metric, margin=arguments.margin, into=into)


def _watch(results: Results, into: Folder, arguments: argparse.Namespace, console: Console) -> None:
    """Write the report whenever the tables have changed, until Ctrl-C.

    After each report, wait at least as long as it took: the machine has other work.
    """
    seen = None
    try:
        while True:
            state = _state(results)
            took = 0.0
            if state != seen:
                began = time.monotonic()
                where = write_report(
                    results,
                    metric=arguments.metric,
                    margin=arguments.margin,
                    into=into,
                    refresh_s=REFRESH_S,
                )
                took = time.monotonic() - began
                if seen is None:
                    console.print(
                        f"watching {results.folder.uri}; press Ctrl-C to stop", soft_wrap=True
                    )
                    console.print(f"report: {where}", soft_wrap=True, highlight=False)
                seen = state
            time.sleep(max(WATCH_S, took))
    except KeyboardInterrupt:
        return


def _state(results: Results) -> list[tuple[str, object, object]]:
    """Names, times and sizes of the tables' files: they change when the tables change."""
    from pyarrow import fs

    state = []
    for folder in (results / "trials", results / "epochs"):
        system, path = (
            folder.opened() if not folder.is_local else (fs.LocalFileSystem(), folder.uri)
        )
        files = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        state += [(file.path, file.mtime_ns, file.size) for file in files]
    return sorted(state)


if __name__ == "__main__":
    sys.exit(main())
