"""The command: run a study, or go on with it, and print its answer.

python -m search.run spaces/pcam_grid.py
python -m search.run spaces/pcam_grid.py --preview --data DIR --set seeds=3
"""

import argparse
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from rich.console import Console

from cluster.connect import TOKEN_HINT, ConnectError, connect, disconnect
from search import plan, results
from search.answer import print_answer
from search.cost import print_cost
from search.load import SpaceFileError, apply_settings, load_study, space_sha256
from search.plan import PlannedTrial
from search.progress import Progress
from search.results import Results, ResultsError
from search.study import Study, as_preview, configurations, grid_values
from search.tuning import Setting, resources_of, run_trials
from trainable.data.cache import EMBEDDED, Dataset, locate, open_data
from trainable.data.sources import DataError

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


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A study that can run: its data is there, its trials are planned, its folder is writable."""

    study: Study
    data_folder: Path | None
    data_fingerprint: str
    planned: list[PlannedTrial]
    results: Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    given = parser().parse_args(arguments)
    console = Console()
    try:
        ready = _prepare(given, console)
        if given.dry_run:
            todo = plan.missing(ready.planned, results.trials(ready.results), retry=given.retry)
            print_cost(console, ready.study, ready.planned, todo, ready.data_folder)
            return OK
        return _run(given, ready, console)
    except (SpaceFileError, ResultsError, DataError, ConnectError) as error:
        Console(stderr=True).print(
            f"search.run: {error}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        return WRONG_INPUT


def _prepare(given: argparse.Namespace, console: Console) -> _Ready:
    """Load, check and plan everything; nothing is trained and no Ray is started.

    Raises:
        SpaceFileError, DataError, ResultsError: the space, the data or `--out` is wrong.
    """
    study = load_study(given.space)
    dataset = study.base.dataset
    folder = given.data or Path(os.environ.get("DATA_DIR", "data"))
    found = dataset in EMBEDDED or locate(dataset, folder) is not None
    if not found and given.data:
        open_data(dataset, folder)  # raises the error that says what was wanted
    try:
        if given.preview or not found:
            study = as_preview(study, dataset=dataset if found else "synthetic")
        study = apply_settings(study, given.settings)
    except SpaceFileError:
        raise
    except ValueError as error:
        raise SpaceFileError(f"{given.space}: {error}") from error
    if not found:
        console.print(
            f"[yellow]no {dataset} data in {folder}: this is a preview on the embedded synthetic "
            f"patches (dataset=synthetic)[/yellow]; --data DIR names the real ones"
        )
    study = _with_weights(study, console)
    data_folder = folder.resolve() if study.base.dataset not in EMBEDDED else None
    data = open_data(study.base.dataset, data_folder)
    _check_batches(study, data)
    _check_teacher(study, data)
    planned = plan.plan_trials(study, data_fingerprint=data.fingerprint)
    opened = results.open_results(given.out, study.name)
    return _Ready(
        study=study,
        data_folder=data_folder,
        data_fingerprint=data.fingerprint,
        planned=planned,
        results=opened,
    )


def _with_weights(study: Study, console: Console) -> Study:
    """The study with `pretrained` as it can be had here, and every network's name checked.

    Raises:
        SpaceFileError: a network that does not exist, or a file of weights that does not.
    """
    from trainable.models import available_weights, check_model
    from trainable.teacher import resolve_teacher

    try:
        if study.base.distill_from:
            teacher = resolve_teacher(study.base.distill_from)
            study = replace(study, base=replace(study.base, distill_from=teacher))
        if "pretrained" in study.vary:
            files = [available_weights(study.base.model, v) for v in _values(study, "pretrained")]
            study = replace(study, vary={**study.vary, "pretrained": {"grid_search": files}})
        models = {config.model for _, config in configurations(study)}
        for model in models if "pretrained" not in study.vary else ():
            wanted = study.base.pretrained
            had = available_weights(model, wanted)
            if had != wanted:
                if had == "none":
                    console.print(
                        f"[yellow]no ImageNet weights for {model} in torch's cache, and fetching "
                        f"them failed: training from scratch (pretrained=none)[/yellow]; "
                        f"--set pretrained=PATH gives a file"
                    )
                base = replace(
                    study.base,
                    pretrained=had,
                    train_blocks=None if had == "none" else study.base.train_blocks,
                )
                study = replace(study, base=base)
        for _, config in configurations(study):
            check_model(config)
    except ValueError as error:
        raise SpaceFileError(str(error)) from error
    return study


def _values(study: Study, name: str) -> list[str]:
    return [str(value) for value in grid_values(name, study.vary[name])]


def _check_batches(study: Study, data: Dataset) -> None:
    """Raises SpaceFileError where a batch is larger than the training split."""
    for _, config in configurations(study):
        n = min(len(data.train.labels_N), config.train_images or sys.maxsize)
        if config.batch_size > n:
            raise SpaceFileError(
                f"batch_size {config.batch_size} is larger than the {n} training images: take "
                f"a smaller batch or more images"
            )


def _check_teacher(study: Study, data: Dataset) -> None:
    """Raises SpaceFileError where the teacher cannot be built or knows other classes."""
    if study.base.distill_from:
        from trainable.teacher import load_teacher

        try:
            load_teacher(study.base.distill_from, num_classes=len(data.classes))
        except ValueError as error:
            raise SpaceFileError(str(error)) from error


def _run(given: argparse.Namespace, ready: _Ready, console: Console) -> int:
    """Train what is missing, then answer from the tables."""
    held = results.trials(ready.results)
    todo = plan.missing(ready.planned, held, retry=given.retry)
    results.commit_study(ready.results, _about(given, ready))
    done_before = len(ready.planned) - len(todo)
    console.print(
        f"[bold]{ready.study.name}[/bold]: {len(ready.planned)} trials on "
        f"dataset={ready.study.base.dataset}, {done_before} done before, {len(todo)} to run"
    )
    if todo:
        _train(given, ready, todo, held, done_before, console)
    rows = plan.of_plan(ready.planned, results.trials(ready.results))
    print_answer(console, ready.study, rows, ready.results, ready.planned)
    return _status(given, ready, rows, console)


def _train(
    given: argparse.Namespace,
    ready: _Ready,
    todo: Sequence[PlannedTrial],
    held: pd.DataFrame,
    done_before: int,
    console: Console,
) -> None:
    cluster = connect(given.address)
    try:
        resources = resources_of(ready.study, cluster)
        each = ", ".join(f"{n:g} {kind}" for kind, n in resources.items())
        console.print(
            f"Ray {version('ray')}, {cluster.num_nodes} node(s), {cluster.num_cpus} cores, "
            f"{cluster.num_gpus} GPUs; a trial takes {each}"
            + ("" if "GPU" in resources else " (no GPU here: trials run on cores)"),
            highlight=False,
        )
        if "GPU" not in resources and any(t.config.precision == "fp16" for t in todo):
            raise ConnectError("precision=fp16 needs a GPU, and there is none: take bf16 or fp32")
        if cluster.dashboard:
            console.print(
                f"dashboard: http://{cluster.dashboard}  (token: {TOKEN_HINT})", highlight=False
            )
        setting = Setting(
            study=ready.study,
            results=ready.results,
            data_folder=str(ready.data_folder) if ready.data_folder else None,
            data_fingerprint=ready.data_fingerprint,
            attempts=plan.attempts(held),
        )
        with Progress(
            console=console,
            varied=list(ready.study.vary),
            metric=ready.study.metric,
            planned={trial.key: trial for trial in ready.planned},
            done_before=done_before,
        ) as progress:
            run_trials(setting, todo, cluster, progress)
    finally:
        disconnect()


def _status(given: argparse.Namespace, ready: _Ready, rows: pd.DataFrame, console: Console) -> int:
    left = plan.missing(ready.planned, rows)
    if left:
        command = shlex.join(["python", "-m", "search.run", *sys.argv[1:]])
        console.print(
            f"\ninterrupted: {len(left)} of {len(ready.planned)} trials are left; go on with\n"
            f"  {command}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    return SOME_FAILED if (rows["status"] == "failed").any() else OK


def _about(given: argparse.Namespace, ready: _Ready) -> dict[str, object]:
    """How the results were made, for study.json."""
    study = ready.study
    packages = ("ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "scikit-learn")
    return {
        "name": study.name,
        "base": asdict(study.base),
        "vary": dict(study.vary),
        "explore": type(study.explore).__name__,
        "seeds": study.seeds,
        "metric": study.metric,
        "space_file": str(given.space),
        "space_sha256": space_sha256(given.space),
        "settings": given.settings,
        "preview": given.preview or study.base.dataset == "synthetic",
        "data_fingerprint": ready.data_fingerprint,
        "planned": [trial.key for trial in ready.planned],
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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
