"""A table with a row per epoch -> one with a row per run, with its best score; and its curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from search.analysis.columns import TableError

# Names of the column that tells which run a row is of, and of the one that counts its rows; in
# lower case, with _ for a space.
RUNS = (
    *("run", "run_id", "runid", "run_name", "trial", "trial_id", "trial_name", "trial_key"),
    *("trial_number", "id", "name", "number"),
)
EPOCHS = (
    *("epoch", "epochs", "epoch_index", "step", "_step", "global_step", "trainer/global_step"),
    *("training_iteration", "iteration", "iter", "update", "updates"),
)


def runs_of(
    table: pd.DataFrame, settings: Sequence[str], *, seeded: bool
) -> tuple[list[str], list[str]]:
    """The columns that tell which run a row is of, none if rows are not epochs; and cautions.

    The settings are constant within each run, some runs have several rows, and no two rows of a run
    are of the same epoch. Without a column of epochs the rows may be repeats. Without a column of
    runs the settings tell, where a seed is among them (`seeded`).
    """
    epochs = [name for name in table if _plain(name) in EPOCHS and name not in settings]
    for run in (name for name in table if _plain(name) in RUNS and name not in settings):
        rows = table.groupby(run)
        if table[run].isna().any() or rows.size().max() < 2:
            continue
        if (rows[list(settings)].nunique() > 1).any(axis=None):
            continue
        for epoch in epochs:
            if table[epoch].notna().all() and not table.duplicated([run, epoch]).any():
                return [run], []
        return [], [
            f"Rows that share their {run} count as repeats with other seeds. If they are epochs of "
            f"one run, add --run-column {run}."
        ]
    epoch = next((name for name in epochs if _numbered(table, name, settings)), None)
    if epoch is None:
        return [], []
    if seeded:
        return list(settings), []
    return [], [
        f"Rows of one setting count as repeats with other seeds. They are numbered by {epoch}: if "
        f"they are epochs of one run, add --run-column with the columns that tell one run from "
        f"another."
    ]


def one_row_per_run(
    table: pd.DataFrame,
    *,
    runs: Sequence[str],
    settings: Sequence[str],
    metric: str,
    mode: str | None,
) -> tuple[pd.DataFrame, list[str]]:
    """The last value of each column of a run, but the best of the metric; and cautions.

    `runs` are the columns that together tell which run a row is of. `metric` has numbers. Without a
    mode its last value is kept.

    Raises:
        TableError: rows of one run differ in a setting.
    """
    run = table.groupby(list(runs), sort=False, dropna=False).ngroup()
    rows = table.groupby(run).last()
    _check_constant(table, rows, run, runs, settings)
    rows.index = table.index.to_series().groupby(run).last()
    if len(rows) == len(table):
        return rows, []
    scores = table[metric].where(np.isfinite(table[metric].astype(float)))
    of_run = scores.groupby(run)
    evaluations = of_run.count()
    if mode is None or evaluations.max() < 2:
        return rows, []
    rows[metric] = (of_run.max() if mode == "max" else of_run.min()).to_numpy()
    return rows, _cautions(rows, scores, run, metric, evaluations)


def curves_of_runs(table: pd.DataFrame, *, runs: Sequence[str], metric: str) -> pd.DataFrame:
    """Every finite score of each run: trial_key, epoch (its evaluations from 1) and the metric.

    `trial_key` is the label of the run's row in what `one_row_per_run` returns. Evaluations are in
    the order of a column of epochs or steps, if there is one, else in that of the table. Empty if
    no run has several.
    """
    run = table.groupby(list(runs), sort=False, dropna=False).ngroup()
    curves = pd.DataFrame(
        {
            "trial_key": table.index.to_series().groupby(run).transform("last"),
            metric: table[metric].astype(float),
            "at": _counted(table, run),
        }
    )
    curves = curves[np.isfinite(curves[metric])].sort_values("at", kind="stable")
    curves["epoch"] = curves.groupby("trial_key").cumcount() + 1
    if curves["epoch"].max() < 2:
        curves = curves.iloc[:0]
    return curves[["trial_key", "epoch", metric]].reset_index(drop=True)


def _counted(table: pd.DataFrame, run: "pd.Series[int]") -> "pd.Series[float]":
    """The column that counts a run's rows, as numbers; without one, their order in the table."""
    for name in (name for name in table if _plain(name) in EPOCHS):
        values = pd.to_numeric(table[name], errors="coerce")
        if values.notna().all() and not pd.DataFrame({"run": run, "at": values}).duplicated().any():
            return values.astype(float)
    return pd.Series(np.arange(len(table), dtype=float), index=table.index)


def _cautions(
    rows: pd.DataFrame,
    scores: "pd.Series[float]",
    run: "pd.Series[int]",
    metric: str,
    evaluations: "pd.Series[int]",
) -> list[str]:
    """What was taken of each run, and how many ended without a finite score."""
    fewest, most = int(evaluations[evaluations > 0].min()), int(evaluations.max())
    num_rows = f"{most}" if fewest == most else f"{fewest} to {most}"
    messages = [
        f"A run has several rows: the score of each of the {len(rows)} runs is the best {metric} "
        f"of its {num_rows} rows."
    ]
    last = scores.groupby(run).nth(-1)
    lost = int(last.isna().sum()) - int((evaluations == 0).sum())
    if 0 < lost < len(rows) / 2:
        messages.append(
            f"{lost} of {len(rows)} runs end without a finite {metric} and count with their best "
            f"value before. If they diverged, add a column status with `diverged` in their rows."
        )
    return messages


def _check_constant(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    run: "pd.Series[int]",
    runs: Sequence[str],
    settings: Sequence[str],
) -> None:
    """Raises TableError for a run whose rows differ in a setting."""
    for name in (name for name in settings if name not in runs):
        differing = table[name].groupby(run).nunique() > 1
        if not differing.any():
            continue
        first = int(differing.idxmax())
        values = ", ".join(map(str, table.loc[run == first, name].unique()[:4]))
        which = ", ".join(f"{column} {rows.loc[first, column]}" for column in runs)
        raise TableError(
            f"the rows of {which} differ in {name} ({values}), which must be constant in a run: "
            f"give --run-column all columns that tell one run from another"
        )


def _numbered(table: pd.DataFrame, epoch: str, settings: Sequence[str]) -> bool:
    """Whether the rows of every setting are numbered evenly, as in 1, 2, ... or 5, 10, ..."""
    numbers = pd.to_numeric(table[epoch], errors="coerce")
    if numbers.isna().any():
        return False
    ordered = table.assign(**{epoch: numbers}).sort_values(epoch, ignore_index=True)
    steps = ordered.groupby(list(settings), dropna=False)[epoch].diff().dropna()
    return len(steps) > 0 and steps.iloc[0] > 0 and steps.nunique() == 1


def _plain(name: object) -> str:
    return str(name).lower().replace(" ", "_")
