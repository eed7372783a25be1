"""The tables of a paper: as LaTeX to include, and as CSV with all digits."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.groups import RIDGE, exploration_of
from search.analysis.humps.by_model import ByModel
from search.analysis.scaling.exponent import RULES
from search.report.charts.gallery import surface_name
from search.report.findings import Findings
from search.report.latex import NOTHING, booktabs, cell, estimate, estimates, rate, rounded
from search.report.sentences.scaling import RULE_WORDS
from search.report.sentences.wording import sentence
from search.study.shown import decimals, number_of, show

MOST_LEADERS = 10  # in LaTeX; the CSV has all
MOST_COLUMNS = 10  # batch sizes in LaTeX
NO_SCORE = {"diverged": "div.", "stopped": "stop.", "failed": "fail."}


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table's numbers, and its LaTeX; `name` is that of its two files."""

    name: str
    numbers: pd.DataFrame
    latex: str

    @property
    def csv(self) -> str:
        """The numbers with all their digits."""
        text: str = self.numbers.to_csv(index=False, lineterminator="\n")
        return text


def paper_tables(findings: Findings) -> list[PaperTable]:
    """Those that have rows, of the best surface; the best configurations are of all trials."""
    best = findings.analyses[0]
    made = [
        _surface(findings, best),
        _ridge(findings, best),
        _scaling(findings, best),
        _cost(findings, best),
        _leaders(findings),
        *(_by_model(findings, answer, i) for i, answer in enumerate(findings.by_model)),
    ]
    return [table for table in made if table is not None]


def _made(
    findings: Findings,
    name: str,
    numbers: pd.DataFrame,
    shown: pd.DataFrame,
    headings: Mapping[str, str],
    caption: str,
    *,
    above: str = "",
) -> PaperTable | None:
    """A table, whose caption says if it is of a preview or synthetic patches; None without rows."""
    if shown.empty:
        return None
    study = re.sub(r"[^A-Za-z0-9-]+", "-", findings.name).strip("-")
    latex = booktabs(
        shown,
        headings,
        caption=f"{caption} {_of_what(findings)}".strip(),
        label=f"tab:{study}-{name.replace('_', '-')}",
        above=above,
    )
    return PaperTable(name=name, numbers=numbers, latex=latex)


def _of_what(findings: Findings) -> str:
    """The study, the surface, and how far it may be trusted."""
    surface = surface_name(findings.analyses[0])
    words = f"{findings.name}{f', best surface: {surface}' if surface else ''}."
    if findings.synthetic:
        return f"{words} SYNTHETIC PATCHES, no real images (dataset=synthetic)."
    return f"{words} A preview, not a full study." if findings.about.get("preview") else words


def _surface(findings: Findings, analysis: Analysis) -> PaperTable | None:
    """A row per learning rate and a column per batch size: mean (sd), and n where it differs.

    Where most of these would be empty, as in a search, a row per setting that has a score.
    """
    cells = analysis.cells
    scored = cells[cells["n"] > 0]
    if scored.empty:
        return None
    what = "trials" if analysis.binned else "seeds"
    counts = sorted(scored["n"].unique())
    of = f"n {what} as given"
    if len(counts) == 1:
        of = f"n = {number_of(int(counts[0]), what.removesuffix('s'))}"
    by, lr_name = "grid_lr", analysis.lr_name
    if cells.duplicated(["batch_size", "grid_lr"]).any():  # bins of the peak lr
        by, lr_name = "lr", "peak lr"
    is_sparse = 2 * len(cells) < cells["batch_size"].nunique() * cells[by].nunique()
    listed_as = _one_by_one if is_sparse else _crossed
    shown, headings = listed_as(scored if is_sparse else cells, by, lr_name)
    spread = " (standard deviation)" if counts[-1] > 1 else ""
    caption = f"Mean {analysis.metric}{spread} by {lr_name} and batch size, {of}"
    if is_sparse:
        caption += "; settings without a score are in the CSV."
    else:
        caption += "; div., stop., fail.: no score, as the trials diverged, were stopped or failed."
        left_out = cells["batch_size"].nunique() - MOST_COLUMNS
        if left_out > 0:
            caption += f" The {number_of(left_out, 'largest batch size')} are in the CSV only."
    numbers = cells.drop(columns=["scores", "seeds"]).rename(columns={"std": "sd"})
    is_peak = analysis.lr_name == "lr"  # of a table, whose lr is what the optimizer gets
    numbers = numbers.drop(columns="grid_lr") if is_peak else numbers
    numbers = numbers.rename(
        columns={} if is_peak else {"lr": "peak_lr", "grid_lr": analysis.lr_name}
    )
    first = [n for n in ("batch_size", analysis.lr_name, "peak_lr") if n in numbers]
    return _made(
        findings,
        "surface",
        numbers[[*first, *(name for name in numbers if name not in first)]],
        shown,
        headings,
        caption,
        above="" if is_sparse else "batch size",
    )


