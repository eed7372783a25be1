"""The command: run a study, or go on with it, and print its answer.

python -m search.run spaces/pcam_grid.py
python -m search.run spaces/pcam_grid.py --preview --data DIR --set seeds=3
python -m search.run --list
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from trainable.host.signals import stop_on_sigterm

OK, SOME_FAILED, INTERRUPTED = 0, 1, 75  # and 2, wrong input
RETRIES = ("failed", "diverged", "all")


def parser() -> argparse.ArgumentParser:
    """The command's flags. Users' scripts rely on them: a test holds the list."""
    p = argparse.ArgumentParser(
        prog="python -m search.run",
        description="Run a study, or go on with it. Exit status: 0 done, 1 some trial failed, "
        "2 the command, space or data is wrong, 75 interrupted: the same command goes on.",
    )
    what = p.add_mutually_exclusive_group(required=True)
    space_help = "what to run; Python, executed"
    what.add_argument("space", nargs="?", type=Path, metavar="SPACE.py", help=space_help)
    what.add_argument("--list", action="store_true", help="the studies that come with this program")
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
    p.add_argument(
        "--log",
        action="append",
        default=[],
        choices=("tensorboard", "mlflow", "wandb"),
        help="send the trials there too; may be given several times",
    )
    p.add_argument("--retry", choices=RETRIES, help="run such trials again")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    stop_on_sigterm()
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if options.list:
        return print_studies()
    # Ray, pandas and rich take seconds: not for --help, nor for a typing error.
    from rich.console import Console

    from search.execution.hosts import NoHostError
    from search.session import INPUT_ERRORS, Order, dry_run, run
    from search.study.shown import print_error
    from search.study.space_file import load_study
    from trainable.host.storage import StorageError, TakenOverError

    console = Console()
    resume = f"go on with\n  {resume_command(sys.argv[1:] if arguments is None else arguments)}"
    try:
        order = Order(
            study=load_study(options.space),
            space_file=options.space,
            out=options.out,
            data=options.data,
            address=options.address,
            preview=options.preview,
            settings=options.settings,
            retry=options.retry,
            log=tuple(dict.fromkeys(options.log)),
            resume=resume,
        )
        if options.dry_run:
            dry_run(order, console)
            return OK
        outcome = run(order, console)
    except KeyboardInterrupt:  # before or after trials run, or a second Ctrl-C while they stop
        console.print(resume, style="yellow", highlight=False, soft_wrap=True)
        return INTERRUPTED
    except (StorageError, TakenOverError) as error:
        console.print(str(error.args[-1]), style="red", soft_wrap=True, markup=False)
        console.print(resume, style="yellow", highlight=False, soft_wrap=True)
        return INTERRUPTED
    except NoHostError as error:
        console.print(f"stopped: {error}", style="red", soft_wrap=True, markup=False)
        console.print(resume, style="yellow", highlight=False, soft_wrap=True)
        return SOME_FAILED
    except INPUT_ERRORS as error:
        return print_error("search.run", error)
    if outcome.num_left:
        return INTERRUPTED
    return SOME_FAILED if outcome.num_failed else OK


def print_studies() -> int:
    """What `--list` prints; without Ray."""
    from rich.console import Console

    from search.study.catalogue import print_catalogue

    print_catalogue(Console())
    return OK


def resume_command(arguments: Sequence[str]) -> str:
    """The command that goes on, to copy."""
    return shlex.join(["python", "-m", "search.run", *arguments])


if __name__ == "__main__":
    sys.exit(main())
