"""A study from its first trial to its report: what the command, scripts and notebooks do.

from search.session import run_study
results = run_study(study, preview=True)
"""

import errno
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.connect import ConnectError
from search.execution.logs import TOOLS, LogError, check_logs, logged_to
from search.results import lock, tables
from search.results.lock import LockedError
from search.results.tables import ENDED, Results, ResultsError
from search.study.explorer import Tables
from search.study.space_file import SpaceFileError, load_study
from search.study.study import Study
from trainable.data.sources import DataError
from trainable.host import storage
from trainable.host.signals import handlers_restored, stop_on_sigterm
from trainable.host.storage import NoSpaceError

if TYPE_CHECKING:  # both import Ray
    from cluster.connect import Cluster
    from search.execution.preflight import Ready
    from search.execution.progress import Progress

COMPACT_FROM = 2000  # files: from there on reading one after the other takes seconds
LEAST_FREE_BYTES = 20_000_000
RETRIES = {"failed": ("failed",), "diverged": ("diverged",), "all": ("failed", "diverged")}
INTERRUPTED = 75  # exit status where the cluster's head is gone
INPUT_ERRORS = (SpaceFileError, ResultsError, DataError, ConnectError, LockedError, LogError)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run and how: the command's arguments, or those of `run_study`.

    `resume` tells the user what to type to go on.
    """

    study: Study
    space_file: Path | None = None
    out: str = "results"
    data: Path | None = None
    address: str = "local"
    preview: bool = False
    settings: Sequence[str] = ()
    retry: str | None = None
    log: Sequence[str] = ()
    resume: str = "call run_study again to go on"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a study ended: trials that failed, and trials that are left after an interruption."""

    results: Results
    num_failed: int
    num_left: int


def run_study(
    study: Study | str | Path,
    *,
    out: str | Path = "results",
    data: str | Path | None = None,
    address: str = "local",
    preview: bool = False,
    settings: Sequence[str] = (),
    retry: str | None = None,
    log: Sequence[str] = (),
) -> Results:
    """Run a study, or go on with it, as `python -m search.run` does; returns its results.

    `study` is a `Study` or the path of a space file. What the command prints is shown here, in a
    notebook too. `settings` are those of `--set`, such as `["seeds=3"]`; `log` those of `--log`,
    such as `["tensorboard"]`.

    Raises:
        SpaceFileError, DataError, ResultsError, ConnectError, LockedError, LogError: the same
            one-line errors as the command's.
        NoHostError: workers fail on every host, whatever they train.
        KeyboardInterrupt: Ctrl-C, or the notebook's stop button; what was trained is kept, and
            the same call goes on.
    """
    if retry is not None and retry not in RETRIES:
        raise SpaceFileError(f"retry must be one of {', '.join(RETRIES)}, got {retry!r}")
    if unknown := set(log) - set(TOOLS):
        raise LogError(f"log takes {', '.join(TOOLS)}, got {', '.join(map(repr, unknown))}")
    path = None if isinstance(study, Study) else Path(study)
    order = Order(
        study=load_study(path) if path else study,  # type: ignore[arg-type]
        space_file=path,
        out=str(out),
        data=Path(data) if data else None,
        address=address,
        preview=preview,
        settings=settings,
        retry=retry,
        log=tuple(log),
    )
    outcome = run(order, Console())
    if outcome.num_left:
        raise KeyboardInterrupt
    return outcome.results


def run(order: Order, console: Console) -> Outcome:
    """Train what is missing, then answer from the tables.

    Raises:
        StorageError: the disk is full or does not answer; what was trained is kept.
        TakenOverError: another process has taken the study over while this one stood still.
    """
    ready = _prepared(order, console)
    with lock.held(ready.results.folder):
        for name in tables.make_sound(ready.results):
            console.print(
                f"{name} could not be read, is in damaged/ now and is made anew", style="yellow"
            )
        known, finished = _train_missing(order, ready, console)
        if tables.num_files(ready.results) > COMPACT_FROM:
            tables.pack_ended(ready.results, known.ended)
    return _answer(order, ready, known, console, finished=finished)


def _prepared(order: Order, console: Console) -> "Ready":
    from search.execution.preflight import prepare  # once the command's arguments are known good

    return prepare(
        order.study,
        out=order.out,
        data=order.data,
        preview=order.preview,
        settings=order.settings,
        console=console,
        space_file=order.space_file,
    )


