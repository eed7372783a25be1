"""The command: run a study, or go on with it, and print its answer.

python -m search.run spaces/pcam_grid.py
python -m search.run spaces/pcam_grid.py --preview --data DIR --set seeds=3
"""

import argparse
import errno
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from cluster.connect import TOKEN_HINT, Cluster, ConnectError, connect, disconnect
from search.execution.dry_run import compare_estimate, print_cost, print_plan
from search.execution.preflight import Ready, prepare
from search.execution.progress import Progress
from search.execution.recorder import Setting
from search.execution.resources import possible_resources, with_measured_shares
from search.execution.runner import run_trials
from search.execution.watchdog import head_watched
from search.explore import Optuna, Pbt, plan
from search.explore.optuna import JOURNAL, Suggestions
from search.explore.pbt import delete_states, next_generation
from search.explore.plan import PlannedTrial
from search.report.report import write_report, written_meanwhile
from search.report.terminal import print_answer
from search.results import lock, tables
from search.results.lock import LockedError
from search.results.tables import ResultsError
from search.study.space_file import SpaceFileError, space_sha256
from trainable.data.sources import DataError
from trainable.host import storage
from trainable.host.storage import NoSpaceError

COMPACT_FROM = 2000  # files: from there on reading one after the other takes seconds
LEAST_FREE_BYTES = 20_000_000
OK, SOME_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 75


