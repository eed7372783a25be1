"""Charts of training: learning curves, updates to a target, noise scale, throughput."""

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.analysis.analysis import Analysis
from search.analysis.costs.critical_batch import Front
from search.analysis.surface import usable
from search.report.charts.linked import OF_CELL, PICKED, clear_if
from search.report.charts.surface import (
    SOFT,
    Chart,
    batch_axis,
    batch_colour,
    finished,
    layered,
    log_axis,
    top_of,
)

OTHER_CURVES = 40  # curves of lrs that are not the best of their batch size
EVALUATIONS = 60  # points of a curve


def learning_curves(analysis: Analysis, epochs: pd.DataFrame | None) -> Chart | None:
    """The best curve of each batch size, mean and range over seeds; others as thin lines."""
    table = curves_of(analysis, epochs)
    if table.empty:
        return None
    sizes = sorted(int(b) for b in table["batch_size"].unique())
    tooltip = [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("lr:Q", title="peak lr", format=".4~g"),
        alt.Tooltip("epoch:Q", title="evaluation"),
        alt.Tooltip("mean:Q", title=f"mean {analysis.metric}", format=".4~g"),
        alt.Tooltip("count:Q", title="seeds"),
    ]
    encoded: dict[str, Any] = {
        "x": alt.X(
            "epoch:Q",
            title="evaluation",
            axis=alt.Axis(values=whole_ticks(table["epoch"]), format="d"),
        ),
        "y": alt.Y(
            "mean:Q", title=analysis.metric, scale=top_of(best_points(table), mode=analysis.mode)
        ),
        "color": batch_colour(
            legend=alt.Legend(orient="top", symbolOpacity=1), scale=alt.Scale(domain=sizes)
        ),
        "detail": alt.Detail(["batch_size:O", "lr:Q", "run:N"]),
    }

    def of(rows: pd.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(**encoded)

    best_rows, other_rows = table[table["best"]], table[~table["best"]]
    repeated = best_rows[best_rows["count"] > 1]
    layers = [
        of(other_rows).mark_line(strokeWidth=1).encode(strokeOpacity=clear_if(OF_CELL, 0.3)),
        of(repeated)
        .mark_area(opacity=1)
        .encode(y=alt.Y("min:Q"), y2="max:Q", fillOpacity=clear_if(OF_CELL, 0.18)),
        of(best_rows).mark_line(strokeWidth=2.5).encode(strokeOpacity=clear_if(OF_CELL)),
        of(best_rows)
        .mark_point(size=30, filled=True, opacity=1)
        .encode(tooltip=tooltip, fillOpacity=clear_if(OF_CELL)),
    ]
    return finished(layered(*layers).add_params(PICKED))


def best_points(curves: pd.DataFrame) -> "pd.Series[float]":
    """The points of the curves of the best lrs, on whose better half the scale is spent."""
    return curves.loc[curves["best"], "mean"].astype(float)


def whole_ticks(values: "pd.Series[int]") -> list[int]:
    """Round whole numbers over the values' range, at most about ten: Vega writes 1.5 as 2."""
    low, high = int(values.min()), int(values.max())
    step = next(s * 10**k for k in range(9) for s in (1, 2, 5) if s * 10**k * 10 >= high - low)
    return [low, *(tick for tick in range(step, high + 1, step) if tick > low)]


def curves_of(analysis: Analysis, epochs: pd.DataFrame | None) -> pd.DataFrame:
    """The points of the curves: mean, min, max and count, and whether a curve is its size's best.

    A curve is of a batch size and lr over seeds, the best one that of the best lr. In bins trials
    differ in more than the seed: there a curve is of one trial, which is in the column `run`.
    """
    if epochs is None or analysis.metric not in epochs or analysis.ridge.empty:
        return pd.DataFrame()
    scored = usable(analysis.trials, metric=analysis.metric)
    scored = scored[scored["trial_key"].isin(epochs["trial_key"])]
    known = scored[["trial_key", "batch_size", "peak"]].rename(columns={"peak": "lr"})
    rows = epochs[["trial_key", "epoch", analysis.metric]].merge(known, on="trial_key")
    rows = rows.rename(columns={analysis.metric: "score"})
    rows = rows[np.isfinite(rows["score"].astype(float))]
    if rows.empty:
        return rows
    rows["run"] = rows["trial_key"].astype(str) if analysis.binned else ""
    of_curve = ["batch_size", "lr", "run"]
    step = -(-int(rows["epoch"].max()) // EVALUATIONS)
    last = rows.groupby(of_curve)["epoch"].transform("max")
    rows = rows[(rows["epoch"] % step == 0) | (rows["epoch"] == last) | (rows["epoch"] == 1)]
    table = rows.groupby([*of_curve, "epoch"])["score"].agg(["mean", "min", "max", "count"])
    # Where most seeds have ended, the mean of the others would leap.
    most = table.groupby(of_curve)["count"].transform("max")
    table = table[2 * table["count"] >= most].reset_index()
    names = pd.MultiIndex.from_frame(table[of_curve])
    table["best"] = names.isin(_best_curves(analysis, scored))
    others = names[~table["best"]].unique()
    if len(others) > OTHER_CURVES:
        drawn = np.linspace(0, len(others) - 1, OTHER_CURVES).astype(int)
        table = table[table["best"] | names.isin(others[drawn])]
    return table


def _best_curves(analysis: Analysis, scored: pd.DataFrame) -> list[tuple[int, float, str]]:
    """Batch size, lr and run of the best curve of each batch size."""
    if not analysis.binned:
        sizes, lrs = analysis.ridge["batch_size"], analysis.ridge["lr"]
        return [(size, lr, "") for size, lr in zip(sizes, lrs, strict=True)]
    ranked = scored.sort_values(analysis.metric, ascending=analysis.mode == "min")
    best = ranked.groupby("batch_size").head(1)
    runs = best["trial_key"].astype(str)
    return list(zip(best["batch_size"], best["peak"], runs, strict=True))


def target_chart(analysis: Analysis) -> Chart | None:
    """Updates to the target against batch size, with perfect scaling and the fitted curve."""
    needed = analysis.needed
    if len(needed) < 2:
        return None
    rows = needed.astype(float)
    half = 1.96 * rows["spread"].clip(upper=0.5)
    rows["low"], rows["high"] = rows["updates"] * (1 - half), rows["updates"] * (1 + half)
    is_bound = rows.get("early", 0 * rows["n"]) > 0
    rows["shape"] = np.where(is_bound, "triangle-down", "circle")
    x = batch_axis(rows["batch_size"])
    y = log_axis("updates", title="updates to the target", axis=alt.Y)
    b = np.geomspace(rows["batch_size"].min(), rows["batch_size"].max(), 40)
    first = rows.iloc[0]
    perfect = pd.DataFrame({"batch_size": b, "updates": first["updates"] * first["batch_size"] / b})
    tooltip = [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("lr:Q", title="peak lr", format=".4~g"),
        alt.Tooltip("updates:Q", format=",.0f"),
        alt.Tooltip("examples_seen:Q", title="images", format=",.0f"),
        alt.Tooltip("train_s:Q", title="seconds", format=",.1f"),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    points = alt.Chart(rows).encode(x=x, y=y, tooltip=tooltip)
    words = alt.Chart(perfect.tail(1)).mark_text(align="right", dy=-12, opacity=SOFT)
    low = log_axis("low", title="updates to the target", axis=alt.Y)
    layers: list[Any] = [
        alt.Chart(perfect)
        .mark_line(strokeDash=[4, 4], strokeWidth=1, opacity=SOFT)
        .encode(x=x, y=y),
        words.encode(x=x, y=y, text=alt.value("perfect scaling")),
        alt.Chart(rows.dropna(subset="low"))
        .mark_rule(strokeWidth=2)
        .encode(x=x, y=low, y2="high:Q"),
        points.mark_point(size=90, filled=True, opacity=1).encode(
            color=batch_colour(legend=None), shape=alt.Shape("shape:N", scale=None)
        ),
    ]
    if math.isfinite(analysis.front.critical_batch_size):
        layers += _fitted(analysis.front, b, x=x, y=y)
    return finished(layered(*layers))


def _fitted(front: Front, b: NDArray[np.float64], *, x: alt.X, y: alt.Y) -> list[Any]:
    """The time-to-target curve, and the critical batch size if it lies among those tried."""
    curve = pd.DataFrame({"batch_size": b})
    curve["updates"] = front.s_min * (1 + front.critical_batch_size / b)
    layers: list[Any] = [alt.Chart(curve).mark_line(strokeWidth=2).encode(x=x, y=y)]
    is_closed = math.isfinite(front.low) and math.isfinite(front.high)
    if is_closed and b[0] <= front.critical_batch_size <= b[-1]:
        row = pd.DataFrame({"batch_size": [front.critical_batch_size], "text": ["critical"]})
        rule = alt.Chart(row).encode(x=x)
        layers += [
            rule.mark_rule(strokeWidth=1, opacity=SOFT),
            rule.mark_text(opacity=SOFT, align="left", dx=4, y=10).encode(text="text:N"),
        ]
    return layers


def noise_scale_chart(analysis: Analysis) -> Chart | None:
    """The measured gradient noise scale against batch size, and the line where they are equal."""
    rows = analysis.noise_scales[["batch_size", "noise_scale", "least", "most", "n"]].astype(float)
    rows = rows[rows["least"] > 0]
    if rows.empty:
        return None
    x = batch_axis(rows["batch_size"])
    y = log_axis("noise_scale", title="gradient noise scale (images)", axis=alt.Y)
    least = log_axis("least", title="gradient noise scale (images)", axis=alt.Y)
    tooltip = [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("noise_scale:Q", title="median noise scale (images)", format=".4~g"),
        alt.Tooltip("least:Q", title="smallest", format=".4~g"),
        alt.Tooltip("most:Q", title="largest", format=".4~g"),
        alt.Tooltip("n:Q", title="trials"),
    ]
    points = alt.Chart(rows).encode(x=x, y=y)
    equal = rows[["batch_size"]].assign(noise_scale=rows["batch_size"])
    dashed = alt.Chart(equal)
    layers = [
        dashed.mark_line(strokeDash=[4, 4], strokeWidth=1, opacity=SOFT).encode(x=x, y=y),
        points.mark_line(strokeWidth=1),
        alt.Chart(rows[rows["n"] > 1]).mark_rule(strokeWidth=2).encode(x=x, y=least, y2="most:Q"),
        points.mark_point(size=90, filled=True, opacity=1).encode(
            color=batch_colour(legend=None), tooltip=tooltip
        ),
    ]
    return finished(layered(*layers))


def throughput_chart(analysis: Analysis) -> Chart | None:
    """Training speed in images per second against batch size."""
    rows = analysis.throughput.dropna(subset="images_per_s")
    if rows.empty:
        return None
    columns = [n for n in ("batch_size", "images_per_s", "train_wall_s", "n") if n in rows]
    rows = rows[columns].astype(float)
    tooltip = [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("images_per_s:Q", title="images/s", format=",.0f"),
        alt.Tooltip("train_wall_s:Q", title="seconds per trial", format=",.1f"),
        alt.Tooltip("n:Q", title="trials"),
    ]
    points = alt.Chart(rows).encode(
        x=batch_axis(rows["batch_size"]),
        y=alt.Y("images_per_s:Q", title="images per second", scale=alt.Scale(zero=True)),
    )
    layers = [
        points.mark_line(strokeWidth=1),
        points.mark_point(size=90, filled=True, opacity=1).encode(
            color=batch_colour(legend=None), tooltip=tooltip
        ),
    ]
    return finished(layered(*layers))
