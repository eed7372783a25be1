"""What `--dry-run` prints: the trials and what they will cost; and, after a run, how that held."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table

from cluster.connect import Cluster
from search.execution.cost_estimate import (
    MOST_KINDS,
    Estimate,
    Kind,
    Share,
    estimate,
    kinds_of,
    rungs_of,
)
from search.execution.packs import pack_size
from search.execution.preflight import Ready
from search.execution.recorder import one_line
from search.execution.resources import mean_gpu_share, mean_slots, resources_of, slots
from search.execution.schedulers import scheduler_of
from search.explore import Asha, HyperBand
from search.results import tables
from search.results.tables import ENDED, Results
from search.study.explorer import PlannedTrial, Tables
from search.study.shown import duration, number_of, show
from search.study.space_file import SpaceFileError
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.host import storage
from trainable.ray_adaptor import probe_trial
from trainable.training.schedule import timetable

if TYPE_CHECKING:  # it imports torch
    from trainable.probe import Measured

FILE = "estimate.json"
NUM_EXAMPLES = 200  # that stand for configurations which are not chosen yet, where these are fewer
MOST_SHOWN = 1000  # trials: many thousand rows take minutes to lay out, and nobody reads them
MOST_WORKERS = 8  # that time side by side, as trials will run


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to train: trials that are known, and how many a search will still choose."""

    asked: Sequence[PlannedTrial]
    todo: Sequence[PlannedTrial]
    num_later: int


def plan_of(study: Study, known: Tables, *, total: int) -> Plan:
    """The trials that were asked for, which of them have not ended, and how many are to come.

    A trial that two steps of an ablation ask for is trained once, and counts once.
    """
    asked = {trial.key: trial for trial in known.asked}
    todo = [trial for trial in asked.values() if trial.key not in known.ended]
    return Plan(asked=list(asked.values()), todo=todo, num_later=max(0, total - len(asked)))


def print_plan(console: Console, study: Study, plan: Plan) -> None:
    """Print the trials and which of them ended; the later ones are chosen while a search runs."""
    left = {trial.key for trial in plan.todo}
    title = f"{study.name}: {number_of(len(plan.asked) + plan.num_later, 'trial')}"
    table = Table(box=None, pad_edge=False, title=title)
    varied = list(study.vary) or ["batch_size", "base_lr"]
    for name in ("trial_key", *varied, "seed", "state"):
        table.add_column(name, justify="right")
    for trial in plan.asked[:MOST_SHOWN]:
        values = (show(getattr(trial.config, name)) for name in (*varied, "seed"))
        table.add_row(trial.key, *values, "to run" if trial.key in left else "done")
    if plan.num_later:
        table.caption = f"{plan.num_later} that {type(study.explore).__name__} will choose"
    console.print(table)
    if len(plan.asked) > MOST_SHOWN:
        console.print(f"and {len(plan.asked) - MOST_SHOWN:,} more trials", highlight=False)
    console.print(
        f"\n{len(plan.asked) - len(plan.todo)} done, {len(plan.todo) + plan.num_later} to run "
        f"(dry run: nothing was trained)",
        highlight=False,
    )


def print_cost(console: Console, ready: Ready, cluster: Cluster, known: Tables, plan: Plan) -> None:
    """Time every network and batch size where trials will run; print and record the estimate.

    Some updates and an evaluation of each kind are timed, in as many workers at once as trials
    will run side by side, since they slow each other down. Nothing of it is kept.

    Raises:
        SpaceFileError: a configuration cannot be trained here; the message says why.
    """
    study = ready.study
    before = _under_way(ready.results, plan.todo)
    shares = _shares(ready, known, plan, before)
    num_trials = len(plan.todo) + plan.num_later
    num_slots = min(mean_slots(study, cluster, shares), num_trials)
    most_packed = max(pack_size(study, share.config) for share in shares)
    timed, worker_start_s = _timed(console, ready, cluster, shares, num_slots)
    stopping, rule = _stopping(study, train_images=ready.train_images)
    total = estimate(
        shares,
        timed,
        num_trials=num_trials,
        num_slots=num_slots,
        num_at_once=min(num_slots * most_packed, num_trials),
        gpu_share=mean_gpu_share(study, cluster, shares),
        worker_start_s=worker_start_s,
        keep_weights=study.keep_weights,
        checkpoint_every_s=study.checkpoint_every_s,
        **stopping,
    )
    device = ", ".join(sorted({measured.device for measured in timed.values()}))
    where = "this machine" if cluster.address == "local" else "the cluster"
    _print_estimate(console, total, f"{where} ({device})", rule)
    if most_packed > 1:
        console.print("every trial is timed alone: in packs they take less")
    if study.leaders or not plan.num_later:
        _print_uncounted(console, study)
    left = {trial.key for trial in plan.todo}
    record = asdict(total) | {
        "study": study.name,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "to_run": sorted(left),
        "done": sorted({trial.key for trial in plan.asked} - left),
        "num_later": plan.num_later,
        "train_s_before": sum(row["train_wall_s"] for row in before.values()),
        "kinds": [dict(kind) | asdict(measured) for kind, measured in timed.items()],
    }
    _write(ready.results, record)


