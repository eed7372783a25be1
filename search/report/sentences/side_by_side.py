"""What two studies differ in, in sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from search.analysis.declared import domain_of
from search.analysis.side_by_side import Compared, Difference
from search.report.sentences.domains import domain_words
from search.report.sentences.wording import listed
from search.study.shown import number_of, show

MOST_FIELDS = 6


def trust_sentences(
    names: tuple[str, str], *, synthetic: tuple[bool, bool], preview: tuple[bool, bool]
) -> list[str]:
    """That one or both had no real images, or were a preview; none for two full studies."""
    sentences = []
    if drawn := _which(names, synthetic):
        sentences.append(
            f"dataset=synthetic in {drawn}: trained on synthetic patches, not on real images. The "
            "comparison says nothing about real data."
        )
    if short := _which(names, preview):
        sentences.append(
            f"Preview only: {short} had a small network, few images and few epochs, not what the "
            "space file declares."
        )
    return sentences


def _which(names: tuple[str, str], are: tuple[bool, bool]) -> str:
    return listed([name for name, is_one in zip(names, are, strict=True) if is_one])


def settings_sentence(differing: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Which fields the studies set differently."""
    if not differing:
        return "Both studies have the same settings, as far as their study.json says."
    shown = [
        f"{field} {_value(values[0])} in {names[0]} and {_value(values[1])} in {names[1]}"
        for field, values in list(differing.items())[:MOST_FIELDS]
    ]
    more = len(differing) - MOST_FIELDS
    rest = f"; and {number_of(more, 'more field')}" if more > 0 else ""
    return f"They differ in {'; '.join(shown)}{rest}."


def _value(value: Any) -> str:
    if domain_of(value) is not None:
        return f"({domain_words(value)})"
    return "(not set)" if value is None else show(value)


def compared_sentences(compared: Compared, names: tuple[str, str]) -> list[str]:
    """The answer: scores at the own best rates, where they differ, ridge, exponent, best sets."""
    makers = (_mean, _where, _ridge, _exponent, _sets)
    return [sentence for make in makers if (sentence := make(compared, names))]


def _mean(compared: Compared, names: tuple[str, str]) -> str:
    first, second = names
    if compared.own_best.empty:
        return "No batch size has scores in both, so they cannot be compared."
    sizes = number_of(len(compared.own_best), "batch size")
    at = f"Each at its own best learning rate, on average over {sizes}"
    difference = compared.mean
    if math.isnan(difference.low):
        return (
            f"{at}, {compared.metric} of {second} minus that of {first} is "
            f"{difference.value:+.3g}; without two seeds in common there is no interval."
        )
    if not difference.excludes(0):
        return (
            f"{at}, no difference in {compared.metric} is visible above the noise: "
            f"{_signed(difference)} ({second} minus {first})."
        )
    better = (difference.value > 0) == (compared.mode == "max")
    verb = "better" if better else "worse"
    return f"{at}, {second} is {verb} than {first}: {compared.metric} {_signed(difference)}."


def _where(compared: Compared, names: tuple[str, str]) -> str:
    """At which settings the scores surely differ."""
    cells = compared.cells
    if cells.empty:
        return f"They have no setting in common: no batch size with the same {compared.lr_name}."
    differ = cells[(cells["low"] > 0) | (cells["high"] < 0)]
    if differ.empty:
        which = f"none of the {len(cells)} settings that both have"
        return f"Of single settings, the scores surely differ at {which} (95 %, all together)."
    largest = differ.loc[differ["difference"].abs().idxmax()]
    return (
        f"The scores surely differ at {len(differ)} of the {len(cells)} settings that both have "
        f"(95 %, all together), most at batch size {largest['batch_size']:.0f} with "
        f"{compared.lr_name} {show(largest['grid_lr'])}, by {largest['difference']:+.3g}."
    )


def _ridge(compared: Compared, names: tuple[str, str]) -> str:
    first, second = names
    shift = compared.shift
    if math.isnan(shift.value):
        return (
            "Whether the ridge moved is unknown: no batch size has a bracketed best rate in both."
        )
    sizes = number_of(len(compared.ridge), "batch size")
    if math.isnan(shift.low):
        return (
            f"The best peak learning rate of {second} is {shift.value:.2g} times that of {first} "
            f"over {sizes}; with one seed a setting there is no interval."
        )
    span = f"{shift.value:.2g} times [{shift.low:.2g}, {shift.high:.2g}]"
    if shift.excludes(1):
        return (
            f"The ridge moved: the best peak learning rate of {second} is {span} that of {first}, "
            f"on average over {sizes}."
        )
    return (
        f"The ridge did not visibly move: the best peak learning rate of {second} is {span} that "
        f"of {first}, on average over {sizes}."
    )


def _exponent(compared: Compared, names: tuple[str, str]) -> str:
    if math.isnan(compared.exponent.low):
        return ""
    first, second = compared.exponents
    change = compared.exponent
    verdict = "differ" if change.excludes(0) else "do not visibly differ"
    return (
        f"The exponents {verdict}: the best rate grows as B^{first.value:.2f} in {names[0]} and "
        f"B^{second.value:.2f} in {names[1]}, a difference of {_signed(change, digits='.2f')}."
    )


def _sets(compared: Compared, names: tuple[str, str]) -> str:
    counts = [len(s) for s in (compared.both_best, compared.first_best, compared.second_best)]
    if not (counts[0] + counts[1] and counts[0] + counts[2]):
        return ""  # one of them has no repeats, and so no best set
    parts = [
        f"{counts[0]} in both",
        *(f"{count} only in {name}" for count, name in zip(counts[1:], names, strict=True)),
    ]
    return f"Of the settings that cannot be told from the best, {listed(parts)}."


def _signed(difference: Difference, digits: str = ".3g") -> str:
    ends = ", ".join(f"{end:+{digits}}" for end in (difference.low, difference.high))
    return f"{difference.value:+{digits}} [{ends}]"


def names_of(names: Sequence[str]) -> tuple[str, str]:
    """Two names that differ."""
    first, second = names
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")
