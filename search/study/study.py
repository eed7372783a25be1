"""Study: what a space file declares, checked when it is made. Imports no torch and no Optuna."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from search.explore.declarations import (
    Ablation,
    Explorer,
    Grid,
    Leaders,
    Optuna,
    Pbt,
    Random,
    Stopper,
    Variants,
)
from search.study.domains import as_searched, as_values, draw, is_log, probes, step_of
from trainable.config import SCORES, TrialConfig
from trainable.host import credentials

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TRIAL_FIELDS = tuple(each.name for each in fields(TrialConfig))
# What a Pbt may change between generations: none of it changes the network's shape.
CHANGED_ON_THE_WAY = (
    *("batch_size", "base_lr", "weight_decay", "momentum", "label_smoothing"),
    *("mixup_alpha", "cutmix_alpha", "augment", "clip_grad_norm"),
)
LEAST_SHARE = 0.01  # of a GPU
# What a preview changes in any study; its own `preview` goes on top.
PREVIEW: Mapping[str, object] = {
    "model": "plain",
    "pretrained": "none",
    "train_blocks": None,
    "image_size": 48,
    "train_images": 2048,
    "eval_images": 1000,
    "epochs": 5,
    "updates": None,
    "examples": None,
    "seconds": None,
    "eval_epochs": 1,
    "eval_updates": None,
    "warmup_epochs": 0.0,
    "warmup_share": 0.0,
    "precision": "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A complete trial, what varies about it, how that is explored, and with what.

    `vary` maps fields of the trial to Ray Tune's domains. `seeds` repeats each configuration, and
    the mean is what is ranked; `leaders` gives the best of them more. `gpus_per_trial` is 1 or the
    share of a GPU that a trial takes; or shares by the smallest batch size that each applies from,
    `{16: 0.25, 1024: 1.0}`, the first one also below it; or `auto`, as many to a GPU as measured
    memory allows. Without a GPU a trial takes `cpus_per_trial` cores instead. With `keep_weights`
    each trial leaves its best weights in the results, to test or to teach with.
    `preview` maps fields to a value, or to a list of values or a domain where the field varies,
    for the small study that `--preview` runs on top of `PREVIEW`.

    Raises:
        ValueError: a field is unknown, a value impossible, or a domain does not fit `explore`.
    """

    name: str
    base: TrialConfig
    vary: Mapping[str, Any]
    explore: Explorer = field(default_factory=Grid)
    stop: Stopper | None = None
    seeds: int = 1
    leaders: Leaders | None = None
    metric: str = "val_auroc"
    gpus_per_trial: float | Mapping[int, float] | Literal["auto"] = 1.0
    cpus_per_trial: int = 1
    keep_weights: bool = False
    preview: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the study's own fields, then every trial that it asks for."""
        said: object = self.name
        if not isinstance(said, str) or not NAME.fullmatch(said):
            raise ValueError(
                f"name must be 1 to 128 letters, digits, dots, dashes or underscores and begin "
                f"with a letter or digit: it names the results' folder; got {self.name!r}"
            )
        if not isinstance(self.base, TrialConfig):
            raise ValueError(f"base must be a TrialConfig, got {self.base!r}")
        if self.metric not in SCORES:
            raise ValueError(unknown("metric", self.metric, SCORES))
        _check_number("seeds", self.seeds, whole=True, low=1)
        _check_number("cpus_per_trial", self.cpus_per_trial, whole=True, low=1)
        if not isinstance(self.keep_weights, bool):
            raise ValueError(f"keep_weights must be True or False, got {self.keep_weights!r}")
        for name, kind in (("vary", Mapping), ("preview", Mapping), ("explore", Explorer)):
            if not isinstance(getattr(self, name), kind):
                wanted = "a dict of fields" if kind is Mapping else "such as Grid() or Optuna(...)"
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        changed = [name for changes in steps_of(self).values() for name in changes]
        for name in [*self.vary, *self.preview, *changed]:
            _check_field(name)
        if both := set(changed) & set(self.vary):
            raise ValueError(f"{', '.join(sorted(both))}: varies and is changed by a step: choose")
        searched = isinstance(self.explore, Random | Optuna | Pbt)
        read = as_searched if searched else as_values
        object.__setattr__(self, "vary", {k: read(k, v) for k, v in self.vary.items()})
        _check_gpus(self.gpus_per_trial, self.explore)
        self._check_search()
        for name, domain in self.vary.items():
            same: list[object] = []
            for value in probes(domain):
                change: dict[str, Any] = {name: value}
                config = replace(self.base, **change)  # so that an error is this field's alone
                same.append(getattr(config, name))
            if isinstance(domain, dict):
                self.vary[name]["grid_search"] = as_values(name, {"grid_search": same})[
                    "grid_search"
                ]
        configurations(self)

    def _check_search(self) -> None:
        explore = self.explore
        if isinstance(explore, Optuna):
            if (explore.space is None) == (not self.vary):
                raise ValueError("Optuna takes its space from `vary` or from `space`: give one")
            if explore.objectives and (self.stop or self.seeds > 1):
                raise ValueError("several objectives go with one seed and without a stopper")
            for name, domain in self.vary.items():
                if is_log(domain) and step_of(domain):
                    raise ValueError(f"{name}: Optuna takes a range in steps or in its logarithm")
        if isinstance(explore, Random | Optuna):
            for point in explore.points:
                if explore.__class__ is Random and set(point) != set(self.vary):
                    raise ValueError(
                        f"points: each gives all that varies ({', '.join(self.vary)}), got {point}"
                    )
                change: dict[str, Any] = dict(point)
                replace(self.base, **change)
        if isinstance(explore, Pbt):
            if others := sorted(set(self.vary) - set(CHANGED_ON_THE_WAY)):
                raise ValueError(
                    f"{', '.join(others)}: cannot change while a trial trains; Pbt can vary "
                    f"{', '.join(CHANGED_ON_THE_WAY)}"
                )
            if not self.vary:
                raise ValueError("Pbt needs domains in `vary` to draw its members from")
            if self.stop or self.leaders:
                raise ValueError("Pbt goes without stop and leaders: it replaces the worse itself")
        timed = [c for _, c in configurations(self) if c.seconds is not None]
        if (self.stop or isinstance(explore, Pbt)) and (timed or self.base.seconds is not None):
            raise ValueError(
                f"{'stop' if self.stop else 'Pbt'} counts training images: give a budget in "
                f"epochs, updates or examples, not in seconds"
            )
        if self.leaders and self.leaders.seeds <= self.seeds:
            raise ValueError(
                f"leaders: their seeds must be more than the study's ({self.seeds}), "
                f"got {self.leaders.seeds}"
            )

    @property
    def mode(self) -> str:
        """`max` or `min`: which end of the metric is good."""
        return SCORES[self.metric]


