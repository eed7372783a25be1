"""Findings -> report.html, report.json and charts/."""

import json

from search.report.charts.gallery import (
    Picture,
    compared_pictures,
    drawn,
    search_pictures,
    slug,
    surface_name,
    surface_pictures,
    training_pictures,
)
from search.report.findings import Findings, numbers, of_study
from search.report.page import render
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
    return write(
        of_study(results, metric=metric, margin=margin), into or results.folder, refresh_s=refresh_s
    )


def write(findings: Findings, into: Folder, *, refresh_s: int | None = None) -> str:
    """Write report.html, report.json, charts/*.png and charts/*.svg; returns the page's path."""
    first = findings.analyses[0]
    pictures = {
        **compared_pictures(findings.analyses[: 1 + OTHER_SURFACES]),
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
