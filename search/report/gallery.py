"""The charts of a report, each with its caption: for the page, and as PNG and SVG."""

import re
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from search.analysis.analysis import Analysis
from search.report.charts import Chart, collapse_chart, heat_map, lr_curves, ridge_chart
from search.report.findings import Findings
from search.report.search_charts import importance_chart, parallel_coordinates
from search.report.sentences import show
from search.report.training_charts import (
    learning_curves,
    noise_scale_chart,
    target_chart,
    throughput_chart,
)

PNG_SCALE = 2.0


@dataclass(frozen=True)
class Picture:
    """A chart as a Vega-Lite specification with a fixed width; `name` is that of its files."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]


def picture(name: str, title: str, caption: str, chart: Chart | None) -> dict[str, Picture]:
    """None or one picture, by its name."""
    if chart is None:
        return {}
    with alt.data_transformers.enable(max_rows=None):
        spec = chart.to_dict()
    return {name: Picture(name, title, caption, {**spec, "description": f"{title}. {caption}"})}


def said_of(analysis: Analysis) -> str:
    """Which surface of several: `optimizer=adam, epochs=5`; empty for the only one."""
    of = analysis.of.items()
    return ", ".join(f"{k}={show(v) if isinstance(v, float) else v}" for k, v in of)


def slug(text: str) -> str:
    """A name for a file."""
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", text).strip("_")[:80]


def surface_pictures(analysis: Analysis, *, suffix: str = "") -> dict[str, Picture]:
    """Heat map, lr curves and ridge: what is drawn of every surface."""
    metric, of = analysis.metric, said_of(analysis)
    about = f" of {of}" if of else ""
    n = int(analysis.cells["n"].max()) if len(analysis.cells) else 0
    mean = f"mean of up to {n} {'trials' if analysis.binned else 'seeds'}" if n > 1 else "one seed"
    return {
        **picture(
            f"surface{suffix}",
            f"{metric} over batch size and {analysis.lr_name}{about}",
            f"Colour and number: {mean}, yellow is best. Diamond: the best learning rate of each "
            "batch size. Outlined: cells that cannot be told from the best. Grey: no score, the "
            "trials diverged (div.), were stopped early (stop.) or failed.",
            heat_map(analysis),
        ),
        **picture(
            f"lr_curves{suffix}",
            f"{metric} against the peak learning rate{about}",
            "A line a batch size through the means, a dot a trial. Diamond: the best rate, by a "
            "parabola through the best three, with its 95 % interval; hollow where it is the "
            "smallest or largest tried. A click on the legend picks a batch size.",
            lr_curves(analysis),
        ),
        **picture(
            f"ridge{suffix}",
            f"Best peak learning rate against batch size{about}",
            "Both axes logarithmic; bars are 95 % intervals; hollow points are unbracketed, the "
            "best lies on an edge of the rates tried. Solid: the fitted power. Dashed: constant, "
            "square-root and linear scaling.",
            ridge_chart(analysis),
        ),
    }


def training_pictures(analysis: Analysis, epochs: pd.DataFrame | None) -> dict[str, Picture]:
    """What is drawn of the best surface only."""
    metric = analysis.metric
    return {
        **picture(
            "learning_curves",
            f"{metric} as training goes on",
            "Thick: each batch size at its best learning rate, mean of the seeds with their "
            "range. Thin: other rates. The menu picks a batch size.",
            learning_curves(analysis, epochs),
        ),
        **picture(
            "collapse",
            "Which scaling makes the curves of all batch sizes one",
            "R2 of one parabola in log lr - a log B through all cells, for each exponent a: 0 is a "
            "constant rate, 1/2 square-root, 1 linear scaling.",
            collapse_chart(analysis),
        ),
        **picture(
            "updates_to_target",
            f"Updates to reach {metric} {show(analysis.target)}",
            "Each batch size at the rate that needs the fewest images; both axes logarithmic. "
            "Dashed: perfect scaling, where twice the batch halves the updates. Solid: the fitted "
            "front, where there is one.",
            target_chart(analysis),
        ),
        **picture(
            "noise_scale",
            "Measured gradient noise scale",
            "Median over the trials of a batch size. Dashed: where it equals the batch size.",
            noise_scale_chart(analysis),
        ),
        **picture(
            "throughput",
            "Images trained on per second",
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
            "Importance of what was searched",
            "How much each field sets the best tenth of the trials, or the best ten, apart from "
            "all (PED-ANOVA). "
            "Stopped trials count with their last score, diverged ones as the worst.",
            importance_chart(findings.importance),
        ),
        **picture(
            "parallel_coordinates",
            "Every trial across the fields",
            "A line a trial, each field on its own axis, yellow is best. Stopped trials have the "
            "score at which they were stopped.",
            parallel_coordinates(findings.trials, fields=findings.fields, **kind)
            if findings.fields
            else None,
        ),
    }


def drawn(shown: Picture) -> tuple[str, bytes]:
    """The picture as SVG and PNG."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(shown.spec)
    return svg, vl_convert.svg_to_png(svg, scale=PNG_SCALE)
