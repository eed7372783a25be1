"""What the command prints at its end: surface, ridge, best configurations, where the files are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.analysis.chance import best_auroc, collapsed, nothing_beat_chance
from search.analysis.expected import NOT_REPRODUCED, REPRODUCED, verdicts
from search.analysis.groups import CROSSED, RIDGE, analyses, branches
from search.analysis.humps.by_model import by_model
from search.analysis.leaderboard import ablation, best_by_batch_size, leaderboard, lineage
from search.analysis.scaling.ridge import ridge
from search.analysis.surface import USABLE, best_cell, surface
from search.report.sentences.by_model import growth, next_sentence
from search.report.sentences.expected import beside, may_differ, outcome
from search.results.tables import Results
from search.study.explorer import PlannedTrial
from search.study.shown import SMALL, change, number_of, score, show
from search.study.study import TRIAL_FIELDS, Study
from trainable.host import storage

LEADERS = 5
EDGES = {"low": "lower", "high": "higher"}
# From the worst cell to the best: dark blue to yellow, readable in either colour blindness.
COLOURS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")


def print_answer(
    console: Console,
    study: Study,
    trials: pd.DataFrame,
    results: Results,
    planned: Sequence[PlannedTrial],
) -> None:
    """The answer that the study's trials give, from the tables alone."""
    dataset = ", ".join(sorted(set(trials["dataset"]))) or study.base.dataset
    counts = trials["status"].value_counts().to_dict()
    statuses = ", ".join(f"{n} {status}" for status, n in counts.items())
    num_planned = len({trial.key for trial in planned})
    console.print(
        f"\n[bold]{study.name}[/bold]  dataset={dataset}  "
        + (
            f"{statuses} of {number_of(num_planned, 'trial')}"
            if statuses
            else "no trial finished yet"
        )
    )
    if nothing_beat_chance(trials, metric=study.metric):
        best = show(best_auroc(trials, metric=study.metric))
        console.print(
            f"no trial beat chance: the best AUROC is {best}, and guessing gives 0.5. Check the "
            f"data and its labels; try lower learning rates or a longer training",
            style="red",
            highlight=False,
        )
    if trials.empty:  # there are no tables yet
        return
    _print_tables(console, study, trials, planned)
    if type(study.explore).__name__ == RIDGE:
        _print_by_model(console, study, branches(trials))
    if study.expect:
        _print_expected(console, study, trials, results)
    _print_troubles(console, trials)
    where = results.folder.uri
    console.print("\nEvery trial and every evaluation:", highlight=False)
    for table in ("trials", "epochs"):
        console.print(f'  pd.read_parquet("{where}/{table}")', soft_wrap=True, highlight=False)


def _print_tables(
    console: Console, study: Study, trials: pd.DataFrame, planned: Sequence[PlannedTrial]
) -> None:
    """What suits the study: the steps of an ablation, or surfaces and the best configurations."""
    if steps := list(dict.fromkeys(trial.step for trial in planned if trial.step)):
        _print_ablation(console, study, trials, planned, steps)
        return
    if any(trial.variant for trial in planned):
        trials = _with_names(trials, {"variant": [trial.variant for trial in planned]}, planned)
    trials = branches(trials)
    is_grid = all(isinstance(domain, dict) for domain in study.vary.values())
    if {"batch_size", "base_lr"} <= set(study.vary) and is_grid:
        _print_surfaces(console, study, trials)
    if not nothing_beat_chance(trials, metric=study.metric):
        _print_leaders(console, study, trials)
    if trials["begins_from"].notna().any():
        _print_lineage(console, study, trials)


