"""Charts of one surface: heat map, lr curves, ridge, collapse.

Each function takes an `Analysis` and returns an Altair chart, which a notebook displays, or None if
there is nothing to draw. Colours come from the theme, so that a page can replace it by a dark one.
"""

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.surface import usable
from search.report.charts.linked import OF_CELL, OF_SIZE, PICKED, clear_if
from search.study.shown import SMALL

Chart = alt.Chart | alt.LayerChart

WIDTH, HEIGHT = 640, 320  # px
COLUMN_WIDTH = 40  # px: in a narrower cell its number does not fit, so a page scrolls
ROW_HEIGHT = 46  # px of a batch size in the heat map
COLUMNS = 24  # of the heat map: with more columns each trial is drawn at its lr
LABELLED_COLUMNS = 12  # of the heat map: with more columns a cell is too narrow for its number
UNKNOWN_NOISE = 0.02  # of the range of scores: what counts as one unit where the noise is unknown
FAR = 4.0  # times as far behind the best as the median: not shown to scale
DARK = 0.45  # of the colour scale: from there on numbers are white
ALONE = 0.01  # of the scale, on either side of scores that are all the same
ROOM = 0.02  # of the range, beyond its ends
SOFT, FAINT = 0.65, 0.12  # opacity of references, and of cells without a score
RATE = "peak learning rate"
SHORT = "format(datum.value, '.3~g')"
WHOLE = "format(datum.value, 'd')"
# If a logarithmic axis spans more than about a decade, only its ticks at 1, 2 and 5 times a power
# of ten have labels.
ROUND_ONES = (
    "domain('{axis}')[1] / domain('{axis}')[0] < 15 || "
    "indexof(['1', '2', '5'], replace(format(datum.value, '.1e'), /\\.0e.*/, '')) >= 0"
    f" ? {SHORT} : ''"
)
REFERENCES = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}
PICK_CELL = alt.selection_point(name="pick_cell", fields=["batch_size", "lr"])
DIAMOND: dict[str, Any] = {"shape": "diamond", "size": 55, "filled": True, "opacity": 1}


def theme(*, dark: bool) -> dict[str, Any]:
    """Vega-Lite's config: viridis without the end that is invisible on the background."""
    ink, soft, grid = ("#e8e8e8", "#b9bec5", "#3a4048") if dark else ("#1b1f24", "#57606a", "#dde")
    batches = {"scheme": "viridis", "extent": [0.35, 1.0] if dark else [0.0, 0.82]}
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    lines = {"gridColor": grid, "domainColor": soft, "tickColor": soft}
    return {
        "background": "transparent" if dark else "white",
        "view": {"stroke": None},
        "axis": {**text, **lines, "titleFontWeight": "normal"},
        "legend": {**text, "titleFontWeight": "normal"},
        "title": {"color": ink, "fontSize": 13},
        "range": {
            "heatmap": {"scheme": "viridis"},
            "ramp": batches,
            "ordinal": batches,
        },
        # Marks without a colour encoding: fitted lines, texts, outlines.
        "mark": {"color": ink},
        "text": {"color": ink},
        "rule": {"color": ink},
    }


def finished(chart: Chart, *, title: str = "", height: int = HEIGHT, **more: Any) -> Chart:
    """A chart with its size and the light theme."""
    chart = chart.properties(width=WIDTH, height=height, title=title, **more)
    chart.config = alt.Config(**theme(dark=False))  # Altair's types reject configure()
    return chart


def layered(*layers: alt.Chart) -> alt.LayerChart:
    """The layers that have rows: browsers log errors about the axes of empty ones."""
    return alt.LayerChart(layer=[layer for layer in layers if len(layer.data)])


def batch_colour(**more: Any) -> alt.Color:
    """One colour per batch size, from dark (small) to light (large)."""
    return alt.Color("batch_size:O", title="batch size", **more)


