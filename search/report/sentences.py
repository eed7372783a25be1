"""Sentences from an analysis: what can be concluded, what cannot and why, and what to beware of."""

import math
from collections.abc import Sequence

import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.scaling import EDGE_WITHIN_NOISE

RULE_WORDS = {
    "constant": "a constant rate",
    "sqrt": "square-root scaling",
    "linear": "linear scaling",
}
SIGNIFICANT = 0.05
PLAYBOOK = (
    "A batch size that scores best here is best at this budget, with this schedule and "
    "regularisation: each batch size wants its own, and at equal epochs a small one makes more "
    "updates. Choose the batch size by time and memory, then tune the rest for it (Godbole et al., "
    "Deep Learning Tuning Playbook)."
)


def show(value: float) -> str:
    """A number with four figures."""
    return f"{value:.4g}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def scope(analysis: Analysis) -> str:
    """What the exponent is of: which lr, and over which batch sizes."""
    used = analysis.exponent.batch_sizes
    return f"peak lr over batch sizes {min(used)} to {max(used)}" if used else "no batch size"


def conclusions(analysis: Analysis) -> list[str]:
    """The answer in sentences, each made from the numbers; what cannot be said is said too."""
    if not analysis.cells["mean"].notna().any():
        return ["No trial has a score: nothing can be said of batch size and learning rate yet."]
    makers = (_best, _scaling, _interaction, _crossing, _stable, _targets, _noise_scale)
    return [sentence for make in makers if (sentence := make(analysis))]


def _cell(row: "pd.Series[float]", analysis: Analysis) -> str:
    return f"batch {row['batch_size']:.0f} at {analysis.lr_name} {show(row['grid_lr'])}"


def _replicate(analysis: Analysis) -> str:
    """What a cell has several of: in bins its trials differ in more than the seed."""
    return "trial" if analysis.binned else "seed"


def _more(analysis: Analysis) -> str:
    """How one gets replicates: of a study by its command, of a table by whoever trains."""
    if analysis.binned:
        return "try more configurations"
    return "run with --set seeds=3" if "trial_key" in analysis.trials else "train with more seeds"


def _best(analysis: Analysis) -> str:
    cells = analysis.cells.dropna(subset="mean")
    best = cells.loc[cells["mean"].idxmax() if analysis.mode == "max" else cells["mean"].idxmin()]
    score = f"{analysis.metric} {show(best['mean'])}"
    if len(cells) == 1:
        return f"Only {_cell(best, analysis)} has a score, {score}: there is nothing to compare."
    if analysis.best_set.empty:
        return (
            f"{_cell(best, analysis).capitalize()} scored best ({score}), but no replicates: with "
            f"one {_replicate(analysis)} a cell it cannot be said which of the {len(cells)} cells "
            f"are as good."
        )
    some = analysis.best_set
    n = cells["n"].median()
    count = f"{n:.0f}" if n == cells["n"].max() else f"up to {cells['n'].max()}"
    start = f"Within the noise of {count} {_replicate(analysis)}s a cell, "
    if len(some) == 1:
        return f"{start}{_cell(best, analysis)} is best of {len(cells)} cells, {score}."
    batches = sorted(set(some["batch_size"]))
    span = f"s {batches[0]:.0f} to {batches[-1]:.0f}" if len(batches) > 1 else f" {batches[0]:.0f}"
    which = f"{len(some)} of {len(cells)} cells are best (batch size{span})"
    if len(some) == len(cells):
        which = f"none of the {len(cells)} cells can be told from the best"
    return (
        f"{start}{which}; the highest mean is that of {_cell(best, analysis)}, {score}, which "
        f"being picked from so many flatters by about {analysis.optimism:.2g}."
    ).replace("highest", "highest" if analysis.mode == "max" else "lowest")


def _scaling(analysis: Analysis) -> str:
    found = analysis.exponent
    loose = [int(row["batch_size"]) for row in analysis.ridge.to_dict("records") if row["edge"]]
    if not math.isfinite(found.value):
        text = "How the best lr scales with batch size cannot be said: it takes three batch sizes "
        text += f"whose best lr is bracketed, and there are {len(found.batch_sizes)}"
        if loose:
            text += f"; unbracketed at batch {listed([str(b) for b in loose])}, where the best lr "
            text += "lies on the edge of those tried: widen the grid"
        noisy = [str(b) for b, why in found.left_out.items() if why == EDGE_WITHIN_NOISE]
        if noisy:
            text += f"; at batch {listed(noisy)} it may lie there for all that the noise tells"
        return text + "."
    power = f"The best lr grows as B^{found.value:.2f}"
    where = f"over batch sizes {min(found.batch_sizes)} to {max(found.batch_sizes)}"
    if not math.isfinite(found.low):
        return (
            f"{power} {where}; with neither seeds nor enough batch sizes there is no interval, and "
            f"no scaling rule can be told from another."
        )
    holds = [words for rule, words in RULE_WORDS.items() if found.verdict(rule) == "holds"]
    fails = [words for rule, words in RULE_WORDS.items() if found.verdict(rule) == "rejected"]
    verdict = "; none of the usual rules holds"
    if holds:
        verb = "holds" if len(holds) == 1 else "all fit" if len(holds) == 3 else "both fit"
        verdict = f": {listed(holds)} {verb}"
        if fails:
            verdict += f", {listed(fails)} {'is' if len(fails) == 1 else 'are'} rejected"
    return f"{power} [{found.low:.2f}, {found.high:.2f}] {where}{verdict}."


