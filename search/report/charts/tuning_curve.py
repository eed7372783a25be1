"""The chart of a tuning curve: the best score against the number of trials."""

import altair as alt
import numpy as np

from search.analysis.tuning_curve import IN_ORDER, TuningCurve
from search.report.charts.surface import Chart, finished, layered

ROOM = 0.15  # of the range of the line, beyond its ends
LONG = 20  # more trials than this are drawn on a logarithmic axis


def tuning_chart(curve: TuningCurve | None, *, metric: str) -> Chart | None:
    """A line, with its band if it has one; None where fewer than two points have a score."""
    if curve is None:
        return None
    rows = curve.rows[np.isfinite(curve.rows["best"])]
    if len(rows) < 2:
        return None
    bottom, top = rows["best"].min(), rows["best"].max()
    room = ROOM * (top - bottom) or 0.01 * abs(top) or 1.0
    ends = [bottom - room, top + room]
    is_in_order = curve.kind == IN_ORDER
    word = f"best {metric} so far" if is_in_order else f"median best {metric}"
    is_long = rows["trials"].max() > LONG
    x_scale = alt.Scale(nice=False, padding=8)
    x = alt.X(
        "trials:Q",
        title="trials that ended" if is_in_order else "trials",
        scale=alt.Scale(type="log", base=2, nice=False, padding=8) if is_long else x_scale,
        axis=alt.Axis(format="d", tickMinStep=1),
    )
    y_scale = alt.Scale(domain=ends, zero=False, nice=False)
    y = alt.Y("best:Q", title=word, scale=y_scale)
    bounds = ["low", "high"] if "low" in rows else []
    tooltip = ["trials:Q", alt.Tooltip("best:Q", title=word, format=".4~g")]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".4~g") for name in bounds]
    line = alt.Chart(rows.replace([np.inf, -np.inf], np.nan))
    line = line.mark_line(
        interpolate="step-after" if is_in_order else "linear",
        strokeWidth=2,
        clip=True,
        point=False if is_in_order else {"size": 18},
    )
    layers = [line.encode(x=x, y=y, tooltip=tooltip)]
    if bounds:
        drawn = rows.assign(**{name: rows[name].clip(*ends) for name in bounds})
        band = alt.Chart(drawn).mark_area(color="#2a788e", fillOpacity=0.25, opacity=1, clip=True)
        layers.insert(0, band.encode(x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q"))
    return finished(layered(*layers))
