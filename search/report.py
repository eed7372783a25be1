"""The command: write the report of a study, or of your own table.

python -m search.report results/pcam_grid
python -m search.report --table mine.csv --batch-size bs --lr lr --metric val_auc --out mine_report
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from search.findings import Findings, numbers, of_study, of_table
from search.gallery import (
    Picture,
    drawn,
    said_of,
    search_pictures,
    slug,
    surface_pictures,
    training_pictures,
)
from search.own_table import TableError
from search.page import render
from search.results import Results, ResultsError
from trainable import storage
from trainable.storage import Folder

OK, WRONG_INPUT = 0, 2
OTHER_SURFACES = 11  # that are drawn after the best one; report.json has all
WATCH_S = 5  # between two looks at the tables
REFRESH_S = 10  # between two loads of a watched page
MEANWHILE_S = 60.0  # between two reports of a study that runs


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


def write_report(
    results: Results,
    *,
    metric: str | None = None,
    into: Folder | None = None,
    refresh_s: int | None = None,
) -> str:
    """Write a study's report into its folder, or `into` another; returns where report.html is.

    A page with `refresh_s` loads itself anew.

    Raises:
        ResultsError: there is nothing that could be reported, or the metric is none of ours.
        OSError: it cannot be written.
    """
    return write(of_study(results, metric=metric), into or results.folder, refresh_s=refresh_s)


def write(findings: Findings, into: Folder, *, refresh_s: int | None = None) -> str:
    """Write report.html, report.json, charts/*.png and charts/*.svg; returns where the page is."""
    first = findings.analyses[0]
    pictures = {
        **surface_pictures(first),
        **training_pictures(first, findings.epochs),
        **search_pictures(findings),
    }
    others: dict[str, dict[str, Picture]] = {}
    for each in findings.analyses[1 : 1 + OTHER_SURFACES]:
        of = said_of(each)
        others[of] = surface_pictures(each, suffix=f"-{slug(of)}")
    storage.write(into, "report.json", (json.dumps(numbers(findings), indent=1) + "\n").encode())
    for name, shown in [*pictures.items(), *(x for o in others.values() for x in o.items())]:
        svg, png = drawn(shown)
        storage.write(into / "charts", f"{name}.svg", svg.encode())
        storage.write(into / "charts", f"{name}.png", png)
    page = render(findings, pictures, others, refresh_s=refresh_s)
    storage.write(into, "report.html", page.encode())
    return f"{into.uri}/report.html"


@contextmanager
def written_meanwhile(results: Results) -> Iterator[None]:
    """Write the report once a minute while a study runs, in processes of its own.

    In a process, as the trials' driver shares its interpreter's lock with its threads; of low
    priority, and with its errors unheard: the report at the end says them.
    """
    over = threading.Event()

    def write_each_minute() -> None:
        while not over.wait(MEANWHILE_S):
            command = [sys.executable, "-m", "search.report", results.folder.uri]
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is the study's, not the report's
                cwd=Path(__file__).parent.parent,
            ) as writing:
                _lower_priority(writing.pid)
                while writing.poll() is None:
                    if over.wait(0.2):
                        writing.terminate()

    thread = threading.Thread(target=write_each_minute, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lower_priority(process: int) -> None:
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, process, 19)
        except OSError:  # it ended already
            return


if __name__ == "__main__":
    sys.exit(main())