def _check_number(name: str, value: object, *, whole: bool, low: float) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value < float("inf"):
        a = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {a} >= {low:g}, got {value!r}")


def _check_gpus(given: object, explore: Explorer) -> None:
    """Raises ValueError where the shares of a GPU are not 1 or a part of one."""
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f"gpus_per_trial must be a number, a dict or 'auto', got {given!r}")
        if isinstance(explore, Optuna) and explore.space is not None:
            raise ValueError(
                "gpus_per_trial='auto' cannot know what batch sizes `space` will choose: give a "
                "number, or shares by batch size such as {16: 0.25, 1024: 1.0}"
            )
        return
    if isinstance(given, Mapping):
        if not given:
            raise ValueError("gpus_per_trial has no share: give some, as in {16: 0.25, 1024: 1.0}")
        for size in given:
            _check_number("gpus_per_trial's batch sizes", size, whole=True, low=1)
    shares: list[Any] = list(given.values()) if isinstance(given, Mapping) else [given]
    for share in shares:
        _check_number("gpus_per_trial", share, whole=False, low=0)
        if share > 1:
            raise ValueError(
                f"gpus_per_trial must be at most 1, a trial trains on one GPU or on a part of one; "
                f"got {share}"
            )
        if share < LEAST_SHARE and (share or isinstance(given, Mapping)):
            raise ValueError(
                f"gpus_per_trial must be {LEAST_SHARE} to 1, or 0 for trials on cores alone; "
                f"got {given}"
            )


