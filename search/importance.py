"""Which fields of a search mattered: their importance, and its trials in parallel coordinates."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from search.charts import Chart, finished, over_each_other
from trainable.config import WORST

LEAST_TRIALS = 20
BEST_SHARE, BEST_TRIALS = 0.1, 10  # the best tenth are compared with all, or the best ten
COMPARED = ("completed", "stopped", "diverged")
DRAWN_TRIALS = 300
LOG_RATIO = 30.0  # largest over smallest value, from which on an axis is logarithmic


def importance(
    trials: pd.DataFrame, *, fields: Sequence[str], metric: str, mode: str
) -> pd.DataFrame:
    """Each field's share in what sets the best trials apart: field, importance; largest first.

    PED-ANOVA (Watanabe, Bansal & Hutter 2023, arXiv:2304.10255) by Optuna. It asks only which
    trials are among the best, so stopped trials count with their last score, as they were stopped
    for being worse, and diverged ones as the worst there is. Empty below twenty trials or where
    fewer than two fields differ.
    """
    columns = ["field", "importance"]
    rows = trials[trials["status"].isin(COMPARED)]
    values = _scores(rows, metric=metric, mode=mode)
    rows, values = rows[values.notna()], values.dropna()
    if len(rows) < LEAST_TRIALS or len(fields) < 2 or values.nunique() < 2:
        return pd.DataFrame(columns=columns)
    import optuna

    domains = {name: _domain(rows[name]) for name in fields}
    domains = {name: domain for name, domain in domains.items() if domain is not None}
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for at, score in zip(rows.to_dict("records"), values, strict=True):
            params = {name: _value(at[name]) for name in domains}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=domains, value=float(score))
            )
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(
                target_quantile=max(BEST_SHARE, BEST_TRIALS / len(rows))
            ),
        )
    finally:
        optuna.logging.set_verbosity(quiet)
    return pd.DataFrame(list(found.items()), columns=columns)


def _scores(rows: pd.DataFrame, *, metric: str, mode: str) -> "pd.Series[float]":
    """Each trial's score, more being better; a diverged one's is the worst there is."""
    scores = rows[metric].astype(float).replace([np.inf, -np.inf], np.nan)
    scores = scores if mode == "max" else -scores
    worst = min(WORST.get(metric, 0.0), scores.min() if scores.notna().any() else 0.0)
    return scores.mask(rows["status"] == "diverged", worst)


def _value(value: Any) -> Any:
    """As Optuna's distributions take it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return value.item() if isinstance(value, np.generic) else value


def _is_numeric(column: "pd.Series[Any]") -> bool:
    kinds = pd.api.types
    is_number = kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column)
    return bool(is_number and column.notna().all())


def _is_log(column: "pd.Series[float]") -> bool:
    return bool(column.min() > 0 and column.max() / column.min() >= LOG_RATIO)


def _domain(column: "pd.Series[Any]") -> Any:
    """The range or the choices that a field was drawn from, from its values; None for one value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if column.nunique(dropna=False) < 2:
        return None
    if not _is_numeric(column) or column.nunique() <= 8:
        choices = sorted({_value(value) for value in column}, key=lambda v: (str(type(v)), v))
        return CategoricalDistribution(choices)
    low, high = column.min().item(), column.max().item()
    if pd.api.types.is_integer_dtype(column):
        return IntDistribution(low, high, log=_is_log(column))
    return FloatDistribution(low, high, log=_is_log(column))


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
    known = _value(value)
    return f"{known:.4g}" if isinstance(known, float) else str(known)


def _heights(column: "pd.Series[Any]") -> tuple["pd.Series[float]", str, str]:
    """Where each value lies on an axis from 0 to 1, and what stands at its two ends."""
    if not _is_numeric(column):
        words = column.map(_shown)
        names = sorted(words.unique())
        return words.map(names.index) / max(len(names) - 1, 1), names[0], names[-1]
    values = column.astype(float)
    scaled = np.log(values) if _is_log(values) else values
    span = scaled.max() - scaled.min()
    height = (scaled - scaled.min()) / span if span else scaled * 0 + 0.5
    return height, _shown(float(values.min())), _shown(float(values.max()))