def _print_estimate(console: Console, total: Estimate, where: str, rule: str) -> None:
    console.print(
        f"estimate on {where}: {duration(total.train_s)} of training, "
        f"{duration(total.wall_s)} with {number_of(total.num_slots, 'trial')} at once; "
        f"{total.gpu_hours:.1f} GPU-hours; disk {total.disk_bytes / 1e6:,.1f} MB "
        f"at its peak, {total.kept_disk_bytes / 1e6:,.1f} MB kept",
        highlight=False,
        soft_wrap=True,
    )
    if rule:
        console.print(
            f"at most {total.saved_share:.0%} of the training saved by stopping "
            f"({duration(total.saved_share * total.train_s)}), {rule}".replace("%", " %"),
            highlight=False,
            soft_wrap=True,
        )


def _print_uncounted(console: Console, study: Study) -> None:
    """Say that trials which depend on results are not in the estimate, where there may be any."""
    parts = [name for name in ("widen", "refine") if getattr(study.explore, name, 0)]
    parts += ["leaders"] if study.leaders else []
    if parts:
        console.print(
            f"trials that depend on the results ({', '.join(parts)}) are not counted",
            highlight=False,
        )


def compare_estimate(
    console: Console, results: Results, planned: Sequence[PlannedTrial], trials: pd.DataFrame
) -> None:
    """Say once how far the last dry run's estimate was off, and write it beside the estimate.

    Compares the trials that were to run then. Silent where there was no dry run, where one of
    these trials is not planned any more or has not ended, or where it was said before.
    """
    try:
        record = json.loads(storage.read(results.folder, FILE))
    except FileNotFoundError:
        return
    keys = {trial.key for trial in planned}
    to_run = keys - set(record["done"]) if record["num_later"] else set(record["to_run"])
    ended = trials[trials["trial_key"].isin(to_run & keys) & trials["status"].isin(ENDED)]
    if "measured_train_s" in record or len(ended) != record["num_trials"]:
        return
    measured_s = float(ended["train_wall_s"].sum()) - record["train_s_before"]
    if not measured_s > 0:
        return
    ratio = record["train_s"] / measured_s
    # A generation of a population is stopped where it was asked to be.
    early = (ended["status"] != "completed") & ~ended["until_share"].lt(1)
    num_early = int(early.sum())
    comparison = {
        "measured_train_s": measured_s,
        "estimate_over_measured": ratio,
        "num_ended_early": num_early,
    }
    _write(results, record | comparison)
    early = f" ({num_early} of {len(ended)} trials ended before their budget)" if num_early else ""
    console.print(
        f"the estimate was {abs(ratio - 1) * 100:.0f} % too {'high' if ratio >= 1 else 'low'}: "
        f"{duration(record['train_s'])} of training, {duration(measured_s)} measured{early}",
        highlight=False,
        soft_wrap=True,
    )


def _write(results: Results, record: Mapping[str, object]) -> None:
    storage.write(results.folder, FILE, (json.dumps(record, indent=1) + "\n").encode())


def _under_way(results: Results, todo: Sequence[PlannedTrial]) -> dict[str, Mapping[str, Any]]:
    """The rows of trials that were interrupted and go on from where they were, by key."""
    rows = tables.of_trials(tables.trials(results), {trial.key for trial in todo})
    rows = rows[rows["status"] == "interrupted"]
    return {row["trial_key"]: row for row in rows.to_dict("records")}


