"""Sentences on whether batch size and learning rate act together."""

import math

from search.analysis.analysis import Analysis
from search.analysis.surface import SIGNIFICANT
from search.report.sentences.scaling import RULE_WORDS
from search.report.sentences.wording import how_to_replicate, listed, sentence
from search.study.shown import number_of, show

SCALED_BY = {  # what the rate grows with, and the rule
    "linear": ("", RULE_WORDS["linear"]),
    "sqrt": ("square root of the ", RULE_WORDS["sqrt"]),
    "malladi": ("square root of the ", RULE_WORDS["sqrt"]),
}


def interaction(analysis: Analysis) -> str:
    """Whether the two interact, and how much each explains."""
    mixed = analysis.interaction
    has_shares = math.isfinite(mixed.share_interaction)
    if not has_shares and not math.isfinite(mixed.p_value):
        return f"Whether batch size and learning rate interact is unknown: {mixed.why}."
    shares = (
        f"of the variance between settings, batch size explains {mixed.share_batch_size:.0%}, "
        f"{analysis.lr_name} {mixed.share_lr:.0%} and their interaction "
        f"{mixed.share_interaction:.0%}"
        if has_shares and not mixed.p_flat > SIGNIFICANT
        else "averaged over the grid, the settings differ by no more than the noise"
    )
    if not math.isfinite(mixed.p_value):
        why = mixed.why if mixed.replicates > 1 else f"{mixed.why}: {how_to_replicate(analysis)}"
        return f"{sentence(shares)}; {why}{_near_chance(analysis)}."
    p = f"p = {mixed.p_value:.3g}" if mixed.p_value > 0.001 else "p <= 0.001"
    if mixed.p_value <= SIGNIFICANT:
        text = f"Batch size and {analysis.lr_name} interact ({p}, permutation test): {shares}"
    else:
        text = (
            f"No interaction of batch size and {analysis.lr_name} is visible above the noise ({p}, "
            f"permutation test): {shares}"
        )
    return f"{text}{_near_chance(analysis)}.{_beyond_rule(analysis)}"


def crossing(analysis: Analysis) -> str:
    """At which rates the order of batch sizes turns."""
    known = {lr: rho for lr, rho in analysis.spearman.items() if math.isfinite(rho)}
    falls = {lr: rho for lr, rho in known.items() if rho <= -0.8}
    rises = {lr: rho for lr, rho in known.items() if rho >= 0.8}
    is_noise = analysis.crossing_p > SIGNIFICANT or analysis.interaction.p_value > SIGNIFICANT
    if not falls or not rises or is_noise:
        return ""
    better = "better" if analysis.mode == "max" else "worse"
    worse = "worse" if analysis.mode == "max" else "better"

    def rates(rhos: dict[float, float]) -> str:
        return listed([f"{show(lr)} (rho {rho:+.2f})" for lr, rho in sorted(rhos.items())])

    return (
        f"Larger batches do {worse} at {analysis.lr_name} {rates(falls)} and {better} at "
        f"{rates(rises)}: which batch size wins depends on the learning rate."
    )


def _near_chance(analysis: Analysis) -> str:
    """Which settings the interaction leaves out because they learnt nothing."""
    mixed = analysis.interaction
    if not mixed.near_chance:
        return ""
    (batch_size, lr), num_more = mixed.near_chance[0], len(mixed.near_chance) - 1
    named = f"batch size {batch_size:.0f} with {analysis.lr_name} {show(lr)}"
    named += f" and {number_of(num_more, 'more setting')}" if num_more else ""
    text = f"; {named} {'are' if num_more else 'is'} near chance and left out"
    others = mixed.left_out - len(mixed.near_chance)
    return (
        f"{text}, with {number_of(others, 'setting')} in the same rows or columns"
        if others
        else text
    )


def _beyond_rule(analysis: Analysis) -> str:
    """What an interaction is of where the rate that varies is scaled with the batch size."""
    trials = analysis.trials
    if analysis.lr_name != "base_lr" or "lr_scaling" not in trials:
        return ""
    rules = trials["lr_scaling"].dropna().unique()
    rule = rules[0] if len(rules) == 1 else ""
    if rule not in SCALED_BY:
        return ""
    root, words = SCALED_BY[rule]
    start = f" The learning rate already grows with the {root}batch size (lr_scaling={rule}), so "
    if analysis.interaction.p_value <= SIGNIFICANT:
        return f"{start}this is a departure from {words}."
    return f"{start}{words} accounts for how the two interact, as far as the noise shows."
