"""The surfaces in a study's tables: one analysis per setting of the other fields that vary."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from search.analysis.analysis import Analysis, analyse
from search.analysis.best_set import optimism
from search.analysis.surface import contenders
from trainable.config import TrialConfig

CROSSED = ("batch_size", "base_lr")
# Determined by other fields, or different by design between the trials of one surface.
NO_CHOICE = (*CROSSED, "seed", "microbatch_size", "until_share", "begins_from", "select_by")
CHOICES = tuple(field.name for field in fields(TrialConfig) if field.name not in NO_CHOICE)
# A search draws its other fields for each trial, so they are part of the spread within a cell. Only
# these make surfaces separate: learning rates of different optimizers cannot be compared.
APART_IN_SEARCHES = ("dataset", "data_fingerprint", "optimizer")
RIDGE = "Ridge"  # the explorer that chooses trials by the model of humps
STEP = "step"  # the column of the step of an ablation, or of the variant


@dataclass(frozen=True)
class Exploration:
    """How a study explored, as its study.json says.

    `kind` is the explorer's name. `steps` maps each step of an ablation, with those before it, or
    each variant to the fields that it changes. `is_search`: configurations are drawn, so that
    other fields differ at random within a cell.
    """

    kind: str
    is_search: bool
    steps: Mapping[str, Mapping[str, Any]]


def exploration_of(about: Mapping[str, Any]) -> Exploration:
    """From study.json's `explore`; `Grid` where it does not say."""
    explore = about.get("explore") or "Grid"
    values = _from_repr(explore) if isinstance(explore, str) else explore
    kind = str(values.get("kind"))
    vary = about.get("vary", {})
    is_search = any("grid_search" not in domain for domain in vary.values())
    is_search = is_search or (not vary and kind == "Optuna")
    if kind == "Variants":
        return Exploration(kind, is_search, values.get("each", {}))
    together: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for step, more in values.get("steps", {}).items():
        changes = changes | more
        together[step] = changes
    return Exploration(kind, is_search, together)


def _from_repr(explore: str) -> dict[str, Any]:
    """An explorer as study.json said it before it held JSON: `Grid(widen=0, refine=0)`."""
    values: dict[str, Any] = {"kind": explore.partition("(")[0]}
    try:
        call = ast.parse(explore, mode="eval").body
        if isinstance(call, ast.Call):
            for keyword in call.keywords:
                if keyword.arg in ("steps", "each"):
                    values[keyword.arg] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError):
        pass  # a define-by-run function, which its repr does not show
    return values


def with_steps(trials: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """The trials of each step of an ablation, or of each variant, with its name in `step`.

    study.json has the trials of each step. In older ones a trial belongs to a step if it has the
    fields that the step sets on top of the study's base. A trial that belongs to two steps is in
    two rows.
    """
    if keys := about.get("step_trials"):
        parts = [trials[trials["trial_key"].isin(of)].assign(**{STEP: s}) for s, of in keys.items()]
        return pd.concat(parts)
    base = about.get("base", {})
    steps = exploration_of(about).steps
    changed = sorted({name for more in steps.values() for name in more} & set(trials))
    parts = []
    for step, more in steps.items():
        mine = pd.Series(True, index=trials.index)
        for name in changed:
            value = more.get(name, base.get(name))
            mine &= trials[name].isna() if value is None else trials[name] == value
        parts.append(trials[mine].assign(**{STEP: step}))
    return pd.concat(parts) if parts else trials.iloc[:0].assign(**{STEP: ""})


def branches(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that went on from their seed's only trunk, as cells of their own; else all trials.

    What they share was trained with one config, so what follows is theirs. A population has several
    members that begin, and one of its own predecessors for most others.
    """
    if "begins_from" not in trials or trials["begins_from"].isna().all():
        return trials
    begun = trials["begins_from"].notna()
    trunks = trials[~begun].groupby("seed")["trial_key"].agg(["count", "first"])
    trunk_of = trials["seed"].map(trunks["first"])
    if (trunks["count"] > 1).any() or (trials["begins_from"] != trunk_of)[begun].any():
        return trials
    return trials[begun].assign(begins_from=None)


def others_of(trials: pd.DataFrame, about: Mapping[str, Any]) -> list[str]:
    """The columns that distinguish surfaces."""
    exploration = exploration_of(about)
    if exploration.is_search:
        among: Sequence[str] = APART_IN_SEARCHES
    elif STEP in trials:  # the name of a step stands for the fields that it sets
        changed = {name for more in exploration.steps.values() for name in more}
        return [STEP, *_varied(trials, [n for n in _apart() if n not in changed])]
    else:
        among = _apart()
    return _varied(trials, among)


def _apart() -> list[str]:
    return [*CHOICES, "data_fingerprint"]


def _varied(trials: pd.DataFrame, among: Sequence[str]) -> list[str]:
    return [n for n in among if n in trials and trials[n].nunique(dropna=False) > 1]


def varied_fields(trials: pd.DataFrame) -> list[str]:
    """The fields that differ between trials, for a leaderboard."""
    varied = _varied(trials, [*CROSSED, *CHOICES])
    return varied or [name for name in CROSSED if name in trials]


def analyses(
    trials: pd.DataFrame,
    epochs: pd.DataFrame | None,
    about: Mapping[str, Any],
    *,
    metric: str,
    mode: str,
    lr: str = "base_lr",
    margin: float | None = None,
) -> list[Analysis]:
    """One analysis per surface, the one with the best mean first; an empty one without trials."""
    if exploration_of(about).steps:
        trials = with_steps(trials, about)
    others = others_of(trials, about)
    groups = trials.groupby(others, dropna=False) if others else [((), trials)]
    surfaces = []
    for values, group in groups:
        of = dict(zip(others, values, strict=True))
        evaluations = None
        if epochs is not None and metric in epochs:  # test scores exist only for whole trials
            evaluations = epochs[epochs["trial_key"].isin(group["trial_key"])]
        named: dict[str, Any] = {"metric": metric, "mode": mode, "lr": lr, "of": of}
        surfaces.append(analyse(group, evaluations, **named, margin=margin))
    sign = 1.0 if mode == "max" else -1.0
    # By the rule of `contenders`, over all surfaces: one seed does not beat the mean of several.
    cells = pd.concat([a.cells.assign(of=i) for i, a in enumerate(surfaces)], ignore_index=True)
    best = (sign * contenders(cells)["mean"]).groupby(cells["of"]).max()
    order = sorted(range(len(surfaces)), key=lambda i: best.get(i, float("-inf")), reverse=True)
    if len(surfaces) > 1:  # the first one is shown because its best cell is the best of all
        first = surfaces[order[0]]
        of_all = optimism(cells, mode=mode)
        surfaces[order[0]] = replace(first, optimism=of_all, surfaces=len(surfaces))
    return [surfaces[i] for i in order]