def dry_run(order: Order, console: Console) -> None:
    """Print the trials and, from updates timed where they will run, what they will cost."""
    from search.execution.dry_run import plan_of, print_cost, print_plan
    from search.execution.preflight import check_images, check_networks, check_precision
    from search.explore.ask import ask, total

    ready = _prepared(order, console)
    check_images(ready)
    check_networks(ready)
    known = known_trials(ready, tables.trials(ready.results), retry=order.retry)
    ask(ready.study, known, room=0)
    plan = plan_of(ready.study, known, total=total(ready.study, known))
    print_plan(console, ready.study, plan)
    if plan.todo or plan.num_later:
        check_precision(ready.study, address=order.address)
        with _connected(order.address, ready.study.name, console) as connecting:
            cluster = connecting.result()
            stop_on_sigterm()  # Ray, once started, has a handler of its own
            ready = _check_cluster(ready, cluster, console)
            print_cost(console, ready, cluster, known, plan)


def known_trials(ready: "Ready", rows: Any, *, retry: str | None = None) -> Tables:
    """What the tables say of a study; trials to `retry` count as not ended."""
    again = RETRIES.get(retry or "", ())
    statuses = set(ENDED) - set(again)
    ended = rows[rows["status"].isin(statuses)]
    names = list(dict.fromkeys(["status", ready.study.metric, *tables.WEIGHED]))
    return Tables(
        data_fingerprint=ready.data_fingerprint,
        folder=ready.results.folder,
        ended=dict(zip(ended["trial_key"], ended[names].to_dict("records"), strict=True)),
    )


def _train_missing(order: Order, ready: "Ready", console: Console) -> tuple[Tables, bool]:
    """Train all that the study calls for; returns what is known then, and whether all ended."""
    from search.execution.preflight import check_images, check_networks, check_precision
    from search.explore.ask import ask, total

    rows = tables.trials(ready.results)
    known = known_trials(ready, rows, retry=order.retry)
    ask(ready.study, known, room=0)
    num_done = len({trial.key for trial in known.asked if trial.key in known.ended})
    num_trials = total(ready.study, known)
    console.print(
        f"[bold]{ready.study.name}[/bold]: {num_trials} trials on "
        f"dataset={ready.data.name}, {num_done} done before, "
        f"{num_trials - num_done} to run"
    )
    if num_done == num_trials and not ask(ready.study, known, room=1):
        if _another_was_run(ready, known):
            _commit_study(order, ready, known)
        return known, True
    check_logs(order.log, ready.study, ready.results)
    attempts = dict(zip(rows["trial_key"], rows["attempt"].astype(int), strict=True))
    check_precision(ready.study, address=order.address)
    check_images(ready)
    # Ray takes seconds to start, and so does torch to be imported: both at once.
    with _connected(order.address, ready.study.name, console) as connecting:
        with console.status("starting Ray" if order.address == "local" else "connecting to Ray"):
            check_networks(ready)
            cluster = connecting.result()
        stop_on_sigterm()  # Ray, once started, has a handler of its own
        ask(ready.study, known, room=1)
        return known, _train(order, ready, known, attempts, cluster, console)


def _train(
    order: Order,
    ready: "Ready",
    known: Tables,
    attempts: dict[str, int],
    cluster: "Cluster",
    console: Console,
) -> bool:
    """Train on the cluster; returns whether all trials ended."""
    from search.execution.meanwhile import report_written
    from search.execution.nodes import check_nodes, needs_known
    from search.execution.progress_file import progress_kept
    from search.execution.provenance import commit
    from search.execution.recorder import Setting
    from search.execution.runner import run_trials
    from search.execution.watchdog import head_watched

    _commit_study(order, ready, known)
    with ExitStack() as stack:
        ready = _check_cluster(ready, cluster, console)
        needs, asked = None, frozenset[str]()
        if cluster.address != "local":
            needs = stack.enter_context(needs_known(ready))
            asked = check_nodes(needs, console)
        stack.enter_context(head_watched(INTERRUPTED, order.resume))
        # Also those that are asked for later get files of their own.
        tables.take_apart(ready.results, tables.packed(ready.results) - set(known.ended))
        _check_room(ready)
        stack.enter_context(
            report_written(ready.results, before=lambda: _commit_study(order, ready, known))
        )
        progress = _progress_of(ready, known, console)
        stack.enter_context(progress_kept(progress, ready.results))
        progress.log = stack.enter_context(
            logged_to(order.log, ready.study, ready.results, progress.note)
        )
        setting = Setting(
            study=ready.study,
            results=ready.results,
            tables=known,
            data_folder=str(ready.data_folder) if ready.data_folder else None,
            dataset=ready.data.name,
            split=ready.data.split,
            data_fingerprint=ready.data_fingerprint,
            train_images=ready.train_images,
            attempts=attempts,
            code_version=commit(),
            needs=needs,
            nodes_asked=asked,
        )
        with progress:
            todo = [trial for trial in known.asked if trial.key not in known.ended]
            finished = run_trials(setting, todo, cluster, progress)
        _commit_study(order, ready, known)
    return finished


