"""Study: what a space file declares, checked when it is made. Imports no torch and no Optuna."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ray import tune
from ray.tune.search.sample import Domain

from trainable.config import SCORES, TrialConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TRIAL_FIELDS = tuple(each.name for each in fields(TrialConfig))
# What a preview changes in any study; its own `preview` goes on top.
PREVIEW: Mapping[str, object] = {
    "model": "plain",
    "pretrained": "none",
    "train_blocks": None,
    "image_size": 48,
    "train_images": 2048,
    "eval_images": 1000,
    "epochs": 5,
    "warmup_epochs": 0.0,
    "precision": "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of the values, once a seed."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Steps that are added one after the other, each on top of those before it.

    `steps` maps what a step is called to the fields that it changes; the first may change none.
    Where fields vary too, the steps are taken at every combination of their values.
    """

    steps: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A complete trial, what varies about it, how that is explored, and with what.

    `vary` maps fields of the trial to Ray Tune's domains. `gpus_per_trial` may be a fraction; on a
    machine without a GPU a trial takes `cpus_per_trial` cores instead. With `keep_weights` each
    trial leaves its best weights in the results, to test or to teach with. `preview` maps fields
    to a value, or to a list of values where the field varies, for the small study that `--preview`
    runs on top of `PREVIEW`.

    Raises:
        ValueError: a field is unknown, a value impossible, or a domain does not fit `explore`.
    """

    name: str
    base: TrialConfig
    vary: Mapping[str, Any]
    explore: Grid | Ablation = field(default_factory=Grid)
    seeds: int = 1
    metric: str = "val_auroc"
    gpus_per_trial: float = 1.0
    cpus_per_trial: int = 1
    keep_weights: bool = False
    preview: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the study's own fields, then every trial that it asks for."""
        if not NAME.fullmatch(str(self.name)):
            raise ValueError(
                f"name must be 1 to 128 letters, digits, dots, dashes or underscores and begin "
                f"with a letter or digit: it names the results' folder; got {self.name!r}"
            )
        if not isinstance(self.base, TrialConfig):
            raise ValueError(f"base must be a TrialConfig, got {self.base!r}")
        if self.metric not in SCORES:
            raise ValueError(unknown("metric", self.metric, SCORES))
        _check_number("seeds", self.seeds, whole=True, low=1)
        _check_number("gpus_per_trial", self.gpus_per_trial, whole=False, low=0)
        _check_number("cpus_per_trial", self.cpus_per_trial, whole=True, low=1)
        if self.gpus_per_trial > 1:
            raise ValueError(
                f"gpus_per_trial must be at most 1, a trial trains on one GPU or on a part of one; "
                f"got {self.gpus_per_trial}"
            )
        if not isinstance(self.keep_weights, bool):
            raise ValueError(f"keep_weights must be True or False, got {self.keep_weights!r}")
        changed = [name for changes in steps_of(self).values() for name in changes]
        for name in [*self.vary, *self.preview, *changed]:
            _check_field(name)
        if both := set(changed) & set(self.vary):
            raise ValueError(f"{', '.join(sorted(both))}: varies and is changed by a step: choose")
        object.__setattr__(self, "vary", {k: as_domain(k, v) for k, v in self.vary.items()})
        for name, domain in self.vary.items():
            for value in grid_values(name, domain):
                change: dict[str, Any] = {name: value}
                replace(self.base, **change)  # so that an error is this field's alone
        configurations(self)

    @property
    def mode(self) -> str:
        """`max` or `min`: which end of the metric is good."""
        return SCORES[self.metric]


def _check_number(name: str, value: object, *, whole: bool, low: float) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value < float("inf"):
        a = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {a} >= {low:g}, got {value!r}")


def unknown(what: str, name: object, known: Sequence[str] | Mapping[str, str]) -> str:
    """A sentence that names what is not there and the nearest that is."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(known)}"
    return f"there is no {what} {name!r}; {hint}"


def _check_field(name: str) -> None:
    if name == "seed":
        raise ValueError("seed cannot vary: say how many with seeds=3")
    if name not in TRIAL_FIELDS:
        raise ValueError(unknown("field", name, TRIAL_FIELDS))


def as_domain(name: str, value: object) -> dict[str, list[object]]:
    """A Ray Tune domain as a grid's values.

    Raises:
        ValueError: it is no domain, is empty, repeats a value, or is a range that a grid cannot
            go through.
    """
    if isinstance(value, Domain):
        raise ValueError(
            f"{name}: a grid goes through values, not through a range or a random choice: "
            f"write tune.grid_search([...])"
        )
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        values = value["grid_search"]
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name}: tune.grid_search takes a list of values, got {values!r}")
        if len(set(map(repr, values))) < len(values):
            raise ValueError(f"{name}: tune.grid_search repeats a value: {values!r}")
        return {"grid_search": list(values)}
    raise ValueError(
        f"{name}: what varies is given as tune.grid_search([...]), got {value!r}; a fixed value "
        f"belongs in base=TrialConfig({name}=...)"
    )


def grid_values(name: str, domain: Mapping[str, Any]) -> list[object]:
    """The values of a field that varies, in the trial's own type."""
    values: list[object] = domain["grid_search"]
    return values


def steps_of(study: Study) -> dict[str, dict[str, Any]]:
    """What each step of an ablation comes to, with those before it; one nameless step of a grid."""
    if not isinstance(study.explore, Ablation):
        return {"": {}}
    steps: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for name, more in study.explore.steps.items():
        changes = changes | dict(more)
        steps[name] = changes
    return steps


def configurations(study: Study) -> list[tuple[str, TrialConfig]]:
    """Every configuration of the study with the step of its ablation, without seeds.

    Raises:
        ValueError: a combination of values cannot work.
    """
    names = list(study.vary)
    combinations = itertools.product(*(grid_values(n, study.vary[n]) for n in names))
    changes: list[dict[str, Any]] = [dict(zip(names, c, strict=True)) for c in combinations]
    return [
        (step, replace(study.base, **change, **more))
        for step, more in steps_of(study).items()
        for change in changes
    ]


def as_preview(study: Study, *, dataset: str) -> Study:
    """The same shape of study with a small network, few images and few epochs."""
    changes = {**PREVIEW, **study.preview, "dataset": dataset}
    vary = dict(study.vary)
    fixed: dict[str, Any] = {}
    for name, value in changes.items():
        if isinstance(value, list | tuple):
            vary[name] = tune.grid_search(list(value))
        elif name not in vary:
            fixed[name] = value
        else:
            raise ValueError(f"preview: {name} varies, so give a list of values, got {value!r}")
    return replace(study, base=replace(study.base, **fixed), vary=vary, preview={})
