"""What links the charts of a page: the batch sizes, settings and trials that a reader picked.

Each linked chart has the parameter `picked`, which page.js sets: its value in charts/ and in a
notebook is to show all.
"""

from typing import Any

import altair as alt

DIM = 0.15  # opacity of what was not picked
PICKED = alt.param(name="picked", value={"all": True, "sizes": [], "cells": [], "trials": []})
# Of a row with batch_size; with lr, the peak learning rate of its setting; with a trial's number.
OF_SIZE = "(picked.all || indexof(picked.sizes, datum.batch_size) >= 0)"
OF_CELL = (
    f"{OF_SIZE} && (!picked.cells.length || "
    "indexof(picked.cells, datum.batch_size + '|' + datum.lr) >= 0)"
)
OF_TRIAL = f"{OF_CELL} && (!picked.trials.length || indexof(picked.trials, datum.trial) >= 0)"


def clear_if(test: str, opacity: float = 1.0) -> Any:
    """An opacity that dims the rows that were not picked."""
    return alt.when(test).then(alt.value(opacity)).otherwise(alt.value(DIM * opacity))