def behind_colour(analysis: Analysis) -> alt.Color:
    """Viridis over how far a mean is behind the best one, which is yellow.

    On a logarithmic scale of units of the noise, so that the best settings do not look the same
    where the worst are far below.
    """
    widest = float(analysis.cells["mean"].max() - analysis.cells["mean"].min())
    return alt.Color(
        "behind:Q",
        title=f"{analysis.metric} behind the best by",
        scale=alt.Scale(
            type="symlog",
            constant=unit_of(analysis),
            reverse=True,
            domain=[0, max(widest, unit_of(analysis))],
        ),
        legend=alt.Legend(
            orient="top",
            type="gradient",
            gradientLength=200,
            format=".2~g",
            tickCount=4,
            labelOverlap=True,
            titleLimit=400,
        ),
    )


def unit_of(analysis: Analysis) -> float:
    """The difference of scores that counts as one: the noise of a trial, or a part of the range."""
    means = analysis.cells["mean"]
    part = float(means.max() - means.min()) * UNKNOWN_NOISE
    noise = analysis.noise.std
    if noise > 0:
        return noise
    return part if part > 0 else 1.0


def top_of(scores: "pd.Series[float]", *, mode: str) -> alt.Scale:
    """A linear scale that is spent on the better half of the scores.

    Where the worst are `FAR` times as far behind the best as the median is, they are drawn at the
    edge.
    """
    low, high, _ = shown_range(scores, mode=mode)
    return alt.Scale(domain=[low, high], clamp=True, zero=False, nice=False)


def scores_of(analysis: Analysis) -> "pd.Series[float]":
    """The scores that may be averaged."""
    return usable(analysis.trials, metric=analysis.metric)[analysis.metric].astype(float)


def shown_range(scores: "pd.Series[float]", *, mode: str) -> tuple[float, float, bool]:
    """The ends of the scale of scores, and whether some lie beyond."""
    low, high, middle = float(scores.min()), float(scores.max()), float(scores.median())
    room = ROOM * (high - low) or ALONE
    if mode == "max":
        floor = high - FAR * (high - middle)
        return max(low - room, floor), high + room, floor > low
    ceiling = low + FAR * (middle - low)
    return low - room, min(high + room, ceiling), ceiling < high


def log_axis(field: str, *, title: str, base: int = 10, axis: type = alt.X, **more: Any) -> Any:
    """A logarithmic axis of learning rates, batch sizes or costs."""
    name = "x" if axis is alt.X else "y"
    return axis(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", base=base, nice=False, padding=12),
        axis=alt.Axis(labelExpr=ROUND_ONES.format(axis=name), labelOverlap=True),
        **more,
    )


def batch_axis(sizes: "pd.Series[float]") -> Any:
    """A logarithmic x axis with a tick at each batch size."""
    return alt.X(
        "batch_size:Q",
        title="batch size",
        scale=alt.Scale(type="log", base=2, nice=False, padding=16),
        axis=alt.Axis(values=sorted({float(size) for size in sizes}), labelExpr=WHOLE),
    )


def _cells(analysis: Analysis) -> tuple[pd.DataFrame, str]:
    """The cells with labels and marks for the heat map, and the title of its columns."""
    cells = analysis.cells.drop(columns=["seeds", "scores"])
    crossed = not cells.duplicated(["batch_size", "grid_lr"]).any()
    cells["column"] = cells["grid_lr"] if crossed else cells["lr"]
    title = analysis.lr_name if crossed else "peak lr (bins)"
    key = pd.MultiIndex.from_frame(cells[["batch_size", "lr"]])
    best = pd.MultiIndex.from_frame(analysis.best_set[["batch_size", "lr"]])
    cells["in_best_set"] = key.isin(best)
    near = pd.MultiIndex.from_frame(analysis.near[["batch_size", "lr"]])
    cells["only_near"] = key.isin(near) & ~cells["in_best_set"]
    cells["on_ridge"] = key.isin(pd.MultiIndex.from_frame(analysis.ridge[["batch_size", "lr"]]))
    best = cells["mean"].max() if analysis.mode == "max" else cells["mean"].min()
    cells["behind"] = (cells["mean"] - best).abs()
    depth = np.log1p(cells["behind"] / unit_of(analysis))
    cells["light"] = depth <= DARK * max(depth.max(), 1e-9)
    words = [("diverged", "div."), ("stopped", "stop."), ("failed", "fail.")]
    small = np.nanmax(np.abs(cells["mean"])) < SMALL if cells["mean"].notna().any() else False
    cells["label"] = [
        (f"{row['mean']:.1e}" if small else f"{row['mean']:.3f}")
        if not math.isnan(row["mean"])
        else next((word for name, word in words if row[name]), "-")
        for row in cells.to_dict("records")
    ]
    partly = (cells["diverged"] > 0) & cells["mean"].notna()
    cells["some_diverged"] = np.where(partly, cells["diverged"].astype(str) + " div.", "")
    return cells, title