def unknown(what: str, name: object, known: Sequence[str] | Mapping[str, str]) -> str:
    """A sentence that names what is not there and the nearest that is."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(known)}"
    return f"there is no {what} {name!r}; {hint}"


def _check_field(name: str) -> None:
    if name == "seed":
        raise ValueError("seed cannot vary: say how many with seeds=3")
    if name == "dataset":
        raise ValueError("dataset cannot vary: a study is on one, make a study of each")
    if name in ("until_share", "begins_from"):
        raise ValueError(f"{name} is set by Pbt, not by a space file")
    if credentials.is_secret_name(str(name)):
        raise ValueError(f"{name} {credentials.REFUSED}")
    if name not in TRIAL_FIELDS:
        raise ValueError(unknown("field", name, TRIAL_FIELDS))


def grid_values(name: str, domain: Mapping[str, Any]) -> list[object]:
    """The values of a field that varies, in the trial's own type."""
    values: list[object] = domain["grid_search"]
    return values


def steps_of(study: Study) -> dict[str, dict[str, Any]]:
    """What each step of an ablation, with those before it, or each variant changes.

    One nameless step that changes nothing for the others.
    """
    if isinstance(study.explore, Variants):
        return {name: dict(changes) for name, changes in study.explore.each.items()}
    if not isinstance(study.explore, Ablation):
        return {"": {}}
    steps: dict[str, dict[str, Any]] = {}
    so_far: dict[str, Any] = {}
    for name, more in study.explore.steps.items():
        so_far = so_far | dict(more)
        steps[name] = so_far
    return steps


def configurations(study: Study) -> list[tuple[str, TrialConfig]]:
    """Every configuration of the study with the step of its ablation, without seeds.

    None for Optuna, whose configurations come while it runs.

    Raises:
        ValueError: a combination of values cannot work.
    """
    changes: list[dict[str, Any]]
    if isinstance(study.explore, Optuna):
        return []  # they come one by one, from what the others scored
    if isinstance(study.explore, Random):
        changes = _drawn(study, study.explore)
    elif isinstance(study.explore, Pbt):
        rng = np.random.RandomState(study.explore.sampling_seed)
        share = 1 / study.explore.generations
        members = [draw(study.vary, rng) for _ in range(study.explore.size)]
        changes = [{**member, "until_share": share} for member in members]
    else:
        names = list(study.vary)
        values = (grid_values(name, study.vary[name]) for name in names)
        changes = [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]
    return [
        (step, replace(study.base, **change, **more))
        for step, more in steps_of(study).items()
        for change in changes
    ]


def _drawn(study: Study, explore: Random) -> list[dict[str, Any]]:
    rng = np.random.RandomState(explore.sampling_seed)
    points = [dict(point) for point in explore.points]
    while len(points) < explore.num_configs:
        points.append(draw(study.vary, rng))
    return points[: explore.num_configs]


def as_preview(study: Study, *, dataset: str) -> Study:
    """The same shape of study with a small network, few images and few epochs."""
    changes = {**PREVIEW, **study.preview, "dataset": dataset}
    vary = dict(study.vary)
    fixed: dict[str, Any] = {}
    for name, value in changes.items():
        if isinstance(value, list | tuple):
            vary[name] = tune.grid_search(list(value))
        elif isinstance(value, Domain):
            vary[name] = value
        elif name not in vary:
            fixed[name] = value
        else:
            raise ValueError(f"preview: {name} varies, so give a list of values, got {value!r}")
    return replace(study, base=replace(study.base, **fixed), vary=vary, preview={})
