"""The charts of a search: the importance of its fields, its trials in parallel coordinates."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from search.analysis.importance import COMPARED, is_log, is_numeric, value_of
from search.report.charts.linked import DIM, OF_TRIAL, PICKED
from search.report.charts.surface import Chart, finished, layered
from search.study.shown import show

DRAWN_TRIALS = 300


def importance_chart(table: pd.DataFrame) -> Chart | None:
    """One bar per field, before the band that shuffled scores reach."""
    if table.empty:
        return None
    shown = table.assign(band=table["by_chance"].clip(upper=1.0))
    y = alt.Y("field:N", sort=table["field"].tolist(), title=None)
    title = "importance (PED-ANOVA, best trials against all)"
    scale = alt.Scale(domain=[0, 1])
    tooltip = [
        "field:N",
        alt.Tooltip("importance:Q", format=".3f"),
        alt.Tooltip("by_chance:Q", format=".3f", title="shuffled scores reach"),
    ]
    bands = alt.Chart(shown).mark_bar(color="#999999", opacity=0.4)
    bands = bands.encode(x=alt.X("band:Q", title=title, scale=scale), y=y, tooltip=tooltip)
    bars = alt.Chart(shown).mark_bar(color="#2a788e", height={"band": 0.5})
    bars = bars.encode(x=alt.X("importance:Q", scale=scale), y=y, tooltip=tooltip)
    return finished(layered(bands, bars), height=36 * len(table) + 20)


def parallel_coordinates(
    trials: pd.DataFrame, *, fields: Sequence[str], metric: str, mode: str
) -> Chart | None:
    """One line per trial across its fields, each with its own axis; the metric is the colour.

    With the columns `cell_batch_size` and `cell_lr`, the setting of each trial in the surface, the
    lines are linked to the other charts.
    """
    rows = trials[trials["status"].isin(COMPARED)].dropna(subset=metric)
    rows = rows[np.isfinite(rows[metric].astype(float))]
    if len(rows) < 2 or len(fields) < 2:
        return None
    rows = rows.sort_values(metric, ascending=mode == "min")
    if len(rows) > DRAWN_TRIALS:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, DRAWN_TRIALS).astype(int)]
    order = [*fields, metric]
    table, limits = _coordinates(rows, order)
    # Draw the best trials last, over the others.
    table = table.sort_values("score", ascending=mode == "max")
    pick = alt.selection_point(fields=["trial"], on="pointerover", empty=False)
    brush = alt.selection_interval(name="pick_lines", encodings=["x", "y"])
    x = alt.X(
        "field:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, grid=True, labelLimit=90)
    )
    y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[-0.06, 1.06]))
    colour = alt.Color(
        "score:Q",
        title=metric,
        scale=alt.Scale(scheme="viridis", reverse=mode == "min", zero=False),
        legend=alt.Legend(orient="top", type="gradient", gradientLength=200, format=".4~g"),
    )
    lines = alt.Chart(table).mark_line(strokeWidth=1.5)
    lines = lines.encode(
        x=x,
        y=y,
        detail="trial:N",
        color=colour,
        opacity=alt.when(pick)
        .then(alt.value(1.0))
        .when(OF_TRIAL)
        .then(alt.value(0.55))
        .otherwise(alt.value(DIM / 2)),
        size=alt.when(pick).then(alt.value(4.0)).otherwise(alt.value(1.5)),
    ).add_params(pick, brush)
    dots = alt.Chart(table).mark_point(filled=True, size=26, opacity=0.8)
    dots = dots.encode(
        x=x, y=y, color=colour, tooltip=["field:N", "value:N", "score:Q", "status:N"]
    )
    words = [
        alt.Chart(limits[limits["height"] == height])
        .mark_text(dy=dy, fontSize=11)
        .encode(x=x, y=y, text="text:N")
        for height, dy in ((0.0, 12), (1.0, -12))
    ]
    return finished(layered(lines, dots, *words).add_params(PICKED))


def _coordinates(rows: pd.DataFrame, order: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per trial and field with its height on the axis; and the texts at the axes' ends."""
    metric, parts, ends = order[-1], [], []
    for name in order:
        height, low, high = _heights(rows[name])
        part = pd.DataFrame({"field": name, "height": height, "value": rows[name].map(_label)})
        part = part.assign(trial=range(len(rows)), score=rows[metric], status=rows["status"])
        if "cell_lr" in rows:
            part = part.assign(batch_size=rows["cell_batch_size"], lr=rows["cell_lr"])
        parts.append(part)
        ends += [(name, 0.0, low), (name, 1.0, high)]
    return pd.concat(parts), pd.DataFrame(ends, columns=["field", "height", "text"])


def _label(value: Any) -> str:
    return show(value_of(value))


def _heights(column: "pd.Series[Any]") -> tuple["pd.Series[float]", str, str]:
    """The position of each value on an axis from 0 to 1, and the texts at its two ends."""
    if not is_numeric(column):
        words = column.map(_label)
        names = sorted(words.unique())
        return words.map(names.index) / max(len(names) - 1, 1), names[0], names[-1]
    values = column.astype(float)
    scaled = np.log(values) if is_log(values) else values
    span = scaled.max() - scaled.min()
    height = (scaled - scaled.min()) / span if span else scaled * 0 + 0.5
    return height, _label(float(values.min())), _label(float(values.max()))
