"""Sentences on learning rates: how the best one scales, which to use, which are stable."""

import math

import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.scaling.exponent import EDGE_WITHIN_NOISE, ON_EDGE
from search.analysis.scaling.forms import AHEAD
from search.report.sentences.wording import how_to_replicate, listed, replicate, sentence, sizes
from search.study.shown import show

RULE_WORDS = {
    "constant": "a constant rate",
    "sqrt": "square-root scaling",
    "linear": "linear scaling",
}
CURVED_FORMS = {
    "saturating": "a rate that saturates, lr_max / (1 + B_noise / B)",
    "surge": "a rate that rises and falls, with its top at B_noise",
}


def scaling(analysis: Analysis) -> str:
    """How the best lr grows with batch size, and which rules are compatible with it."""
    fit = analysis.exponent
    if not math.isfinite(fit.value):
        return _no_scaling(analysis)
    power = f"The best lr grows as B^{fit.value:.2f}"
    where = f"over batch sizes {min(fit.batch_sizes)} to {max(fit.batch_sizes)}"
    if fit.left_out:
        reasons = [f"{b}, where {why}" for b, why in fit.left_out.items()]
        where += f", without {'; '.join(reasons)}"
    if not math.isfinite(fit.low):
        return (
            f"{power} {where}; without more seeds or batch sizes there is no interval, so the "
            f"scaling rules cannot be compared."
        )
    interval = f"[{fit.low:.2f}, {fit.high:.2f}]"
    if fit.from_scatter:
        interval += " (from the scatter about the line: there is one seed per setting)"
    return f"{power} {interval} {where}. {_verdicts(analysis)}"


def _verdicts(analysis: Analysis) -> str:
    """Which rules the exponent's interval allows, and a form that is ahead of all of them."""
    fit = analysis.exponent
    allowed = [words for rule, words in RULE_WORDS.items() if fit.verdict(rule) == "compatible"]
    fails = [words for rule, words in RULE_WORDS.items() if fit.verdict(rule) == "rejected"]
    text = "None of the usual rules is compatible with this"
    if allowed:
        verb = "is" if len(allowed) == 1 else "are"
        text = f"{sentence(listed(allowed))} {verb} compatible with this"
        if fails:
            text += f"; {listed(fails)} {'is' if len(fails) == 1 else 'are'} rejected"
    forms = analysis.forms
    if len(forms) and forms.loc[0, "form"] in CURVED_FORMS and forms.loc[1, "delta"] >= AHEAD:
        of_powers = forms.loc[~forms["form"].isin(CURVED_FORMS), "delta"].min()
        text += (
            f". But {CURVED_FORMS[forms.loc[0, 'form']]}, with B_noise about "
            f"{show(forms.loc[0, 'b_noise'])}, describes it better than any power of B (AICc lower "
            f"by {of_powers:.1f})"
        )
    return f"{text}."


def _no_scaling(analysis: Analysis) -> str:
    """Why there is no exponent."""
    fit = analysis.exponent
    if fit.looks_flat:
        return (
            f"How the best lr scales with batch size is unknown: with one {replicate(analysis)} "
            f"per setting the scores look like noise (p = {fit.p_flat:.2g} for any "
            f"effect of the lr); {how_to_replicate(analysis)}."
        )
    edge = [str(b) for b, why in fit.left_out.items() if why == ON_EDGE]
    noisy = [str(b) for b, why in fit.left_out.items() if why == EDGE_WITHIN_NOISE]
    text = (
        f"How the best lr scales with batch size is unknown: this needs three batch sizes with a "
        f"bracketed best lr, and there are {len(fit.batch_sizes)}"
    )
    if edge:
        text += f"; at {sizes(edge)} the best lr is at the edge of the grid: widen the grid"
    if noisy:
        text += f"; at {sizes(noisy)} the noise allows a best lr at the edge of the grid"
    return f"{text}."


def lr_to_use(analysis: Analysis) -> str:
    """The lr for the smallest, a middle and the largest batch size, and for the next larger one."""
    table = analysis.lr_to_use
    if table.empty:
        return ""

    def rates(rows: pd.DataFrame) -> str:
        known = zip(rows["batch_size"], rows["lr"], rows["low"], rows["high"], strict=True)
        return listed([f"{lr:.2g} [{a:.2g}, {z:.2g}] at batch size {b}" for b, lr, a, z in known])

    tried, others = table[table["tried"].astype(bool)], table[~table["tried"].astype(bool)]
    shown = sorted({0, len(tried) // 2, len(tried) - 1})
    return (
        f"By one line through all batch sizes the peak lr to use is {rates(tried.iloc[shown])}; if "
        f"the line goes on, it is {rates(others.tail(1))} (95 % intervals)."
    )


def stable(analysis: Analysis) -> str:
    """Up to which lr few trials diverge."""
    table = analysis.stable.dropna(subset="diverges_at")
    if table.empty:
        return ""
    limits = [
        f"{show(row['stable_lr'])} at batch size {row['batch_size']:.0f}"
        for row in table.to_dict("records")
        if math.isfinite(row["stable_lr"])
    ]
    if not limits:
        return ""
    return f"Fewer than one trial in ten diverges up to a peak lr of {listed(limits)}."
