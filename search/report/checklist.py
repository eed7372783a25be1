"""The questions that conferences ask about experiments, answered from the tables alone."""

import math
from typing import Any

from search.analysis.groups import varied_fields
from search.report.facts import (
    DIRTY,
    command_of,
    commits,
    device_words,
    evaluation_images,
    hours_words,
    parameters_words,
    values,
)
from search.report.findings import Findings
from search.report.latex import cell, estimate
from search.report.sentences.wording import listed
from search.study.shown import duration

NOT_RECORDED = "not recorded"


def checklist(findings: Findings) -> str:
    """Two tables: NeurIPS' paper checklist, and the reproducibility criteria of ACL conferences."""
    return (
        "## NeurIPS paper checklist (the items on experiments)\n\n"
        + _table(_neurips(findings))
        + "\n## ACL: reproducibility criteria and Responsible NLP checklist (part C)\n\n"
        + _table(_acl(findings))
    )


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {question} | {answer} |" for question, answer in rows]
    return "\n".join(["| asked | answer |", "|---|---|", *lines, ""])


def _neurips(findings: Findings) -> list[tuple[str, str]]:
    trials = findings.trials
    settings = "Data, Networks, What was varied, What was held fixed"
    return [
        ("Experimental result reproducibility", _repeatable(findings)),
        (
            "Open access to data and code",
            f"data: SHA-256 under Data, access {NOT_RECORDED}; code: commit under How to reproduce "
            f"it, address {NOT_RECORDED}",
        ),
        (
            "Experimental setting: splits, hyperparameters, how they were chosen, optimizer",
            f"yes: {settings}, Trials and selection",
        ),
        (
            "Statistical significance: error bars, what varies, how they are computed",
            _has_bars(findings),
        ),
        (
            "Compute resources: worker, memory, time of each trial and of all",
            f"{device_words(trials)}; Compute; storage and the machine's memory {NOT_RECORDED}",
        ),
        ("More compute than the reported trials (failed or preliminary ones)", NOT_RECORDED),
    ]


def _acl(findings: Findings) -> list[tuple[str, str]]:
    trials = findings.trials
    wall = trials["train_wall_s"] if "train_wall_s" in trials else trials.iloc[:0, 0]
    runtime = (
        f"{duration(wall.mean())} a trial, {hours_words(float(wall.sum()) / 3600)} in all"
        if wall.notna().any()
        else NOT_RECORDED
    )
    return [
        ("Number of parameters of each model (C1)", parameters_words(trials) or NOT_RECORDED),
        ("Computing infrastructure (C1)", device_words(trials)),
        ("Average runtime, total budget (C1)", runtime),
        ("Number of training runs of the search", f"{len(trials)}, each with its evaluations"),
        ("Bounds of each hyperparameter (C2)", _bounds(findings)),
        ("How values were chosen, and by which criterion", _criterion(findings)),
        ("Best-found values (C2)", _best(findings)),
        ("Validation score beside each test score", _both_scores(findings)),
        ("Summary statistics: mean, variance (C3)", _summary(findings)),
        (
            "Examples and label distribution of each split",
            f"train under Data, its labels {NOT_RECORDED}; validation "
            f"{evaluation_images(findings.epochs, trials, 'val')}; test "
            f"{evaluation_images(trials, trials, 'test')}",
        ),
        ("Excluded data, link to the data", NOT_RECORDED),
        ("Packages and their versions (C4)", "How to reproduce it"),
    ]


def _repeatable(findings: Findings) -> str:
    about = findings.about
    if not command_of(about) or not about.get("commit"):
        return "partly: the command or the commit is unknown"
    if commits(findings.trials, about).endswith(DIRTY):
        return "partly: the code had changes that were not committed"
    kernels = values(findings.trials, "deterministic")
    words = "yes: command, commit, versions, seeds, SHA-256 of the data"
    return f"{words}; `deterministic` {listed(kernels)}" if kernels else words


def _has_bars(findings: Findings) -> str:
    counts = findings.analyses[0].cells["n"]
    counts = counts[counts > 0]
    if not (counts > 1).any():
        return "no: no setting has two scores; `--set seeds=3` trains more"
    num_single = int((counts < 2).sum())
    if not num_single:
        return "yes: Error bars"
    what = "bins" if findings.analyses[0].binned else "settings"
    return f"partly: {num_single} of {len(counts)} {what} have one score"


def _bounds(findings: Findings) -> str:
    vary = list(findings.about.get("vary", {})) or varied_fields(findings.trials)
    return f"What was varied ({', '.join(f'`{name}`' for name in vary)})"


def _criterion(findings: Findings) -> str:
    kind = findings.about.get("explore")
    name = kind.get("kind") if isinstance(kind, dict) else kind
    return f"{name or NOT_RECORDED}; mean {findings.metric}, {findings.mode} is best"


def _leader(findings: Findings) -> dict[str, Any]:
    if findings.leaders.empty:
        return {}
    first: dict[str, Any] = {str(k): v for k, v in findings.leaders.iloc[0].to_dict().items()}
    return first


def _best(findings: Findings) -> str:
    best = _leader(findings)
    statistics = ("mean", "std", "n", "low", "high")
    chosen = [
        f"`{name}` {cell(value)}"
        for name, value in best.items()
        if name not in statistics and not name.startswith("test_")
    ]
    return ", ".join(chosen) or "no completed trial has a score"


def _both_scores(findings: Findings) -> str:
    best, metric = _leader(findings), findings.metric
    test = metric.replace("val_", "test_")
    if metric.startswith("test_"):
        return "no: settings are ranked by a test score"
    if not best or not math.isfinite(best.get(test, math.nan)):
        return f"no {test} is recorded for the best configuration"
    return (
        f"the best configuration: {metric} {estimate(best['mean'], best['low'], best['high'])}, "
        f"{test} {estimate(best[test])}; the others in tables/best_configurations.csv"
    )


def _summary(findings: Findings) -> str:
    best = _leader(findings)
    if not best:
        return "none"
    where = "tables/surface.csv and best_configurations.csv: mean, sd and n of each setting"
    if not best["n"] > 1:
        return f"{where}; the best configuration has one seed"
    return f"{where}; the best: {estimate(best['mean'], best['low'], best['high'])}, " + (
        f"variance {best['std'] ** 2:.2g}, n = {best['n']:.0f}"
    )
