"""What can be concluded from an analysis, and what cannot and why."""

import math
from typing import Any

import pandas as pd

from search.analysis.analysis import Analysis
from search.analysis.best_set import seeds_for
from search.analysis.chance import best_auroc, nothing_beat_chance
from search.analysis.costs.critical_batch import decays
from search.analysis.costs.noise_scale import LEAST_MEASURED, median_noise_scale
from search.analysis.surface import best_cell, contenders
from search.report.sentences.interaction import crossing, interaction
from search.report.sentences.scaling import lr_to_use, scaling, stable
from search.report.sentences.wording import cell_words, how_to_replicate, replicate, sentence, sizes
from search.study.shown import number_of, show

LARGE = 1e4  # sizes that would be shown with an exponent
NOTHING_BEAT_CHANCE = (
    "No trial beat chance: the best AUROC is {}, and guessing gives 0.5. So nothing can be "
    "concluded; check the data and its labels, and try lower learning rates or a longer training."
)


def scope(analysis: Analysis) -> str:
    """What the exponent describes: which lr, and over which batch sizes."""
    used = analysis.exponent.batch_sizes
    return f"peak lr over batch sizes {min(used)} to {max(used)}" if used else "no batch size"


def conclusions(analysis: Analysis, *, whole_grid: bool = True) -> list[str]:
    """The answer in sentences made from the numbers; they also say what cannot be concluded.

    What compares rows and columns of a grid is left out where trials were chosen one by one.
    """
    if not analysis.cells["mean"].notna().any():
        return ["No trial has a score yet, so nothing can be concluded."]
    if nothing_beat_chance(analysis.trials, metric=analysis.metric):
        return [
            NOTHING_BEAT_CHANCE.format(show(best_auroc(analysis.trials, metric=analysis.metric)))
        ]
    of_grid = (_best, _near, scaling, lr_to_use, interaction, crossing, stable)
    makers = (*(of_grid if whole_grid else (_best_mean,)), _targets, _noise_scale)
    return [text for make in makers if (text := make(analysis))]


def _best_mean(analysis: Analysis) -> str:
    """The best setting as it was measured, without a claim that it is the best."""
    best = best_cell(analysis.cells, mode=analysis.mode)
    trials = number_of(int(best["n"]), "trial")
    return (
        f"The best mean score is {analysis.metric} {show(best['mean'])}, at "
        f"{cell_words(best, analysis)} ({trials}); the best of many is partly luck."
    )


def _best(analysis: Analysis) -> str:
    cells = contenders(analysis.cells)
    best = best_cell(analysis.cells, mode=analysis.mode)
    score, which_cell = f"{analysis.metric} {show(best['mean'])}", cell_words(best, analysis)
    if len(cells) == 1:
        return f"Only {which_cell} has a score ({score}): there is nothing to compare."
    if analysis.best_set.empty:
        return (
            f"{sentence(which_cell)} has the best score ({score}), but one "
            f"{replicate(analysis)} per setting is too few to rank the {len(cells)} settings; "
            f"{how_to_replicate(analysis)}."
        )
    tied = analysis.best_set
    n = cells["n"].median()
    count = f"{n:.0f}" if n == cells["n"].max() else f"up to {cells['n'].max()}"
    start = f"With {count} {replicate(analysis)}s per setting, "
    if len(tied) == 1:
        return (
            f"{start}{cell_words(best, analysis)} is the best of {len(cells)} settings ({score})."
        )
    batches = [str(int(b)) for b in sorted(set(tied["batch_size"]))]
    span = f"{sizes(batches[:1])}" if len(batches) == 1 else f"batch sizes {batches[0]} to "
    span += batches[-1] if len(batches) > 1 else ""
    which = f"{len(tied)} of {len(cells)} settings cannot be told from the best ({span})"
    if len(tied) == len(cells):
        which = f"none of the {len(cells)} settings can be told from the best"
    extreme, off = ("highest", "high") if analysis.mode == "max" else ("lowest", "low")
    many = f"all settings of {analysis.surfaces} surfaces" if analysis.surfaces > 1 else "many"
    text = f"{start}{which}. The {extreme} mean is that of {which_cell}: {score}"
    if not analysis.optimism > 0:
        return f"{text}."
    return (
        f"{text}, probably about {analysis.optimism:.2g} too {off}, because it is the best of "
        f"{many}."
    )


def _near(analysis: Analysis) -> str:
    """Which settings are good enough, and how many seeds would tell."""
    if analysis.compared.empty or not math.isfinite(analysis.margin):
        return ""
    near, margin = analysis.near, show(analysis.margin)
    text = f"No setting is surely (95 %) within {margin} of the best."
    if len(near):
        which = f"{len(near)} of {len(analysis.compared)} settings"
        text = f"{which} {'are' if len(near) > 1 else 'is'} surely (95 %) within {margin} of the "
        text += f"best; the largest batch size among them is {near['batch_size'].max():.0f}."
    seeds = seeds_for(analysis.margin, analysis.cells, mode=analysis.mode)
    if analysis.binned or seeds <= contenders(analysis.cells)["n"].median():
        return text
    return f"{text} To tell apart settings that differ by {margin} takes about {seeds} seeds each."


def _targets(analysis: Analysis) -> str:
    needed = analysis.needed
    if len(needed) < 2:
        return ""
    decaying = decays(analysis.trials)
    first = _needed(needed.iloc[0], unit=" updates", decaying=decaying)
    last = _needed(needed.iloc[-1], unit="", decaying=decaying)
    text = f"To reach {analysis.metric} {show(analysis.target)} with its own best lr, "
    text += f"{first} and {last}"
    fit = analysis.front
    if fit.why or not math.isfinite(fit.critical_batch_size):
        return f"{text}."  # why there is no critical batch size is a caveat
    critical, low, high = (
        f"{size:,.0f}" if size >= LARGE else show(size)
        for size in (fit.critical_batch_size, fit.low, fit.high)
    )
    span = f"about {critical} [{low}, {high}]"
    if math.isnan(fit.high):
        span = f"not bounded above; at least {low}"
    elif math.isnan(fit.low):
        span = f"at most {high}"
    return (
        f"{text}; the critical batch size, above which a larger batch saves few updates, is {span}."
    )


def _needed(row: "pd.Series[Any]", *, unit: str, decaying: bool) -> str:
    """What a batch size needed: at most that if it may have been there before an evaluation."""
    is_bound = decaying or row.get("early", 0) > 0
    seeds = ""
    if row.get("unreached", 0):
        seeds = f"; mean of {row['n']:.0f} seeds of {row['n'] + row['unreached']:.0f}, as "
        seeds += "the others never reached it" if row["unreached"] > 1 else "one never reached it"
    return (
        f"batch size {row['batch_size']:.0f} needed {'at most ' if is_bound else ''}"
        f"{row['updates']:,.0f}{unit} ({row['examples_seen']:,.0f} images{seeds})"
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
