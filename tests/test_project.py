"""The project's own files agree with each other."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainable import lr_plot
from trainable.config import RECIPE_VERSION
from trainable.fields import fields_table

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def locked() -> dict[str, str]:
    """The lock's versions for this Python: a line may be for others only."""
    lines = re.findall(r"^(\S+==[^\\\n]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    found = [Requirement(line) for line in lines]
    return {
        each.name: str(each.specifier).removeprefix("==")
        for each in found
        if each.marker is None or each.marker.evaluate()
    }


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_the_lock_has_every_dependency_in_its_range_and_as_installed(line: str) -> None:
    wanted = Requirement(line)
    assert wanted.specifier.contains(locked()[wanted.name])
    assert locked()[wanted.name] == version(wanted.name)


def test_the_lock_names_no_host() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_imports_point_down() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "pip install uv && uv run python -m search.run spaces/pcam_grid.py" in text
    assert "pip install uv && uv run pytest" in text


def test_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(search/.*?)```", text, re.DOTALL)
    assert tree
    folders: list[str] = []
    for line in tree.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {3,}", line.strip())[0]
        for name in re.findall(r"[\w.]+(?:/|\.py)", names):
            path = "".join(folders[:depth]) + name
            assert (ROOT / path).exists(), path
            if name.endswith("/"):
                folders = [*folders[:depth], name]


def test_uv_lock_is_not_committed() -> None:
    # It writes the registry's host into the repository.
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "uv.lock" not in done.stdout.split()


def test_fields_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "fields.md").read_text() == fields_table()


def test_lr_plot_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "lr.png"
    words = ["trainable.lr_plot", "decay=cosine,step", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert lr_plot.main() == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    command = [sys.executable, "-m", "trainable.lr_plot", "decay=never"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "decay must be one of" in wrong.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("warmup=1", "there is no field 'warmup'; did you mean 'warmup_epochs'?"),
        ("decoy=cosine", "there is no field 'decoy'; did you mean 'decay'?"),
        ("warmup_epochs", "settings are FIELD=VALUE, such as warmup_epochs=1; got 'warmup_epochs'"),
        ("base_lr=a", "base_lr must be a number, got 'a'"),
    ],
)
def test_a_wrong_setting_of_lr_plot_is_one_sentence_without_pythons_words(
    setting: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainable.lr_plot", setting])
    assert lr_plot.main() == 2
    assert capsys.readouterr().err == f"lr_plot: {message}\n"


def test_the_workflow_sets_up_python_and_calls_ci_run_alone() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    actions = [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]
    assert actions == ["actions/checkout", "actions/setup-python"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    for python in job["strategy"]["matrix"]["python"]:
        assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_changelog_names_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+),", text, re.MULTILINE)[0] == PROJECT["version"]
    assert f"`RECIPE_VERSION` is {RECIPE_VERSION}." in text


@pytest.mark.parametrize("package", ["search", "trainable", "cluster"])
def test_users_type_checkers_find_our_annotations(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][package]


def test_every_package_is_installed() -> None:
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    files = [
        p
        for name in ("search", "trainable", "spaces", "cluster")
        for p in ROOT.glob(f"{name}/**/__init__.py")
    ]
    assert {".".join(p.parent.relative_to(ROOT).parts) for p in files} == listed


@pytest.mark.ray
def test_all_tests_that_start_ray_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if hasattr(request.config, "workerinput"):  # under pytest-xdist
        assert request.node.nodeid.endswith("@ray")
