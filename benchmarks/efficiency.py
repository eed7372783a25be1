"""What early stopping and sampling save, replayed on recorded learning curves: no training.

    uv run python -m benchmarks.efficiency [--data ../shared/data/curves] [--seeds 30]

In each repetition 81 of the recorded trainings are drawn and run on 9 simulated workers, epoch by
epoch: through our scheduler, through Optuna's own pruner, and all to their end. Rungs are at shares
of each configuration's own length. Cost is in epochs, in each of which a training sees all its
examples; regret is the best final score of the 81 less that of the best that was let to its end.
Then our samplers choose 81 of all recorded configurations, with our scheduler; their regret is
against the best of all. `--out` keeps the rows (Parquet) and the chart. Last line: one JSON object.
"""

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import binom, bootstrap

from benchmarks.curves import Recording, read_alexnet, read_lcbench
from benchmarks.replay import (
    CONFIGS,
    Replay,
    in_order,
    never,
    optunas_pruner,
    our_asha,
    replay,
    search,
)

Row = dict[str, Any]

NEAR_POINTS = 0.3
OURS, PEER, WHOLE = "our ASHA", "Optuna's pruner", "random, all to their end"
SAME_COST = "random, at our ASHA's cost"
TPE, RANDOM = "TPE + our ASHA, of all", "random + our ASHA, of all"


