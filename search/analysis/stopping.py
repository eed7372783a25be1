"""Was stopping safe? How the scores at which trials were stopped agree with the final scores.

Pure functions of the tables and of study.json's `stop`. Only trials that finished have a final
score. They are the better ones of each rung, and among fewer scores the rank correlation is lower
than among all: a rho of 0.5 in the third that went on is a correlation of about 0.8 in all, and
then the best of 40 to 300 trials is stopped in at most 3 of 100 studies (simulated, bivariate
normal scores). With a rho of 0.3 (0.55 in all) it is stopped in 10 to 20 of 100.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from search.analysis.surface import LEVEL, usable
from trainable.config import SCORES, WORST

LEAST_FINISHED = 12  # fewer trials get no interval
AGREES, DISAGREES = 0.5, 0.3  # Spearman's rho: stopping is safe above, and not safe below
EXPLAINED = 0.9  # the share of stopped trials that the declared rungs must explain
APART = 1.5  # rungs that are read off the stopped trials are so many times apart
COLUMNS = [
    *("rung", "images", "epoch", "batch_size", "reached", "stopped", "n", "rho", "low", "high"),
    *("best_place", "of", "best_below"),
]


def stopping(
    trials: pd.DataFrame, epochs: pd.DataFrame | None, about: Mapping[str, Any], *, metric: str
) -> pd.DataFrame:
    """One row per rung and batch size, and one per rung for all, whose batch_size is NaN.

    A rung is an amount of training at which the stopper decides, in `images`. `epoch` is the
    evaluation there, NaN if trials differ in it. Of the trials that `reached` it, so many were
    `stopped` before the next, and `n` finished. `rho` is Spearman's rank correlation of these, of
    their scores at the rung with the final ones; where only trials of one batch size compete, that
    of all is of the ranks within each. `best_place` is the place at the rung of the trial that
    finished best, among the `of` trials that it competes with; `best_below`: it is below the cut
    that all these give, and went on because fewer were known then. Empty without a stopper or if
    it stopped no trial.
    """
    stop = _declaration(about)
    nothing = pd.DataFrame(columns=COLUMNS)
    if not stop or epochs is None or epochs.empty or not (trials["status"] == "stopped").any():
        return nothing
    judged = str(about.get("metric") or metric.replace("test_", "val_"))
    seen = _evaluations(trials, epochs, judged)
    rungs = _rungs(trials, seen, stop)
    final = usable(trials, metric=metric).set_index("trial_key")[metric].astype(float)
    sign = 1.0 if SCORES.get(metric.replace("test_", "val_")) == "max" else -1.0
    rows: list[dict[str, Any]] = []
    for number, (images, following) in enumerate(itertools.pairwise([*rungs, math.inf]), 1):
        known = _at_rung(seen, images, grace=rungs[0]).join((sign * final).rename("final"))
        if known.empty:
            continue
        known["was_stopped"] = (known["status"] == "stopped") & (known["last"] < following)
        groups = known.groupby("batch_size")
        known["group"] = known["batch_size"] if stop.get("by_batch_size") else 0
        about_rung = {"rung": number, "images": int(images), "epoch": _epoch_of(known)}
        for batch_size, group in [*groups, (float("nan"), known)]:
            row = _agreement(group) | _place_of_best(group, known, stop)
            rows.append(about_rung | {"batch_size": batch_size} | row)
    return pd.DataFrame(rows, columns=COLUMNS)


def verdict(rung: pd.DataFrame) -> str:
    """`safe`, `not safe` or `unknown`: of the rows of one rung."""
    overall = rung[rung["batch_size"].isna()].iloc[0]
    if rung["best_below"].any() or overall["high"] < DISAGREES:
        return "not safe"
    return "safe" if overall["low"] >= AGREES else "unknown"


def deciding_rung(rungs: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first rung that was not safe, else of the first that stopped a trial."""
    if rungs.empty:
        return rungs
    stopped = rungs.loc[rungs["batch_size"].isna() & (rungs["stopped"] > 0), "rung"]
    groups = [rungs[rungs["rung"] == number] for number in stopped]
    unsafe = [group for group in groups if verdict(group) == "not safe"]
    return [*unsafe, *groups, rungs.iloc[:0]][0]


def _declaration(about: Mapping[str, Any]) -> dict[str, Any]:
    """What study.json says of the stopper; of older studies, which have it as text, its kind."""
    stop = about.get("stop")
    if isinstance(stop, str):
        return {} if stop == "None" else {"kind": stop.partition("(")[0]}
    return dict(stop or {})


