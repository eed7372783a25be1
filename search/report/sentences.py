"""Sentences from an analysis: conclusions, what cannot be concluded and why, and caveats."""

import math
from collections.abc import Sequence

import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.chance import best_auroc, nothing_beat_chance
from search.analysis.noise_scale import LEAST_MEASURED, median_noise_scale
from search.analysis.scaling import EDGE_WITHIN_NOISE
from search.analysis.surface import best_cell, contenders
from search.study.shown import number_of, show

RULE_WORDS = {
    "constant": "a constant rate",
    "sqrt": "square-root scaling",
    "linear": "linear scaling",
}
SCALED_BY = {  # what the rate grows with, and the rule
    "linear": ("", RULE_WORDS["linear"]),
    "sqrt": ("square root of the ", RULE_WORDS["sqrt"]),
    "malladi": ("square root of the ", RULE_WORDS["sqrt"]),
}
SIGNIFICANT = 0.05
NOTHING_BEAT_CHANCE = (
    "No trial beat chance: the best AUROC is {}, and guessing gives 0.5. So nothing can be "
    "concluded; check the data and its labels, and try lower learning rates or a longer training."
)
PLAYBOOK = (
    "The best batch size here is the best one for this budget, schedule and regularization. Each "
    "batch size needs its own settings, and with equal epochs a small batch makes more updates. "
    "Choose the batch size by time and memory, then tune the other settings for it (Godbole et "
    "al., Deep Learning Tuning Playbook)."
)


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def scope(analysis: Analysis) -> str:
    """What the exponent describes: which lr, and over which batch sizes."""
    used = analysis.exponent.batch_sizes
    return f"peak lr over batch sizes {min(used)} to {max(used)}" if used else "no batch size"


def conclusions(analysis: Analysis) -> list[str]:
    """The answer in sentences made from the numbers; they also say what cannot be concluded."""
    if not analysis.cells["mean"].notna().any():
        return ["No trial has a score yet, so nothing can be concluded."]
    if nothing_beat_chance(analysis.trials, metric=analysis.metric):
        return [
            NOTHING_BEAT_CHANCE.format(show(best_auroc(analysis.trials, metric=analysis.metric)))
        ]
    makers = (_best, _scaling, _interaction, _crossing, _stable, _targets, _noise_scale)
    return [sentence for make in makers if (sentence := make(analysis))]


def _cell(row: "pd.Series[float]", analysis: Analysis) -> str:
    return f"batch size {row['batch_size']:.0f} with {analysis.lr_name} {show(row['grid_lr'])}"


def _replicate(analysis: Analysis) -> str:
    """What a cell contains several of: in bins, trials differ in more than the seed."""
    return "trial" if analysis.binned else "seed"


def _more(analysis: Analysis) -> str:
    """How to get replicates: of a study by its command, of a table by training more."""
    if analysis.binned:
        return "try more configurations"
    return "add --set seeds=3" if "trial_key" in analysis.trials else "train with more seeds"


