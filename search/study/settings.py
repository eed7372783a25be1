"""`--set FIELD=VALUE`: a study with some of its fields changed."""

import ast
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args

from ray import tune

from search.study.space_file import SpaceFileError
from search.study.study import TRIAL_FIELDS, Study, check_metric, unknown
from trainable.config import SCORES_OF, TrialConfig, check_score
from trainable.host import credentials

OWN_FIELDS = (
    *("name", "seeds", "metric", "gpus_per_trial", "cpus_per_trial", "keep_weights"),
    *("checkpoint_every_s", "pack"),
)
PARTS = ("explore", "stop", "leaders")  # of a study, with fields of their own
WORDS = {"true": True, "false": False, "none": None}
WHOLE = ("seeds", "cpus_per_trial", "pack")
OPTIONAL = ("stop", "leaders")
TRIAL_FIELD_OF = {trial_field.name: trial_field for trial_field in fields(TrialConfig)}


def apply_settings(study: Study, settings: Sequence[str]) -> Study:
    """The study with each `FIELD=VALUE` applied, checked as in a space file.

    A field of the study is set, and so is one of its explorer, stopper or leaders
    (`explore.num_configs=16`); a field of the trial is fixed, or given the values of a comma list
    to try.

    Raises:
        SpaceFileError: one does not parse, or names or gives something impossible.
    """
    for setting in settings:  # before any is repeated in an error
        path, _, text = setting.partition("=")
        if credentials.is_secret_name(path) or credentials.in_uri(text):
            raise SpaceFileError(f"--set {path} {credentials.REFUSED}")
    changed: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    fixed: dict[str, Any] = {}
    vary = dict(study.vary)
    try:
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals or not path or not text:
                raise ValueError("--set takes FIELD=VALUE, such as seeds=3")
            if path in OWN_FIELDS:
                is_text = path in ("name", "metric")
                changed[path] = text if is_text else _as_whole(value_of(text), path in WHOLE)
            elif path in OPTIONAL and text.lower() == "none":
                changed[path] = None
            elif "." in path and path not in TRIAL_FIELDS:
                part, name = _part_and_name(study, path)
                is_whole = type(getattr(getattr(study, part), name)) is int
                parts.setdefault(part, {})[name] = _as_whole(value_of(text), is_whole)
            elif path not in TRIAL_FIELDS or path == "seed":
                raise ValueError(unknown("field", path, _paths(study)))
            elif "," in text:
                values = [value_for(path, value) for value in text.split(",") if value]
                vary[path] = tune.grid_search(values)
            else:
                vary.pop(path, None)
                fixed[path] = value_for(path, text)
        for part, changes in parts.items():
            changed[part] = replace(getattr(study, part), **changes)
        _pair_scores(study, changed, fixed)
        # All at once: two settings may be right only together.
        return replace(study, **changed, base=replace(study.base, **fixed), vary=vary)
    except (ValueError, TypeError) as error:
        raise SpaceFileError(f"--set {' --set '.join(settings)}: {error}") from error


def _pair_scores(study: Study, changed: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Let the score that is set alone rank the trials and select their epochs.

    Another task has other scores: its own is taken where none is set.

    Raises:
        ValueError: there is no such metric.
    """
    if "metric" in changed:
        check_metric(changed["metric"])
        if (task := fixed.get("task", study.base.task)) in SCORES_OF:
            check_score("metric", changed["metric"], task)
        fixed.setdefault("select_by", changed["metric"])
    elif "select_by" in fixed:
        changed["metric"] = fixed["select_by"]
    elif fixed.get("task", study.base.task) != study.base.task:
        changed["metric"], fixed["select_by"] = "", None


def value_of(text: str) -> object:
    """A value as Python writes it; true, false and none in any case; else the text itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def value_for(name: str, text: str) -> object:
    """A value for a field of the trial, also as people write it: `Adam`, `1e2`, `none` for 0."""
    trial_field = TRIAL_FIELD_OF[name]
    kinds = get_args(trial_field.type) or (trial_field.type,)
    choices = trial_field.metadata["choices"] or ()
    by_lower = {str(choice).lower(): choice for choice in choices}
    if text.lower() in by_lower:
        return by_lower[text.lower()]
    if text.lower() == "none" and NoneType not in kinds:
        if str in kinds:
            return "constant" if "constant" in choices else "none"
        return 0 if trial_field.metadata["low"] == 0 else None  # 0 turns such a field off
    return _as_whole(value_of(text), int in kinds)


def _as_whole(value: object, is_whole: bool) -> object:
    """1e2 as 100, where a whole number is wanted."""
    if is_whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _part_and_name(study: Study, path: str) -> tuple[str, str]:
    """`explore.num_configs` -> `explore` and `num_configs`, where the study has both."""
    part, _, name = path.partition(".")
    if part in PARTS and getattr(study, part) is None:
        raise ValueError(f"the study has no {part}, so {path} cannot be set: add it to its file")
    if path not in _paths(study):
        raise ValueError(unknown("field", path, _paths(study)))
    return part, name


def _paths(study: Study) -> list[str]:
    """All that can be set: fields of the study, of its parts, and of its trial."""
    of_parts = [
        f"{part}.{part_field.name}"
        for part in PARTS
        if is_dataclass(declared := getattr(study, part))
        for part_field in fields(declared)
    ]
    return [*OWN_FIELDS, *of_parts, *(name for name in TRIAL_FIELDS if name != "seed")]
