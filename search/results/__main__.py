"""The command that checks and compacts a study's tables."""

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

from search.results import lock, tables
from search.results.tables import Results


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m search.results verify|compact RESULTS`: 0 no faults, 1 faults, 2 wrong input."""
    p = argparse.ArgumentParser(
        prog="python -m search.results",
        description="verify: list what is damaged or missing, and move broken files away, so that "
        "the study's command runs their trials again. compact: pack each table into one file.",
    )
    p.add_argument("what", choices=("verify", "compact"))
    p.add_argument(
        "results", metavar="RESULTS", help="a study's folder, for example results/pcam_grid"
    )
    parsed = p.parse_args(arguments)
    try:
        results = tables.open_folder(parsed.results)
        with lock.held(results.folder):
            if parsed.what == "compact":
                fewer = tables.compact(results)
                _print(f"{_count(results)}: {fewer} files fewer")
                return 0
            wrong = tables.faults(results)
            aside = tables.make_sound(results)
    except (tables.ResultsError, lock.LockedError, ValueError) as error:
        _print(f"search.results: {error}", file=sys.stderr)
        return 2
    for fault in wrong:
        _print(fault)
    if aside:
        _print(f"{', '.join(aside)}: moved to {parsed.results}/damaged; run the study again")
    _print(f"{_count(results)}: {len(wrong)} fault{'' if len(wrong) == 1 else 's'}")
    return 1 if wrong else 0


def _count(results: Results) -> str:
    return f"{len(tables.trials(results))} trials, {len(tables.epochs(results))} epochs"


def _print(text: str, file: TextIO | None = None) -> None:
    (file or sys.stdout).write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
