"""What to use, in a few lines; and why nothing can be recommended."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.analysis.advice import (
    ALONE,
    CHANCE,
    FLAT,
    LARGEST,
    NO_SCORE,
    SCATTERED,
    Advice,
    More,
    Setting,
)
from search.analysis.analysis import Analysis
from search.analysis.chance import best_auroc
from search.report.sentences.wording import listed, sizes
from search.study.shown import duration, number_of, show

FOR = {
    "score": "the best score",
    "time": "the least time",
    "cost": "the least GPU time",
    "largest": "the largest batch that is not visibly worse",
}
RULES = {"linear": "x B / {}", "sqrt": "x sqrt(B / {})", "malladi": "x sqrt(B / {})"}


def advice_sentences(
    advice: Advice, analysis: Analysis, about: Mapping[str, Any], folder: str = ""
) -> list[str]:
    """The lines that come before all others; `folder` is where the study's results are."""
    if advice.why == SCATTERED and advice.settings:
        return [_rates(advice.settings), *_rule(advice), _beside(advice)]
    if advice.why:
        return [_nothing(advice, analysis), *_more(advice.more, about, folder)]
    others = [_other(setting, advice, analysis) for setting in advice.settings[1:]]
    lines = [_first(advice, analysis), _score(advice, analysis), *others, *_rule(advice)]
    return [*lines, *_more(advice.more, about, folder)]


def _rule(advice: Advice) -> list[str]:
    """The power law, if it is known."""
    if not math.isfinite(advice.rule[0]):
        return []
    c, power = advice.rule
    return [
        f"At other batch sizes from {advice.rule_from} to {advice.rule_to}: peak learning rate "
        f"= {c:.2g} x B^a with a = {power:.2f} [{advice.rule_low:.2f}, {advice.rule_high:.2f}]."
    ]


def _rates(settings: Sequence[Setting]) -> str:
    """The best rate of each batch size."""
    rates = [f"{_rate(setting)} at batch size {setting.batch_size}" for setting in settings]
    return f"Use a peak learning rate of {listed(rates)}."


def _beside(advice: Advice) -> str:
    """What these rates hold for, and why no batch size is named."""
    return (
        f"These rates are for the {listed(advice.beside)} of the best tenth of the runs (medians). "
        f"As the runs differ in these as well, no batch size is recommended."
    )


def _first(advice: Advice, analysis: Analysis) -> str:
    setting = advice.settings[0]
    text = f"Use batch size {setting.batch_size} with a peak learning rate of {_rate(setting)}"
    text += f"{_as_set(setting, analysis)}."
    if advice.at_edge:
        text += " That rate is the smallest or largest tried: a better one may lie outside."
    cells = analysis.cells[analysis.cells["batch_size"] == setting.batch_size]
    return f"{text} No other rate was tried there." if cells["lr"].nunique() == 1 else text


def _score(advice: Advice, analysis: Analysis) -> str:
    """The score of the first setting, and which other batch sizes are as good."""
    setting = advice.settings[0]
    text = f"That is the best mean {analysis.metric}, {show(setting.mean)}"
    others = [str(size) for size in advice.equal if size != setting.batch_size]
    if others:
        verb = "are" if len(others) > 1 else "is"
        return f"{text}; {sizes(others)} {verb} not visibly worse."
    if analysis.best_set.empty:
        return f"{text}; without repeats, how sure that is cannot be said."
    if analysis.cells["batch_size"].nunique() == 1:
        return f"{text}."
    scored = analysis.cells.loc[analysis.cells["n"] > 0, "batch_size"]
    repeats = "" if set(scored) <= set(analysis.compared["batch_size"]) else " with repeats"
    return f"{text}, and surely (95 %) better than that of every other batch size{repeats}."


def _other(setting: Setting, advice: Advice, analysis: Analysis) -> str:
    goals = listed([FOR[goal] for goal in setting.goals])
    text = f"For {goals}: batch size {setting.batch_size}, peak learning rate {_rate(setting)}"
    text += _as_set(setting, analysis)
    first = advice.settings[0]
    if set(setting.goals) != {LARGEST} and math.isfinite(first.seconds + setting.seconds):
        text += f"; a trial takes {setting.seconds / first.seconds:.0%} of the time"
        text += f" of one of batch size {first.batch_size}"
    return f"{text}."


