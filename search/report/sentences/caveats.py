"""What a reader should know before acting on an analysis."""

import math

from search.analysis.analysis import Analysis
from search.analysis.surface import contenders
from search.report.sentences.wording import replicate, sizes
from search.study.shown import number_of

PLAYBOOK = (
    "The best batch size here is the best one for this budget, schedule and regularization. Each "
    "batch size needs its own settings, and with equal epochs a small batch makes more updates. "
    "Choose the batch size by time and memory, then tune the other settings for it (Godbole et "
    "al., Deep Learning Tuning Playbook)."
)


def cautions(analysis: Analysis, *, whole_grid: bool = True) -> list[str]:
    """What a reader should know before acting on the conclusions.

    What a grid lacks is left out where trials were chosen one by one.
    """
    of_grid = (_binning, _unreplicated, _loose_edges) if whole_grid else ()
    makers = (_ended_early, *of_grid, _mixed_origins, _no_front)
    return [PLAYBOOK, *(text for make in makers for text in make(analysis))]


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
    one = replicate(analysis)
    scored = analysis.cells["mean"].notna().sum()
    left_out = scored - len(contenders(analysis.cells))
    if left_out and not analysis.binned:  # of bins, _binning counts those of one trial
        verb = "has" if left_out == 1 else "have"
        return [
            f"{left_out} of {scored} settings {verb} only one {one}: beside settings with "
            f"more they are not ranked, and cannot be best."
        ]
    if analysis.noise.freedom or not scored:
        return []
    if math.isfinite(analysis.exponent.low):
        return [
            f"There is only one {one} per setting, so scores have no intervals and no tests. The "
            f"intervals of learning rates are from the scatter about a line."
        ]
    return [f"There is only one {one} per setting, so there are no intervals and no tests."]


def _loose_edges(analysis: Analysis) -> list[str]:
    edge = analysis.ridge.loc[analysis.ridge["edge"] != "", "batch_size"]
    if edge.empty:
        return []
    return [
        f"At {sizes([str(int(b)) for b in edge])} the best lr is the smallest or largest that "
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
