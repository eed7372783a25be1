"""Sentences on the best lr of each batch size by the model of humps."""

import math
from collections.abc import Sequence

import pandas as pd

from search.analysis.humps.by_model import ByModel, is_worth
from search.analysis.scaling.exponent import RULES
from search.report.sentences.scaling import RULE_WORDS
from search.report.sentences.wording import listed, sentence

ASSUMING = "assuming that the scores have one smooth hump at each batch size"


def by_model_sentences(answers: Sequence[ByModel], *, metric: str, mode: str) -> list[str]:
    """Of each surface: the best lr of each batch size, how it grows, and what is to come."""
    return [
        text
        for answer in answers
        for text in (
            best_lrs_sentence(answer),
            growth(answer),
            predictions(answer),
            next_sentence(answer, metric=metric, mode=mode),
        )
        if text
    ]


def smooth_sentences(answers: Sequence[ByModel], *, metric: str) -> list[str]:
    """What the model adds to a grid with one seed a cell, of which nothing else knows the noise."""
    return [
        text
        for answer in answers
        for text in (_noise(answer, metric), best_lrs_sentence(answer), _interplay(answer))
    ]


def scattered_sentences(answers: Sequence[ByModel]) -> list[str]:
    """Of runs of which other columns were drawn as well: the best lr at the best of the rest."""
    sentences = []
    for answer in answers:
        at = [f"{row['column']} {row['at']:.3g}" for row in answer.columns.to_dict("records")]
        where = f" with {listed(at)}, the medians of the best tenth of the runs," if at else ""
        best = best_lrs_sentence(answer).replace("The best peak lr", f"The best lr{where}", 1)
        sentences += [best, _interplay(answer), *_moved(answer)]
    return sentences


def _moved(answer: ByModel) -> list[str]:
    """Which other columns move the best lr."""
    return [
        f"As {row['column']} goes from {row['below']:.3g} to {row['above']:.3g}, the best lr "
        f"{'falls' if row['factor'] < 1 else 'rises'} by a factor of "
        f"{_factor(row['factor'])} [{_ends(row['low'], row['high'])}]."
        for row in answer.columns.to_dict("records")
        if not row["low"] <= 1 <= row["high"]
    ]


def _factor(value: float) -> str:
    return f"{max(value, 1 / value):.2g}"


def _ends(low: float, high: float) -> str:
    return ", ".join(sorted((_factor(low), _factor(high)), key=float))


def _noise(answer: ByModel, metric: str) -> str:
    return (
        f"Assuming that scores change smoothly with batch size and lr, the noise of one trial"
        f"{_of(answer)} is about {answer.noise_std:.1g} in {metric}, and {answer.num_best} of "
        f"{answer.num_cells} settings cannot be told from the best."
    )


def _interplay(answer: ByModel) -> str:
    """Whether one peak lr can be the best at all batch sizes, and how the best one grows."""
    _, low, high = answer.exponent
    if math.isnan(low):
        return growth(answer)
    may = "one peak lr may be" if low <= 0 <= high else "no peak lr is"
    return f"By the same model {may} the best at all batch sizes. {growth(answer)}"


def best_lrs_sentence(answer: ByModel) -> str:
    """The best peak lr with its 95 % interval, at each batch size that has trials."""
    rows = answer.tried
    text = f"The best peak lr{_of(answer)} is {listed(_with_interval(rows))}"
    open_ends = [f"{size:.0f}" for size in rows.loc[rows["at_edge"], "batch_size"]]
    if open_ends:
        sizes = f"batch size{'s' if len(open_ends) > 1 else ''} {listed(open_ends)}"
        text += f"; at {sizes} the interval reaches the smallest or largest lr tried"
    return f"{text} (95 % intervals, {ASSUMING})."


def predictions(answer: ByModel) -> str:
    """The best peak lr of batch sizes without trials."""
    is_open = answer.predicted["at_edge"]
    known, unknown = answer.predicted[~is_open], answer.predicted.loc[is_open, "batch_size"]
    texts = []
    if len(known):
        texts.append(
            f"Predicted best peak lr{_of(answer)}, tested by no trial: "
            f"{listed(_with_interval(known))}."
        )
    if len(unknown):
        sizes = (
            f"batch size{'s' if len(unknown) > 1 else ''} {listed([f'{b:.0f}' for b in unknown])}"
        )
        texts.append(f"At {sizes} it may lie outside of the lrs tried.")
    return " ".join(texts)


def next_sentence(answer: ByModel, *, metric: str, mode: str) -> str:
    """Where one more trial would tell most, and what it is expected to gain."""
    more = answer.next_trial
    rise = f"{'rise' if mode == 'max' else 'fall'} by {more.gain:.1g}"
    noise = f"the noise of one trial is {answer.noise_std:.1g}"
    if not is_worth(answer):
        return (
            f"One more trial{_of(answer)} would tell little, wherever it is: {metric} at the lrs "
            f"then chosen is expected to {rise} or less, on average over batch sizes ({noise})."
        )
    return (
        f"One more trial{_of(answer)} tells most at batch size {more.batch_size} and a peak lr of "
        f"{more.lr:.2g}: {metric} at the lrs then chosen is expected to {rise} on average over "
        f"batch sizes ({noise})."
    )


def _with_interval(rows: pd.DataFrame) -> list[str]:
    return [
        f"{row['lr']:.2g} [{row['low']:.2g}, {row['high']:.2g}] at batch size "
        f"{row['batch_size']:.0f}"
        for row in rows.to_dict("records")
    ]


def growth(answer: ByModel) -> str:
    """How the best lr grows, and which scaling rules that allows."""
    value, low, high = answer.exponent
    if math.isnan(value):
        return (
            f"How the best peak lr{_of(answer)} grows is unknown: this needs two batch sizes whose "
            f"best lr is surely inside of the range tried."
        )
    allowed = [RULE_WORDS[rule] for rule, power in RULES.items() if low <= power <= high]
    refused = [RULE_WORDS[rule] for rule, power in RULES.items() if not low <= power <= high]
    verb = "grows" if value >= 0 else "falls"
    text = f"The best peak lr{_of(answer)} {verb} as B^{value:.2f} [{low:.2f}, {high:.2f}]."
    if allowed:
        text += f" {sentence(listed(allowed))} {_are(allowed)} compatible with this"
        text += f"; {listed(refused)} {_are(refused)} rejected." if refused else "."
        return text
    return f"{text} {sentence(listed(refused))} {_are(refused)} rejected."


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _of(answer: ByModel) -> str:
    return f" with {answer.of}" if answer.of else ""
