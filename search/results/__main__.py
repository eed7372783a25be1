"""The command that checks and packs a study's tables."""

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

from search.results import lock, tables
from search.results.tables import Results


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m search.results verify|compact RESULTS`: 0 all well, 1 damage, 2 wrong input."""
    p = argparse.ArgumentParser(
        prog="python -m search.results",
        description="verify: name what is damaged or missing, and set broken files aside so that "
        "the study's command redoes their trials. compact: pack the tables into one file each.",
    )
    p.add_argument("what", choices=("verify", "compact"))
    p.add_argument("results", metavar="RESULTS", help="a study's folder, as results/pcam_grid")
    given = p.parse_args(arguments)
    try:
        results = tables.open_folder(given.results)
        with lock.held(results.folder):
            if given.what == "compact":
                fewer = tables.compact(results)
                _say(f"{_count(results)}: {fewer} files fewer")
                return 0
            wrong = tables.faults(results)
            aside = tables.make_sound(results)
    except (tables.ResultsError, lock.LockedError, ValueError) as error:
        _say(f"search.results: {error}", file=sys.stderr)
        return 2
    for each in wrong:
        _say(each)
    if aside:
        _say(f"{', '.join(aside)}: set aside in {given.results}/damaged; run the study again")
    _say(f"{_count(results)}: {len(wrong)} faults")
    return 1 if wrong else 0


def _count(results: Results) -> str:
    return f"{len(tables.trials(results))} trials, {len(tables.epochs(results))} epochs"


def _say(text: str, file: TextIO | None = None) -> None:
    (file or sys.stdout).write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