Shown = tuple[pd.DataFrame, dict[str, str]]


def _crossed(cells: pd.DataFrame, by: str, lr_name: str) -> Shown:
    """A row per learning rate and a column per batch size."""
    settings = _settings(cells)
    sizes = [str(size) for size in sorted(cells["batch_size"].unique())[:MOST_COLUMNS]]
    rows = [
        {
            "lr": rounded(lr, 4),
            **dict(zip(group["batch_size"].astype(str), settings[group.index], strict=True)),
        }
        for lr, group in cells.groupby(by)
    ]
    shown = pd.DataFrame(rows, columns=["lr", *sizes])
    return shown, {"lr": lr_name, **{size: size for size in sizes}}


def _one_by_one(cells: pd.DataFrame, by: str, lr_name: str) -> Shown:
    """A row per setting."""
    ordered = cells.sort_values(["batch_size", by])
    shown = pd.DataFrame(
        {
            "batch_size": ordered["batch_size"],
            "lr": [rounded(lr, 4) for lr in ordered[by]],
            "mean": _settings(ordered),
        }
    )
    return shown, {"batch_size": "batch size", "lr": lr_name, "mean": "mean"}


def _settings(cells: pd.DataFrame) -> "pd.Series[str]":
    """`0.852 (0.004, n=3)`, or why there is no score; n only where it differs."""
    places = max(decimals(cells["mean"], digits=3), decimals(cells["std"], digits=1))
    with_n = cells.loc[cells["n"] > 0, "n"].nunique() > 1

    def setting(row: "pd.Series[float]") -> str:
        if not math.isfinite(row["mean"]):
            return next((words for name, words in NO_SCORE.items() if row[name]), NOTHING)
        inside = [f"{row['std']:.{places}f}"] if math.isfinite(row["std"]) else []
        inside += [f"n={row['n']:.0f}"] if with_n else []
        return f"{row['mean']:.{places}f}" + (f" ({', '.join(inside)})" if inside else "")

    return cells.apply(setting, axis=1)


def _ridge(findings: Findings, analysis: Analysis) -> PaperTable | None:
    """The best lr of each batch size, from its own curve."""
    if exploration_of(findings.about).kind == RIDGE:
        return None  # few trials, chosen by the model: its own table has the answer
    numbers = analysis.ridge[
        ["batch_size", "vertex", "lr_low", "lr_high", "bracketed", "lr", "mean"]
    ].rename(columns={"vertex": "best_lr", "lr": "best_tried_lr", "mean": "best_tried_mean"})
    shown = pd.DataFrame(
        {
            "batch_size": numbers["batch_size"],
            "best": list(map(rate, numbers["best_lr"], numbers["lr_low"], numbers["lr_high"])),
            "bracketed": numbers["bracketed"].astype(bool),
            "tried": [rounded(lr, 4) for lr in numbers["best_tried_lr"]],
            "mean": _alone(numbers["best_tried_mean"]),
        }
    )
    headings = {
        "batch_size": "batch size",
        "best": "best peak lr [95 %]",
        "bracketed": "bracketed",
        "tried": "best peak lr tried",
        "mean": f"its mean {analysis.metric}",
    }
    caption = (
        "Best peak learning rate of each batch size with its 95 % interval; not bracketed: it is "
        "the smallest or largest rate tried."
    )
    return _made(findings, "ridge", numbers, shown, headings, caption)


def _alone(values: "pd.Series[float]", digits: int = 3) -> list[str]:
    """A column of numbers without intervals."""
    places = decimals(values, digits=digits)
    return [f"{value:.{places}f}" if math.isfinite(value) else NOTHING for value in values]


def _by_model(findings: Findings, answer: ByModel, index: int) -> PaperTable | None:
    """The best lr of each batch size by the model of humps."""
    shown = pd.DataFrame(
        {
            "batch_size": answer.rows["batch_size"],
            "best": list(map(rate, answer.rows["lr"], answer.rows["low"], answer.rows["high"])),
            "trials": answer.rows["trials"],
        }
    )
    headings = {"batch_size": "batch size", "best": "best peak lr [95 %]", "trials": "trials"}
    of = f" ({answer.of})" if answer.of else ""
    caption = (
        f"Best peak learning rate of each batch size by the model of one hump over log lr{of}, "
        f"with its 95 % interval; without trials it is a prediction. Exponent "
        f"{estimate(*answer.exponent)}."
    )
    name = f"ridge_by_model{f'_{index + 1}' if len(findings.by_model) > 1 else ''}"
    return _made(findings, name, answer.rows, shown, headings, caption)