def _progress_of(ready: "Ready", known: Tables, console: Console) -> "Progress":
    """The screen, from what is known before training."""
    from search.execution.filling import Filling, filled, is_one_surface
    from search.execution.progress import Progress
    from search.explore.ask import total
    from trainable.config import SCORES

    metric = ready.study.metric
    filling = None
    if is_one_surface(ready.study, known.asked):
        filling = filled(known, Filling(metric, SCORES[metric]))
    return Progress(
        console=console,
        filling=filling,
        varied=list(ready.study.vary) or ["batch_size", "base_lr"],
        metric=metric,
        total=total(ready.study, known),
        done_before=len({t.key for t in known.asked if t.key in known.ended}),
    )


def _another_was_run(ready: "Ready", known: Tables) -> bool:
    """Whether study.json is of other trials, by a later command, or expects something else."""
    from search.execution.provenance import expectations_as_json

    try:
        about = json.loads(storage.read(ready.results.folder, "study.json"))
    except (FileNotFoundError, ValueError):
        return True
    asked = {trial.key for trial in known.asked}
    written = (set(about.get("planned", ())), about.get("metric"), about.get("expect", []))
    return written != (asked, ready.study.metric, expectations_as_json(ready.study))


def _commit_study(order: Order, ready: "Ready", known: Tables) -> None:
    from search.execution.provenance import provenance

    about = provenance(
        ready,
        known,
        space_file=order.space_file,
        settings=order.settings,
        preview=order.preview,
    )
    tables.commit_study(ready.results, about)


@contextmanager
def _connected(address: str, study: str, console: Console) -> Iterator["Future[Cluster]"]:
    """The cluster, as soon as it answers, while SIGTERM stops the study as Ctrl-C does.

    What is done is then kept. In another thread than the main one there are no signals.
    """
    from cluster.connect import connect, disconnect

    with handlers_restored(), ThreadPoolExecutor(1, "connect") as thread:
        connecting = thread.submit(connect, address, study=study)
        try:
            stop_on_sigterm()
            yield connecting
        except KeyboardInterrupt:
            if not connecting.done():
                console.print("stopping: Ray is still starting", style="yellow")
            raise
        finally:
            if connecting.exception() is None:
                disconnect()


def _answer(
    order: Order, ready: "Ready", known: Tables, console: Console, *, finished: bool
) -> Outcome:
    """Print what the tables say, and write the report where all trials ended."""
    from search.execution.dry_run import compare_estimate
    from search.execution.recorder import delete_states
    from search.explore.ask import total
    from search.report.terminal import print_answer

    keys = {trial.key for trial in known.asked}
    rows = tables.of_trials(tables.trials(ready.results), keys)
    if finished:
        delete_states(ready.results, known.asked)
    print_answer(console, ready.study, rows, ready.results, known.asked)
    compare_estimate(console, ready.results, known.asked, rows)
    num_ended = int(rows["status"].isin(ENDED).sum())
    num_trials = total(ready.study, known) if not finished else len(keys)
    num_left = max(num_trials - num_ended, 0 if finished else 1)
    if num_left:
        console.print(f"\ninterrupted: {num_left} of {num_trials} trials are left", style="yellow")
        console.print(order.resume, style="yellow", highlight=False, soft_wrap=True)
    else:
        _write_report(ready.results, console)
    num_failed = int((rows["status"] == "failed").sum())
    return Outcome(results=ready.results, num_failed=num_failed, num_left=num_left)


def _check_cluster(ready: "Ready", cluster: "Cluster", console: Console) -> "Ready":
    """Print the cluster, reject trials that cannot run on it, resolve `auto` shares."""
    from search.execution.resources import check_cluster, with_measured_shares

    check_cluster(ready.study, cluster, console)
    study = with_measured_shares(ready.study, cluster, ready.data_folder, console)
    return replace(ready, study=study)


def _check_room(ready: "Ready") -> None:
    """Raises NoSpaceError where the results' disk is as good as full."""
    free = storage.free_bytes(ready.results.folder)
    if free is not None and free < LEAST_FREE_BYTES:
        where = ready.results.folder.uri
        raise NoSpaceError(
            errno.ENOSPC, f"{free / 1e6:.0f} MB are left in {where}, too few to begin: free some"
        )


def _write_report(results: Results, console: Console) -> None:
    """Write the report; a failure is printed and changes nothing: the tables are the record."""
    from search.report.advised import print_advice
    from search.report.report import write_report

    try:
        where = write_report(results)
        print_advice(console, results.folder)
    except Exception as error:
        console.print(
            f"the report could not be written ({type(error).__name__}: {error}): try python -m "
            f"search.report {results.folder.uri}",
            style="yellow",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    else:
        console.print(f"report: {where}", soft_wrap=True, highlight=False, markup=False)
