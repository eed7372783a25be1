"""Sentences about a search: whether stopping was safe, which fields stand out."""

import math

import pandas as pd

from search.analysis.stopping import (
    AGREES,
    DISAGREES,
    LEAST_FINISHED,
    deciding_rung,
    verdict,
)
from search.report.sentences.wording import listed
from search.study.shown import number_of


def stopping_sentence(rungs: pd.DataFrame, *, by_batch_size: bool) -> str:
    """Whether stopping was safe at the rung that decides it; empty if no trial was stopped."""
    rung = deciding_rung(rungs)
    if rung.empty:
        return ""
    overall = rung[rung["batch_size"].isna()].iloc[0]
    where, outcome = place_of(overall), verdict(rung)
    if outcome == "safe":
        return (
            f"Stopping at {where} was safe as far as the finished trials show: their order there "
            f"agrees with their final order ({_rho(overall)})."
        )
    below = rung[rung["best_below"].astype(bool) & rung["batch_size"].notna()]
    if len(below):
        return f"Stopping at {where} was not safe: {_best_below(below, by_batch_size)}."
    if outcome == "not safe":
        return (
            f"Stopping at {where} was not safe: the order of the finished trials there says little "
            f"about their final order ({_rho(overall)}; below {DISAGREES:g} it misleads)."
        )
    start = f"Whether stopping at {where} was safe cannot be said: "
    if math.isnan(overall["low"]):
        one = overall["n"] == 1
        return (
            f"{start}only {number_of(overall['n'], 'trial')} that finished "
            f"{'has' if one else 'have'} a score there, and the comparison needs {LEAST_FINISHED} "
            f"with different scores."
        )
    return (
        f"{start}the order of the finished trials there may agree with their final order well or "
        f"badly ({_rho(overall)}; from {AGREES:g} on it would be safe)."
    )


def place_of(row: "pd.Series[float]") -> str:
    """A rung in words."""
    known = math.isfinite(row["epoch"])
    return f"epoch {row['epoch']:.0f}" if known else f"{row['images']:,.0f} images"


def _rho(row: "pd.Series[float]") -> str:
    interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
    return f"Spearman's rho {row['rho']:.2f} {interval}, {row['n']:.0f} trials"


def _best_below(below: pd.DataFrame, by_batch_size: bool) -> str:
    sizes = [f"{size:.0f}" for size in below["batch_size"]]
    one = len(sizes) == 1
    trials = "trial" if one else "trials"
    text = (
        f"the {trials} that finished best at batch size{'' if one else 's'} {listed(sizes)} "
        f"{'was' if one else 'were'} below the final cut there, so better ones may have been "
        f"stopped"
    )
    if by_batch_size:
        return text
    return f"{text}; add --set stop.by_batch_size=true to compare trials of one batch size only"


def importance_sentence(table: pd.DataFrame) -> str:
    """Which searched fields stand out above chance; empty if that is unknown."""
    if table.empty or table["by_chance"].isna().all():
        return ""
    important = table[table["stands_out"].astype(bool)].to_dict("records")
    if not important:
        first = table.iloc[0]
        return (
            f"No searched field stands out above chance: even the most important, "
            f"{first['field']} ({first['importance']:.0%}), is within what shuffled scores give."
        )
    fields = listed(
        [
            f"{row['field']} (importance {row['importance']:.0%}, shuffled scores reach "
            f"{row['by_chance']:.0%})"
            for row in important
        ]
    )
    text = f"{fields} {'stands' if len(important) == 1 else 'stand'} out above chance"
    others = len(table) - len(important)
    if not others:
        return f"{text}."
    return f"{text}; the other {number_of(others, 'field') if others > 1 else 'field'} " + (
        "do not." if others > 1 else "does not."
    )