def _scaling(findings: Findings, analysis: Analysis) -> PaperTable | None:
    """The exponent of the best lr, and what its interval says about each rule."""
    fit = analysis.exponent
    if not math.isfinite(fit.value) or exploration_of(findings.about).kind == RIDGE:
        return None
    rows = [("measured", fit.value, fit.low, fit.high, "")]
    rows += [(rule, power, math.nan, math.nan, fit.verdict(rule)) for rule, power in RULES.items()]
    numbers = pd.DataFrame(rows, columns=["rule", "exponent", "low", "high", "verdict"])
    words = {"measured": "measured [95 %]"} | {k: sentence(v) for k, v in RULE_WORDS.items()}
    powers = [f"{fit.value:.2f}", *(f"{power:g}" for power in RULES.values())]
    if math.isfinite(fit.low):
        powers[0] += f" [{fit.low:.2f}, {fit.high:.2f}]"
    shown = pd.DataFrame(
        {
            "rule": [sentence(words[rule]) for rule in numbers["rule"]],
            "exponent": powers,
            "verdict": [verdict or NOTHING for verdict in numbers["verdict"]],
        }
    )
    sizes = ", ".join(map(str, fit.batch_sizes))
    caption = (
        f"Exponent a of the best peak learning rate c B^a over batch sizes {sizes}, and whether "
        f"each scaling rule is compatible with its 95 % interval."
    )
    headings = {"rule": "rule", "exponent": "exponent", "verdict": "verdict"}
    return _made(findings, "scaling", numbers, shown, headings, caption)


def _cost(findings: Findings, analysis: Analysis) -> PaperTable | None:
    """What each batch size needs to reach the target."""
    numbers = analysis.needed
    if numbers.empty:
        return None
    shown = pd.DataFrame(
        {
            "batch_size": numbers["batch_size"],
            "lr": [rounded(lr, 4) for lr in numbers["lr"]],
            "updates": [f"{round(count):,}" for count in numbers["updates"]],
            "images": [f"{round(count):,}" for count in numbers["examples_seen"]],
            "time": [
                f"{seconds:.1f}" if math.isfinite(seconds) else NOTHING
                for seconds in numbers.get("train_s", pd.Series(np.nan, numbers.index))
            ],
            "n": numbers["n"],
        }
    )
    headings = {
        "batch_size": "batch size",
        "lr": "peak lr",
        "updates": "updates",
        "images": "images",
        "time": "time (s)",
        "n": "seeds",
    }
    caption = (
        f"Cost of reaching {analysis.metric} {show(analysis.target)}, each batch size with the "
        f"rate that needs the fewest images; means over the seeds that "
        f"reach it. Time includes evaluations, on the hardware of the study."
    )
    early = "early" in numbers and bool((numbers["early"] > 0).any())
    caption += " Some seeds reached it by their first evaluation: at most so much." if early else ""
    return _made(findings, "cost_to_target", numbers, shown, headings, caption)


def _leaders(findings: Findings) -> PaperTable | None:
    """The best configurations; the test score is reported, and ranks nothing."""
    rows, metric = findings.leaders, findings.metric
    if rows.empty:
        return None
    test = [name for name in rows if str(name).startswith("test_")]
    fields = [n for n in rows if n not in ("mean", "std", "n", "low", "high", *test)]
    shown = (
        rows[fields]
        .map(cell)
        .assign(
            mean=estimates(rows["mean"], rows["low"], rows["high"]),
            sd=_alone(rows["std"], digits=1),
            n=rows["n"],
            **{name: _alone(rows[name]) for name in test},
        )
    )
    headings = {name: name.replace("batch_size", "batch size") for name in fields}
    headings |= {"mean": f"{metric} [95 %]", "sd": "sd", "n": "n"}
    headings |= {name: f"mean {name}" for name in test}
    caption = f"Best configurations by mean {metric}, with the standard deviation over n seeds."
    if test and not metric.startswith("test_"):
        caption += (
            " They were chosen by validation; the test score is reported, and ranked nothing."
        )
    numbers = rows.rename(columns={"std": "sd"})
    return _made(
        findings, "best_configurations", numbers, shown.head(MOST_LEADERS), headings, caption
    )
