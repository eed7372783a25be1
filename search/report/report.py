"""Findings -> report.html, report.json and charts/."""

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from search.analysis.surface import LEVEL
from search.report.advised import advice_numbers
from search.report.charts.gallery import (
    Picture,
    compared_pictures,
    search_pictures,
    slug,
    surface_name,
    surface_pictures,
    training_pictures,
    tuning_pictures,
)
from search.report.drawing import Draw, Files, drawing
from search.report.facts import trained_hours
from search.report.findings import Findings, numbers, of_study
from search.report.listed_files import chart_files, remove_earlier, table_files
from search.report.methods import methods
from search.report.page import bundle, render
from search.report.paper_tables import paper_tables
from search.report.tuning_curve import tuning_numbers
from search.results.tables import Results
from trainable.host import storage
from trainable.host.storage import Folder

OTHER_SURFACES = 11  # drawn besides the best one; report.json has all of them


def write_report(
    results: Results,
    *,
    metric: str | None = None,
    margin: float | None = None,
    into: Folder | None = None,
    refresh_s: int | None = None,
) -> str:
    """Write a study's report into its folder or `into` another; returns the path of report.html.

    With `refresh_s` the page reloads itself.

    Raises:
        ResultsError: there are no results, or the metric is unknown.
        OSError: the report cannot be written.
    """
    with drawing() as draw:
        with ThreadPoolExecutor(1) as ahead:  # the page's script takes a second, outside of Python
            ahead.submit(bundle)
            findings = of_study(results, metric=metric, margin=margin)
        return _write(findings, into or results.folder, draw, refresh_s)


def pictures_of(findings: Findings) -> dict[str, Picture]:
    """The pictures of the best surface and of all trials."""
    return {name: picture for part in _parts_of(findings) for name, picture in part.items()}


def _parts_of(findings: Findings) -> Iterator[dict[str, Picture]]:
    first = findings.analyses[0]
    yield compared_pictures(findings.analyses[: 1 + OTHER_SURFACES])
    yield surface_pictures(first)
    yield training_pictures(first, findings.epochs)
    yield search_pictures(findings)
    yield tuning_pictures(findings)


def other_pictures(findings: Findings) -> dict[str, dict[str, Picture]]:
    """The pictures of the other surfaces by the surface's name."""
    others: dict[str, dict[str, Picture]] = {}
    used: set[str] = set()
    for analysis in findings.analyses[1 : 1 + OTHER_SURFACES]:
        name = surface_name(analysis)
        suffix = _unused(slug(name), used)
        used.add(suffix.casefold())
        others[name] = surface_pictures(analysis, suffix=f"-{suffix}")
    return others


def _unused(name: str, used: set[str]) -> str:
    """The name, with a number if it is used; some file systems do not tell `A` from `a`."""
    numbered = (f"{name}-{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n.casefold() not in used)


def write(findings: Findings, into: Folder) -> str:
    """Write the report's files; returns the page's path.

    report.html and report.json; charts/ as PNG, SVG and PDF; for papers tables/ as LaTeX and CSV,
    and methods.md.
    """
    with drawing() as draw:
        return _write(findings, into, draw, None)


def _write(findings: Findings, into: Folder, draw: Draw, refresh_s: int | None) -> str:
    pictures: dict[str, Picture] = {}
    files: dict[str, Future[Files]] = {}
    for part in _parts_of(findings):
        pictures |= part
        files |= {name: draw(picture.spec) for name, picture in part.items()}
    others = other_pictures(findings)
    for part in others.values():
        files |= {name: draw(picture.spec) for name, picture in part.items()}
    tables = paper_tables(findings)
    listed = chart_files(files) + table_files(table.name for table in tables)
    remove_earlier(into, "report.json", listed)
    figures = {
        **numbers(findings),
        "tuning_curve": tuning_numbers(findings),
        "advice": advice_numbers(findings),
        "confidence_level": LEVEL,
        "trained_hours": trained_hours(findings.trials),
        "captions": {p.name: p.caption for of in (pictures, *others.values()) for p in of.values()},
        "files": listed,
    }
    storage.write(into, "report.json", (json.dumps(figures, indent=1) + "\n").encode())
    for table in tables:
        storage.write(into / "tables", f"{table.name}.tex", table.latex.encode(), is_lasting=False)
        storage.write(into / "tables", f"{table.name}.csv", table.csv.encode(), is_lasting=False)
    storage.write(into, "methods.md", methods(findings).encode())
    page = render(findings, pictures, others, refresh_s=refresh_s)
    write_charts(files, into)
    storage.write(into, "report.html", page.encode())
    return f"{into.uri}/report.html"


def write_charts(files: Mapping[str, Future[Files]], into: Folder) -> None:
    """Write each chart into charts/ when it has been drawn."""
    for name, drawn in files.items():
        for kind, content in drawn.result().items():
            storage.write(into / "charts", f"{name}.{kind}", content, is_lasting=False)
