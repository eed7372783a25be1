"""The command that writes the report of a study or of your own table.

python -m search.report results/pcam_grid
python -m search.report results/pcam_grid results/with_mixup --out with_mixup_or_without
python -m search.report --table mine.csv --batch-size bs --lr lr --metric val_auc --out mine_report
python -m search.report --table sqlite:///study.db --batch-size bs --lr lr --metric value
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from search.analysis.foreign_table import TableError
from search.analysis.metric_name import mode_by_name
from search.report.advised import print_advice
from search.report.findings import of_study, of_table
from search.report.report import write, write_report
from search.report.side_by_side import comparison_of, write_comparison
from search.results.running import state_of
from search.results.tables import Results, ResultsError
from trainable.host import storage
from trainable.host.storage import Folder

OK, WRONG_INPUT = 0, 2
WATCH_S = 5  # between two checks of the tables
PORT = 8270
REFRESH_S = 10  # between two reloads of a watched page


def parser() -> argparse.ArgumentParser:
    """The command's flags. Scripts rely on them: a test checks the list."""
    p = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Write report.html, report.json and charts/ from a study's tables, or from "
        "results of your own; of two studies, a comparison. Exit status: 0 written, 2 wrong input.",
    )
    p.add_argument(
        "results",
        nargs="*",
        metavar="RESULTS",
        help="a study's folder, for example results/pcam_grid; or two, to compare them",
    )
    p.add_argument("--metric", help="default: the study's metric; with --table, a column")
    p.add_argument(
        "--watch", action="store_true", help="write the report again when the tables change"
    )
    p.add_argument(
        "--serve",
        action="store_true",
        help="show a page in a browser of this machine that fills while the study runs",
    )
    p.add_argument("--port", type=int, help=f"of --serve; default: {PORT}")
    p.add_argument(
        "--table",
        metavar="FILE",
        help="results of your own: a CSV or Parquet file with a row per run or per epoch, a folder "
        "of Ray Tune, MLflow or TensorBoard, a database or journal of Optuna, one of MLflow",
    )
    p.add_argument("--study", metavar="NAME", help="which of several studies or experiments")
    p.add_argument("--batch-size", metavar="COL", help="column of batch sizes")
    p.add_argument("--lr", metavar="COL", help="column of learning rates")
    p.add_argument(
        "--fields",
        nargs="+",
        metavar="COL",
        help="other columns of numbers that differ from run to run, for example momentum",
    )
    p.add_argument("--seed-column", metavar="COL", help="default: seed, if any")
    p.add_argument(
        "--run-column",
        nargs="+",
        metavar="COL",
        help="columns that tell which run a row is of, where a run has a row per epoch; default: "
        "recognised",
    )
    p.add_argument(
        "--mode",
        choices=("max", "min"),
        help="which values of the metric are best; default: by its name (loss: min, accuracy: max)",
    )
    p.add_argument(
        "--margin",
        type=float,
        help="difference in the metric that does not matter; default: 0.01 for scores from 0 to 1",
    )
    p.add_argument("--out", help="folder to write to; default RESULTS, or the folder of FILE")
    return p


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = parser().parse_args(words)
    console = Console()
    if arguments.margin is not None and not 0 < arguments.margin < math.inf:
        Console(stderr=True).print(
            f"search.report: --margin must be a number above 0, got {arguments.margin:g}",
            style="red",
        )
        return WRONG_INPUT
    try:
        if arguments.serve:
            _serve(arguments, console)
            return OK
        if arguments.port is not None:
            raise ResultsError("--port is only for --serve: remove it, or add --serve")
        if len(arguments.results) > 1:
            where = _report_two(arguments, console)
        else:
            report = _report_table if arguments.table else _report_study
            where = report(arguments, console)
            print_advice(console, storage.folder_at(where.rpartition("/")[0]))
    except KeyboardInterrupt:
        return OK if arguments.watch else 130
    except (ResultsError, TableError, OSError, ValueError) as error:
        Console(stderr=True).print(
            f"search.report: {error}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        return WRONG_INPUT
    console.print(f"report: {where}", soft_wrap=True, highlight=False, markup=False)
    return OK


def _report_table(arguments: argparse.Namespace, console: Console) -> str:
    if arguments.results or arguments.watch:
        raise TableError("--table cannot be combined with RESULTS or --watch: remove them")
    for name in ("batch_size", "lr", "metric"):
        if not getattr(arguments, name):
            raise TableError(
                f"--table also needs {flag_of(name)} COL, the name of one of its columns"
            )
    findings = of_table(
        arguments.table,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        metric=arguments.metric,
        fields=arguments.fields or (),
        seed=arguments.seed_column or "seed",
        mode=arguments.mode,
        margin=arguments.margin,
        runs=arguments.run_column or (),
        study=arguments.study,
    )
    if findings.about["table"] != findings.name:
        line = f"read {findings.about['table']}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if arguments.mode is None:
        by = "by its name" if mode_by_name(arguments.metric) == findings.mode else "as recorded"
        better, other = ("lower", "max") if findings.mode == "min" else ("higher", "min")
        console.print(
            f"{arguments.metric}: {better} is better, {by} (else add --mode {other})",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return write(findings, storage.folder_at(arguments.out or _beside(arguments.table)))


def _beside(table: str) -> str:
    """The folder of a table; of a database elsewhere, the current one."""
    scheme, is_url, path = table.rpartition("://")
    if is_url and not scheme.startswith("sqlite"):
        return "."
    return str(Path(path.removeprefix("/") if is_url else path).parent)


def _report_study(arguments: argparse.Namespace, console: Console) -> str:
    if not arguments.results:
        raise ResultsError("give a study's folder, for example results/pcam_grid, or --table FILE")
    for name in ("batch_size", "lr", "fields", "seed_column", "run_column", "study", "mode"):
        if getattr(arguments, name):
            raise ResultsError(f"{flag_of(name)} is only for --table FILE: remove it for a study")
    results = _opened(arguments.results[0])
    into = storage.folder_at(arguments.out) if arguments.out else results.folder
    if arguments.watch:
        _watch(results, into, arguments, console)
    return write_report(results, metric=arguments.metric, margin=arguments.margin, into=into)


def _report_two(arguments: argparse.Namespace, console: Console) -> str:
    """The comparison of two studies; its sentences are printed."""
    if len(arguments.results) > 2:
        raise ResultsError(f"two studies are compared, not {len(arguments.results)}: give two")
    for name in (
        *("table", "watch", "batch_size", "lr", "fields", "seed_column", "run_column", "study"),
        *("mode", "margin"),
    ):
        if getattr(arguments, name):
            raise ResultsError(
                f"{flag_of(name)} is not for the comparison of two studies: remove it"
            )
    if not arguments.out:
        raise ResultsError("the comparison of two studies needs --out FOLDER to be written to")
    first = of_study(_opened(arguments.results[0]), metric=arguments.metric)
    second = of_study(_opened(arguments.results[1]), metric=first.metric)
    comparison = comparison_of(first, second)
    for sentence in comparison.sentences:
        console.print(f"  {sentence}", soft_wrap=True, highlight=False, markup=False)
    return write_comparison(comparison, storage.folder_at(arguments.out))


def _serve(arguments: argparse.Namespace, console: Console) -> None:
    """The page of one study, until Ctrl-C."""
    others = ("table", "study", "watch", "batch_size", "lr", "fields", "seed_column", "run_column")
    for name in (*others, "mode", "out"):
        if getattr(arguments, name):
            raise ResultsError(f"--serve cannot be combined with {flag_of(name)}: remove it")
    if len(arguments.results) != 1:
        raise ResultsError("--serve needs one study's folder, for example results/pcam_grid")
    from search.report.server import serve  # imports a server, which reports do not need

    serve(
        _opened(arguments.results[0]),
        port=arguments.port or PORT,
        metric=arguments.metric,
        margin=arguments.margin,
        console=console,
    )


def flag_of(name: str) -> str:
    """The flag of an argument."""
    return f"--{name.replace('_', '-')}"


def _opened(where: str) -> Results:
    """The results in a folder.

    Raises:
        ResultsError: there is no such folder.
    """
    try:
        folder = storage.folder_at(where.rstrip("/"))
    except ValueError as error:
        raise ResultsError(str(error)) from error
    if folder.is_local and not Path(folder.uri).is_dir():
        raise ResultsError(f"{where} does not exist: give a folder, for example results/pcam_grid")
    return Results(folder.name, folder)


def _watch(results: Results, into: Folder, arguments: argparse.Namespace, console: Console) -> None:
    """Write the report whenever the tables have changed, until Ctrl-C.

    After each report, wait at least as long as it took: the machine has other work.
    """
    seen = None
    try:
        while True:
            state = state_of(results)
            took = 0.0
            if state != seen:
                began = time.monotonic()
                where = write_report(
                    results,
                    metric=arguments.metric,
                    margin=arguments.margin,
                    into=into,
                    refresh_s=REFRESH_S,
                )
                took = time.monotonic() - began
                if seen is None:
                    console.print(
                        f"watching {results.folder.uri}; press Ctrl-C to stop", soft_wrap=True
                    )
                    console.print(f"report: {where}", soft_wrap=True, highlight=False)
                seen = state
            time.sleep(max(WATCH_S, took))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    sys.exit(main())
