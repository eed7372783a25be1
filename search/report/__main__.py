"""The command: write the report of a study, or of your own table.

python -m search.report results/pcam_grid
python -m search.report --table mine.csv --batch-size bs --lr lr --metric val_auc --out mine_report
"""

import argparse
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
WATCH_S = 5  # between two looks at the tables
REFRESH_S = 10  # between two loads of a watched page


def parser() -> argparse.ArgumentParser:
    """The command's flags. Users' scripts rely on them: a test holds the list."""
    p = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Write report.html, report.json and charts/ from a study's tables, or from a "
        "table of your own with a row a training. Exit status: 0 written, 2 wrong input.",
    )
    p.add_argument("results", nargs="?", metavar="RESULTS", help="as results/pcam_grid")
    p.add_argument("--metric", help="default: the study's own; with --table, its column")
    p.add_argument("--watch", action="store_true", help="write it anew as the tables change")
    p.add_argument("--table", type=Path, metavar="FILE", help="a CSV or Parquet file of your own")
    p.add_argument("--batch-size", metavar="COL", help="its column of batch sizes")
    p.add_argument("--lr", metavar="COL", help="its column of learning rates")
    p.add_argument("--mode", choices=("max", "min"), help="which is best of its metric; max")
    p.add_argument("--out", help="folder to write to; default RESULTS, or beside FILE")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = parser().parse_args(arguments)
    console = Console()
    try:
        where = _report_table(given) if given.table else _report_study(given, console)
    except KeyboardInterrupt:
        return OK if given.watch else 130
    except (ResultsError, TableError, OSError, ValueError) as error:
        Console(stderr=True).print(
            f"search.report: {error}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        return WRONG_INPUT
    console.print(f"report: {where}", soft_wrap=True, highlight=False, markup=False)
    return OK


def _report_table(given: argparse.Namespace) -> str:
    if given.results or given.watch:
        raise TableError("--table goes with neither RESULTS nor --watch: leave the others out")
    for name in ("batch_size", "lr", "metric"):
        if not getattr(given, name):
            flag = f"--{name.replace('_', '-')}"
            raise TableError(f"--table also wants {flag} COL, the name of one of its columns")
    findings = of_table(
        given.table,
        batch_size=given.batch_size,
        lr=given.lr,
        metric=given.metric,
        mode=given.mode or "max",
    )
    return write(findings, storage.folder_at(given.out or str(given.table.parent)))


def _report_study(given: argparse.Namespace, console: Console) -> str:
    if not given.results:
        raise ResultsError("give a study's folder, as results/pcam_grid, or --table FILE")
    for name in ("batch_size", "lr", "mode"):
        if getattr(given, name):
            flag = f"--{name.replace('_', '-')}"
            raise ResultsError(f"{flag} goes with --table FILE: a study's tables have their own")
    try:
        folder = storage.folder_at(given.results.rstrip("/"))
    except ValueError as error:
        raise ResultsError(str(error)) from error
    if folder.is_local and not Path(folder.uri).is_dir():
        raise ResultsError(f"{given.results} is not there: give a folder as results/pcam_grid")
    results = Results(folder.name, folder)
    into = storage.folder_at(given.out) if given.out else folder
    if given.watch:
        _watch(results, into, given.metric, console)
    return write_report(results, metric=given.metric, into=into)


def _watch(results: Results, into: Folder, metric: str | None, console: Console) -> None:
    """Write the report whenever the tables changed, until Ctrl-C; then once more, to stand still.

    Each takes its time to write, and as long again is left for the machine's other work.
    """
    seen = None
    try:
        while True:
            state = _state(results)
            took = 0.0
            if state != seen:
                began = time.monotonic()
                where = write_report(results, metric=metric, into=into, refresh_s=REFRESH_S)
                took = time.monotonic() - began
                if seen is None:
                    console.print(f"watching {results.folder.uri}; Ctrl-C ends", soft_wrap=True)
                    console.print(f"report: {where}", soft_wrap=True, highlight=False)
                seen = state
            time.sleep(max(WATCH_S, took))
    except KeyboardInterrupt:
        return


def _state(results: Results) -> list[tuple[str, object, object]]:
    """Names, times and sizes of the tables' files: another list, other tables."""
    from pyarrow import fs

    found = []
    for folder in (results / "trials", results / "epochs"):
        system, path = (
            folder.opened() if not folder.is_local else (fs.LocalFileSystem(), folder.uri)
        )
        files = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        found += [(each.path, each.mtime_ns, each.size) for each in files]
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
