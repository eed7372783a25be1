"""Findings -> report.html, report.json and charts/: once, or every minute while a study runs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.report.findings import Findings, numbers, of_study
from search.report.gallery import (
    Picture,
    drawn,
    search_pictures,
    slug,
    surface_name,
    surface_pictures,
    training_pictures,
)
from search.report.page import render
from search.results.tables import Results
from trainable.host import storage
from trainable.host.storage import Folder

OTHER_SURFACES = 11  # drawn besides the best one; report.json has all of them
MEANWHILE_S = 60.0  # between two reports of a running study


def write_report(
    results: Results,
    *,
    metric: str | None = None,
    into: Folder | None = None,
    refresh_s: int | None = None,
) -> str:
    """Write a study's report into its folder or `into` another; returns the path of report.html.

    With `refresh_s` the page reloads itself.

    Raises:
        ResultsError: there are no results, or the metric is unknown.
        OSError: the report cannot be written.
    """
    return write(of_study(results, metric=metric), into or results.folder, refresh_s=refresh_s)


def write(findings: Findings, into: Folder, *, refresh_s: int | None = None) -> str:
    """Write report.html, report.json, charts/*.png and charts/*.svg; returns the page's path."""
    first = findings.analyses[0]
    pictures = {
        **surface_pictures(first),
        **training_pictures(first, findings.epochs),
        **search_pictures(findings),
    }
    others: dict[str, dict[str, Picture]] = {}
    for analysis in findings.analyses[1 : 1 + OTHER_SURFACES]:
        name = surface_name(analysis)
        others[name] = surface_pictures(analysis, suffix=f"-{slug(name)}")
    storage.write(into, "report.json", (json.dumps(numbers(findings), indent=1) + "\n").encode())
    for name, picture in [*pictures.items(), *(x for o in others.values() for x in o.items())]:
        svg, png = drawn(picture)
        storage.write(into / "charts", f"{name}.svg", svg.encode())
        storage.write(into / "charts", f"{name}.png", png)
    page = render(findings, pictures, others, refresh_s=refresh_s)
    storage.write(into, "report.html", page.encode())
    return f"{into.uri}/report.html"


@contextmanager
def written_meanwhile(results: Results) -> Iterator[None]:
    """Write the report once a minute while a study runs, in separate processes.

    A thread of the driver would block it. The processes have a low priority, and their errors are
    ignored: the report at the end shows them.
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
                start_new_session=True,  # Ctrl-C is for the study, not for the report
                cwd=Path(__file__).parents[2],
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