def _interaction(analysis: Analysis) -> str:
    mixed = analysis.interaction
    if not math.isfinite(mixed.share_interaction):
        return f"Whether the two interact cannot be said: {mixed.why}."
    shares = (
        f"of the variance between cells batch size has {mixed.share_batch_size:.0%}, "
        f"{analysis.lr_name} {mixed.share_lr:.0%} and their interaction "
        f"{mixed.share_interaction:.0%}"
    )
    if not math.isfinite(mixed.p_value):
        why = mixed.why if mixed.replicates > 1 else f"{mixed.why}: {_more(analysis)}"
        return f"{shares[0].upper()}{shares[1:]}; {why}."
    p = f"p = {mixed.p_value:.3g}" if mixed.p_value > 0.001 else "p <= 0.001"
    if mixed.p_value <= SIGNIFICANT:
        said = f"Batch size and {analysis.lr_name} act together ({p}, permutation): {shares}."
        if mixed.p_robust > SIGNIFICANT:
            said += (
                f" A test that lets the noise differ between cells does not confirm it "
                f"(p = {mixed.p_robust:.2g}): train with more seeds."
            )
        return said
    return (
        f"No interaction of batch size and {analysis.lr_name} shows above the noise ({p}, "
        f"permutation): {shares}."
    )


def _crossing(analysis: Analysis) -> str:
    known = {lr: rho for lr, rho in analysis.spearman.items() if math.isfinite(rho)}
    falls = {lr: rho for lr, rho in known.items() if rho <= -0.8}
    rises = {lr: rho for lr, rho in known.items() if rho >= 0.8}
    if not falls or not rises:
        return ""
    better = "better" if analysis.mode == "max" else "worse"
    worse = "worse" if analysis.mode == "max" else "better"

    def some(rhos: dict[float, float]) -> str:
        return listed([f"{show(lr)} (rho {rho:+.2f})" for lr, rho in sorted(rhos.items())])

    return (
        f"Larger batches do {worse} at {analysis.lr_name} {some(falls)} and {better} at "
        f"{some(rises)}: the order of the batch sizes turns with the learning rate."
    )


def _stable(analysis: Analysis) -> str:
    table = analysis.stable.dropna(subset="diverges_at")
    if table.empty:
        return ""
    each = [
        f"{show(row['stable_lr'])} at batch {row['batch_size']:.0f}"
        for row in table.to_dict("records")
        if math.isfinite(row["stable_lr"])
    ]
    return f"Training was stable up to a peak lr of {listed(each)}." if each else ""


def _targets(analysis: Analysis) -> str:
    needed = analysis.needed
    if len(needed) < 2:
        return ""
    first, last = needed.iloc[0], needed.iloc[-1]
    text = (
        f"To reach {analysis.metric} {show(analysis.target)}, each at its own best lr, batch "
        f"{first['batch_size']:.0f} took {first['updates']:,.0f} updates "
        f"({first['examples_seen']:,.0f} images) and batch {last['batch_size']:.0f} took "
        f"{last['updates']:,.0f} ({last['examples_seen']:,.0f} images)"
    )
    found = analysis.front
    if not math.isfinite(found.critical_batch_size) or found.why:
        return f"{text}{': ' + found.why if found.why else ''}."
    return (
        f"{text}; the critical batch size, beyond which a larger batch saves few updates, is about "
        f"{show(found.critical_batch_size)} [{show(found.low)}, {show(found.high)}]."
    )


def _noise_scale(analysis: Analysis) -> str:
    table = analysis.noise_scales
    if table.empty:
        return ""
    low, high = table["noise_scale"].min(), table["noise_scale"].max()
    span = show(low) if len(table) == 1 else f"{show(low)} to {show(high)}"
    return f"The measured gradient noise scale is {span} images (median trial of each batch size)."


def cautions(analysis: Analysis) -> list[str]:
    """What a reader should know before acting on the conclusions."""
    said = [PLAYBOOK]
    counts = analysis.cells[["stopped", "diverged", "failed"]].sum()
    if counts["stopped"]:
        said.append(
            f"{counts['stopped']} stopped trials are censored and left out: their cells rest on "
            f"the trials that were let run, which flatters them."
        )
    if counts["diverged"]:
        said.append(f"{counts['diverged']} trials diverged: counted in their cells, not averaged.")
    if counts["failed"]:
        said.append(f"{counts['failed']} trials failed and are left out.")
    if analysis.binned:
        said.append(
            "The learning rates are scattered, so they are put in bins of a third of a decade, and "
            "batch sizes at powers of two: the spread within a cell holds all else that differed."
        )
        if (alone := (analysis.cells["trials"] == 1).sum()) > len(analysis.cells) / 2:
            said.append(
                f"{len(analysis.trials)} scattered trials are too few for a surface: {alone} of "
                f"its {len(analysis.cells)} cells hold one. Try more configurations, or a grid."
            )
    if not analysis.freedom and analysis.cells["mean"].notna().any():
        said.append(
            f"No replicates: one {_replicate(analysis)} a cell, so no interval and no test of "
            f"noise."
        )
    loose = analysis.ridge.loc[analysis.ridge["edge"] != "", "batch_size"]
    if len(loose):
        said.append(
            f"unbracketed: at batch {listed([str(int(b)) for b in loose])} the best lr is the "
            f"smallest or largest tried; a better one may lie outside."
        )
    if "code_version" in analysis.trials and analysis.trials["code_version"].nunique() > 1:
        said.append(
            f"{analysis.trials['code_version'].nunique()} versions of the code trained these "
            f"trials: the column code_version tells them apart."
        )
    if "dataset" in analysis.trials and (analysis.trials["dataset"] == "synthetic").any():
        said.append("dataset=synthetic: these are drawn patches, not histology.")
    if analysis.front.why and math.isfinite(analysis.target):
        said.append(f"Critical batch size: {analysis.front.why}.")
    return said