def _evaluations(trials: pd.DataFrame, epochs: pd.DataFrame, judged: str) -> pd.DataFrame:
    """The evaluations at which a trial could be stopped, oldest first, more is better."""
    columns = ["trial_key", "epoch", "examples_seen", "epochs_seen", judged]
    seen = epochs.reindex(columns=columns).rename(columns={judged: "score"})
    seen = seen.merge(trials[["trial_key", "batch_size", "status"]], on="trial_key")
    seen = seen.sort_values(["trial_key", "examples_seen"])
    sign = 1.0 if SCORES[judged] == "max" else -1.0
    scores = (sign * seen["score"].astype(float)).replace([math.inf, -math.inf], math.nan)
    seen["score"] = scores.fillna(WORST[judged])
    seen["last"] = seen.groupby("trial_key")["examples_seen"].transform("max")
    # At the last evaluation of a whole trial nothing is left to decide.
    return seen[(seen["status"] != "completed") | (seen["examples_seen"] < seen["last"])]


def _at_rung(seen: pd.DataFrame, images: float, *, grace: float) -> pd.DataFrame:
    """Each trial's first evaluation at the rung; its best score and mean score until then."""
    first = seen[seen["examples_seen"] >= images].groupby("trial_key").first()
    until = seen[seen["examples_seen"] <= seen["trial_key"].map(first["examples_seen"])]
    late = until[until["examples_seen"] >= grace]
    return first.assign(
        best=until.groupby("trial_key")["score"].max(),
        mean=late.groupby("trial_key")["score"].mean(),
    )


def _epoch_of(known: pd.DataFrame) -> float:
    """The epoch of the rung; NaN if trials differ in it, or were evaluated at other times."""
    is_whole = known["epochs_seen"].isna() | (known["epochs_seen"].round() == known["epoch"])
    is_one = known["epoch"].nunique() == 1 and is_whole.all()
    return float(known["epoch"].iloc[0]) if is_one else float("nan")


def _agreement(known: pd.DataFrame) -> dict[str, float]:
    """How the order of those that finished agrees with their final order."""
    row = {"reached": len(known), "stopped": int(known["was_stopped"].sum())}
    ended = known[known["final"].notna()]
    groups = ended["group"].to_numpy()
    rho, low, high = rank_correlation(ended["score"].array, ended["final"].array, groups)
    return row | {"n": len(ended), "rho": rho, "low": low, "high": high}


def rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Any] | NDArray[Any]
) -> tuple[float, float, float]:
    """Spearman's rho with its 95 % interval, over the ranks within each group; NaN if unknown.

    The interval is on the scale of Fisher's z, with the larger of two standard errors: the
    jackknife's, because learning curves are far from normal, and Bonett & Wright's of normal
    scores (2000, Psychometrika 65:23), because the jackknife's is too small by chance.
    """
    n = len(x)
    one_group = np.asarray(groups)[:, None] == np.asarray(groups)[None, :]
    rho = _pearson(*(_ranks(np.asarray(of, dtype=float), one_group) for of in (x, y)))
    num_groups = len(np.unique(groups))
    freedom = n - num_groups - 2
    if num_groups == 0 or freedom < LEAST_FINISHED - 3 or not np.isfinite(rho).all():
        return float(rho[0]), math.nan, math.nan
    nearest = 1 - 12 / (n * (n**2 - 1))  # two neighbours are swapped
    z = np.arctanh(np.clip(rho, -nearest, nearest))
    jackknife = math.sqrt((n - 1) * z[1:].var()) * stats.t.ppf(0.5 + LEVEL / 2, freedom + 1)
    of_normal = math.sqrt((1 + rho[0] ** 2 / 2) / freedom) * stats.norm.ppf(0.5 + LEVEL / 2)
    half = max(jackknife, of_normal)
    low, high = np.tanh(z[0] - half), np.tanh(z[0] + half)
    return float(rho[0]), min(float(low), float(rho[0])), max(float(high), float(rho[0]))


