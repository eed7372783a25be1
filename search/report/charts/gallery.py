"""The charts of a report with titles and captions, for the page and as PNG and SVG."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.groups import STEP
from search.analysis.tuning_curve import GRID
from search.report.charts.compared import best_by_batch_size_chart
from search.report.charts.search import importance_chart, parallel_coordinates
from search.report.charts.surface import (
    COLUMNS,
    LABELLED_COLUMNS,
    Chart,
    collapse_chart,
    heat_map,
    lr_curves,
    num_columns,
    ridge_chart,
    scores_of,
    shown_range,
    unit_of,
)
from search.report.charts.training import (
    best_points,
    curves_of,
    learning_curves,
    noise_scale_chart,
    target_chart,
    throughput_chart,
)
from search.report.charts.tuning_curve import tuning_chart
from search.report.findings import Findings
from search.report.tuning_curve import READ, curve_of
from search.study.shown import show


@dataclass(frozen=True)
class Picture:
    """A chart as a Vega-Lite specification of fixed width; its files have the name `name`."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]


def picture(name: str, title: str, caption: str, chart: Chart | None) -> dict[str, Picture]:
    """The picture by its name; empty without a chart."""
    if chart is None:
        return {}
    with alt.data_transformers.enable(max_rows=None):
        spec = chart.to_dict(validate=False)  # a test validates them, which takes long
    return {name: Picture(name, title, caption, {**spec, "description": f"{title}. {caption}"})}


def surface_name(analysis: Analysis) -> str:
    """Which of several surfaces: `optimizer=adam, epochs=5`; empty if there is only one.

    A variant or a step has a name of its own.
    """
    shown = {k: show(v) if isinstance(v, float) else str(v) for k, v in analysis.of.items()}
    return ", ".join(value if name == STEP else f"{name}={value}" for name, value in shown.items())


def slug(text: str) -> str:
    """A file name."""
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", text).strip("_")[:80]


def surface_pictures(analysis: Analysis, *, suffix: str = "") -> dict[str, Picture]:
    """The charts of every surface: heat map, lr curves and ridge."""
    metric, name = analysis.metric, surface_name(analysis)
    which = f" for {name}" if name else ""
    n = int(analysis.cells["n"].max()) if len(analysis.cells) else 0
    mean = f"mean of up to {n} {'trials' if analysis.binned else 'seeds'}" if n > 1 else "one seed"
    near = ""
    if math.isfinite(analysis.margin) and len(analysis.compared):
        near = f"; dashed: others within {show(analysis.margin)} of the best with 95 % confidence"
    unit = f" of steps of {unit_of(analysis):.1g}" if len(analysis.ridge) else ""
    unit += ", the noise of a trial" if analysis.noise.std > 0 else ""
    beyond = _at_edge(scores_of(analysis), analysis.mode)
    cell, no_score = _cell_words(num_columns(analysis))
    return {
        **picture(
            f"surface{suffix}",
            f"{metric} over batch size and {analysis.lr_name}{which}",
            f"{cell}: {mean}. Colour: how far it is behind the best, which is yellow, on a "
            f"logarithmic scale{unit}. Diamond: the best "
            f"learning rate of each batch size. Outlined: settings that cannot be told from the "
            f"best{near}. {no_score}. On the page, click on settings (several: with Shift) to see "
            f"only these.",
            heat_map(analysis),
        ),
        **picture(
            f"lr_curves{suffix}",
            f"{metric} against the peak learning rate{which}",
            "One line per batch size (means); one dot per trial. Diamond: the best rate, from a "
            "parabola through the best three, with its 95 % interval; hollow if it is the smallest "
            f"or largest rate tried. Click on the legend to select a batch size.{beyond}",
            lr_curves(analysis),
        ),
        **picture(
            f"ridge{suffix}",
            f"Best peak learning rate against batch size{which}",
            "Both axes are logarithmic; bars are 95 % intervals. Hollow points: the best rate is "
            "the smallest or largest tried (unbracketed). Solid line: the fitted power law. Dashed "
            "lines: constant, square-root and linear scaling.",
            ridge_chart(analysis),
        ),
    }


def _cell_words(num_columns: int) -> tuple[str, str]:
    """What shows a setting of the heat map, and one without a score."""
    if num_columns <= LABELLED_COLUMNS:
        why = "the trials diverged (div.), were stopped early (stop.) or failed (fail.)"
        return "Number", f"Grey: no score, because {why}"
    why = "the trials diverged, were stopped early or failed"
    if num_columns <= COLUMNS:
        return "Each cell", f"Grey: no score, because {why}"
    return "Each square", f"Hollow: no score, because {why}"