def repetition(recording: Recording, seed: int, folder: Path) -> tuple[list[Row], list[Row]]:
    """The rows of one repetition: one per method, and one for each improvement on its way."""
    drawn = np.random.default_rng(seed).choice(len(recording.curves), CONFIGS, replace=False)
    curves = [recording.curves[i] for i in drawn]
    whole = sum(curve.cost for curve in curves)
    best = max(curve.final for curve in curves)
    top = max(curve.final for curve in recording.curves)
    ran: list[tuple[str, Replay, float]] = [
        (OURS, replay(in_order(curves), our_asha()), best),
        (PEER, replay(in_order(curves), optunas_pruner()), best),
        (WHOLE, replay(in_order(curves), never), best),
        (TPE, search(recording, "tpe", seed, folder), top),
        (RANDOM, search(recording, "random", seed, folder), top),
    ]
    origin: Row = {"recording": recording.name, "seed": seed}
    rows: list[Row] = []
    path: list[Row] = []
    for way, ended, target in ran:
        of_drawn = way in (OURS, PEER, WHOLE)
        row = origin | {"way": way, "epochs": ended.spent, "regret_points": target - ended.best}
        row["times_cheaper"] = whole / ended.spent if of_drawn else math.nan
        row["epochs_to_near"] = ended.epochs_to(target - NEAR_POINTS)
        rows.append(row)
        if of_drawn:
            path += [
                origin | {"way": way, "cost_share": spent / whole, "regret_points": target - score}
                for spent, score in ended.improvements
            ]
    # The cost of our ASHA, spent on trainings that all run to their end.
    fewer = max(int(CONFIGS * ran[0][1].spent / whole), 1)
    regret = best - max(curve.final for curve in curves[:fewer])
    same = rows[0] | {"way": SAME_COST, "regret_points": regret, "epochs_to_near": math.nan}
    return [*rows[:3], same, *rows[3:]], path


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean with its 95 % bootstrap interval."""
    if len(set(values)) == 1:
        return float(values[0]), float(values[0]), float(values[0])
    bounds = bootstrap((values,), np.mean, rng=0).confidence_interval
    return float(np.mean(values)), float(bounds.low), float(bounds.high)


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median, where some are infinite too, and its 95 % interval by order statistics."""
    ordered = np.sort(values)
    below = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    middle = float(ordered[(len(ordered) - 1) // 2])
    return middle, float(ordered[below]), float(ordered[len(ordered) - 1 - below])


def printed(values: tuple[float, float, float], digits: int) -> str:
    """A figure with its interval."""
    middle, low, high = (
        "never" if math.isinf(v) else f"{v:,.{digits}f}" if v else "0" for v in values
    )
    return f"{middle} ({low} to {high})"


def table_of(recording: Recording, rows: pd.DataFrame) -> Table:
    """One row a way, each figure with its interval."""
    repetitions = rows["seed"].nunique()
    title = f"{recording.what}: {CONFIGS} of {len(recording.curves)}, {repetitions} repetitions"
    table = Table(title=title, box=None)
    near = f"epochs to within {NEAR_POINTS} (median)"
    for heading in ("way", "times cheaper", "regret, points", near, "came there"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, group in rows.groupby("way", sort=False):
        cheaper, near_epochs = group["times_cheaper"], group["epochs_to_near"]
        table.add_row(
            str(way),
            "-" if cheaper.isna().any() else printed(mean_interval(cheaper.to_numpy()), 2),
            printed(mean_interval(group["regret_points"].to_numpy()), 2),
            "-"
            if near_epochs.isna().any()
            else printed(median_interval(near_epochs.to_numpy()), 0),
            "-" if near_epochs.isna().any() else f"{np.isfinite(near_epochs).sum()}/{repetitions}",
        )
    everything = rows.loc[rows["way"] == WHOLE, "epochs"]
    table.caption = f"all {CONFIGS} to their end: {everything.mean():,.0f} epochs"
    return table


def figures_of(rows: pd.DataFrame, prefix: str) -> dict[str, float]:
    """The figures of the last line."""
    means = rows.groupby("way")[["times_cheaper", "regret_points"]].mean()
    figures = {
        "asha_cost_ratio": means.loc[OURS, "times_cheaper"],
        "asha_regret": means.loc[OURS, "regret_points"],
        "tpe_asha_vs_random_asha": means.loc[RANDOM, "regret_points"]
        - means.loc[TPE, "regret_points"],
        "peer_cost_ratio": means.loc[PEER, "times_cheaper"],
        "peer_regret": means.loc[PEER, "regret_points"],
        "same_cost_regret": means.loc[SAME_COST, "regret_points"],
    }
    return {f"{prefix}{name}": round(float(value), 4) for name, value in figures.items()}


def on_the_way(path: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The mean regret of each way at shares of the whole cost, with its 95 % interval.

    From where every repetition has a training at its end, to where the last has spent all.
    """
    step = 0.02
    shares = np.arange(1, 51) * step
    points = []
    for (recording, way), improvements in path.groupby(["recording", "way"]):
        mine = rows[(rows["recording"] == recording) & (rows["way"] == way)]
        spent = 1 / mine["times_cheaper"]
        first = improvements.groupby("seed")["cost_share"].min().max()
        for share in shares[(shares >= first) & (shares < spent.max() + step)]:
            reached = improvements[improvements["cost_share"] <= share]
            regrets = reached.groupby("seed")["regret_points"].min().to_numpy()
            mean, low, high = mean_interval(regrets)
            points.append(
                {
                    "recording": recording,
                    "way": way,
                    "cost_percent": 100 * share,
                    "regret_points": mean,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(points)


def chart_of(points: pd.DataFrame, whats: dict[str, str]) -> alt.VConcatChart:
    """Cost against regret, a panel a recording."""
    ticks = [0, 0.1, 0.3, 1, 3, 10, 30]
    x = alt.X(
        "cost_percent:Q", title="cost, % of all to their end", scale=alt.Scale(domain=[0, 100])
    )
    # Like a logarithm, but it shows 0.
    near_zero = alt.Scale(type="symlog", constant=0.1, nice=False)
    y = alt.Y(
        "low:Q",
        title="regret, points",
        axis=alt.Axis(values=ticks, format="~g", labelOverlap=False),
        scale=near_zero,
    )
    colour = alt.Color(
        "way:N",
        title=None,
        scale=alt.Scale(domain=[OURS, PEER, WHOLE], range=["#d95f02", "#1b9e77", "#7570b3"]),
        legend=alt.Legend(orient="top", labelLimit=0, symbolOpacity=1),
    )
    panels = []
    for name, what in whats.items():
        shown = alt.Chart(points[points["recording"] == name])
        band = shown.mark_area(opacity=0.2).encode(x, y, alt.Y2("high:Q"), colour)
        line = shown.mark_line().encode(x, alt.Y("regret_points:Q", scale=near_zero), colour)
        near = alt.Chart(pd.DataFrame({"low": [NEAR_POINTS]}))
        rule = near.mark_rule(strokeDash=[4, 4]).encode(alt.Y("low:Q"))
        title = f"{what}: mean and 95 % interval"
        panels.append((band + line + rule).properties(title=title, width=480, height=220))
    chart: alt.VConcatChart = alt.vconcat(*panels)
    return chart


def main() -> None:
    """Replay all methods on both recordings and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.efficiency")
    default = Path(os.environ.get("SHARED_DATA", "../shared/data")) / "curves"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=30, help="repetitions")
    parser.add_argument("--out", type=Path, help="Parquet file for the rows; the chart is a PNG")
    arguments = parser.parse_args()
    recordings = [read_alexnet(arguments.data), read_lcbench(arguments.data)]
    rows: list[Row] = []
    path: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for recording in recordings:
            for seed in range(arguments.seeds):
                ended, improvements = repetition(recording, seed, Path(folder))
                rows, path = rows + ended, path + improvements
    frame = pd.DataFrame(rows)
    if arguments.out:
        frame.to_parquet(arguments.out)
        points = on_the_way(pd.DataFrame(path), frame)
        chart = chart_of(points, {recording.name: recording.what for recording in recordings})
        chart.save(str(arguments.out.with_suffix(".png")), scale_factor=2)
    console = Console()
    console.width = max(console.width, 110)  # in a pipe too, a way is one line
    figures: dict[str, float] = {}
    for recording in recordings:
        mine = frame[frame["recording"] == recording.name]
        console.print(table_of(recording, mine))
        figures |= figures_of(mine, "" if recording.name == "alexnet" else f"{recording.name}_")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
