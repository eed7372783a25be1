"""Draw the learning rate of a config over its budget.

    python -m trainable.lr_plot decay=cosine warmup_epochs=1 batch_size=16,256 [--out lr.png]

Several values, separated by commas, draw one line each. The file name's ending (png, svg or html)
sets the format.
"""

import argparse
import ast
import itertools
import sys
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from trainable.config import TrialConfig
from trainable.training.schedule import growth, lr_at, timetable

MOST_POINTS = 1000


def lr_table(config: TrialConfig, *, train_images: int) -> pd.DataFrame:
    """Learning rate and batch size at up to 1,000 points of the budget: share, lr, batch_size."""
    table = timetable(config, train_images=train_images)
    step = config.batch_size if table.unit == "images" else table.total / MOST_POINTS
    points = max(int(table.total / step), 1)
    rows = []
    for i in range(0, points, max(points // MOST_POINTS, 1)):
        position = i * step
        epoch = int(position / max(table.total, 1e-12) * (config.epochs or 0)) + 1
        batch, factor = growth(config, epoch, train_images=train_images)
        rows.append((position / table.total, lr_at(config, table, position) * factor, batch))
    return pd.DataFrame(rows, columns=["share", "lr", "batch_size"])


def lr_chart(configs: dict[str, TrialConfig], *, train_images: int) -> alt.Chart:
    """One line per config."""
    tables = [
        lr_table(config, train_images=train_images).assign(config=name)
        for name, config in configs.items()
    ]
    chart: alt.Chart = (
        alt.Chart(pd.concat(tables))
        .mark_line()
        .encode(
            alt.X("share:Q", title="share of the budget", axis=alt.Axis(format="%")),
            alt.Y("lr:Q", title="learning rate"),
            alt.Color("config:N", title=None, sort=None, legend=alt.Legend(orient="top")),
        )
        .properties(width=640, height=320)
    )
    return chart


def main() -> int:
    """Run the command; exit status 2 if a field is wrong."""
    parser = argparse.ArgumentParser(prog="python -m trainable.lr_plot")
    parser.add_argument("settings", nargs="+", metavar="FIELD=VALUE")
    parser.add_argument(
        "--train-images", type=int, default=262_144, help="training images per epoch"
    )
    parser.add_argument("--out", type=Path, default=Path("lr.png"))
    arguments = parser.parse_args()
    try:
        pairs = [setting.split("=", 1) for setting in arguments.settings]
        values = {name: [_value(v) for v in text.split(",")] for name, text in pairs}
        configs = {}
        for combination in itertools.product(*values.values()):
            fields: dict[str, Any] = dict(zip(values, combination, strict=True))
            label = " ".join(f"{k}={v}" for k, v in fields.items() if len(values[k]) > 1)
            configs[label or "lr"] = TrialConfig(**fields)
        chart = lr_chart(configs, train_images=arguments.train_images)
        chart.save(str(arguments.out), scale_factor=2)
    except (ValueError, TypeError) as error:
        sys.stderr.write(f"lr_plot: {error}\n")
        return 2
    sys.stdout.write(f"chart: {arguments.out}\n")
    return 0


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    sys.exit(main())