def _at_edge(scores: "pd.Series[float]", mode: str) -> str:
    """A sentence on the scores beyond the ends of their axis, if there are any."""
    if scores.empty:
        return ""
    low, high, is_cut = shown_range(scores, mode=mode)
    end = f"below {low:.3g}" if mode == "max" else f"above {high:.3g}"
    return f" Scores {end} are drawn at the edge." if is_cut else ""


def compared_pictures(analyses: Sequence[Analysis]) -> dict[str, Picture]:
    """The chart of several surfaces; empty for one."""
    return picture(
        "best_by_batch_size",
        f"Best {analyses[0].metric} by batch size",
        "Each surface at the best learning rate of each batch size: mean and range over seeds. The "
        "best of several rates looks a little better than it is.",
        best_by_batch_size_chart({surface_name(analysis): analysis for analysis in analyses}),
    )


def training_pictures(analysis: Analysis, epochs: pd.DataFrame | None) -> dict[str, Picture]:
    """The charts of the best surface only."""
    metric, curves = analysis.metric, curves_of(analysis, epochs)
    at_edge = "" if curves.empty else _at_edge(best_points(curves), analysis.mode)
    lines = (
        "Thick lines: the best trial of each batch size. Thin lines: other trials."
        if analysis.binned
        else "Thick lines: each batch size with its best learning rate, mean and range over seeds. "
        "Thin lines: other rates."
    )
    return {
        **picture(
            "learning_curves",
            f"{metric} during training",
            f"{lines}{at_edge}",
            learning_curves(analysis, epochs),
        ),
        **picture(
            "collapse",
            "Which scaling rule aligns the curves",
            "R2 of one parabola in log lr - a log B for all settings, for each exponent a: 0 is a "
            "constant rate, 1/2 is square-root and 1 is linear scaling.",
            collapse_chart(analysis),
        ),
        **picture(
            "updates_to_target",
            f"Updates to reach {metric} {show(analysis.target)}",
            "Each batch size with the rate that needs the fewest images; both axes are "
            "logarithmic. Triangles: at most so many, as seeds reached it by their first "
            "evaluation. Dashed: perfect scaling, where doubling the batch size halves the "
            "updates. Solid: the fitted time-to-target curve, if there is one.",
            target_chart(analysis),
        ),
        **picture(
            "noise_scale",
            "Measured gradient noise scale",
            "Median and range over the trials of a batch size. Dashed: noise scale equal to batch "
            "size.",
            noise_scale_chart(analysis),
        ),
        **picture(
            "throughput",
            "Training speed in images per second",
            "Median over the trials of a batch size.",
            throughput_chart(analysis),
        ),
    }


def search_pictures(findings: Findings) -> dict[str, Picture]:
    """Importance and parallel coordinates, for searches."""
    kind: dict[str, Any] = {"metric": findings.metric, "mode": findings.mode}
    return {
        **picture(
            "importance",
            "Importance of the searched fields",
            "How much each field distinguishes the best tenth of the trials (at least ten) from "
            "all trials (PED-ANOVA); importances add up to 1, on pure noise as well. Grey band: "
            "what shuffled scores reach. Without any effect no bar leaves its band in 95 of 100 "
            "searches. Stopped trials count with their last score, diverged trials with the worst "
            "score.",
            importance_chart(findings.importance),
        ),
        **picture(
            "parallel_coordinates",
            "All trials and fields",
            "One line per trial and one axis per field; yellow is best. Stopped trials have their "
            "last score. On the page, draw a rectangle over lines to see only these.",
            parallel_coordinates(_with_cells(findings), fields=findings.fields, **kind)
            if findings.fields
            else None,
        ),
    }


def tuning_pictures(findings: Findings) -> dict[str, Picture]:
    """The tuning curve."""
    curve = curve_of(findings)
    name = surface_name(findings.analyses[0]) if curve is not None and curve.kind == GRID else ""
    return picture(
        "tuning_curve",
        f"Best {findings.metric} against the number of trials{f' for {name}' if name else ''}",
        READ[curve.kind] if curve is not None else "",
        tuning_chart(curve, metric=findings.metric),
    )


def _with_cells(findings: Findings) -> pd.DataFrame:
    """The trials with the setting of the surface that each belongs to, where there is one."""
    parts = [analysis.trials[["batch_size", "peak"]] for analysis in findings.analyses]
    cells = pd.concat(parts)
    if cells.index.has_duplicates or not findings.trials.index.is_unique:
        return findings.trials
    names = {"batch_size": "cell_batch_size", "peak": "cell_lr"}
    return findings.trials.join(cells.rename(columns=names))
