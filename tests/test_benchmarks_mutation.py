"""The mutation benchmark names what exists."""

import tomllib

import pytest
from commands import ROOT

from benchmarks.mutation import file_of, mutants_of


def test_its_files_exist() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    for file in [*settings["only_mutate"], *settings["also_copy"]]:
        assert (ROOT / file).exists(), file


def test_a_mutant_is_traced_to_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # A file of functions in a folder below, and one with a class's methods.
    for file in ("trainable/data/hdf5.py", "search/execution/progress.py"):
        names = mutants_of([file])
        assert len(set(names)) == len(names) > 20
        assert {file_of(name) for name in names} == {file}