def _print_by_model(console: Console, study: Study, trials: pd.DataFrame) -> None:
    """The best lr of each batch size with its interval, and how it grows."""
    others = [name for name in study.vary if name not in CROSSED]
    if nothing_beat_chance(trials, metric=study.metric):
        return
    sizes = study.vary["batch_size"].categories
    how: dict[str, Any] = {"metric": study.metric, "mode": study.mode, "batch_sizes": sizes}
    for answer in by_model(trials, others=others, **how):
        shown = Table(box=None, pad_edge=False)
        for name in ("batch_size", "best peak lr", "95 % from", "to", "trials"):
            shown.add_column(name, justify="right")
        for row in answer.rows.to_dict("records"):
            lrs = (f"{row[name]:.2g}" for name in ("lr", "low", "high"))
            shown.add_row(str(row["batch_size"]), *lrs, str(row["trials"] or "predicted"))
        title = (
            f"best learning rate of each batch size, by the model{answer.of and f': {answer.of}'}"
        )
        console.print(f"\n[italic]{title}[/italic]", highlight=False)
        console.print(shown)
        console.print(growth(answer), soft_wrap=True, highlight=False)
        more = next_sentence(answer, metric=study.metric, mode=study.mode)
        console.print(more, soft_wrap=True, highlight=False)


def _print_expected(console: Console, study: Study, trials: pd.DataFrame, results: Results) -> None:
    """What the study's source reports, beside what was measured."""
    about = json.loads(storage.read(results.folder, "study.json"))
    trials = branches(trials)
    how: dict[str, Any] = {"metric": study.metric, "mode": study.mode}
    kinds = {expectation.get("kind") for expectation in about.get("expect", [])}
    surfaces = analyses(trials, None, about, **how) if "Exponent" in kinds else []
    console.print("\n[italic]expected and measured[/italic]", highlight=False)
    for verdict in verdicts(trials, about, surfaces, **how):
        console.print(Text(f"  {beside(verdict)}"), soft_wrap=True, highlight=False)
        style = {REPRODUCED: "green", NOT_REPRODUCED: "red"}.get(verdict.outcome, "yellow")
        console.print(Text(f"    {outcome(verdict)}", style), soft_wrap=True, highlight=False)
    if why := may_differ(about):
        console.print(why, style="dim", soft_wrap=True, highlight=False)


def _print_ablation(
    console: Console,
    study: Study,
    trials: pd.DataFrame,
    planned: Sequence[PlannedTrial],
    names: Sequence[str],
) -> None:
    """A row a step: the metric and what the step changed, over the same seeds, at each setting."""
    by = [name for name in study.vary if name != "base_lr"]
    has_lrs = "base_lr" in study.vary
    named = _with_names(trials, {"step": [trial.step for trial in planned]}, planned)
    groups = named.groupby(by, dropna=False) if by else [((), named)]
    for values, group in groups:
        about = ", ".join(f"{n}={show(v)}" for n, v in zip(by, values, strict=True))
        table = Table(box=None, pad_edge=False)
        headings = ("step", study.metric, "std", "seeds", "change", "std of change", "test")
        for name in (*headings, *(["best base_lr"] * has_lrs)):
            table.add_column(name, justify="left" if name == "step" else "right")
        steps = ablation(group, steps=names, metric=study.metric, mode=study.mode)
        for step, row in steps.iterrows():
            figures = (score(row["mean"]), score(row["std"]), str(int(row["n"])))
            changes = (change(row["change"]), score(row["change_std"]), score(row["test"]))
            table.add_row(str(step), *figures, *changes, *([show(row["base_lr"])] * has_lrs))
        console.print(f"\n[italic]{study.metric} step by step {about}[/italic]", highlight=False)
        console.print(table)
    console.print("change: from the step before, of the same seeds", style="dim")


def _with_names(
    trials: pd.DataFrame, names: Mapping[str, Sequence[str]], planned: Sequence[PlannedTrial]
) -> pd.DataFrame:
    """The trials with the step or variant that asked for each; of two that did, a row each."""
    asked = pd.DataFrame({"trial_key": [trial.key for trial in planned], **names})
    return asked.merge(trials, on="trial_key")


def _others(study: Study, trials: pd.DataFrame) -> list[str]:
    """What varies beside batch size and lr: each combination of it has a surface of its own."""
    variant = ["variant"] if "variant" in trials else []
    return variant + [name for name in study.vary if name not in ("batch_size", "base_lr")]