def num_columns(analysis: Analysis) -> int:
    """Of the heat map: above `LABELLED_COLUMNS` it has no numbers, above `COLUMNS` no grid."""
    return int(_cells(analysis)[0]["column"].nunique())


def heat_map(analysis: Analysis) -> Chart | None:
    """The surface: colour for the mean, outlines for ties, a diamond on each best lr."""
    is_known = analysis.cells["mean"].notna() | (analysis.cells["diverged"] > 0)
    if not is_known.any():
        return None
    cells, title = _cells(analysis)
    if cells["column"].nunique() > COLUMNS:
        return _scattered(analysis, cells)
    padded = alt.Scale(padding=0.06)
    axis = alt.Axis(labelExpr=SHORT, labelAngle=0, labelOverlap=True)
    encoded: dict[str, Any] = {
        "x": alt.X("column:O", title=title, axis=axis, scale=padded),
        "y": alt.Y(
            "batch_size:O", title="batch size", axis=alt.Axis(labelExpr=WHOLE), scale=padded
        ),
        "tooltip": _cell_tooltip(analysis),
    }

    def of(rows: pd.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(**encoded)

    scored, missing = cells[cells["mean"].notna()], cells[cells["mean"].isna()]
    ink = (
        alt.when(f"datum.light || !({OF_CELL})")
        .then(alt.value("#000000"))
        .otherwise(alt.value("#ffffff"))
    )
    layers = [
        of(missing).mark_rect(opacity=FAINT),
        of(scored).mark_rect().encode(color=behind_colour(analysis), opacity=clear_if(OF_CELL)),
        of(cells[cells["only_near"]]).mark_rect(filled=False, strokeWidth=2, strokeDash=[4, 3]),
        of(cells[cells["in_best_set"]]).mark_rect(filled=False, strokeWidth=3),
        of(cells[cells["on_ridge"]]).mark_point(**DIAMOND, yOffset=-13).encode(color=ink),
    ]
    if cells["column"].nunique() <= LABELLED_COLUMNS:
        partly = scored[scored["some_diverged"] != ""]
        layers += [
            of(scored).mark_text(fontSize=11, yOffset=2).encode(text="label:N", color=ink),
            of(missing).mark_text(fontSize=11).encode(text="label:N"),
            of(partly).mark_text(fontSize=9, yOffset=14).encode(text="some_diverged:N", color=ink),
        ]
    # Texts lie over the coloured rectangles: clicks and pointers meet this layer.
    layers.append(of(cells).mark_rect(opacity=0).add_params(PICK_CELL))
    height = ROW_HEIGHT * cells["batch_size"].nunique()
    narrow = 100 + COLUMN_WIDTH * cells["column"].nunique()
    chart = layered(*layers).add_params(PICKED)
    return finished(chart, height=height, usermeta={"min_width_px": narrow})


def _cell_tooltip(analysis: Analysis) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("grid_lr:Q", title=analysis.lr_name, format=".4~g"),
        alt.Tooltip("lr:Q", title="peak lr", format=".4~g"),
        alt.Tooltip("mean:Q", title=f"mean {analysis.metric}", format=".4~g"),
        alt.Tooltip("std:Q", title="std over seeds", format=".3~g"),
        alt.Tooltip("n:Q", title="seeds with a score"),
        alt.Tooltip("low:Q", title="95 % interval from", format=".4~g"),
        alt.Tooltip("high:Q", title="to", format=".4~g"),
        *(
            alt.Tooltip(f"{name}:Q")
            for name in ("trials", "collapsed", "diverged", "stopped", "failed")
        ),
    ]


