"""The fault matrix at length: every fault test many times, each time struck at another moment.

A fault test runs a study, breaks something, and checks that nothing is lost. What it measured is
written as it ends, so the same command goes on where it was stopped.

    python -m benchmarks.faults --times 20 --out faults.jsonl     # a night
    python -m benchmarks.faults --times 1 --only hosts            # tests whose name has "hosts"

Prints a row for each fault: times, rows lost, doubled and trained again (the sum over all times),
seconds until it was noticed and until the study went on (median, worst). Exit status 1 where a test
failed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

# `-m faults`: slow ones too.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "faults"]
TESTS = Path(__file__).parents[1] / "tests"
SUMS = {"rows lost": "rows_lost", "doubled": "doubled", "epochs done again": "trained_again"}
SECONDS = {"detected after": "noticed", "recovered after": "went_on"}


def fault_tests(only: str) -> list[str]:
    """The ids of the fault tests, slow ones too, whose id has `only` in it."""
    files = [str(path) for path in sorted(TESTS.glob("*.py")) if "mark.faults" in path.read_text()]
    words = [*PYTEST, "--collect-only", *files]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if "::" in line and only in line]


def run(tests: Sequence[str], out: Path, *, times: int, seed: int) -> int:
    """Run each test until `out` has it so many times; returns how many runs failed.

    A test's n-th run has the seed `seed` + n.
    """
    num_failed = 0
    for n in range(times):
        for test in tests:
            if any(row["test"] == test and row["run"] == n for row in rows_of(out)):
                continue
            measured = out.with_suffix(".part")
            measured.unlink(missing_ok=True)
            done = subprocess.run(
                [*PYTEST, "--no-showlocals", "--tb=short", test],
                env={**os.environ, "FAULT_ROWS": str(measured), "FAULT_SEED": str(seed + n)},
                capture_output=True,
                text=True,
            )
            failed = done.returncode != 0
            num_failed += failed
            rows = rows_of(measured) or [{"fault": test.rpartition("::")[2]}]
            with open(out, "a") as file:
                for row in rows:
                    line = {**row, "test": test, "run": n, "failed": failed}
                    file.write(json.dumps(line) + "\n")
            print(f"{n + 1}/{times} {test}: {'FAILED' if failed else 'held'}", flush=True)
            if failed:
                print(done.stdout[-3000:], flush=True)
    return num_failed


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects; none without the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def matrix_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each fault."""
    table = pd.DataFrame(rows).reindex(columns=["fault", "failed", *SUMS, *SECONDS])
    by = table.groupby("fault", sort=False)
    matrix = pd.DataFrame({"times": by.size(), "failed": by["failed"].sum()})
    for column, name in SUMS.items():
        matrix[name] = by[column].sum(min_count=1)
    for column, name in SECONDS.items():
        matrix[f"{name}_median_s"] = by[column].median().round(1)
        matrix[f"{name}_worst_s"] = by[column].max().round(1)
    return matrix


def main() -> int:
    """Run what is missing and print the matrix."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--times", type=int, default=20, help="of each test; default 20")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; default 0")
    parser.add_argument("--only", default="", help="tests whose id has this in it; default all")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    arguments = parser.parse_args()
    tests = fault_tests(arguments.only)
    num_failed = run(tests, arguments.out, times=arguments.times, seed=arguments.seed)
    rows = [row for row in rows_of(arguments.out) if row["test"] in tests]
    matrix = matrix_of(rows)
    print(matrix.to_string(na_rep="-"))
    sums = matrix[["times", "failed", *SUMS.values()]].sum()
    print(json.dumps({"faults": len(matrix), **{k: int(v) for k, v in sums.items()}}))
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