def _print_surfaces(console: Console, study: Study, trials: pd.DataFrame) -> None:
    others = _others(study, trials)
    groups = trials.groupby(others, dropna=False) if others else [((), trials)]
    ridges = {}
    for values, group in groups:
        cells = surface(group, metric=study.metric)
        best = ridge(cells, mode=study.mode)
        named = zip(others, map(show, values), strict=True)
        about = ", ".join(v if n == "variant" else f"{n}={v}" for n, v in named)
        ridges[about] = best
        title = " ".join(filter(None, [study.metric, about and f"({about})"]))
        seeds = cells["n"].max()
        title += f", mean of {seeds} seeds" if seeds > 1 else ", one seed"
        console.print(f"\n[italic]{title}[/italic]", highlight=False)
        console.print(_surface_table(cells, best, mode=study.mode))
        tried = cells.groupby("batch_size").size()
        whole = best["batch_size"].map(tried) == cells["lr"].nunique()  # else an edge is not one
        for (edge, lr), rows in best[whole & (best["edge"] != "")].groupby(["edge", "lr"]):
            console.print(
                f"the best learning rate for batch size {', '.join(map(str, rows['batch_size']))} "
                f"is at the edge of the grid ({show(lr)}): try {EDGES[edge]} rates",
                style="yellow",
                highlight=False,
            )
    console.print(
        "rows: batch_size, columns: base_lr; * the best learning rate of a batch size",
        style="dim",
    )
    if len(ridges) > 1:
        _print_best_by_batch_size(console, study, ridges)


def _print_best_by_batch_size(
    console: Console, study: Study, ridges: Mapping[str, pd.DataFrame]
) -> None:
    """A row a surface, the best of each batch size with a star: which setting is best where."""
    table = best_by_batch_size(ridges)
    best = table.max() if study.mode == "max" else table.min()
    shown = Table(pad_edge=False, box=None)
    shown.add_column("")
    for batch_size in table:
        shown.add_column(str(batch_size), justify="right")
    for name, row in table.iterrows():
        marks = ["*" if row[size] == best[size] else " " for size in table]
        scores = [score(row[size]) + mark for size, mark in zip(table, marks, strict=True)]
        shown.add_row(Text(str(name)), *scores)
    title = f"best {study.metric} by batch size, each at its own best learning rate"
    console.print(f"\n[italic]{title}[/italic]", highlight=False)
    console.print(shown)


def _surface_table(cells: pd.DataFrame, best: pd.DataFrame, *, mode: str) -> Table:
    lrs = sorted(cells["lr"].unique())
    table = Table(pad_edge=False, box=None, padding=(0, 1))
    table.add_column("", justify="right", style="bold")
    for lr in lrs:
        table.add_column(show(lr), justify="right")
    table.add_column("best base_lr", justify="right")
    ridge_lr = dict(zip(best["batch_size"], best["lr"], strict=True))
    overall = best_cell(cells, mode=mode).name if cells["mean"].notna().any() else None
    indexed = cells.assign(row=cells.index).set_index(["batch_size", "lr"])
    for batch_size in sorted(cells["batch_size"].unique()):
        row = [Text(str(batch_size))]
        for lr in lrs:
            if (batch_size, lr) not in indexed.index:
                row.append(Text("-", "dim"))
                continue
            cell = indexed.loc[(batch_size, lr)]
            row.append(
                _cell_text(
                    cell,
                    low=cells["mean"].min(),
                    high=cells["mean"].max(),
                    mode=mode,
                    is_ridge=ridge_lr.get(batch_size) == lr,
                    is_best=cell["row"] == overall,
                )
            )
        row.append(Text(show(ridge_lr.get(batch_size)), "bold"))
        table.add_row(*row)
    return table


