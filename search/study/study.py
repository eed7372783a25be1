"""Study: what a space file declares, checked when it is made. Imports no torch and no Optuna."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from search.study.domains import as_values, probes
from search.study.expected import Expectation, check_expected
from search.study.explorer import Chooser, Explorer, Stopper
from trainable.config import SCORES, TrialConfig, check_score, selected_by
from trainable.host import credentials

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
TRIAL_FIELDS = tuple(trial_field.name for trial_field in fields(TrialConfig))
# What people type for a field or a metric.
ALIASES = {
    **dict.fromkeys(("lr", "learning_rate", "rate"), "base_lr"),
    **dict.fromkeys(("bs", "batch", "batchsize"), "batch_size"),
    **dict.fromkeys(("wd", "decay_weight"), "weight_decay"),
    **dict.fromkeys(("opt", "optim"), "optimizer"),
    **dict.fromkeys(("schedule", "scheduler"), "decay"),
    **dict.fromkeys(("arch", "network"), "model"),
    **dict.fromkeys(("acc", "accuracy", "val_acc"), "val_accuracy"),
    **dict.fromkeys(("auc", "auroc", "val_auc"), "val_auroc"),
    **dict.fromkeys(("loss", "val_ce"), "val_loss"),
    **dict.fromkeys(("iou", "miou", "mean_iou", "val_iou"), "val_miou"),
    **dict.fromkeys(("map", "mean_ap", "val_ap"), "val_map"),
    **{"warmup": "warmup_epochs", "num_epochs": "epochs", "weights": "pretrained"},
}
LEAST_SHARE = 0.01  # of a GPU
EXPLORE = "explore"  # in `preview`, which else maps fields of the trial


def _grid() -> Explorer:
    from search.explore.grid import Grid  # explorers build on studies, so not at the top

    return Grid()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A complete trial, what varies about it, how that is explored, and with what.

    `vary` maps fields of the trial to Ray Tune's domains. `seeds` repeats each configuration, and
    the mean is what is ranked; `leaders` gives the best of them more. `metric` is the score that
    ranks the trials, and `base.select_by` the one that selects a trial's epoch. If only one of them
    is given, the other is the same. `gpus_per_trial` is the number of GPUs of one node that a trial
    takes, or the share of one; or these by the smallest batch size that each applies from,
    `{16: 0.25, 1024: 4}`, the first one also below it; or `auto`, as many trials to a GPU as
    measured memory allows. Without a GPU a trial takes `cpus_per_trial` cores instead.
    `pack` is how many trials train together in one process where they differ only in the learning
    rate, the optimizer and the like: images and frozen blocks are computed once for all of them,
    and the pack takes what one trial takes. `auto` packs where blocks are frozen. No result
    changes.
    With `keep_weights` each trial leaves its best weights in the results, to test or to teach with.
    A trial's state is saved every `checkpoint_every_s` seconds, after an evaluation, and at its
    end: a lost worker costs that much work. It changes no result.
    `preview` maps fields to a value, or to a list of values or a domain where the field varies,
    for the small study that `--preview` runs on top of `PREVIEW`; `explore` to another explorer,
    where the steps or variants themselves must be smaller. `expect` is what the study's source
    reports; the report shows it beside what was measured.

    Raises:
        ValueError: a field is unknown, a value impossible, or a domain does not fit `explore`.
    """

    name: str
    base: TrialConfig
    vary: Mapping[str, Any]
    explore: Explorer = field(default_factory=_grid)
    stop: Stopper | None = None
    seeds: int = 1
    leaders: Chooser | None = None
    metric: str = ""
    gpus_per_trial: float | Mapping[int, float] | Literal["auto"] = 1.0
    cpus_per_trial: int = 1
    pack: int | Literal["auto"] = 1
    keep_weights: bool = False
    checkpoint_every_s: float = 30.0
    preview: Mapping[str, object] = field(default_factory=dict)
    expect: Sequence[Expectation] = ()

    def __post_init__(self) -> None:
        """Check the study's own fields, then every trial that it asks for."""
        self._check_own_fields()
        if not self.metric:
            object.__setattr__(self, "metric", selected_by(self.base))
        if self.base.select_by is None:
            object.__setattr__(self, "base", replace(self.base, select_by=self.metric))
        for name in [*self.vary, *self.preview]:
            if name != EXPLORE or name in self.vary:
                check_field(name)
        object.__setattr__(self, "vary", self.explore.domains(self.vary))
        _check_gpus(self.gpus_per_trial)
        if self.pack != 1 and _most_gpus(self.gpus_per_trial) > 1:
            raise ValueError(
                f"trials that take several GPUs cannot be packed: set pack=1 or gpus_per_trial=1, "
                f"got pack={self.pack!r} and gpus_per_trial={self.gpus_per_trial!r}"
            )
        self.explore.check(self)
        self._check_values()
        self.known_configs  # noqa: B018  each is checked when it is made
        if self.stop is not None:
            self.stop.check(self)
        if self.leaders is not None:
            self.leaders.check(self)
        check_expected(self)

    def _check_own_fields(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"name must be 1 to 128 letters, digits, dots, dashes or underscores and begin "
                f"with a letter or digit: it names the results' folder; got {self.name!r}"
            )
        if not isinstance(self.base, TrialConfig):
            raise ValueError(f"base must be a TrialConfig, got {self.base!r}")
        if self.metric:
            check_metric(self.metric)
            check_score("metric", self.metric, self.base.task)
        check_number("seeds", self.seeds, whole=True, low=1)
        check_number("cpus_per_trial", self.cpus_per_trial, whole=True, low=1)
        if self.pack != "auto":
            check_number(
                "pack (how many trials train together, or 'auto')", self.pack, whole=True, low=1
            )
        check_number("checkpoint_every_s", self.checkpoint_every_s, whole=False, low=0)
        if not isinstance(self.keep_weights, bool):
            raise ValueError(f"keep_weights must be True or False, got {self.keep_weights!r}")
        for name in ("vary", "preview"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a dict of fields, got {getattr(self, name)!r}")
        for name, method, example in (
            ("explore", "next", "Grid() or Optuna(...)"),
            ("stop", "check", "Asha() or None"),
            ("leaders", "next", "Leaders() or None"),
        ):
            part = getattr(self, name)
            optional = name != "explore" and part is None
            if not optional and not callable(getattr(part, method, None)):
                raise ValueError(f"{name} must be such as {example}, got {part!r}")

    def _check_values(self) -> None:
        """Try each value that a field may take alone, so that an error is this field's."""
        for name, domain in self.vary.items():
            as_taken: list[object] = []
            for value in probes(domain):
                change: dict[str, Any] = {name: value}
                as_taken.append(getattr(replace(self.base, **change), name))
            if isinstance(domain, dict):
                values = as_values(name, {"grid_search": as_taken})["grid_search"]
                self.vary[name]["grid_search"] = values

    @property
    def mode(self) -> str:
        """`max` or `min`: which end of the metric is good."""
        return SCORES[self.metric]

    @property
    def configs(self) -> list[TrialConfig]:
        """The configurations that are known before any trial has run; at least the base."""
        return self.known_configs or [self.base]

    @cached_property
    def known_configs(self) -> list[TrialConfig]:
        """Those of the explorer; made once, since there may be many thousand."""
        return self.explore.configs(self)


def check_metric(metric: str) -> None:
    """Raises ValueError for what is no validation score."""
    if str(metric).startswith("test_"):
        raise ValueError(
            f"metric {metric!r} is of the test split, which may not choose: it is scored once, "
            f"with what validation chose. Take one of {', '.join(SCORES)}"
        )
    if metric not in SCORES:
        raise ValueError(unknown("metric", metric, SCORES))


def check_number(name: str, value: object, *, whole: bool, low: float) -> None:
    """Raises ValueError for what is not a finite number, or a whole one, of at least `low`."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind} >= {low:g}, got {value!r}")


def _check_gpus(shares: object) -> None:
    """Raises ValueError where a trial takes neither whole GPUs nor a part of one."""
    if isinstance(shares, str):
        if shares != "auto":
            raise ValueError(f"gpus_per_trial must be a number, a dict or 'auto', got {shares!r}")
        return
    if isinstance(shares, Mapping):
        if not shares:
            raise ValueError("gpus_per_trial has no share: give some, as in {16: 0.25, 1024: 1.0}")
        for size in shares:
            check_number("gpus_per_trial's batch sizes", size, whole=True, low=1)
    values: list[Any] = list(shares.values()) if isinstance(shares, Mapping) else [shares]
    for share in values:
        check_number("gpus_per_trial", share, whole=False, low=0)
        if share > 1 and share != int(share):
            raise ValueError(
                f"gpus_per_trial must be a whole number above 1, a trial trains on a part of a GPU "
                f"or on whole ones; got {share}"
            )
        if share < LEAST_SHARE and (share or isinstance(shares, Mapping)):
            raise ValueError(
                f"gpus_per_trial must be {LEAST_SHARE} to 1, or 0 for trials on cores alone; "
                f"got {shares}"
            )


def _most_gpus(shares: float | Mapping[int, float] | str) -> float:
    """The most GPUs that a trial takes; under `auto` it is one."""
    if isinstance(shares, str):
        return 1.0
    return float(max(shares.values()) if isinstance(shares, Mapping) else shares)


def unknown(what: str, name: object, known: Sequence[str] | Mapping[str, str]) -> str:
    """A sentence that names what does not exist and the nearest that does."""
    alias = ALIASES.get(str(name).lower())
    near = (
        [alias]
        if alias in known
        else difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    )
    hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(known)}"
    return f"there is no {what} {name!r}; {hint}"


def check_field(name: str) -> None:
    """Raises ValueError where a study cannot vary the field, or there is none of that name."""
    if name == "seed":
        raise ValueError("seed cannot vary: say how many with seeds=3")
    if name == "task":
        raise ValueError("task cannot vary: its scores are others, make a study of each")
    if name == "dataset":
        raise ValueError("dataset cannot vary: a study is on one, make a study of each")
    if name == "split_by":
        raise ValueError("split_by cannot vary: a study has one validation split, make two studies")
    if name in ("until_share", "begins_from"):
        raise ValueError(f"{name} is set by Pbt, not by a space file")
    if credentials.is_secret_name(str(name)):
        raise ValueError(f"{name} {credentials.REFUSED}")
    if name not in TRIAL_FIELDS:
        raise ValueError(unknown("field", name, TRIAL_FIELDS))
