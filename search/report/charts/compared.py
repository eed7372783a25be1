"""The chart of several surfaces, such as one per optimizer: the best of each at each batch size."""

from collections.abc import Mapping

import altair as alt
import pandas as pd

from search.analysis.analysis import Analysis
from search.report.charts.surface import Chart, batch_colour, finished, layered

ROW_HEIGHT = 14  # px of a batch size of a surface
LONGEST_NAME_PX = 260
COLUMNS = ("batch_size", "lr", "mean", "n", "surface", "low", "high")


def best_by_batch_size_chart(analyses: Mapping[str, Analysis]) -> Chart | None:
    """Mean and range over seeds of each surface at the best learning rate of each batch size.

    None for fewer than two surfaces with a score.
    """
    parts = [_best(name, analysis) for name, analysis in analyses.items()]
    parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        return None
    rows = pd.concat(parts)
    metric = next(iter(analyses.values())).metric
    names, sizes = list(rows["surface"].unique()), rows["batch_size"].nunique()
    y = alt.Y(
        "surface:N", title=None, sort=names, axis=alt.Axis(labelLimit=LONGEST_NAME_PX, grid=True)
    )
    x = alt.X("mean:Q", title=metric, scale=alt.Scale(zero=False))
    encoded = {
        "y": y,
        "yOffset": alt.YOffset("batch_size:O"),
        "color": batch_colour(legend=alt.Legend(orient="top")),
    }
    tooltip = [
        alt.Tooltip("surface:N"),
        alt.Tooltip("batch_size:Q", title="batch size"),
        alt.Tooltip("lr:Q", title="best peak lr tried", format=".4~g"),
        alt.Tooltip("mean:Q", title=metric, format=".4~g"),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    low = alt.X("low:Q", title=metric, scale=alt.Scale(zero=False))
    several = rows[rows["n"] > 1]
    return finished(
        layered(
            alt.Chart(several).mark_rule(strokeWidth=2).encode(x=low, x2="high:Q", **encoded),
            alt.Chart(rows)
            .mark_point(filled=True, size=55, opacity=1)
            .encode(x=x, tooltip=tooltip, **encoded),
        ),
        height=len(names) * max(sizes, 2) * ROW_HEIGHT,
    )


def _best(name: str, analysis: Analysis) -> pd.DataFrame:
    """A row per batch size: the cell of the best lr, and the lowest and highest of its seeds."""
    if analysis.ridge.empty:  # nothing has a score
        return pd.DataFrame(columns=COLUMNS)
    cells = analysis.cells.merge(analysis.ridge[["batch_size", "lr"]], on=["batch_size", "lr"])
    cells = cells.dropna(subset="mean").sort_values("batch_size")
    return pd.DataFrame(
        {
            **{column: cells[column] for column in ("batch_size", "lr", "mean", "n")},
            "surface": name,
            "low": [min(scores) for scores in cells["scores"]],
            "high": [max(scores) for scores in cells["scores"]],
        }
    )
