"""What `--dry-run` prints: the trials and what they will cost; and, after a run, how that held."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table

from cluster.connect import Cluster
from search.execution.cost_estimate import (
    MOST_KINDS,
    Kind,
    Share,
    estimate,
    kinds_of,
    rungs_of,
)
from search.execution.preflight import Ready
from search.execution.progress import show
from search.execution.recorder import one_line
from search.execution.resources import mean_gpu_share, mean_slots, resources_of, slots
from search.execution.schedulers import scheduler_of
from search.explore import Asha, Grid, HyperBand, Optuna, Pbt
from search.explore.optuna import distribution_of
from search.explore.plan import DONE, PlannedTrial, of_plan
from search.results import tables
from search.results.tables import Results
from search.study.space_file import SpaceFileError
from search.study.study import Study, configurations
from trainable.config import TrialConfig
from trainable.host import storage
from trainable.ray_adaptor import probe_trial
from trainable.training.schedule import timetable

if TYPE_CHECKING:  # it imports torch
    from trainable.probe import Measured

FILE = "estimate.json"
NUM_DRAWS, DRAW_SEED = 200, 0  # that stand for configurations which are not chosen yet
MOST_AT_ONCE = 8  # timed side by side, as trials will run


def print_plan(
    console: Console,
    study: Study,
    planned: Sequence[PlannedTrial],
    todo: Sequence[PlannedTrial],
    *,
    num_later: int,
) -> None:
    """Print the trials and which are done; `num_later` are chosen while a search runs."""
    left = {trial.key for trial in todo}
    title = f"{study.name}: {len(planned) + num_later} trials"
    table = Table(box=None, pad_edge=False, title=title)
    varied = list(study.vary) or ["batch_size", "base_lr"]
    for name in ("trial_key", *varied, "seed", "state"):
        table.add_column(name, justify="right")
    for trial in planned:
        values = (show(getattr(trial.config, name)) for name in (*varied, "seed"))
        table.add_row(trial.key, *values, "to run" if trial.key in left else "done")
    if num_later:
        table.caption = f"{num_later} that {study.explore.__class__.__name__} will choose"
    console.print(table)
    console.print(
        f"\n{len(planned) - len(todo)} done, {len(todo) + num_later} to run; "
        f"nothing is trained now",
        highlight=False,
    )


def print_cost(
    console: Console,
    ready: Ready,
    cluster: Cluster,
    planned: Sequence[PlannedTrial],
    todo: Sequence[PlannedTrial],
    *,
    num_later: int,
) -> None:
    """Time every network and batch size where trials will run; print and record the estimate.

    Some updates and an evaluation of each kind are timed, in as many workers at once as trials
    will run side by side, since they slow each other down. Nothing of it is kept.

    Raises:
        SpaceFileError: a configuration cannot be trained here; the message says why.
    """
    study = ready.study
    before = _under_way(ready.results, todo)
    shares = [_share_left(trial.config, before.get(trial.key), ready) for trial in todo]
    if num_later:
        shares += _drawn(study, num_later=num_later)
    num_trials = len(todo) + num_later
    num_slots = min(mean_slots(study, cluster, shares), num_trials)
    timed, worker_start_s = _timed(console, ready, cluster, shares, num_slots)
    stopping, said = _stopping(study, train_images=ready.train_images)
    total = estimate(
        shares,
        timed,
        num_trials=num_trials,
        num_slots=num_slots,
        gpu_share=mean_gpu_share(study, cluster, shares),
        worker_start_s=worker_start_s,
        keep_weights=study.keep_weights,
        **stopping,
    )
    device = ", ".join(sorted({each.device for each in timed.values()}))
    where = "this machine" if cluster.address == "local" else "the cluster"
    console.print(
        f"estimate on {where} ({device}): {duration(total.train_s)} of training, "
        f"{duration(total.wall_s)} with {num_slots} trials side by side; "
        f"{total.gpu_hours:.1f} GPU-hours; disk {total.disk_bytes / 1e6:,.1f} MB",
        highlight=False,
        soft_wrap=True,
    )
    if said:
        console.print(
            f"at most {total.saved_share:.0%} of the training saved by stopping "
            f"({duration(total.saved_share * total.train_s)}), {said}".replace("%", " %"),
            highlight=False,
            soft_wrap=True,
        )
    if study.leaders or (
        isinstance(study.explore, Grid) and study.explore.widen + study.explore.refine
    ):
        console.print("rounds that the results call for (widen, refine, leaders) are not counted")
    left = {trial.key for trial in todo}
    record = asdict(total) | {
        "study": study.name,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "to_run": sorted(left),
        "done": sorted({trial.key for trial in planned} - left),
        "num_later": num_later,
        "train_s_before": sum(row["train_wall_s"] for row in before.values()),
        "kinds": [dict(kind) | asdict(measured) for kind, measured in timed.items()],
    }
    _write(ready.results, record)


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
    ended = trials[trials["trial_key"].isin(to_run & keys) & trials["status"].isin(DONE)]
    if "measured_train_s" in record or len(ended) != record["num_trials"]:
        return
    measured_s = float(ended["train_wall_s"].sum()) - record["train_s_before"]
    if not measured_s > 0:
        return
    ratio = record["train_s"] / measured_s
    # A generation of a population is stopped where it was asked to be.
    early = (ended["status"] != "completed") & ~ended["until_share"].lt(1)
    num_early = int(early.sum())
    about = {
        "measured_train_s": measured_s,
        "estimate_over_measured": ratio,
        "num_ended_early": num_early,
    }
    _write(results, record | about)
    early = f" ({num_early} of {len(ended)} trials ended before their budget)" if num_early else ""
    console.print(
        f"the estimate was {abs(ratio - 1) * 100:.0f} % too {'high' if ratio >= 1 else 'low'}: "
        f"{duration(record['train_s'])} of training, {duration(measured_s)} measured{early}",
        highlight=False,
        soft_wrap=True,
    )


def duration(seconds: float) -> str:
    """`1 h 02 m`, `3 m 10 s`, `12 s` or `0.8 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} m"


def _write(results: Results, record: Mapping[str, object]) -> None:
    storage.write(results.folder, FILE, (json.dumps(record, indent=1) + "\n").encode())


def _under_way(results: Results, todo: Sequence[PlannedTrial]) -> dict[str, Mapping[str, Any]]:
    """The rows of trials that were interrupted and go on from where they were, by key."""
    rows = of_plan(todo, tables.trials(results))
    rows = rows[rows["status"] == "interrupted"]
    return {row["trial_key"]: row for row in rows.to_dict("records")}


def _share_left(config: TrialConfig, row: Mapping[str, Any] | None, ready: Ready) -> Share:
    """What of a trial is still to be trained; `row` is that of one that was interrupted."""
    table = timetable(config, train_images=config.train_images or ready.train_images)
    if row is None or table.unit == "seconds":
        return Share(config, _part(ready.study))
    return Share(config, max(0.0, config.until_share - row["examples_seen"] / table.total))


def _part(study: Study) -> float:
    """The share of the budget that one trial trains: of a population, a generation."""
    return 1 / study.explore.generations if isinstance(study.explore, Pbt) else 1.0


def _drawn(study: Study, *, num_later: int) -> list[Share]:
    """What a search has still to choose: its points, then draws that stand for the rest.

    Raises:
        SpaceFileError: a draw is not a possible trial.
    """
    left = num_later // study.seeds
    points: Sequence[Mapping[str, object]] = ()
    ask_space = None
    if isinstance(study.explore, Optuna):
        ask_space = study.explore.space
        points = study.explore.points[study.explore.num_configs - left :][:left]
    space = {name: distribution_of(domain) for name, domain in study.vary.items()}
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(DRAW_SEED))
    for point in points:
        draws.enqueue_trial(dict(point))
    each = (left - len(points)) * study.seeds * _part(study) / NUM_DRAWS
    counts = [float(study.seeds)] * len(points) + [each] * (NUM_DRAWS if each else 0)
    shares = []
    for count in counts:
        trial = draws.ask(None if ask_space else space)
        changes = dict(ask_space(trial) if ask_space else trial.params)
        try:
            shares.append(Share(replace(study.base, **changes), count))
        except ValueError as error:
            raise SpaceFileError(f"the search may choose {changes}: {error}") from error
    return shares


def _timed(
    console: Console, ready: Ready, cluster: Cluster, shares: Sequence[Share], num_slots: int
) -> tuple[dict[Kind, "Measured"], float]:
    """What each kind costs, printed as it is known; and the seconds in which a worker starts."""
    kinds = kinds_of(shares)
    first = list(kinds.items())[:MOST_KINDS]
    chosen = dict(sorted(first, key=lambda item: (item[1].model, item[1].batch_size)))
    at_once = min(num_slots, MOST_AT_ONCE)
    names = _names(list(chosen))
    console.print(f"timing {len(chosen)} kinds of trial, {at_once} at once", highlight=False)
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
            _, with_start_s = _time(ready, cluster, whole, at_once)
        timed[kind], seconds = _time(ready, cluster, whole, at_once)
        start_s = start_s or max(0.0, with_start_s - seconds)
        each = timed[kind]
        console.print(
            f"  {names[kind]}: {each.images_per_s:,.0f} images/s, "
            f"{each.eval_s:.2g} s an evaluation",
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
            [f"{said['model']} at batch {said['batch_size']}", *(f"{n}={said[n]}" for n in differ)]
        )
        for kind in kinds
        for said in [dict(kind)]
    }


def _time(
    ready: Ready, cluster: Cluster, config: TrialConfig, at_once: int
) -> tuple["Measured", float]:
    """The mean of so many workers that time the config side by side, and the seconds it took.

    Raises:
        SpaceFileError: it cannot be trained; the message says why.
    """
    resources = resources_of(ready.study, cluster, config)
    at_once = min(at_once, slots(cluster, resources))  # of those that take more, fewer fit
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
        measured = ray.get([task.remote(asked) for _ in range(at_once)])
    except RayError as error:
        reason = one_line(str(getattr(error, "cause", error)))
        raise SpaceFileError(
            f"{config.model} at batch {config.batch_size} cannot be timed: {reason}"
        ) from error
    seconds = time.perf_counter() - started
    means = {
        each.name: statistics.fmean(getattr(m, each.name) for m in measured)
        for each in fields(measured[0])
        if each.type is float
    }
    return replace(measured[0], **means), seconds


def _stopping(study: Study, *, train_images: int) -> tuple[dict[str, Any], str]:
    """Where the study's `stop` stops trials, for `estimate`, and in words.

    Of HyperBand's brackets the one whose rungs come first: the others save less.
    """
    configs = [config for _, config in configurations(study)] or [study.base]
    scheduler = scheduler_of(study, configs, train_images=train_images)
    if scheduler is None or study.stop is None:
        return {}, ""
    among = {"by_batch_size": study.stop.by_batch_size}
    if isinstance(study.stop, Asha | HyperBand):
        factor = study.stop.reduction_factor
        rungs = rungs_of(grace=scheduler.grace, total=scheduler.total, factor=factor)
        said = f"where one of {factor:g} goes on at each of {len(rungs)} rungs"
        return {"rungs": rungs, "factor": factor, **among}, said
    rungs = [scheduler.grace / scheduler.total]
    return {"rungs": rungs, "factor": 2.0, **among}, "where the half below the median stops at once"
