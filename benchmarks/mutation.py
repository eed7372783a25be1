"""How many small wrong changes the tests notice, on a sample drawn with a seed.

mutmut makes the changes ("mutants": an argument dropped, `<` for `<=`, `+` for `-`, a number plus
one) in the files that pyproject's [tool.mutmut] names, and runs the tests that call the changed
function. Writes the folder mutants/, which a later run uses again.

    python -m benchmarks.mutation                 # 300 mutants
    python -m benchmarks.mutation --mutants 40 --seed 1 --files 'trainable/*'

Prints a row for each file, each survivor as a diff, and as the last line one JSON object. Exit
status 1 where fewer than 90 % were killed.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

LEAST_KILLED_SHARE = 0.9
KILLED = ("killed", "timeout", "segfault")
MUTMUT = str(Path(sys.executable).parent / "mutmut")


def mutants_of(files: Sequence[str]) -> list[str]:
    """The names of all mutants of some files."""
    names = []
    for file in files:
        mutated = mutate_file_contents(file, Path(file).read_text())
        names += [get_mutant_name(Path(file), name) for name in mutated.mutant_names]
    return names


def file_of(mutant: str) -> str:
    """The file that a mutant changes, from a name such as search.a.b.x_f__mutmut_3."""
    module = re.sub(r"\.(x_|xǁ).*", "", mutant)
    return f"{module.replace('.', '/')}.py"


def run_mutants(mutants: Sequence[str], *, processes: int) -> dict[str, str]:
    """How each mutant ended: `killed`, `timeout`, `segfault`, `survived`, `no tests`, ..."""
    # Threads of a process that was forked wait for ever for those that were not.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [MUTMUT, "run", "--max-children", str(processes), *mutants]
    subprocess.run(command, env=env, check=True)
    endings = {}
    for file in {file_of(mutant) for mutant in mutants}:
        exit_codes = json.loads(Path(f"mutants/{file}.meta").read_text())["exit_code_by_key"]
        endings |= {name: status_by_exit_code[code] for name, code in exit_codes.items()}
    return {mutant: endings[mutant] for mutant in mutants}


def print_table(endings: dict[str, str]) -> None:
    """A row for each file, then what survived."""
    totals = Counter(file_of(mutant) for mutant in endings)
    killed = Counter(file_of(mutant) for mutant, end in endings.items() if end in KILLED)
    print(f"\n{'file':40} {'mutants':>8} {'killed':>8}")
    for file in sorted(totals):
        print(f"{file:40} {totals[file]:8} {killed[file]:8}")
    for mutant, end in sorted(endings.items()):
        if end not in KILLED:
            shown = subprocess.run([MUTMUT, "show", mutant], capture_output=True, text=True)
            changes = [
                line for line in shown.stdout.splitlines() if re.match(r"[-+](?![-+])", line)
            ]
            print(f"\n{mutant}: {end}", *changes, sep="\n")


def main() -> int:
    """Draw the sample, run it, print what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation")
    parser.add_argument("--mutants", type=int, default=300, help="how many; default 300")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default 0")
    parser.add_argument("--files", default="*", help="only these, as 'search/*'; default all")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    files = [file for file in settings["only_mutate"] if fnmatch(file, arguments.files)]
    names = mutants_of(files)
    sample = random.Random(arguments.seed).sample(names, min(arguments.mutants, len(names)))
    endings = run_mutants(sample, processes=arguments.processes)
    print_table(endings)
    killed = sum(end in KILLED for end in endings.values())
    figures = {"mutants_all": len(names), "mutants": len(sample), "killed": killed}
    share = killed / len(sample)
    print(json.dumps({**figures, "killed_share": round(share, 4)}))
    return 0 if share >= LEAST_KILLED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
