"""What a report says first: what was trained, what to use, and which learning rate is meant."""

import json
import math
from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.console import Console

from search.analysis.advice import Advice, advice, scattered_advice
from search.analysis.humps.by_model import ByModel
from search.report.findings import Findings
from search.report.numbers import plain
from search.report.sentences.advice import advice_sentences, rates_sentence
from search.report.sentences.wording import listed
from search.study.shown import number_of
from trainable.host import storage
from trainable.host.storage import Folder

MOST_NAMED = 3
NAMES = {"pcam": "PatchCamelyon", "synthetic": "synthetic patches"}


def advice_of(findings: Findings) -> Advice | None:
    """Of the best surface; None of a search that has no cell with a score."""
    best = findings.analyses[0]
    is_search = not best.cells["mean"].notna().any() and len(findings.leaders)
    if is_search or (best.cells.empty and findings.steps):
        return None
    if "table" in findings.about and findings.fields and best.cells["mean"].notna().any():
        beside = [name for name in findings.fields if name not in ("batch_size", "lr")]
        return scattered_advice(_model_of(findings), beside)
    return advice(best, _model_of(findings))


def _model_of(findings: Findings) -> ByModel | None:
    """The model's answer for the best surface."""
    name = ", ".join(f"{field}={value}" for field, value in findings.analyses[0].of.items())
    answers = {answer.of: answer for answer in findings.by_model}
    return findings.by_model[0] if len(answers) == 1 else answers.get(name)


def advice_lines(findings: Findings) -> list[str]:
    """The recommendation in a few sentences, and which rate is meant."""
    given = advice_of(findings)
    if given is None:
        return []
    best = findings.analyses[0]
    lines = advice_sentences(given, best, findings.about, findings.folder)
    rates = rates_sentence(best) if given.settings else ""
    return [*lines, rates] if rates else lines


def advice_numbers(findings: Findings) -> dict[str, Any]:
    """The recommendation for scripts."""
    given = advice_of(findings)
    numbers = {} if given is None else asdict(given)
    data: dict[str, Any] = plain(
        {"about": what_was_trained(findings), "sentences": advice_lines(findings), **numbers}
    )
    return data


def print_advice(console: Console, report: Folder) -> None:
    """What to use, as the report in this folder says it: its first lines."""
    advice = json.loads(storage.read(report, "report.json"))["advice"]
    if not advice["sentences"]:
        return
    console.print("\n[italic]what to use[/italic]", highlight=False)
    for number, sentence in enumerate(advice["sentences"]):
        style = "bold" if number == 0 else ""
        console.print(f"  {sentence}", style=style, soft_wrap=True, highlight=False, markup=False)


def what_was_trained(findings: Findings) -> str:
    """Data, images, networks, epochs, trials, seeds and hardware, as far as the trials say."""
    trials = findings.trials
    facts = [
        listed([NAMES.get(name, name) for name in _values(trials, "dataset")]),
        _images(trials),
        _networks(trials),
        _one(trials, "epochs", "epoch"),
        number_of(len(trials), "trial"),
        number_of(len(_values(trials, "seed")), "seed") if "seed" in trials else "",
        f"on {listed(_values(trials, 'device')[:MOST_NAMED])}" if _values(trials, "device") else "",
    ]
    return ", ".join(fact for fact in facts if fact)


def _values(trials: pd.DataFrame, column: str) -> list[str]:
    if column not in trials:
        return []
    return sorted({str(value) for value in trials[column].dropna()})


def _images(trials: pd.DataFrame) -> str:
    """The training images of a trial, if the tables say and all have as many."""
    if "train_images" not in trials or trials["train_images"].nunique(dropna=False) != 1:
        return ""
    number, sizes = trials["train_images"].iloc[0], _values(trials, "image_size")
    size = f" of {float(sizes[0]):.0f} px" if len(sizes) == 1 else ""
    known = number is not None and math.isfinite(float(number))
    return f"{int(number):,} training images{size}" if known else f"all training images{size}"


def _networks(trials: pd.DataFrame) -> str:
    networks = _values(trials, "model")
    if not networks:
        return ""
    if len(networks) > MOST_NAMED:
        return f"{len(networks)} networks"
    return f"network{'s' if len(networks) > 1 else ''} {listed(networks)}"


def _one(trials: pd.DataFrame, column: str, noun: str) -> str:
    """A number that all trials have in common."""
    values = trials[column].dropna().unique() if column in trials else []
    return number_of(f"{values[0]:g}", noun, f"{noun}s") if len(values) == 1 else ""
