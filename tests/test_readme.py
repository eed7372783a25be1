"""README's commands and snippets, each taken from the page and run: none may be unknown here.

They run in this process, in a folder as a reader has it: with spaces/, results of a study, a table
of their own and images in DIR. Names that stand for something else are replaced; what takes minutes
is made smaller, by settings that are added or a function that ends at once.
"""

import importlib
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.results.tables import Results
from search.run import parser
from search.study.study import Study, configurations
from trainable.networks import models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.M))
STAND_FOR = {"/data": "DIR", "s3://BUCKET/results": "elsewhere"}


def commands() -> list[str]:
    """Every line of a shell block, and what in a sentence begins as a command does."""
    shell = "".join(text for language, text in BLOCKS if language in ("bash", "sh"))
    lines = shell.replace("\\\n", " ").splitlines()
    found = [part.strip() for line in lines for part in line.split("&&")]
    said = [code for code in INLINE if re.match(r"(\w+=\S+ )*(uv|python|pytest|pip|ray) ", code)]
    return list(dict.fromkeys(line for line in [*found, *said] if line and line[0] != "#"))


def snippet(contains: str) -> str:
    (found,) = [text for language, text in BLOCKS if language == "python" and contains in text]
    return found


def start(words: list[str]) -> int | None:
    """Run `python -m MODULE ARGUMENTS` here; its exit status."""
    module = importlib.import_module(words[0])
    if not hasattr(module, "main"):
        module = importlib.import_module(f"{words[0]}.__main__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        status: int | None = module.main()
    return status


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, make_study: Callable[..., Results]) -> Path:
    """The folder in which a reader types the commands; Ray is not started from it."""
    folder = tmp_path_factory.mktemp("reader")
    made = make_study("pcam_grid", batch_sizes=(16, 64), lrs=(0.1, 0.3, 1.0), seeds=2)
    (folder / "results").mkdir()
    Path(made.folder.uri).rename(folder / "results" / "pcam_grid")
    (folder / "spaces").symlink_to(ROOT / "spaces")
    (folder / "tests").symlink_to(ROOT / "tests")
    draws = np.random.default_rng(0)
    for split, n in (("train", 300), ("val", 40)):
        for i in range(n):
            path = folder / "DIR" / split / ("tumour" if i % 2 else "normal") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    own = [(b, lr, 0.9 - abs(np.log10(lr)) / 9) for b in (32, 64, 128) for lr in (0.1, 1.0, 10.0)]
    columns = ["config/batch_size", "config/lr", "accuracy"]
    pd.DataFrame(own, columns=columns).to_csv(folder / "trials.csv", index=False)
    return folder


