"""What a study varied, how it explored that, and what it held fixed, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.analysis.groups import NO_CHOICE, exploration_of, varied_fields
from search.report.facts import UNKNOWN, values
from search.report.findings import Findings
from search.report.sentences.domains import domain_words
from search.report.sentences.wording import listed
from search.study.shown import show
from trainable.config import BUDGETS, TrialConfig

MOST_VALUES = 12  # of a field, named one by one
TOLD_APART = ("kind", "each", "steps")  # of an explorer
# What decides a training, in the order in which a paper tells it.
TOLD = (
    *(
        "batch_size",
        "base_lr",
        "optimizer",
        "momentum",
        "nesterov",
        "beta1",
        "beta2",
        "eps",
        "weight_decay",
    ),
    *("lr_scaling", "reference_batch_size", "warmup_epochs", "decay"),
    *(*BUDGETS, "augment", "label_smoothing", "dropout", "norm", "precision"),
)
OF_OPTIMIZER = {
    "momentum": ("sgd", "rmsprop", "lars", "schedulefree_sgd"),
    "nesterov": ("sgd", "lars"),
    "beta1": ("adam", "adamw", "lamb", "schedulefree_adamw"),
    "beta2": ("adam", "adamw", "lamb", "schedulefree_adamw"),
    "eps": ("adam", "adamw", "rmsprop", "adagrad", "lamb", "schedulefree_adamw"),
}
OF_OWN_MODELS = ("width", "depth", "kernel_size", "activation")
# Told by sentences of their own.
ELSEWHERE = (
    *("dataset", "task", "image_size", "train_images", "eval_images", "split_by", "model"),
    *("pretrained", "train_blocks", "select_by", *OF_OWN_MODELS),
)
EXPLORED = {
    "Grid": "All combinations were trained",
    "Variants": "Every variant was trained with all combinations of its values",
    "Ablation": "The steps were added one after the other",
    "Random": "Configurations were drawn independently at random",
    "Optuna": "Configurations were chosen by Optuna from the scores of earlier ones",
    "Ridge": "Trials were chosen by a model of the best learning rate, fitted to earlier trials",
    "Pbt": "A population was trained: its worst members copied the state of better ones",
    "Branch": "Trials continued from one checkpoint",
}


def varied(findings: Findings) -> list[str]:
    """A line for each field that varies or step, then how the trials were chosen and stopped."""
    about = findings.about
    exploration = exploration_of(about)
    vary: Mapping[str, Any] = about.get("vary", {})
    own = {name for changes in exploration.steps.values() for name in changes}
    lines = [
        f"- `{name}`: {domain_words(domain)}"
        + (" (where those below do not give their own)" if name in own else "")
        for name, domain in vary.items()
    ]
    for name, changes in exploration.steps.items():
        told = ", ".join(f"`{k}`: {domain_words(v)}" for k, v in changes.items())
        lines.append(f"- {name}: {told or 'the base configuration'}")
    if not lines:
        seen = {name: values(findings.trials, name) for name in varied_fields(findings.trials)}
        lines = [f"- `{name}`: {_seen(known)}" for name, known in seen.items()]
    how = EXPLORED.get(exploration.kind, "Trials were chosen by an explorer")
    lines.append(f"{how}: `{part_words(about.get('explore')) or UNKNOWN}`.")
    stop = part_words(about.get("stop"))
    lines.append(
        f"Trials were stopped early by `{stop}`." if stop else "No scheduler stopped trials early."
    )
    if leaders := part_words(about.get("leaders")):
        lines.append(f"The best got further seeds: `{leaders}`.")
    return lines


def _seen(known: Sequence[str]) -> str:
    """The values of the trials themselves, where the study declares no domains."""
    if len(known) > MOST_VALUES:
        return f"{len(known)} values from {known[0]} to {known[-1]} (as trained)"
    return f"{listed(known)} (as trained)"


def part_words(part: object) -> str:
    """An explorer, a stopper or leaders as in a space file; empty for none."""
    if not isinstance(part, dict):
        return "" if part in (None, "None") else str(part)
    given = [
        f"{k}={v!r}" for k, v in part.items() if k not in TOLD_APART and v not in (None, [], ())
    ]
    return f"{part.get('kind')}({', '.join(given)})"


def fixed(findings: Findings) -> list[str]:
    """The fields that all trials have in common: those that papers tell, and unusual ones."""
    trials = findings.trials
    optimizers = set(values(trials, "optimizer"))
    default = TrialConfig(model="plain", pretrained="none")
    fields = []
    names = [*TOLD, *(n for n in TrialConfig.__slots__ if n not in (*TOLD, *ELSEWHERE, *NO_CHOICE))]
    for name in names:
        if name not in trials or trials[name].nunique(dropna=False) != 1:
            continue
        value = trials[name].iloc[0]
        is_none = value is None or value != value
        is_used = bool(set(OF_OPTIMIZER.get(name, optimizers)) & optimizers)
        is_usual = value == getattr(default, name) or is_none
        if is_used and not is_none and (name in TOLD or not is_usual):
            fields.append(f"`{name}` {show(value)}")
    others = "All other fields had their defaults, or are among what was varied (docs/fields.md)."
    if not fields:
        return [f"What was held fixed is {UNKNOWN}."]
    return [f"{', '.join(fields)}.", others]