def _shares(
    ready: Ready, known: Tables, plan: Plan, before: Mapping[str, Mapping[str, Any]]
) -> list[Share]:
    """What is still to be trained: of each known trial its part, then examples for the later ones.

    Raises:
        SpaceFileError: an example is not a possible trial.
    """
    shares_at = {trial.key: trial.config.until_share for trial in plan.asked}
    shares = [
        _share_left(
            trial.config,
            before.get(trial.key),
            begun=shares_at.get(trial.config.begins_from or "", 0.0),
            ready=ready,
        )
        for trial in plan.todo
    ]
    num_later = plan.num_later // ready.study.seeds
    num = num_later * max(1, NUM_EXAMPLES // max(1, num_later))
    try:
        examples = ready.study.explore.examples(ready.study, known, num)
    except ValueError as error:
        raise SpaceFileError(str(error)) from error
    for config in examples:
        weight = plan.num_later / len(examples)
        shares.append(Share(config, weight * config.until_share))
    return shares


def _share_left(
    config: TrialConfig, row: Mapping[str, Any] | None, *, begun: float, ready: Ready
) -> Share:
    """What of a trial is still to be trained: it begins at the share `begun` of its budget.

    `row` is that of one that was interrupted.
    """
    table = timetable(config, train_images=config.train_images or ready.train_images)
    if row is not None and table.unit != "seconds":
        begun = row["examples_seen"] / table.total
    return Share(config, max(0.0, config.until_share - begun))


def _timed(
    console: Console, ready: Ready, cluster: Cluster, shares: Sequence[Share], num_slots: int
) -> tuple[dict[Kind, "Measured"], float]:
    """What each kind costs, printed as it is known; and the seconds in which a worker starts."""
    kinds = kinds_of(shares)
    first = list(kinds.items())[:MOST_KINDS]
    chosen = dict(sorted(first, key=lambda item: (item[1].model, item[1].batch_size)))
    num_workers = min(num_slots, MOST_WORKERS)
    names = _names(list(chosen))
    console.print(
        f"timing {number_of(len(chosen), 'kind')} of trial, {num_workers} at once", highlight=False
    )
    if len(kinds) > len(chosen):
        console.print(
            f"there are {len(kinds)}: each other one counts as the most similar of these",
            highlight=False,
        )
    timed: dict[Kind, Measured] = {}
    with_start_s = start_s = 0.0
    for kind, config in chosen.items():
        whole = replace(config, begins_from=None, until_share=1.0)
        if not timed:
            _, with_start_s = _time(ready, cluster, whole, num_workers)
        timed[kind], seconds = _time(ready, cluster, whole, num_workers)
        start_s = start_s or max(0.0, with_start_s - seconds)
        console.print(
            f"  {names[kind]}: {timed[kind].images_per_s:,.0f} images/s, "
            f"{timed[kind].eval_s:.2g} s an evaluation",
            highlight=False,
        )
    return timed, start_s


def _names(kinds: Sequence[Kind]) -> dict[Kind, str]:
    """Network and batch size, and what else differs among the kinds."""
    values: dict[str, set[object]] = {}
    for kind in kinds:
        for name, value in kind:
            values.setdefault(name, set()).add(value)
    differ = [n for n in values if len(values[n]) > 1 and n not in ("model", "batch_size")]
    return {
        kind: ", ".join(
            [f"{of['model']} at batch {of['batch_size']}", *(f"{n}={of[n]}" for n in differ)]
        )
        for kind in kinds
        for of in [dict(kind)]
    }


def _time(
    ready: Ready, cluster: Cluster, config: TrialConfig, num_workers: int
) -> tuple["Measured", float]:
    """The mean of so many workers that time the config side by side, and the seconds it took.

    Raises:
        SpaceFileError: it cannot be trained; the message says why.
    """
    resources = resources_of(ready.study, cluster, config)
    num_workers = min(num_workers, slots(cluster, resources))  # of those that take more, fewer fit
    task = ray.remote(
        num_cpus=ready.study.cpus_per_trial,
        num_gpus=resources.get("GPU", 0.0),
        max_calls=0,  # a worker with a GPU would end after one task
    )(probe_trial)
    asked = {
        "config": asdict(config),
        "data_folder": str(ready.data_folder) if ready.data_folder else None,
        "num_cpus": ready.study.cpus_per_trial,
    }
    started = time.perf_counter()
    try:
        measured = ray.get([task.remote(asked) for _ in range(num_workers)])
    except RayError as error:
        reason = one_line(str(getattr(error, "cause", error)))
        raise SpaceFileError(
            f"{config.model} at batch {config.batch_size} cannot be timed: {reason}"
        ) from error
    seconds = time.perf_counter() - started
    means = {
        figure.name: statistics.fmean(getattr(m, figure.name) for m in measured)
        for figure in fields(measured[0])
        if figure.type is float
    }
    return replace(measured[0], **means), seconds


def _stopping(study: Study, *, train_images: int) -> tuple[dict[str, Any], str]:
    """Where the study's `stop` stops trials, for `estimate`, and in words.

    Of HyperBand's brackets the one whose rungs come first: the others save less.
    """
    scheduler = scheduler_of(study, train_images=train_images)
    if scheduler is None or study.stop is None:
        return {}, ""
    among = {"by_batch_size": study.stop.by_batch_size}
    total = max(timetable(config, train_images=train_images).total for config in study.configs)
    if isinstance(study.stop, Asha | HyperBand):
        factor = study.stop.reduction_factor
        rungs = rungs_of(grace=scheduler.grace, total=int(total), factor=factor)
        rule = f"where one of {factor:g} goes on at each of {len(rungs)} rungs"
        return {"rungs": rungs, "factor": factor, **among}, rule
    rungs = [scheduler.grace / total]
    return {"rungs": rungs, "factor": 2.0, **among}, "where the worse half stops at once"