def _rate(setting: Setting) -> str:
    if not math.isfinite(setting.low + setting.high):
        return _two_digits(setting.lr)
    return f"{_two_digits(setting.lr)} [{_two_digits(setting.low)}, {_two_digits(setting.high)}]"


def _two_digits(value: float) -> str:
    """`0.025`, `1600`."""
    return f"{float(f'{value:.2g}'):g}"


def _as_set(setting: Setting, analysis: Analysis) -> str:
    """The value of the study's own column, where that is another number."""
    if math.isclose(setting.grid_lr, setting.lr, rel_tol=0.01):
        return ""
    return f" ({analysis.lr_name} {_two_digits(setting.grid_lr)})"


def rates_sentence(analysis: Analysis) -> str:
    """What the column of learning rates is, where the optimizer gets another one."""
    rows = analysis.trials
    if not {"lr_scaling", "reference_batch_size"} <= set(rows):
        return "Learning rates are those of the table." if analysis.lr_name != "base_lr" else ""
    rules, references = set(rows["lr_scaling"]), set(rows["reference_batch_size"])
    if rules == {"constant"}:
        return "The peak learning rate, the highest of a training, is base_lr at every batch size."
    text = "The peak learning rate is the highest that the optimizer gets in a training; base_lr "
    text += "is the rate before the batch-size rule"
    (rule, *more_rules), (reference, *more_references) = sorted(rules), sorted(references)
    if more_rules or more_references or rule not in RULES:
        return f"{text}."
    return f"{text}: peak = base_lr {RULES[rule].format(int(reference))}."


def _nothing(advice: Advice, analysis: Analysis) -> str:
    if advice.why == NO_SCORE:
        return "Nothing can be recommended: no trial has a score yet."
    if advice.why == CHANCE:
        best = show(best_auroc(analysis.trials, metric=analysis.metric))
        return f"Nothing can be recommended: no trial beat chance (the best AUROC is {best})."
    if advice.why == ALONE:
        return "Nothing can be recommended: only one setting has a score, so none is compared."
    if advice.why == FLAT:
        return (
            "Nothing can be recommended: with one seed a setting the scores look like noise, as "
            "much alike as scores in another order."
        )
    if advice.why == SCATTERED:
        return (
            f"Nothing can be recommended: the runs differ in {listed(advice.beside)} as well, and "
            f"they do not tell a best learning rate inside of what was tried."
        )
    raise ValueError(advice.why)


def _more(steps: Sequence[More], about: Mapping[str, Any], folder: str) -> list[str]:
    """What would settle the rest, with the command."""
    lines = []
    for step in steps:
        spent = ""
        if math.isfinite(step.seconds) and step.seconds > 0:
            spent = f", about {duration(step.seconds)} one after the other"
        trials = number_of(step.trials, "more trial")
        if step.kind == "model":
            what = f"One more trial tells most at batch size {step.batch_size} and a peak learning "
            lines.append(f"{what}rate of {step.lr:.2g}.")
        elif step.kind == "widen":
            what = f"To see beyond the edge of the rates tried: about {trials}{spent}"
            explore = about.get("explore")
            if isinstance(explore, dict) and explore.get("kind") == "Grid":
                what += _command(about, folder, f"explore.widen={explore.get('widen', 0) + 1}")
            lines.append(what if "search.run" in what else f"{what}.")
        else:
            what = f"To settle the rest: {step.seeds} seeds of each setting, {trials}{spent}"
            command = _command(about, folder, f"seeds={step.seeds}")
            lines.append(f"{what}{command}" if command else f"{what}.")
    return lines


def _command(about: Mapping[str, Any], folder: str, setting: str) -> str:
    """The study's own command with one more setting; empty where it would not go on with these."""
    space_file, (out, _, name) = about.get("space_file"), folder.rpartition("/")
    if not space_file or (folder and name != about.get("name", name)):
        return ""
    words = ["--preview"] if about.get("preview") else []
    if about.get("data_folder"):
        words += ["--data", shlex.quote(about["data_folder"])]
    if folder and Path(folder) != Path("results", name).absolute():
        words += ["--out", shlex.quote(out)]
    changed = setting.partition("=")[0]
    settings = [own for own in about.get("settings", []) if own.partition("=")[0] != changed]
    words += [f"--set {shlex.quote(value)}" for value in (*settings, setting)]
    return f": python -m search.run {shlex.quote(space_file)} {' '.join(words)}"
