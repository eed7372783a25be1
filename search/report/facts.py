"""Facts of a study for a paper, as its tables and study.json tell them."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from search.report.sentences.wording import listed
from search.study.shown import duration, show

UNKNOWN = "unknown"
DIRTY = " (with changes that were not committed)"
MOST_NAMED = 6  # devices, commits


def values(trials: pd.DataFrame, column: str) -> list[str]:
    """The different known values of a column, in order."""
    if column not in trials:
        return []
    known = trials[column].dropna().unique()
    is_number = all(isinstance(value, int | float | np.number) for value in known)
    ordered = sorted(known, key=float if is_number else str)
    return [show(float(value)) if isinstance(value, float) else str(value) for value in ordered]


def counted(rows: "pd.Series[bool]") -> int:
    """How many are true."""
    return int(rows.sum())


def numbers_words(counts: Sequence[int]) -> str:
    """`2,048`, `512 and 2,048` or `unknown`."""
    return listed([f"{count:,}" for count in counts]) or UNKNOWN


def training_images(trials: pd.DataFrame, epochs: pd.DataFrame | None) -> list[int]:
    """How many images a trial was trained on: as declared, else examples seen per epoch."""
    declared = trials["train_images"] if "train_images" in trials else pd.Series(dtype=float)
    if len(declared) and declared.notna().all():
        return sorted({int(count) for count in declared})
    if epochs is None or epochs.empty or "epochs_seen" not in epochs:
        return []
    rows = epochs[epochs["trial_key"].isin(trials["trial_key"]) & (epochs["epochs_seen"] > 0)]
    # The last row of a trial has the fraction of the last epoch with the smallest error.
    last = rows.sort_values("epoch").groupby("trial_key").last()
    return sorted({round(count) for count in last["examples_seen"] / last["epochs_seen"]})


def evaluation_images(rows: pd.DataFrame | None, trials: pd.DataFrame, split: str) -> str:
    """How many images a split has, and how many of them are positive, by the counts of its scores.

    Else the number that was asked for, which a data set may not have.
    """
    names = [f"{split}_{kind}" for kind in ("true_positives", "false_negatives")]
    names += [f"{split}_{kind}" for kind in ("false_positives", "true_negatives")]
    if rows is not None and set(names) <= set(rows):
        counts = rows[names].dropna()
        counts = counts[(counts >= 0).all(axis=1)].astype(int)
        totals = sorted(set(counts.sum(axis=1)))
        if len(totals) == 1:
            positive = sorted(set(counts[names[:2]].sum(axis=1)))
            share = f" ({positive[0]:,} positive)" if len(positive) == 1 else ""
            return f"{totals[0]:,}{share}"
        if totals:
            return numbers_words(totals)
    asked = values(trials, "eval_images")
    return f"at most {listed(asked)}" if asked else UNKNOWN


def parameters_words(trials: pd.DataFrame) -> str:
    """How many parameters each model has, and how many of them were trained; empty if unknown.

    Models of one name have different numbers where width, depth or the frozen blocks vary.
    """
    names = ["num_parameters", "num_trained_parameters"]
    if not set(names) <= set(trials):
        return ""
    rows = trials[["model", *names]].dropna()
    return listed([_counts_words(str(model), rows[names]) for model, rows in rows.groupby("model")])


def _counts_words(model: str, counts: pd.DataFrame) -> str:
    """`resnet18 11,177,538 (1,026 trained)`."""
    whole, trained = (
        " to ".join(f"{count:,.0f}" for count in sorted({column.min(), column.max()}))
        for _, column in counts.items()
    )
    return f"{model} {whole} ({'all' if whole == trained else trained} trained)"


def device_words(trials: pd.DataFrame) -> str:
    """The devices, with the number of GPUs of a trial."""
    devices = values(trials, "device")[:MOST_NAMED]
    gpus = [count for count in values(trials, "num_gpus") if float(count) > 0]
    shares = f", {listed(gpus)} GPU a trial" if gpus else ", CPU only"
    return f"{listed(devices)}{shares}" if devices else UNKNOWN


def trained_hours(trials: pd.DataFrame) -> tuple[float, float] | None:
    """Hours and GPU-hours of all trials together; None where no trial has its time."""
    if "train_wall_s" not in trials or not trials["train_wall_s"].notna().any():
        return None
    gpus = trials["num_gpus"].fillna(0) if "num_gpus" in trials else 0.0
    wall = trials["train_wall_s"]
    return float(wall.sum()) / 3600, float((wall * gpus).sum()) / 3600


def hours_words(hours: float) -> str:
    """Hours with three digits; less than a tenth of one in minutes and seconds."""
    if hours < 0.1:
        return duration(3600 * hours)
    number = f"{float(f'{hours:.3g}'):g}"
    return f"{number} hour{'' if number == '1' else 's'}"


def command_of(about: Mapping[str, Any]) -> str:
    """The command that trains the study; empty where study.json does not have its space file."""
    if not about.get("space_file"):
        return ""
    words = ["python", "-m", "search.run", str(about["space_file"])]
    words += ["--preview"] if about.get("preview") else []
    words += ["--data", "DIR"] if about.get("data_folder") else []
    for setting in about.get("settings") or ():
        words += ["--set", setting]
    return shlex.join(words)


def commits(trials: pd.DataFrame, about: Mapping[str, Any]) -> str:
    """The commits that the trials were trained with, else that of the last command."""
    known = values(trials, "code_version") or [str(c) for c in [about.get("commit")] if c]
    if not known:
        return UNKNOWN
    words = listed([f"`{commit}`" for commit in known[:MOST_NAMED]])
    if len(known) > MOST_NAMED:
        words += f" and {len(known) - MOST_NAMED} more"
    is_dirty = any(commit.endswith("-dirty") for commit in known)
    return f"{words}{DIRTY if is_dirty else ''}"