@pytest.fixture
def here(reader: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the one that the commands are typed in."""
    monkeypatch.chdir(reader)
    monkeypatch.setattr(models, "available_weights", lambda model, pretrained: "none")
    return reader


# Each takes the words after `python -m`, and says by assertions what the command must do.


def runs_dry(words: list[str]) -> None:
    """The whole command but for Ray: what it would train, and what a flag or setting changes."""
    assert start([*words, "--dry-run"]) == 0


def suggests(words: list[str]) -> None:
    small = ["batch_size=32", "width=4", "image_size=32", "train_images=256", "eval_images=64"]
    assert start([*words, *(each for setting in small for each in ("--set", setting))]) == 0


def reports(words: list[str]) -> None:
    into = Path("report") if "--table" in words else Path("results/pcam_grid")
    (into / "report.html").unlink(missing_ok=True)
    if "--watch" in words:
        with pytest.MonkeyPatch.context() as patch:

            def interrupted(seconds: float) -> None:
                raise KeyboardInterrupt

            patch.setattr("time.sleep", interrupted)
            assert start(words) in (0, None)
    else:
        assert start(words) == 0
    assert (into / "report.html").read_text().startswith("<!doctype html>")


def looks_after_results(words: list[str]) -> None:
    before = pd.read_parquet("results/pcam_grid/trials")
    assert start(words) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("results/pcam_grid/trials"), before)


def draws(words: list[str]) -> None:
    out = Path(words[words.index("--out") + 1])
    assert start(words) == 0
    with Image.open(out) as image:
        assert min(image.size) > 100


def helps(words: list[str]) -> None:
    """A benchmark takes minutes: its module is imported and its flags are read."""
    with pytest.raises(SystemExit) as ended:
        start([*words, "--help"])
    assert ended.value.code == 0


HOW: dict[str, Callable[[list[str]], None]] = {
    "search.run": runs_dry,
    "search.suggest": suggests,
    "search.report": reports,
    "search.results": looks_after_results,
    "trainable.data": draws,
    "trainable.lr_plot": draws,
    "benchmarks.efficiency": helps,
    "benchmarks.mutation": helps,
    "benchmarks.results": helps,
    "benchmarks.search": helps,
    "benchmarks.trial": helps,
}


def names_tests(words: list[str]) -> None:
    """`pytest` with markers that there are, and files that exist."""
    project = (ROOT / "pyproject.toml").read_text()
    for flag, value in itertools.pairwise(words):
        assert flag != "-m" or f'"{value}: ' in project
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).is_file()


@pytest.mark.parametrize("command", commands())
def test_a_command_of_readme_runs(command: str, here: Path) -> None:
    words = [STAND_FOR.get(word, word) for word in shlex.split(command, comments=True)]
    while "=" in words[0]:  # SOAK_MINUTES=10
        words = words[1:]
    if words[:3] == ["pip", "install", "uv"]:
        assert len(words) == 3
        return
    words = words[2:] if words[:2] == ["uv", "run"] else words
    if words[0] == "pytest":
        names_tests(words[1:])
    elif words[:2] == ["python", "-m"] and words[2] in HOW:
        HOW[words[2]](words[2:])
    else:
        pytest.fail(f"README has a command that is not tested here: {command}")


def test_every_way_to_run_a_command_is_in_readme() -> None:
    said = " ".join(commands())
    assert [module for module in HOW if f"python -m {module} " not in f"{said} "] == []


def test_readmes_blocks_are_of_kinds_that_are_tested() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}
    assert len([language for language, _ in BLOCKS if language == "python"]) == 4


def test_readmes_study_is_one_and_has_as_many_trials_as_it_reads() -> None:
    names: dict[str, Any] = {}
    exec(snippet("study = Study("), names)
    study = names["study"]
    assert isinstance(study, Study)
    assert len(configurations(study)) * study.seeds == 4 * 5 * 3


def test_readmes_snippets_read_results(here: Path) -> None:
    names: dict[str, Any] = {}
    exec(snippet("pd.read_parquet("), names)
    assert len(names["trials"]) == 2 * 3 * 2
    assert len(names["epochs"]) == 2 * 3 * 2 * 4
    exec(snippet("from search.analysis import analyse"), names)
    assert isinstance(names["chart"], alt.TopLevelMixin)
    assert {16, 64} == set(names["analysis"].cells["batch_size"])


def test_readmes_trial_trains_without_ray(capsys: pytest.CaptureFixture[str]) -> None:
    code = snippet("from trainable.finetune import finetune")
    assert "train_images=2048,\n" in code
    exec(code.replace("train_images=2048,", "train_images=128, eval_images=64, width=4,"), {})
    assert re.findall(r"EpochResult\(epoch=(\d)", capsys.readouterr().out) == ["1", "2", "3"]


def test_the_commands_of_the_cluster_page_parse() -> None:
    pages = [(ROOT / "cluster" / name).read_text() for name in ("README.md", "rayjob.yaml")]
    text = "\n".join(pages).replace("\\\n", " ")
    found = re.findall(r"python -m search\.run (spaces/[^\n`]+)", text)
    assert len(found) >= 3
    for words in found:
        given = parser().parse_args(shlex.split(words))
        assert (ROOT / given.space).is_file()
        assert given.address == "auto"
