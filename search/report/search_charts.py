"""The charts of a search: its fields' importance, its trials in parallel coordinates."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from search.analysis.importance import COMPARED, is_log, is_numeric, value_of
from search.report.charts import Chart, finished, over_each_other

DRAWN_TRIALS = 300


def importance_chart(table: pd.DataFrame) -> Chart | None:
    """A bar a field."""
    if table.empty:
        return None
    bars = alt.Chart(table).mark_bar(color="#2a788e")
    shown = bars.encode(
        x=alt.X("importance:Q", title="importance (PED-ANOVA, the best against all)"),
        y=alt.Y("field:N", sort="-x", title=None),
        tooltip=["field:N", alt.Tooltip("importance:Q", format=".3f")],
    )
    return finished(shown, height=36 * len(table) + 20)


def parallel_coordinates(
    trials: pd.DataFrame, *, fields: Sequence[str], metric: str, mode: str
) -> Chart | None:
    """A line a trial across its fields, each on an axis of its own; colour is the metric."""
    rows = trials[trials["status"].isin(COMPARED)].dropna(subset=metric)
    rows = rows[np.isfinite(rows[metric].astype(float))]
    if len(rows) < 2 or len(fields) < 2:
        return None
    rows = rows.sort_values(metric, ascending=mode == "min")
    if len(rows) > DRAWN_TRIALS:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, DRAWN_TRIALS).astype(int)]
    order = [*fields, metric]
    parts, ends = [], []
    for name in order:
        height, low, high = _heights(rows[name])
        part = pd.DataFrame({"field": name, "height": height, "value": rows[name].map(_shown)})
        parts.append(part.assign(trial=range(len(rows)), score=rows[metric], status=rows["status"]))
        ends += [(name, 0.0, low), (name, 1.0, high)]
    # The best are drawn last, over the others.
    table = pd.concat(parts).sort_values("score", ascending=mode == "max")
    pick = alt.selection_point(fields=["trial"], on="pointerover", empty=False)
    x = alt.X(
        "field:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, grid=True, labelLimit=90)
    )
    y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[-0.06, 1.06]))
    lines = alt.Chart(table).mark_line(strokeWidth=1.5)
    colour = alt.Color(
        "score:Q",
        title=metric,
        scale=alt.Scale(scheme="viridis", reverse=mode == "min", zero=False),
        legend=alt.Legend(orient="top", type="gradient", gradientLength=200, format=".4~g"),
    )
    drawn = lines.encode(
        x=x,
        y=y,
        detail="trial:N",
        color=colour,
        opacity=alt.when(pick).then(alt.value(1.0)).otherwise(alt.value(0.55)),
        size=alt.when(pick).then(alt.value(4.0)).otherwise(alt.value(1.5)),
    ).add_params(pick)
    dots = (
        alt.Chart(table)
        .mark_point(filled=True, size=26, opacity=0.8)
        .encode(x=x, y=y, color=colour, tooltip=["field:N", "value:N", "score:Q", "status:N"])
    )
    limits = pd.DataFrame(ends, columns=["field", "height", "text"])
    words = [
        alt.Chart(limits[limits["height"] == at])
        .mark_text(dy=dy, fontSize=11)
        .encode(x=x, y=y, text="text:N")
        for at, dy in ((0.0, 12), (1.0, -12))
    ]
    return finished(over_each_other(drawn, dots, *words))


def _shown(value: Any) -> str:
    known = value_of(value)
    return f"{known:.4g}" if isinstance(known, float) else str(known)


def _heights(column: "pd.Series[Any]") -> tuple["pd.Series[float]", str, str]:
    """Where each value lies on an axis from 0 to 1, and what stands at its two ends."""
    if not is_numeric(column):
        words = column.map(_shown)
        names = sorted(words.unique())
        return words.map(names.index) / max(len(names) - 1, 1), names[0], names[-1]
    values = column.astype(float)
    scaled = np.log(values) if is_log(values) else values
    span = scaled.max() - scaled.min()
    height = (scaled - scaled.min()) / span if span else scaled * 0 + 0.5
    return height, _shown(float(values.min())), _shown(float(values.max()))