def _ranks(values: NDArray[np.float64], one_group: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(1 + N, N): ranks in the group, from -1/2 to 1/2, of all trials and without each in turn."""
    ties = values[:, None] == values[None, :]
    is_below = one_group * ((values[:, None] < values[None, :]) + 0.5 * ties)
    below = np.vstack([np.zeros(len(values)), -is_below]) + is_below.sum(axis=0)
    sizes = np.vstack([np.zeros(len(values)), -1.0 * one_group]) + one_group.sum(axis=0)
    ranks: NDArray[np.float64] = below / np.maximum(sizes, 1) - 0.5
    np.fill_diagonal(ranks[1:], 0.0)
    return ranks


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlation of each row, whose sum is 0; NaN if all are alike."""
    spread = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    known = spread > 0
    rho: NDArray[np.float64] = np.where(
        known, (x * y).sum(axis=1) / np.where(known, spread, 1), np.nan
    )
    return rho


def _place_of_best(
    group: pd.DataFrame, known: pd.DataFrame, stop: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the finally best of a group was at the rung among all that it competes with."""
    if not group["final"].notna().any():
        return {"best_place": math.nan, "of": 0, "best_below": False}
    best = group["final"].idxmax()
    rivals = known[known["group"] == known.loc[best, "group"]]
    name = "best" if stop["kind"] == "Median" else "score"
    place = 1 + int((rivals[name] > rivals.loc[best, name]).sum())
    below = bool(rivals.loc[best, name] < _cut(rivals, best, stop))
    return {"best_place": place, "of": len(rivals), "best_below": below}


def _cut(rivals: pd.DataFrame, key: str, stop: Mapping[str, Any]) -> float:
    """What a trial's score must reach to go on, as Ray computes it; -inf where it is not known."""
    if stop["kind"] == "Median":
        others = rivals["mean"].drop(key).dropna()
        return float(others.median()) if len(others) >= stop.get("min_trials", 3) else -math.inf
    if "reduction_factor" not in stop:
        return -math.inf
    return float(np.percentile(rivals["score"], 100 * (1 - 1 / stop["reduction_factor"])))


def _rungs(trials: pd.DataFrame, seen: pd.DataFrame, stop: Mapping[str, Any]) -> Sequence[float]:
    """The amounts of training at which the stopper decided, in images.

    As declared, if most of the stopped trials ended there: the study may have had another stopper
    or budget before. Else those at which trials were stopped; a median decides at each evaluation.
    """
    last = seen[seen["status"] == "stopped"].groupby("trial_key")["examples_seen"]
    stopped_at = last.max().to_numpy(dtype=float)
    if not len(stopped_at):  # their evaluations were in a file that cannot be read
        return []
    before = last.apply(lambda images: images.iloc[-2] if len(images) > 1 else 0)
    declared = _declared_rungs(trials, seen, stop)
    if declared:
        passed = np.searchsorted(declared, stopped_at, "right")
        is_there = passed > np.searchsorted(declared, before.to_numpy(dtype=float), "right")
        if is_there.mean() >= EXPLAINED:
            return declared
    observed: list[float] = []
    for images in np.unique(stopped_at):
        if not observed or images >= APART * observed[-1]:
            observed.append(float(images))
    return observed


def _declared_rungs(
    trials: pd.DataFrame, seen: pd.DataFrame, stop: Mapping[str, Any]
) -> list[float]:
    """From the grace share, the factor and the budgets; empty where these do not tell."""
    if not {"grace_share", "reduction_factor"} <= set(stop):
        return []
    per_image = (seen["examples_seen"] / seen["epochs_seen"].astype(float)).dropna()
    names = ["batch_size", "epochs", "updates", "examples", "warmup_share", "warmup_epochs"]
    names += ["warmup_scaling", "reference_batch_size", "decay"]
    rows = trials.reindex(columns=names).drop_duplicates()
    if per_image.empty or (rows["decay"] == "batch_growth").any():
        return []
    batch = rows["batch_size"].astype(float)
    epoch_images = round(per_image.median()) // batch * batch
    budget = rows[["epochs", "updates", "examples"]].astype(float)
    total = (budget["epochs"] * epoch_images).fillna(budget["updates"] * batch)
    total = total.fillna(np.ceil(budget["examples"] / batch) * batch)
    if total.isna().all():  # a budget in seconds
        return []
    share = rows["warmup_share"].astype(float).fillna(0)
    by_rule = (batch / rows["reference_batch_size"]).where(rows["warmup_scaling"] == "linear", 1)
    length = rows["warmup_epochs"].astype(float).fillna(0) * by_rule.astype(float) * epoch_images
    warmup = (length.mask(share > 0, share * total) / batch).round() * batch
    grace = int(max((stop["grace_share"] * total).max(), warmup.max()))
    powers = [grace * stop["reduction_factor"] ** k for k in range(100)]
    return [images for images in powers if images < total.max()]