def parser() -> argparse.ArgumentParser:
    """The command's flags. Users' scripts rely on them: a test holds the list."""
    p = argparse.ArgumentParser(
        prog="python -m search.run",
        description="Run a study, or go on with it. Exit status: 0 done, 1 some trial failed, "
        "2 the command, space or data is wrong, 75 interrupted: the same command goes on.",
    )
    p.add_argument("space", type=Path, metavar="SPACE.py", help="what to run; Python, executed")
    p.add_argument("--out", default="results", help="folder or URI (s3://...); default results")
    p.add_argument("--data", type=Path, help="where the data set is; default $DATA_DIR or data/")
    p.add_argument("--address", default="local", help="local (default), auto, or HOST:PORT")
    p.add_argument("--preview", action="store_true", help="small network, few images, minutes")
    p.add_argument("--dry-run", action="store_true", help="print trials and cost, train nothing")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="a field of the study or of its trial; a comma list gives values to try",
    )
    p.add_argument("--retry", choices=tuple(plan.RETRIES), help="run such trials again")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    _stop_on_sigterm()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    given = parser().parse_args(arguments)
    console = Console()
    try:
        ready = prepare(
            given.space,
            out=given.out,
            data=given.data,
            preview=given.preview,
            settings=given.settings,
            console=console,
        )
        if given.dry_run:
            return _dry_run(given, ready, console)
        return _run(given, ready, console)
    except KeyboardInterrupt:  # before or after trials run, or a second Ctrl-C while they stop
        print_resume(console)
        return INTERRUPTED
    except NoSpaceError as error:
        console.print(f"{error.strerror}: free some", style="red", soft_wrap=True, markup=False)
        print_resume(console)
        return INTERRUPTED
    except (SpaceFileError, ResultsError, DataError, ConnectError, LockedError) as error:
        Console(stderr=True).print(
            f"search.run: {error}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        return WRONG_INPUT


def _dry_run(given: argparse.Namespace, ready: Ready, console: Console) -> int:
    """Print the trials and, from updates timed where they will run, what they will cost."""
    study, planned, num_later = ready.study, ready.planned, 0
    if isinstance(study.explore, Optuna):
        if ready.results.folder.is_local and (Path(ready.results.folder.uri) / JOURNAL).exists():
            planned = open_suggestions(ready).planned()
        num_later = study.explore.num_configs * study.seeds - len(planned)
    held = tables.trials(ready.results)
    if isinstance(study.explore, Pbt):
        about = {"data_fingerprint": ready.data_fingerprint}
        while not plan.missing(planned, held) and (
            more := next_generation(study, planned, held, **about)
        ):
            planned = [*planned, *more]
        num_later = study.explore.size * study.explore.generations * study.seeds - len(planned)
    todo = plan.missing(planned, held, retry=given.retry)
    print_plan(console, study, planned, todo, num_later=num_later)
    if todo or num_later:
        cluster = connect(given.address)
        with ExitStack() as stack:
            stack.callback(disconnect)
            _stop_on_sigterm()  # Ray has put its own handler there, which exits at once
            ready = _check_cluster(ready, cluster, console)
            print_cost(console, ready, cluster, planned, todo, num_later=num_later)
    return OK


def _run(given: argparse.Namespace, ready: Ready, console: Console) -> int:
    """Train what is missing, round after round, then answer from the tables."""
    study, planned = ready.study, list(ready.planned)
    suggestions, total, unended = None, len(planned), 0
    with ExitStack() as stack:
        stack.enter_context(lock.held(ready.results.folder))
        for name in tables.make_sound(ready.results):
            console.print(
                f"{name} could not be read, is in damaged/ now and is made anew", style="yellow"
            )
        if isinstance(study.explore, Optuna):
            suggestions = open_suggestions(ready)
            planned = suggestions.planned()
            total = study.explore.num_configs * study.seeds
        cluster = None
        retry = given.retry
        while True:
            held = tables.trials(ready.results)
            todo = plan.missing(planned, held, retry=retry)
            left = len(todo) + total - len(planned)
            if cluster is None:
                console.print(
                    f"[bold]{study.name}[/bold]: {total} trials on dataset={study.base.dataset}, "
                    f"{total - left} done before, {left} to run"
                )
            if left:
                if cluster is None:
                    tables.commit_study(ready.results, _about(given, ready))
                    cluster = connect(given.address)
                    stack.callback(disconnect)
                    _stop_on_sigterm()  # Ray has put its own handler there, which exits at once
                    ready = _check_cluster(ready, cluster, console)
                    study = ready.study
                    resume = f"go on with\n  {resume_command()}"
                    stack.enter_context(head_watched(INTERRUPTED, resume))
                counts = (total, total - left)
                if len(planned) > len(ready.planned) and suggestions is None:
                    # A later round asks for these trials: stopping some would bias their means.
                    ready = replace(ready, study=replace(study, stop=None))
                keys = {trial.key for trial in todo}
                tables.take_apart(ready.results, keys)
                _check_room(ready)
                past = [trial for trial in planned if trial.key not in keys]
                with written_meanwhile(ready.results):
                    unended = _train(ready, cluster, todo, past, suggestions, held, counts, console)
            if unended:
                break
            if suggestions is not None:
                planned = suggestions.planned()
                break
            retry = None
            ask = next_generation if isinstance(study.explore, Pbt) else plan.next_round
            more = ask(
                study,
                planned,
                tables.trials(ready.results),
                data_fingerprint=ready.data_fingerprint,
            )
            if not more:
                break
            new = plan.missing(more, held)
            planned, total = [*planned, *more], total + len(more)
            if new:
                console.print(f"another round: {len(new)} trials that the results call for")
        if tables.num_files(ready.results) > COMPACT_FROM:
            tables.compact(ready.results)
    rows = plan.of_plan(planned, tables.trials(ready.results))
    if isinstance(study.explore, Pbt) and not unended:
        delete_states(ready.results, planned)
    print_answer(console, study, rows, ready.results, planned)
    compare_estimate(console, ready.results, planned, rows)
    left = max(unended, total - int(rows["status"].isin(plan.DONE).sum()))
    if left:
        console.print(f"\ninterrupted: {left} of {total} trials are left", style="yellow")
        print_resume(console)
        return INTERRUPTED
    _write_report(ready, console)
    return SOME_FAILED if (rows["status"] == "failed").any() else OK


def _write_report(ready: Ready, console: Console) -> None:
    """The report, whose failure is said and changes nothing: the tables are the record."""
    try:
        where = write_report(ready.results)
    except Exception as error:
        console.print(
            f"the report could not be written ({type(error).__name__}: {error}): try python -m "
            f"search.report {ready.results.folder.uri}",
            style="yellow",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    else:
        console.print(f"report: {where}", soft_wrap=True, highlight=False, markup=False)


def _stop_on_sigterm() -> None:
    """SIGTERM stops the command as Ctrl-C does: what is done is kept."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


def resume_command() -> str:
    """The command that goes on, to copy."""
    return shlex.join(["python", "-m", "search.run", *sys.argv[1:]])


def print_resume(console: Console) -> None:
    """Say how to go on."""
    console.print(
        f"go on with\n  {resume_command()}", style="yellow", highlight=False, soft_wrap=True
    )


def open_suggestions(ready: Ready) -> Suggestions:
    """The study's Optuna journal, in its results.

    Raises:
        ResultsError: the results are not on a local disk, where a journal can be locked.
        SpaceFileError: its points or warm start do not fit.
    """
    if not ready.results.folder.is_local:
        raise ResultsError("an Optuna study keeps a journal file: give --out a folder on a disk")
    journal = Path(ready.results.folder.uri) / JOURNAL
    try:
        return Suggestions(ready.study, journal, data_fingerprint=ready.data_fingerprint)
    except ValueError as error:
        raise SpaceFileError(str(error)) from error


def _check_cluster(ready: Ready, cluster: Cluster, console: Console) -> Ready:
    """Say what there is to run on, refuse what cannot run on it, and measure what is `auto`."""
    needs = possible_resources(ready.study, cluster)
    least, resources = needs[0], needs[-1]
    each = ", ".join(
        f"{n:g} {kind}" if n == least[kind] else f"{least[kind]:g} to {n:g} {kind}"
        for kind, n in resources.items()
    )
    console.print(
        f"Ray {version('ray')}, {cluster.num_nodes} node(s), {cluster.num_cpus} cores, "
        f"{cluster.num_gpus} GPUs; a trial takes {each}"
        + ("" if "GPU" in resources else " (no GPU here: trials run on cores)"),
        highlight=False,
    )
    if cluster.dashboard:
        console.print(
            f"dashboard: http://{cluster.dashboard}  (token: {TOKEN_HINT})", highlight=False
        )
    have = {"CPU": cluster.num_cpus, "GPU": cluster.num_gpus}
    for kind, n in resources.items():
        # A cluster may grow: there Ray waits for a node that has room.
        if cluster.address == "local" and n > have[kind]:
            raise ConnectError(
                f"a trial takes {n:g} {kind} and this machine has {have[kind]}: lower "
                f"{'cpus' if kind == 'CPU' else 'gpus'}_per_trial"
            )
    if "GPU" not in resources and any(t.config.precision == "fp16" for t in ready.planned):
        raise ConnectError("precision=fp16 needs a GPU, and there is none: take bf16 or fp32")
    study = with_measured_shares(ready.study, cluster, ready.data_folder, console)
    return replace(ready, study=study)


def _check_room(ready: Ready) -> None:
    """Raises NoSpaceError where the results' disk is as good as full."""
    free = storage.free_bytes(ready.results.folder)
    if free is not None and free < LEAST_FREE_BYTES:
        where = ready.results.folder.uri
        raise NoSpaceError(
            errno.ENOSPC, f"{free / 1e6:.0f} MB are left in {where}, too few to begin"
        )


def _train(
    ready: Ready,
    cluster: Cluster,
    todo: Sequence[PlannedTrial],
    past: Sequence[PlannedTrial],
    suggestions: Suggestions | None,
    held: pd.DataFrame,
    counts: tuple[int, int],
    console: Console,
) -> int:
    """Train; returns how many of the trials that were sent did not end."""
    setting = Setting(
        study=ready.study,
        results=ready.results,
        data_folder=str(ready.data_folder) if ready.data_folder else None,
        data_fingerprint=ready.data_fingerprint,
        train_images=ready.train_images,
        attempts=plan.attempts(held),
        code_version=_commit(),
    )
    with Progress(
        console=console,
        varied=list(ready.study.vary) or ["batch_size", "base_lr"],
        metric=ready.study.metric,
        planned={},
        total=counts[0],
        done_before=counts[1],
    ) as progress:
        return run_trials(setting, todo, cluster, progress, suggestions, past)


def _about(given: argparse.Namespace, ready: Ready) -> dict[str, object]:
    """How the results were made, for study.json."""
    study = ready.study
    packages = ("ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "scikit-learn")
    return {
        "name": study.name,
        "base": asdict(study.base),
        "vary": {name: repr_of(domain) for name, domain in study.vary.items()},
        "explore": repr(study.explore),
        "stop": repr(study.stop),
        "seeds": study.seeds,
        "metric": study.metric,
        "gpus_per_trial": study.gpus_per_trial,
        "space_file": str(given.space),
        "space_sha256": space_sha256(given.space),
        "settings": given.settings,
        "preview": given.preview or study.base.dataset == "synthetic",
        "data_folder": str(ready.data_folder) if ready.data_folder else None,
        "data_fingerprint": ready.data_fingerprint,
        "planned": [trial.key for trial in ready.planned],
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def repr_of(domain: Any) -> Any:
    """A domain for the record: a grid's values, or a range in words."""
    return domain if isinstance(domain, dict) else f"{domain.domain_str} {type(domain).__name__}"


def _commit() -> str | None:
    """The commit of this code, or None outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
