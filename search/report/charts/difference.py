"""The charts of two studies: the difference of their surfaces, and both ridges."""

from typing import Any

import altair as alt
import pandas as pd

from search.analysis.side_by_side import Compared
from search.report.charts.surface import (
    LABELLED_COLUMNS,
    ROW_HEIGHT,
    SHORT,
    Chart,
    batch_axis,
    finished,
    layered,
    log_axis,
)
from search.study.shown import decimals

RANGE = ["#b35806", "#f7f7f7", "#542788"]  # orange to purple, readable in colour blindness


def difference_map(compared: Compared) -> Chart | None:
    """The second's mean minus the first's at each setting of both; sure ones are outlined."""
    cells = compared.cells
    if cells.empty:
        return None
    places = decimals(cells["difference"], digits=1)
    largest = float(cells["difference"].abs().max()) or 1.0
    cells = cells.assign(
        label=cells["difference"].map(f"{{:+.{places}f}}".format),
        sure=(cells["low"] > 0) | (cells["high"] < 0),
        dark=cells["difference"].abs() > 0.6 * largest,
    )
    padded = alt.Scale(padding=0.06)
    axis = alt.Axis(labelExpr=SHORT, labelAngle=0, labelOverlap=True)
    encoded: dict[str, Any] = {
        "x": alt.X("grid_lr:O", title=compared.lr_name, axis=axis, scale=padded),
        "y": alt.Y("batch_size:O", title="batch size", scale=padded),
        "tooltip": [
            alt.Tooltip("batch_size:Q", title="batch size"),
            alt.Tooltip("grid_lr:Q", title=compared.lr_name, format=".4~g"),
            alt.Tooltip("first:Q", format=".4~g"),
            alt.Tooltip("second:Q", format=".4~g"),
            alt.Tooltip("difference:Q", format="+.3~g"),
            alt.Tooltip("low:Q", title="95 % from (all together)", format="+.3~g"),
            alt.Tooltip("high:Q", title="to", format="+.3~g"),
            alt.Tooltip("pairs:Q", title="seeds in common"),
        ],
    }

    def of(rows: pd.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(**encoded)

    colour = alt.Color(
        "difference:Q",
        title="second minus first",
        scale=alt.Scale(domain=[-largest, 0, largest], range=RANGE),
        legend=alt.Legend(orient="top", gradientLength=200, format="+.2~g", titleLimit=400),
    )
    ink = alt.when("datum.dark").then(alt.value("#ffffff")).otherwise(alt.value("#000000"))
    layers = [
        of(cells).mark_rect().encode(color=colour),
        of(cells[cells["sure"]]).mark_rect(filled=False, strokeWidth=3),
    ]
    if cells["grid_lr"].nunique() <= LABELLED_COLUMNS:
        layers.append(of(cells).mark_text(fontSize=11).encode(text="label:N", color=ink))
    height = ROW_HEIGHT * cells["batch_size"].nunique()
    return finished(layered(*layers), height=height)


def two_ridges(compared: Compared, names: tuple[str, str]) -> Chart | None:
    """The best peak lr of both at each batch size."""
    if compared.ridge.empty:
        return None
    rows = compared.ridge.melt(
        "batch_size", ["first", "second"], var_name="study", value_name="lr"
    ).replace({"study": dict(zip(("first", "second"), names, strict=True))})
    encoded: dict[str, Any] = {
        "x": batch_axis(rows["batch_size"]),
        "y": log_axis("lr", title="best peak learning rate", axis=alt.Y),
        "color": alt.Color(
            "study:N",
            scale=alt.Scale(domain=list(names), range=[RANGE[0], RANGE[2]]),
            legend=alt.Legend(orient="top"),
            title=None,
        ),
        "shape": alt.Shape("study:N", scale=alt.Scale(domain=list(names)), title=None),
        "tooltip": [
            alt.Tooltip("study:N"),
            alt.Tooltip("batch_size:Q", title="batch size"),
            alt.Tooltip("lr:Q", title="best peak lr", format=".4~g"),
        ],
    }
    chart = alt.Chart(rows)
    lines = chart.mark_line(strokeWidth=1).encode(
        **{name: e for name, e in encoded.items() if name != "shape"}
    )
    return finished(
        layered(lines, chart.mark_point(size=90, filled=True, opacity=1).encode(**encoded))
    )