def _scattered(analysis: Analysis, cells: pd.DataFrame) -> Chart:
    """The heat map of lrs that are not a grid: squares at their lr, hollow without a score."""
    x = log_axis("column", title=analysis.lr_name)
    y = alt.Y("batch_size:O", title="batch size", axis=alt.Axis(labelExpr=WHOLE, grid=True))
    tooltip = _cell_tooltip(analysis)

    def of(rows: pd.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(x=x, y=y, tooltip=tooltip)

    scored, missing = cells[cells["mean"].notna()], cells[cells["mean"].isna()]
    colour, opacity = behind_colour(analysis), clear_if(OF_CELL)
    layers = [
        of(missing).mark_square(size=160, filled=False, opacity=SOFT),
        of(scored).mark_square(size=220).encode(color=colour, opacity=opacity),
        of(cells[cells["in_best_set"]]).mark_square(
            size=260, filled=False, strokeWidth=3, opacity=1
        ),
        of(cells[cells["on_ridge"]]).mark_point(**DIAMOND, yOffset=-14),
        of(cells).mark_square(size=260, opacity=0).add_params(PICK_CELL),
    ]
    height = ROW_HEIGHT * cells["batch_size"].nunique()
    return finished(layered(*layers).add_params(PICKED), height=height)


def lr_curves(analysis: Analysis) -> Chart | None:
    """The metric against the peak lr: one line per batch size (means), one dot per trial."""
    scored = analysis.cells.dropna(subset="mean")
    if scored.empty:
        return None
    x = log_axis("lr", title=RATE)
    y = alt.Y(
        "mean:Q", title=analysis.metric, scale=top_of(scores_of(analysis), mode=analysis.mode)
    )
    pick = alt.selection_point(name="pick_size", fields=["batch_size"], bind="legend")
    points = usable(analysis.trials, metric=analysis.metric)[
        ["batch_size", "peak", analysis.metric]
    ]
    points = points.rename(columns={"peak": "lr", analysis.metric: "mean"})
    colour = batch_colour(legend=alt.Legend(orient="top"))
    lines = alt.Chart(scored[["batch_size", "lr", "mean", "std", "n", "low", "high"]])
    tooltip = [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("lr:Q", title="peak lr", format=".4~g"),
        alt.Tooltip("mean:Q", title=analysis.metric, format=".4~g"),
    ]
    ridge = _ridge_rows(analysis)
    bars = ridge.dropna(subset=["lr_low", "lr_high"])
    # Of strokes and fills: to draw a whole mark transparently takes ten times as long.
    plain: dict[str, Any] = {"x": x, "y": y, "color": colour}
    encoded = plain | {"strokeOpacity": clear_if(OF_SIZE)}
    of_trial = plain | {"fillOpacity": clear_if(OF_CELL), "tooltip": tooltip}
    layers = [
        lines.mark_line(strokeWidth=2).encode(**encoded, detail="batch_size:O"),
        alt.Chart(points).mark_point(filled=True, size=22, opacity=1).encode(**of_trial),
        alt.Chart(bars)
        .mark_rule(strokeWidth=2)
        .encode(**encoded | {"x": log_axis("lr_low", title=RATE), "x2": "lr_high:Q"}),
    ]
    for is_inside in (True, False):
        rows = alt.Chart(ridge[ridge["bracketed"] == is_inside])
        diamonds = rows.mark_point(
            shape="diamond", size=130, filled=is_inside, strokeWidth=2, opacity=1
        )
        channel = "fillOpacity" if is_inside else "strokeOpacity"
        layers.append(diamonds.encode(**plain, tooltip=tooltip, **{channel: clear_if(OF_SIZE)}))
    return finished(layered(*layers).add_params(pick, PICKED))


def _ridge_rows(analysis: Analysis) -> pd.DataFrame:
    """The ridge with the vertex of the parabola as its lr."""
    rows = analysis.ridge[["batch_size", "vertex", "mean", "lr_low", "lr_high", "bracketed"]]
    return rows.rename(columns={"vertex": "lr"}).astype({"bracketed": bool})


def ridge_chart(analysis: Analysis) -> Chart | None:
    """The best peak lr against batch size, with the fitted power law and the scaling rules."""
    rows = _ridge_rows(analysis)
    if rows.empty:
        return None
    x = batch_axis(rows["batch_size"])
    y = log_axis("lr", title="best peak learning rate", axis=alt.Y)
    tooltip = [
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("lr:Q", title="best peak lr", format=".4~g"),
        alt.Tooltip("lr_low:Q", title="95 % interval from", format=".4~g"),
        alt.Tooltip("lr_high:Q", title="to", format=".4~g"),
        alt.Tooltip("bracketed:N"),
    ]
    layers: list[Any] = _reference_layers(rows, x, y)
    fit = analysis.exponent
    if math.isfinite(fit.value):
        used = [float(min(fit.batch_sizes)), float(max(fit.batch_sizes))]
        line = pd.DataFrame({"batch_size": used})
        line["lr"] = np.exp(fit.log_c) * line["batch_size"] ** fit.value
        layers.append(alt.Chart(line).mark_line(strokeWidth=2).encode(x=x, y=y))
    low = log_axis("lr_low", title="best peak learning rate", axis=alt.Y)
    bars = alt.Chart(rows.dropna(subset=["lr_low", "lr_high"])).mark_rule(strokeWidth=2)
    layers.append(bars.encode(x=x, y=low, y2="lr_high:Q"))
    for is_inside in (True, False):
        points = alt.Chart(rows[rows["bracketed"] == is_inside])
        circles = points.mark_point(size=90, filled=is_inside, strokeWidth=2)
        encoded = {"x": x, "y": y, "color": batch_colour(legend=None)}
        layers.append(circles.encode(**encoded, tooltip=tooltip, opacity=clear_if(OF_SIZE)))
    return finished(layered(*layers).add_params(PICKED))


def _reference_layers(rows: pd.DataFrame, x: Any, y: Any) -> list[alt.Chart]:
    """Dashed lines of the scaling rules through the centre of the points, with their names."""
    sizes = np.array(sorted(rows["batch_size"].astype(float)))
    if len(sizes) < 2:
        return []
    centre = np.log(sizes).mean(), np.log(rows["lr"]).mean()
    ends = sizes[[0, -1]]
    references = pd.DataFrame(
        [
            (name, b, float(np.exp(centre[1] + a * (np.log(b) - centre[0]))), b == ends[-1])
            for name, a in REFERENCES.items()
            for b in ends
        ],
        columns=["rule", "batch_size", "lr", "last"],
    )
    dashed = alt.Chart(references).encode(x=x, y=y, detail="rule:N")
    words = alt.Chart(references[references["last"]]).mark_text(
        align="right", dy=-8, fontSize=11, opacity=SOFT
    )
    return [
        dashed.mark_line(strokeDash=[4, 4], strokeWidth=1, opacity=SOFT),
        words.encode(x=x, y=y, text="rule:N"),
    ]


def collapse_chart(analysis: Analysis) -> Chart | None:
    """R2 of one parabola in log lr - a log B for all cells, against a."""
    fit = analysis.collapse
    if not fit.r2_at:
        return None
    rows = pd.DataFrame({"a": list(fit.r2_at), "r2": list(fit.r2_at.values())})
    x = alt.X("a:Q", title="exponent a", scale=alt.Scale(domain=[0, 2]))
    y = alt.Y("r2:Q", title="R2 of one parabola for all cells", scale=alt.Scale(zero=False))
    line = alt.Chart(rows).mark_line(strokeWidth=2).encode(x=x, y=y)
    named = {**{a: name for name, a in REFERENCES.items()}, fit.exponent: "best"}
    marked = pd.DataFrame(
        [(a, fit.r2_at[a], f"{name} {fit.r2_at[a]:.3f}") for a, name in named.items()],
        columns=["a", "r2", "label"],
    )
    rules, best = marked[marked["a"] != fit.exponent], marked[marked["a"] == fit.exponent]
    words = alt.Chart(rules).mark_text(align="left", dx=8, dy=12, fontSize=11, opacity=SOFT)
    loud = alt.Chart(best).mark_text(align="left", dx=4, dy=-12, fontSize=12)
    layers = [
        line,
        alt.Chart(marked).mark_point(filled=True, size=70).encode(x=x, y=y),
        words.encode(x=x, y=y, text="label:N"),
        loud.encode(x=x, y=y, text="label:N"),
    ]
    return finished(layered(*layers))
