"""methods.md: what was run, in sentences made from the tables and study.json alone."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from search.analysis.groups import varied_fields
from search.analysis.tuning_curve import ENDED
from search.report.charts.gallery import surface_name
from search.report.checklist import checklist
from search.report.facts import (
    UNKNOWN,
    command_of,
    commits,
    counted,
    device_words,
    evaluation_images,
    hours_words,
    numbers_words,
    parameters_words,
    trained_hours,
    training_images,
    values,
)
from search.report.findings import Findings
from search.report.protocol import OF_OWN_MODELS, fixed, varied
from search.report.sentences.wording import listed
from search.report.tuning_curve import tuning_sentence
from search.study.shown import duration, number_of, show
from trainable.config import OWN_MODELS

SPLITS = {
    "given": "The splits are the data set's own.",
    "by_image": (
        "The data set has no validation split: part of its training images was taken for it at "
        "random by class, image by image, so images of one patient or slide may be in both."
    ),
}


def methods(findings: Findings) -> str:
    """The text in Markdown."""
    about = findings.about
    if "table" in about or findings.trials.empty:
        return _of_table(findings)
    parts = {
        "Data": _data(findings),
        "Networks": _networks(findings),
        "What was varied": varied(findings),
        "What was held fixed": fixed(findings),
        "Trials and selection": _trials(findings),
        "Error bars": _error_bars(findings),
        "Compute": _compute(findings),
        "How to reproduce it": _reproduction(findings),
    }
    text = "".join(f"## {title}\n\n{_wrapped(words)}\n\n" for title, words in parts.items())
    return f"# Methods of {findings.name}\n\n{_loud(findings)}{text}{checklist(findings)}"


def _loud(findings: Findings) -> str:
    words = ["Written from the tables and study.json; what they do not say is called unknown."]
    if findings.synthetic:
        words.insert(
            0,
            "**dataset=synthetic: trained on synthetic patches, not on real images. These results "
            "say nothing about real data.**",
        )
    if findings.about.get("preview"):
        words.insert(
            0,
            "**This is a preview: a small network, few images and few epochs. It is not the study "
            "that its space file declares, and not to be reported as such.**",
        )
    if not findings.about:
        words.append("**There is no study.json: how these trials were planned is unknown.**")
    return "\n\n".join(words) + "\n\n"


def _of_table(findings: Findings) -> str:
    """Of results that say nothing of their training."""
    about = findings.about
    if "table" not in about:
        return f"# Methods of {findings.name}\n\n{_loud(findings)}No trial has ended.\n"
    columns = ", ".join(f"{name} from `{column}`" for name, column in about["columns"].items())
    return (
        f"# Methods of {findings.name}\n\n"
        + _wrapped(
            [
                f"{number_of(len(findings.trials), 'run')} were read from {about['table']} "
                f"({columns}; metric `{findings.metric}`, {findings.mode} is best): "
                f"{_endings(findings.trials)}.",
                "Data, splits, networks, what was held fixed, selection, hardware, time, versions "
                f"and commit are {UNKNOWN}: the table does not tell.",
                *_intervals(findings),
            ]
        )
        + "\n"
    )


def _data(findings: Findings) -> list[str]:
    trials = findings.trials
    names, splits = values(trials, "dataset"), values(trials, "split")
    sizes = values(trials, "image_size")
    fingerprints = values(trials, "data_fingerprint")
    declared = findings.about.get("base", {}).get("dataset")
    alias = f" (declared as {declared})" if declared and names and declared not in names else ""
    crop = f"cropped to a central square of {listed(sizes)} px" if sizes else "not cropped"
    sentences = [
        f"Data set: {listed(names) or UNKNOWN}{alias}; task: "
        f"{listed(values(trials, 'task')) or UNKNOWN}; images {crop}.",
        f"Training images: {numbers_words(training_images(trials, findings.epochs))}; "
        f"validation images: {evaluation_images(findings.epochs, trials, 'val')}; test images: "
        f"{evaluation_images(trials, trials, 'test')}.",
    ]
    if values(trials, "train_images"):
        sentences.append("`train_images` asked for that many training images, drawn by class.")
    sentences += [SPLITS.get(kind) or _by_group(kind) for kind in splits]
    if not splits:
        sentences.append(f"How validation was split is {UNKNOWN}.")
    sentences.append(
        f"SHA-256 of the data: {listed([f'`{digest}`' for digest in fingerprints]) or UNKNOWN}."
    )
    sentences.append(
        "Which images were excluded, and preprocessing before the data set was made, are "
        f"{UNKNOWN}."
    )
    return sentences


def _by_group(kind: str) -> str:
    return (
        f"The data set has no validation split: part of its training images was taken for it, so "
        f"that no {kind.removeprefix('by_')} is in both."
    )


def _networks(findings: Findings) -> list[str]:
    trials = findings.trials
    models, weights = values(trials, "model"), values(trials, "pretrained")
    sentences = [f"Network: {listed(models) or UNKNOWN}."]
    if set(models) & set(OWN_MODELS):
        own = [f"{name} {listed(values(trials, name))}" for name in OF_OWN_MODELS]
        sentences.append(f"Of plain and residual networks: {', '.join(own)}.")
    if weights == ["none"]:
        sentences.append("Weights were initialized at random: nothing was pretrained.")
    else:
        blocks = values(trials, "train_blocks")
        sentences.append(
            f"Weights to begin with: {listed(weights) or UNKNOWN}; trained: "
            f"{f'the head and the last {listed(blocks)} blocks' if blocks else 'all blocks'}."
        )
    counts = parameters_words(trials) or UNKNOWN
    return [*sentences, f"Number of parameters: {counts}."]


def _endings(trials: pd.DataFrame) -> str:
    counts = trials["status"].value_counts()
    told = [f"{counts.get(name, 0)} {name}" for name in (*ENDED, "interrupted")]
    return ", ".join(told)


def _trials(findings: Findings) -> list[str]:
    trials, about, metric = findings.trials, findings.about, findings.metric
    fields = varied_fields(trials)
    settings = trials.groupby(fields, dropna=False).ngroups if fields else 1
    seeds = values(trials, "seed")
    planned = len(about.get("planned") or ())
    of = f" of {planned} planned" if planned and planned != len(trials) else ""
    sentences = [
        f"{number_of(len(trials), 'trial')}{of}: {number_of(settings, 'setting')}, "
        f"seed{'s' if len(seeds) > 1 else ''} {listed(seeds)} (a seed sets initialization, data "
        f"order, augmentation and dropout). They ended as: {_endings(trials)}.",
    ]
    if (trials["status"].isin(("diverged", "failed", "stopped"))).any():
        sentences.append(
            "Diverged, failed and stopped trials are in no mean: means are over completed trials."
        )
        if (trials["status"] == "stopped").any() and len(seeds) > 1:
            sentences.append(
                "Where only some seeds of a setting were stopped, its mean is of the better ones, "
                "and too good."
            )
    if len(findings.unplanned):
        sentences.append(
            "Other trials are in the folder, which the study as last run does not ask for."
        )
    select = values(trials, "select_by")
    sentences.append(
        f"A trial's scores are those of its evaluation with the best {listed(select)}."
        if select
        else f"By which score a trial's evaluation was selected is {UNKNOWN}."
    )
    if metric.startswith("test_"):
        sentences.append(
            f"**Settings are ranked by {metric}, a test score: that is selection by test.**"
        )
    else:
        sentences.append(f"Settings were ranked by their mean {metric} ({findings.mode} is best).")
    return [*sentences, *_test(trials), *filter(None, [tuning_sentence(findings)])]


def _test(trials: pd.DataFrame) -> list[str]:
    scored = [n for n in trials if str(n).startswith("test_") and trials[n].notna().any()]
    scored = [n for n in scored if not n.endswith(("positives", "negatives"))]
    if not scored:
        return ["No test score was recorded."]
    return [
        "The test split was scored once a trial, with the weights of the evaluation that "
        "validation selected."
    ]


def _error_bars(findings: Findings) -> list[str]:
    trials = findings.trials
    lows = trials["test_auroc_low"] if "test_auroc_low" in trials else pd.Series(dtype=float)
    sentences = _intervals(findings)
    if lows.notna().any():
        sentences.append("A trial's test AUROC has DeLong's 95 % interval, over test images.")
    return sentences


def _intervals(findings: Findings) -> list[str]:
    """What the error bars are, what they include, and how they are computed."""
    best = findings.analyses[0]
    counts = best.cells["n"]
    if counts.empty or counts.max() < 2:
        return ["No setting has two scores, so there are no error bars of means."]
    what = "trials of a bin" if best.binned else "seeds"
    least, most = int(counts[counts > 0].min()), int(counts.max())
    number = f"{most}" if least == most else f"{least} to {most}"
    surface = surface_name(best)
    sentences = [
        f"Scores{f' of the best surface ({surface})' if surface else ''} are means over {number} "
        f"{what} with the standard deviation (n - 1). Intervals of means are Student's, 95 %; of "
        "scores between 0 and 1 on the scale of the logit, of losses of the logarithm. They assume "
        "independent, roughly normal scores on that scale.",
    ]
    varies = "data order, initialization, augmentation and dropout, by the seed"
    if best.binned:
        sentences.append(
            "Trials with similar learning rates are in one bin, so the spread includes whatever "
            "else differs between them."
        )
    elif "train_wall_s" in findings.trials:
        sentences.append(
            f"They include {varies}; not the choice of training, validation or test images."
        )
    if math.isfinite(best.exponent.low):
        sentences.append(
            "Intervals of the best learning rate and of its exponent: 95 %; docs/statistics.md has "
            "how they are computed, and how often they hold."
        )
    if math.isfinite(best.optimism) and best.optimism > 0:
        sentences.append(
            f"The best mean is the best of many, and so probably about {best.optimism:.2g} too "
            f"good."
        )
    return sentences


def _compute(findings: Findings) -> list[str]:
    trials, hardware = findings.trials, findings.about.get("hardware", {})
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else ""
    driver = ", ".join(filter(None, [cores, hardware.get("machine")])) or UNKNOWN
    sentences = [
        f"Device: {device_words(trials)}; {number_of(len(values(trials, 'host')), 'host')}; the "
        f"command's machine: {driver}. Its memory is not recorded.",
    ]
    trained = trained_hours(trials)
    if trained is None:
        return [*sentences, f"Time is {UNKNOWN}."]
    (hours, gpu_hours), wall = trained, trials["train_wall_s"]
    sentences.append(
        f"All trials together trained for {hours_words(hours)} (with their "
        f"evaluations; trials side by side count each), a median of "
        f"{duration(wall.median())} a trial; "
        + (f"{show(gpu_hours)} GPU-hours." if gpu_hours else "no GPU was used.")
    )
    if wall.isna().any():
        sentences.append(f"{counted(wall.isna())} trials have no time.")
    peak = trials.get("peak_memory_gib", pd.Series(dtype=float)).max()
    sentences += [f"Peak memory of a trial: {peak:.3g} GiB."] if np.isfinite(peak) else []
    if "attempt" in trials and (trials["attempt"] > 1).any():
        sentences.append("Attempts that were interrupted or retried are not in these times.")
    return [*sentences, "What was trained before or beside this study is not recorded."]


def _reproduction(findings: Findings) -> list[str]:
    about = findings.about
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    where = f"`{about['space_file']}`" if about.get("space_file") else UNKNOWN
    command = command_of(about)
    dates = findings.trials["ended_at"].dropna() if "ended_at" in findings.trials else None
    sentences = [
        f"Command: `{command}`." if command else f"The command is {UNKNOWN}.",
        f"Space file: {where}, SHA-256 `{about.get('space_sha256') or UNKNOWN}`.",
        f"Commit: {commits(findings.trials, about)}. Versions: {versions or UNKNOWN}.",
    ]
    if dates is not None and len(dates):
        first, last = f"{dates.min():%Y-%m-%d}", f"{dates.max():%Y-%m-%d}"
        sentences.append(
            f"Trained {f'on {first}' if first == last else f'{first} to {last}'} (UTC)."
        )
    return sentences


def _wrapped(sentences: Sequence[str]) -> str:
    """The items of a list, then all other sentences as one paragraph."""
    items = [words for words in sentences if words.startswith("- ")]
    others = " ".join(words for words in sentences if not words.startswith("- "))
    return "\n\n".join(filter(None, ["\n".join(items), others]))