def _cell_text(
    cell: "pd.Series[float]", *, low: float, high: float, mode: str, is_ridge: bool, is_best: bool
) -> Text:
    if pd.isna(cell["mean"]):
        return Text("diverged", "red") if cell["diverged"] else Text("-", "dim")
    share = (cell["mean"] - low) / (high - low) if high > low else 1.0
    share = share if mode == "max" else 1.0 - share
    colour = COLOURS[min(int(share * len(COLOURS)), len(COLOURS) - 1)]
    ink = "black" if share > 0.5 else "white"
    mark = "*" if is_ridge else " "
    diverged = f" {int(cell['diverged'])} div." if cell["diverged"] else ""
    style = f"{ink} on {colour}{' bold underline' if is_best else ''}"
    mean = f"{cell['mean']:.1e}" if max(abs(low), abs(high)) < SMALL else f"{cell['mean']:.3f}"
    return Text(f"{mean}{mark}{diverged}", style)


def _print_leaders(console: Console, study: Study, trials: pd.DataFrame) -> None:
    by = list(study.vary) or _varied(trials)
    by = ["variant", *by] if "variant" in trials else by
    table = leaderboard(trials, by=by, metric=study.metric, mode=study.mode, rows=LEADERS)
    if table.empty:
        return
    shown = Table(title="best configurations", title_justify="left", pad_edge=False, box=None)
    test = study.metric.replace("val_", "test_")
    headings = {"mean": study.metric, "std": "std", "n": "seeds", test: test}
    for name in [*by, *headings]:
        shown.add_column(headings.get(name, name), justify="right")
    for row in table.to_dict("records"):
        figures = (score(row[name]) for name in ("mean", "std"))
        shown.add_row(*(show(row[n]) for n in by), *figures, str(row["n"]), score(row[test]))
    console.print()
    console.print(shown)


def _varied(trials: pd.DataFrame) -> list[str]:
    """The fields that differ between trials: what a define-by-run space chose."""
    ours = [n for n in TRIAL_FIELDS if n not in ("seed", "microbatch_size")]
    varied = [n for n in ours if trials[n].nunique(dropna=False) > 1]
    return varied or ["batch_size", "base_lr"]


def _print_lineage(console: Console, study: Study, trials: pd.DataFrame) -> None:
    """What the best member was trained with, generation by generation."""
    ended = trials[trials["status"].isin(USABLE)].dropna(subset=study.metric)
    if ended.empty:
        return
    scores = ended.set_index("trial_key")[study.metric]
    best = str(scores.idxmax() if study.mode == "max" else scores.idxmin())
    shown = Table(title="how the best came about", title_justify="left", pad_edge=False, box=None)
    by = [*study.vary, study.metric]
    for name in ("until", *by):
        shown.add_column(name, justify="right")
    for row in lineage(trials, best).to_dict("records"):
        values = [show(row[name]) for name in study.vary]
        shown.add_row(f"{row['until_share']:.0%}", *values, score(row[study.metric]))
    console.print()
    console.print(shown)


def _print_troubles(console: Console, trials: pd.DataFrame) -> None:
    lost = collapsed(trials)
    if lost.any():
        console.print(
            f"\n{lost.sum()} collapsed (the same prediction for every image, AUROC exactly 0.5: "
            f"the learning rate is too high there), such as:",
            style="yellow",
            highlight=False,
        )
        for row in trials[lost].head(3).itertuples():
            console.print(
                f"  batch_size={row.batch_size} base_lr={show(row.base_lr)} seed={row.seed}",
                highlight=False,
            )
    for status, style, cure in (
        ("diverged", "yellow", "a finding: the learning rate is too high there"),
        ("failed", "red", "--retry failed runs them again"),
    ):
        rows = trials[trials["status"] == status]
        if rows.empty:
            continue
        console.print(f"\n{len(rows)} {status} ({cure}), the first reasons:", style=style)
        alike = rows["reason"].str.replace(r" \(traceback.*", "", regex=True)
        for row in rows[~alike.duplicated()].head(3).itertuples():
            console.print(
                f"  batch_size={row.batch_size} base_lr={show(row.base_lr)} seed={row.seed}: "
                f"{row.reason}",
                highlight=False,
                markup=False,
            )