def _best(analysis: Analysis) -> str:
    cells = contenders(analysis.cells)
    best = best_cell(analysis.cells, mode=analysis.mode)
    score = f"{analysis.metric} {show(best['mean'])}"
    if len(cells) == 1:
        return f"Only {_cell(best, analysis)} has a score ({score}): there is nothing to compare."
    if analysis.best_set.empty:
        return (
            f"{_sentence(_cell(best, analysis))} has the best score ({score}), but one "
            f"{_replicate(analysis)} per setting is too few to rank the {len(cells)} settings; "
            f"{_more(analysis)}."
        )
    tied = analysis.best_set
    n = cells["n"].median()
    count = f"{n:.0f}" if n == cells["n"].max() else f"up to {cells['n'].max()}"
    start = f"With {count} {_replicate(analysis)}s per setting, "
    if len(tied) == 1:
        return f"{start}{_cell(best, analysis)} is the best of {len(cells)} settings ({score})."
    batches = sorted(set(tied["batch_size"]))
    span = f"s {batches[0]:.0f} to {batches[-1]:.0f}" if len(batches) > 1 else f" {batches[0]:.0f}"
    which = f"{len(tied)} of {len(cells)} settings are statistically tied for best"
    which += f" (batch size{span})"
    if len(tied) == len(cells):
        which = f"all {len(cells)} settings are statistically tied for best"
    extreme, off = ("highest", "high") if analysis.mode == "max" else ("lowest", "low")
    return (
        f"{start}{which}. The {extreme} mean is that of {_cell(best, analysis)}: {score}, probably "
        f"about {analysis.optimism:.2g} too {off}, because it is the best of many."
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _scaling(analysis: Analysis) -> str:
    fit = analysis.exponent
    if not math.isfinite(fit.value):
        return _no_scaling(analysis)
    power = f"The best lr grows as B^{fit.value:.2f}"
    where = f"over batch sizes {min(fit.batch_sizes)} to {max(fit.batch_sizes)}"
    if not math.isfinite(fit.low):
        return (
            f"{power} {where}; without more seeds or batch sizes there is no interval, so the "
            f"scaling rules cannot be compared."
        )
    holds = [words for rule, words in RULE_WORDS.items() if fit.verdict(rule) == "holds"]
    fails = [words for rule, words in RULE_WORDS.items() if fit.verdict(rule) == "rejected"]
    verdict = "; none of the usual rules fits"
    if holds:
        verb = "fits" if len(holds) == 1 else "all fit" if len(holds) == 3 else "both fit"
        verdict = f": {listed(holds)} {verb}"
        if fails:
            verdict += f", {listed(fails)} {'is' if len(fails) == 1 else 'are'} rejected"
    return f"{power} [{fit.low:.2f}, {fit.high:.2f}] {where}{verdict}."


def _no_scaling(analysis: Analysis) -> str:
    """Why there is no exponent."""
    fit = analysis.exponent
    edge = [str(int(b)) for b in analysis.ridge.loc[analysis.ridge["edge"] != "", "batch_size"]]
    noisy = [str(b) for b, why in fit.left_out.items() if why == EDGE_WITHIN_NOISE]
    text = (
        f"How the best lr scales with batch size is unknown: this needs three batch sizes with a "
        f"bracketed best lr, and there are {len(fit.batch_sizes)}"
    )
    if edge:
        text += f"; at {_sizes(edge)} the best lr is at the edge of the grid: widen the grid"
    if noisy:
        text += f"; at {_sizes(noisy)} the noise allows a best lr at the edge of the grid"
    return f"{text}."


def _sizes(batch_sizes: Sequence[str]) -> str:
    return f"batch size{'s' if len(batch_sizes) > 1 else ''} {listed(batch_sizes)}"


def _interaction(analysis: Analysis) -> str:
    mixed = analysis.interaction
    has_shares = math.isfinite(mixed.share_interaction)
    if not has_shares and not math.isfinite(mixed.p_value):
        return f"Whether batch size and learning rate interact is unknown: {mixed.why}."
    shares = (
        f"of the variance between settings, batch size explains {mixed.share_batch_size:.0%}, "
        f"{analysis.lr_name} {mixed.share_lr:.0%} and their interaction "
        f"{mixed.share_interaction:.0%}"
        if has_shares
        else "averaged over the grid, the settings differ by no more than the noise"
    )
    if not math.isfinite(mixed.p_value):
        why = mixed.why if mixed.replicates > 1 else f"{mixed.why}: {_more(analysis)}"
        return f"{_sentence(shares)}; {why}{_near_chance(analysis)}."
    p = f"p = {mixed.p_value:.3g}" if mixed.p_value > 0.001 else "p <= 0.001"
    if mixed.p_value <= SIGNIFICANT:
        text = f"Batch size and {analysis.lr_name} interact ({p}, permutation test): {shares}"
    else:
        text = (
            f"No interaction of batch size and {analysis.lr_name} is visible above the noise ({p}, "
            f"permutation test): {shares}"
        )
    return f"{text}{_near_chance(analysis)}.{_beyond_rule(analysis)}"


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
        f"{text}, and so {'is' if others == 1 else 'are'} {others} beside them" if others else text
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


def _crossing(analysis: Analysis) -> str:
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


def _stable(analysis: Analysis) -> str:
    table = analysis.stable.dropna(subset="diverges_at")
    if table.empty:
        return ""
    limits = [
        f"{show(row['stable_lr'])} at batch size {row['batch_size']:.0f}"
        for row in table.to_dict("records")
        if math.isfinite(row["stable_lr"])
    ]
    return f"Training was stable up to a peak lr of {listed(limits)}." if limits else ""


def _targets(analysis: Analysis) -> str:
    needed = analysis.needed
    if len(needed) < 2:
        return ""
    first, last = needed.iloc[0], needed.iloc[-1]
    text = (
        f"To reach {analysis.metric} {show(analysis.target)} with its own best lr, batch size "
        f"{first['batch_size']:.0f} needed {first['updates']:,.0f} updates "
        f"({first['examples_seen']:,.0f} images) and batch size {last['batch_size']:.0f} needed "
        f"{last['updates']:,.0f} ({last['examples_seen']:,.0f} images)"
    )
    fit = analysis.front
    if not math.isfinite(fit.critical_batch_size) or fit.why:
        return f"{text}{'; ' + fit.why if fit.why else ''}."
    return (
        f"{text}; the critical batch size, above which a larger batch saves few updates, is about "
        f"{show(fit.critical_batch_size)} [{show(fit.low)}, {show(fit.high)}]."
    )


def _noise_scale(analysis: Analysis) -> str:
    if analysis.noise_scales.empty:
        return ""
    scale = median_noise_scale(analysis.trials, metric=analysis.metric)
    if not math.isfinite(scale.low):
        trials = "one trial" if scale.n == 1 else f"{scale.n} trials"
        span = show(scale.least)
        span += f" to {show(scale.most)}" if scale.n > 1 else ""
        return (
            f"The gradient noise scale cannot be estimated: {trials} measured {span} images, and "
            f"an interval needs at least {LEAST_MEASURED}."
        )
    return (
        f"The measured gradient noise scale is {show(scale.median)} images [{show(scale.low)}, "
        f"{show(scale.high)}] (median over {scale.n} trials with its 95 % interval)."
    )


def cautions(analysis: Analysis) -> list[str]:
    """What a reader should know before acting on the conclusions."""
    makers = (_ended_early, _binning, _unreplicated, _loose_edges, _mixed_origins, _no_front)
    return [PLAYBOOK, *(sentence for make in makers for sentence in make(analysis))]


def _ended_early(analysis: Analysis) -> list[str]:
    counts = analysis.cells[["stopped", "diverged", "failed", "collapsed"]].sum()
    sentences = []
    if counts["stopped"]:
        one = counts["stopped"] == 1
        sentences.append(
            f"{number_of(counts['stopped'], 'stopped trial')} {'is' if one else 'are'} left out "
            f"(censored). The means of {'its setting' if one else 'their settings'} only include "
            f"trials that were allowed to finish, and so are too good."
        )
    if counts["diverged"]:
        verb = "it is" if counts["diverged"] == 1 else "they are"
        sentences.append(
            f"{number_of(counts['diverged'], 'trial')} diverged: {verb} counted, not averaged."
        )
    if counts["failed"]:
        verb = "is" if counts["failed"] == 1 else "are"
        sentences.append(f"{number_of(counts['failed'], 'trial')} failed and {verb} left out.")
    if counts["collapsed"]:
        one = counts["collapsed"] == 1
        sentences.append(
            f"{number_of(counts['collapsed'], 'trial')} collapsed: the same prediction for every "
            f"image, an AUROC of exactly 0.5, usually by too high a learning rate. "
            f"{'It counts as completed and is' if one else 'They count as completed and are'} "
            f"averaged."
        )
    return sentences


def _binning(analysis: Analysis) -> list[str]:
    if not analysis.binned:
        return []
    sentences = [
        "The learning rates are scattered. They are put into bins of a third of a decade, and "
        "batch sizes are rounded to powers of two: the spread within a bin includes everything "
        "else that differed."
    ]
    if (alone := (analysis.cells["trials"] == 1).sum()) > len(analysis.cells) / 2:
        sentences.append(
            f"{len(analysis.trials)} scattered trials are too few for a surface: {alone} of its "
            f"{len(analysis.cells)} bins contain only one. Try more configurations, or a grid."
        )
    return sentences


def _unreplicated(analysis: Analysis) -> list[str]:
    replicate = _replicate(analysis)
    scored = analysis.cells["mean"].notna().sum()
    left_out = scored - len(contenders(analysis.cells))
    if left_out and not analysis.binned:  # of bins, _binning counts those of one trial
        verb = "has" if left_out == 1 else "have"
        return [
            f"{left_out} of {scored} settings {verb} only one {replicate}: beside settings with "
            f"more they are not ranked, and cannot be best."
        ]
    if analysis.freedom or not scored:
        return []
    return [f"There is only one {replicate} per setting, so there are no intervals and no tests."]


def _loose_edges(analysis: Analysis) -> list[str]:
    edge = analysis.ridge.loc[analysis.ridge["edge"] != "", "batch_size"]
    if edge.empty:
        return []
    return [
        f"At {_sizes([str(int(b)) for b in edge])} the best lr is the smallest or largest that "
        f"was tried (unbracketed); a better one may lie outside."
    ]


def _mixed_origins(analysis: Analysis) -> list[str]:
    trials, sentences = analysis.trials, []
    if "code_version" in trials and trials["code_version"].nunique() > 1:
        sentences.append(
            f"{trials['code_version'].nunique()} versions of the code trained these trials; the "
            f"column code_version distinguishes them."
        )
    if "dataset" in trials and (trials["dataset"] == "synthetic").any():
        sentences.append("dataset=synthetic: the images are synthetic patches, not histology.")
    return sentences


def _no_front(analysis: Analysis) -> list[str]:
    if not analysis.front.why or not math.isfinite(analysis.target):
        return []
    return [f"Critical batch size: {analysis.front.why}."]
