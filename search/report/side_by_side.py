"""Two studies' findings -> comparison.html, comparison.json and charts/."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from search.analysis.declared import differing_fields
from search.analysis.side_by_side import Compared, compared_analyses
from search.report.charts.difference import difference_map, two_ridges
from search.report.charts.gallery import Picture, picture
from search.report.drawing import drawing
from search.report.findings import Findings
from search.report.listed_files import chart_files, remove_earlier
from search.report.markup import bullets, paragraph, section, table, text
from search.report.numbers import plain
from search.report.page import document, figure
from search.report.report import write_charts
from search.report.sentences.side_by_side import (
    compared_sentences,
    names_of,
    settings_sentence,
    trust_sentences,
)
from trainable.host import storage
from trainable.host.storage import Folder


@dataclass(frozen=True)
class Comparison:
    """Two studies' best surfaces compared, with what to call them and how their settings differ."""

    names: tuple[str, str]
    compared: Compared
    differing: dict[str, Any]
    synthetic: tuple[bool, bool]
    preview: tuple[bool, bool]

    @property
    def sentences(self) -> list[str]:
        """How far to trust it, what follows from the scores, then the settings that differ."""
        settings = settings_sentence(self.differing, self.names)
        return [*self.warnings, *compared_sentences(self.compared, self.names), settings]

    @property
    def warnings(self) -> list[str]:
        """Which of them are not what a reader takes them for."""
        return trust_sentences(self.names, synthetic=self.synthetic, preview=self.preview)


def comparison_of(first: Findings, second: Findings) -> Comparison:
    """Of the best surface of each."""
    return Comparison(
        names=names_of([first.name, second.name]),
        compared=compared_analyses(first.analyses[0], second.analyses[0]),
        differing=differing_fields(first.about, second.about),
        synthetic=(first.synthetic, second.synthetic),
        preview=(bool(first.about.get("preview")), bool(second.about.get("preview"))),
    )


def write_comparison(comparison: Comparison, into: Folder) -> str:
    """Write comparison.html, comparison.json and charts/; returns the page's path."""
    pictures = _pictures(comparison)
    listed = chart_files(pictures)
    remove_earlier(into, "comparison.json", listed)
    figures = json.dumps({**_numbers(comparison), "files": listed}, indent=1) + "\n"
    storage.write(into, "comparison.json", figures.encode())
    with drawing() as draw:
        write_charts({name: draw(chart.spec) for name, chart in pictures.items()}, into)
    storage.write(into, "comparison.html", _page(comparison, pictures).encode())
    return f"{into.uri}/comparison.html"


def _pictures(comparison: Comparison) -> dict[str, Picture]:
    compared, (first, second) = comparison.compared, comparison.names
    return {
        **picture(
            "difference",
            f"{compared.metric} of {second} minus that of {first}",
            "Mean difference over the seeds that both have; where they have none in common, the "
            "difference of means. Outlined: it surely differs from 0 (95 %, all together).",
            difference_map(compared),
        ),
        **picture(
            "ridges",
            "Best peak learning rate of both",
            "Batch sizes whose best rate is bracketed in both. Both axes are logarithmic.",
            two_ridges(compared, comparison.names),
        ),
    }


def _page(comparison: Comparison, pictures: dict[str, Picture]) -> str:
    compared, names = comparison.compared, comparison.names
    title = f"{names[1]} beside {names[0]}"
    sentences = comparison.sentences[len(comparison.warnings) :]
    shown = {name: figure(chart) for name, chart in pictures.items()}
    best = _scores(compared.own_best, names, compared)
    return document(
        title,
        [
            f"<header><h1>{text(title)}</h1>",
            paragraph(f"Differences are {names[1]} minus {names[0]}.", kind="soft"),
            *(paragraph(warning, kind="loud") for warning in comparison.warnings),
            "</header>",
            '<main id="main" tabindex="-1">',
            f'<div class="advice"><h2>The answer</h2>{bullets(sentences)}</div>',
            section("difference", "Difference of the surfaces", shown.get("difference", "")),
            section("best", "Each at its own best learning rate", best),
            section("ridges", "Ridges", shown.get("ridges", "") + _ridges(compared, names)),
            "</main>",
        ],
        pictures,
        numbers="comparison.json",
    )


def _scores(rows: pd.DataFrame, names: tuple[str, str], compared: Compared) -> str:
    columns = {
        "batch_size": "batch size",
        "grid_lr": f"{compared.lr_name} of {names[0]}",
        "first": names[0],
        "lr_second": f"{compared.lr_name} of {names[1]}",
        "second": names[1],
        "difference": "difference",
        "low": "95 % from",
        "high": "to",
        "pairs": "seeds in common",
    }
    return table(f"Best mean {compared.metric} of each batch size", rows, columns)


def _ridges(compared: Compared, names: tuple[str, str]) -> str:
    columns = {
        "batch_size": "batch size",
        "first": names[0],
        "second": names[1],
        "ratio": "ratio",
        "low": "95 % from",
        "high": "to",
    }
    return table("Best peak learning rate", compared.ridge, columns)


def _numbers(comparison: Comparison) -> dict[str, Any]:
    compared = comparison.compared
    data: dict[str, Any] = plain(
        {
            "names": list(comparison.names),
            "sentences": comparison.sentences,
            "differing": comparison.differing,
            "metric": compared.metric,
            "mode": compared.mode,
            "cells": compared.cells.to_dict("records"),
            "own_best": compared.own_best.to_dict("records"),
            "mean": asdict(compared.mean),
            "ridge": compared.ridge.to_dict("records"),
            "shift": asdict(compared.shift),
            "exponent": asdict(compared.exponent),
            "exponents": [exponent.value for exponent in compared.exponents],
            "best_sets": {
                "both": compared.both_best,
                "first": compared.first_best,
                "second": compared.second_best,
            },
        }
    )
    return data
