"""Sentences on what the study's source reports, beside what was measured."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from search.analysis.chosen import STEPS
from search.analysis.expected import (
    NOT_MEASURED,
    NOT_REPRODUCED,
    ONE_SEED,
    REPRODUCED,
    UNRESOLVED,
    Verdict,
)
from search.analysis.scaling.exponent import RULES
from search.report.sentences.scaling import RULE_WORDS
from search.report.sentences.wording import listed, sentence
from search.study.shown import change, number_of, show

OUTCOMES = (REPRODUCED, NOT_REPRODUCED, UNRESOLVED, NOT_MEASURED)
BUDGETS = ("epochs", "updates", "examples", "seconds")


def told(verdict: Verdict) -> str:
    """The expectation, what was measured, and the verdict, as one text."""
    return f"{beside(verdict)} {outcome(verdict)}"


def beside(verdict: Verdict) -> str:
    """The expectation, and what was measured if anything was."""
    source = verdict.expected.get("source", "no source")
    text = f"Expected ({source}): {claim(verdict)}{_of(verdict)}."
    if words := measured(verdict):
        text += f" Measured: {words}."
    if verdict.left_out:
        text += f" Left out, as no trial has a score: {listed(verdict.left_out)}."
    return text + "".join(f" {sentence(note)}." for note in verdict.notes)


def outcome(verdict: Verdict) -> str:
    """The verdict, and why it is none if that is known."""
    why = f"{verdict.why}, add --set seeds=3" if verdict.why == ONE_SEED else verdict.why
    return f"{sentence(verdict.outcome)}{f': {why}' if why else ''}."


def claim(verdict: Verdict) -> str:
    """What the source reports."""
    make = _CLAIMS.get(verdict.kind)
    try:
        return make(verdict) + _at(verdict) if make else "unknown"
    except KeyError:  # study.json was changed by hand
        return "unknown"


def _exponent(verdict: Verdict) -> str:
    low, high = verdict.expected["low"], verdict.expected["high"]
    power = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"the best learning rate grows as batch size to the power {power}"


def _better(verdict: Verdict) -> str:
    expected, name = verdict.expected, verdict.expected["field"]
    by = expected.get("by")
    text = f"{verdict.metric} is better with {_named(name, expected['value'])} than with "
    return f"{text}{_value(name, expected['than'])}{f', by {show(by)}' if by else ''}"


def _order(verdict: Verdict) -> str:
    name = verdict.expected["field"]
    values = ", ".join(_value(name, value) for value in verdict.expected["values"])
    return f"{verdict.metric} from best to worst by {name}: {values}"


def _trend(verdict: Verdict) -> str:
    rises = verdict.expected["direction"] == "rises"
    if verdict.mode == "max":
        how = "rises" if rises else "falls"
    else:
        how = "gets better (falls)" if rises else "gets worse (rises)"
    return f"{verdict.metric} {how} as {verdict.expected['field']} grows"


def _reported(verdict: Verdict) -> str:
    num = len(verdict.expected["rows"])
    return f"the order of {number_of(num, 'setting')} by {verdict.metric}, as in its table"


_CLAIMS = {
    "Exponent": _exponent,
    "Better": _better,
    "Order": _order,
    "Trend": _trend,
    "Reported": _reported,
}


def _value(name: str, value: object) -> str:
    """Names of steps in quotes: they are of several words."""
    return f'"{value}"' if name in STEPS else show(value)


def _named(name: str, value: object) -> str:
    return f"{name} {_value(name, value)}" if name in STEPS else f"{name}={show(value)}"


def _at(verdict: Verdict) -> str:
    """The other values that the expectation is of."""
    parts = []
    for name, value in verdict.expected.get("where", {}).items():
        if value in ("lowest", "highest"):
            found = verdict.where.get(name)
            parts.append(f"at the {value} {name}{f' ({show(found)})' if found else ''}")
        else:
            parts.append(f"with {_named(name, value)}")
    return f", {listed(parts)}" if parts else ""


def _of(verdict: Verdict) -> str:
    """Which of several surfaces."""
    named = ", ".join(f"{name}={show(value)}" for name, value in verdict.of.items())
    return f" ({named})" if named else ""


def measured(verdict: Verdict) -> str:
    """What the trials give; empty if nothing."""
    if not math.isfinite(verdict.value) and verdict.kind != "Order":
        return ""
    return _MEASURED[verdict.kind](verdict)


def _measured_exponent(verdict: Verdict) -> str:
    if not math.isfinite(verdict.low):
        return f"{verdict.value:.2f}, without an interval"
    text = f"{verdict.value:.2f} [{verdict.low:.2f}, {verdict.high:.2f}]"
    if verdict.seeds == 1:
        text += " (one seed: from the scatter about the line)"
    low, high = verdict.expected["low"], verdict.expected["high"]
    others = [
        RULE_WORDS[rule]
        for rule, power in RULES.items()
        if verdict.low <= power <= verdict.high and not low <= power <= high
    ]
    if verdict.outcome == REPRODUCED and others:
        text += (
            f", with which {listed(others)} {'is' if len(others) == 1 else 'are'} compatible too"
        )
    return text


def _measured_better(verdict: Verdict) -> str:
    text = f"{show(abs(verdict.value))} {'better' if verdict.value >= 0 else 'worse'}"
    if not math.isfinite(verdict.low):
        return f"{text} with one seed"
    text += f" [{change(verdict.low)}, {change(verdict.high)}] over {verdict.seeds} paired seeds"
    by = verdict.expected.get("by")
    if by and not verdict.low <= by <= verdict.high:
        text += f", {'less' if by > verdict.high else 'more'} than the source's {show(by)}"
    return text


def _measured_order(verdict: Verdict) -> str:
    """The order of the means, and how much of it is more than noise; empty without scores."""
    if verdict.rows.empty or not verdict.seeds:
        return ""
    counts = Counter(verdict.rows["outcome"])
    parts = [f"{_are(counts[name])} {name}" for name in OUTCOMES if counts[name]]
    steps = number_of(len(verdict.rows), "step")
    return f"{', '.join(verdict.order)}; of {steps} down the expected order {listed(parts)}"


def _are(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'}"


def _measured_trend(verdict: Verdict) -> str:
    """The correlation of the field and the metric as it is, whichever of it is good."""
    sign = 1 if (verdict.expected["direction"] == "rises") == (verdict.mode == "max") else -1
    return f"rank correlation {sign * verdict.value:+.2f} ({_p(verdict)})"


def _measured_reported(verdict: Verdict) -> str:
    num = int(verdict.rows["measured"].notna().sum())
    return f"rank correlation {verdict.value:+.2f} over {num} settings ({_p(verdict)})"


def _p(verdict: Verdict) -> str:
    p = "p < 0.001" if verdict.p_value < 0.001 else f"p = {verdict.p_value:.2g}"
    return f"{p}, {number_of(verdict.seeds, 'seed')}"


_MEASURED = {
    "Exponent": _measured_exponent,
    "Better": _measured_better,
    "Order": _measured_order,
    "Trend": _measured_trend,
    "Reported": _measured_reported,
}


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many expectations have which verdict; empty without any."""
    if not verdicts:
        return ""
    counts = Counter(verdict.outcome for verdict in verdicts)
    parts = [f"{_are(counts[name])} {name}" for name in OUTCOMES if counts[name]]
    num = number_of(len(verdicts), "expectation")
    return f"Of {num} from the literature {listed(parts)} (see Expected and measured)."


def may_differ(about: Mapping[str, Any]) -> str:
    """Why a preview may differ from its source; empty for a whole study."""
    if not about.get("preview"):
        return ""
    base, vary = about.get("base", {}), about.get("vary", {})
    parts = [f"model={base['model']}"] if "model" not in vary and base.get("model") else []
    if images := base.get("train_images"):
        side = f" of {base['image_size']} px" if base.get("image_size") else ""
        parts.append(f"{images:,} training images{side}")
    parts += [f"{base[name]:g} {name}" for name in BUDGETS if base.get(name) and name not in vary]
    if base.get("dataset") == "synthetic":
        parts.append("synthetic patches in place of real images")
    return (
        f"This is a preview ({', '.join(parts)}), and its sources trained larger networks for "
        f"longer on more images. An effect that depends on these may be absent or the other way "
        f"round here, so a preview neither confirms nor refutes its source."
    )
