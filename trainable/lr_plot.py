"""Draw the learning rate of a config over its budget.

    python -m trainable.lr_plot decay=cosine warmup_epochs=1 batch_size=16,256 [--out lr.png]

Several values, separated by commas, draw one line each. The file name's ending (png, svg or html)
sets the format.
"""

import argparse
import ast
import difflib
import itertools
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from trainable.config import TrialConfig
from trainable.training.schedule import growth, lr_at, timetable

MOST_POINTS = 1000
FIELDS = tuple(field.name for field in fields(TrialConfig))


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
        values = dict(_setting(setting) for setting in arguments.settings)
        configs = {}
        for combination in itertools.product(*values.values()):
            chosen: dict[str, Any] = dict(zip(values, combination, strict=True))
            label = " ".join(f"{k}={v}" for k, v in chosen.items() if len(values[k]) > 1)
            configs[label or "lr"] = TrialConfig(**chosen)
        chart = lr_chart(configs, train_images=arguments.train_images)
        chart.save(str(arguments.out), scale_factor=2)
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f"lr_plot: {error}\n")
        return 2
    sys.stdout.write(f"chart: {arguments.out}\n")
    return 0


def _setting(text: str) -> tuple[str, list[object]]:
    """The field's name and its values.

    Raises:
        ValueError: it is not FIELD=VALUE, or there is no such field.
    """
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"settings are FIELD=VALUE, such as warmup_epochs=1; got {text!r}")
    if name not in FIELDS:
        # The first of those that begin alike: `warmup` is warmup_epochs rather than warmup_share.
        near = [field for field in FIELDS if field.startswith(f"{name}_")]
        near += difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(FIELDS)}"
        raise ValueError(f"there is no field {name!r}; {hint}")
    return name, [_value(value) for value in values.split(",")]


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    sys.exit(main())
