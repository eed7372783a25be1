"""The commands, snippets and links of README, CONTRIBUTING and docs/: each one is run or parsed.

Commands run in this process, in one folder as a reader has it: with spaces/, README's own study,
results of a study, a table of their own and images in DIR. Names that stand for something else are
replaced; what takes minutes is made smaller, by settings that are added or a function that returns
at once. A command that no test knows is a failure.
"""

import contextlib
import importlib
import inspect
import itertools
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair as alt
import click
import numpy as np
import pandas as pd
import pytest
from no_drawing import draw_nothing
from PIL import Image
from ray import tune

import search.session
from search.explore.ask import ask, total
from search.results.tables import Results, open_results
from search.run import parser
from search.study.explorer import Tables
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.fields import fields_table
from trainable.host import storage
from trainable.networks import models

ROOT = Path(__file__).parent.parent
LINKED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*(ROOT / name for name in LINKED), *sorted((ROOT / "docs").glob("*.md")))
}
STAND_FOR = {"/data": "DIR", "s3://BUCKET/results": "elsewhere"}
PROGRAMS = r"(\w+=\S+ )*(uv|python|pytest|pip|ray|git|docker|kubectl|sbatch) "
OPERATORS = {"&&", ";", "(", ")"}
GUIDES = ("make_images.py", "my_images.py")  # what a reader of the guide saves


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in that language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [text for kind, text in fenced if kind == language]


def typed_lines(page: str) -> list[str]:
    """Every line of a page's shell blocks, and code in a sentence that begins as a command does."""
    shell = "".join(blocks(page, "bash"))
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    inline = [code for code in re.findall(r"`([^`\n]+)`", prose) if re.match(PROGRAMS, code)]
    return [*shell.replace("\\\n", " ").splitlines(), *inline]


def split_words(line: str) -> Iterator[list[str]]:
    """The commands of a line as words, without comments, assignments and `uv run`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for is_operator, part in itertools.groupby(lexer, OPERATORS.__contains__):
        words = [STAND_FOR.get(word, word) for word in part]
        while words and re.fullmatch(r"\w+=.*", words[0]):  # SOAK_MINUTES=10
            words = words[1:]
        if words[:2] == ["uv", "run"]:
            words = words[4:] if words[2] == "--with" else words[2:]
        if words and not is_operator:
            yield words


def commands() -> list[str]:
    """Each different command of all pages, as one line."""
    lines = (line for page in PAGES for line in typed_lines(page))
    return list(dict.fromkeys(shlex.join(words) for line in lines for words in split_words(line)))


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
    (folder / "results").mkdir()
    for name in ("pcam_grid", "pcam_grid_mixup"):
        made = make_study(name, batch_sizes=(16, 64), lrs=(0.1, 0.3, 1.0), seeds=2)
        Path(made.folder.uri).rename(folder / "results" / name)
    for name in ("spaces", "tests", "cluster", "docs", ".ci"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_lesions.py").write_text(blocks("README.md", "python")[0])
    for name, code in zip(GUIDES, blocks("docs/guide.md", "python"), strict=True):
        (folder / name).write_text(code)
    with contextlib.chdir(folder):
        runpy.run_path("make_images.py")
    draws = np.random.default_rng(0)
    for split, n in (("train", 300), ("val", 40)):
        for i in range(n):
            path = folder / "DIR" / split / ("tumour" if i % 2 else "normal") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    own = [(b, lr, 0.9 - abs(np.log10(lr)) / 9) for b in (32, 64, 128) for lr in (0.1, 1.0, 10.0)]
    columns = ["config/batch_size", "config/lr", "accuracy"]
    pd.DataFrame(own, columns=columns).to_csv(folder / "trials.csv", index=False)
    rng = np.random.default_rng(0)
    names = ["lr", "top_1", "momentum", "weight_decay", "label_smoothing", "epochs"]
    drawn = pd.DataFrame(rng.uniform(0.1, 0.9, (24, len(names))), columns=names)
    drawn.assign(batch_size=[32, 64, 128] * 8).to_csv(folder / "runs.csv", index=False)
    return folder


@pytest.fixture
def here(reader: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the one that the commands are typed in."""
    monkeypatch.chdir(reader)
    monkeypatch.setattr(models, "available_weights", lambda model, pretrained: pretrained)
    for module in ("report", "side_by_side"):
        monkeypatch.setattr(f"search.report.{module}.drawing", draw_nothing)
    return reader


# Each takes the words of a command from the program on, and asserts what it must do.


def runs_dry(words: list[str]) -> None:
    """The whole command but for Ray: what it would train, and what a flag or setting changes."""
    assert start([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0


def suggests(words: list[str]) -> None:
    small = ["batch_size=32", "width=4", "image_size=32", "train_images=256", "eval_images=64"]
    assert start([*words, *(word for setting in small for word in ("--set", setting))]) == 0


def reports(words: list[str]) -> None:
    if "--serve" in words:  # until Ctrl-C: tests/test_report_server.py
        with pytest.MonkeyPatch.context() as patch:
            served: list[str] = []
            patch.setattr(
                "search.report.server.serve",
                lambda results, **_: served.append(results.folder.uri),
            )
            assert start(words) == 0
        assert served[0].endswith("results/pcam_grid")
        return
    page = Path("report" if "--table" in words else "results/pcam_grid") / "report.html"
    if len([word for word in words if word.startswith("results/")]) == 2:
        page = Path(words[words.index("--out") + 1]) / "comparison.html"
    page.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if "--watch" in words:

            def interrupted(seconds: float) -> None:
                raise KeyboardInterrupt

            patch.setattr("time.sleep", interrupted)
        assert start(words) == 0
    assert page.read_text().startswith("<!doctype html>")


def keeps_results(words: list[str]) -> None:
    before = pd.read_parquet("results/pcam_grid/trials")
    assert start(words) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("results/pcam_grid/trials"), before)


def draws_picture(words: list[str]) -> None:
    out = Path(words[words.index("--out") + 1])
    assert start(words) == 0
    with Image.open(out) as image:
        assert min(image.size) > 100


def prints_fields(words: list[str]) -> None:
    """The page that the command writes is held to it by test_project."""
    assert words[1:] == [">", "docs/fields.md"]
    assert fields_table().startswith("# ")


def prints_help(words: list[str]) -> None:
    """A benchmark takes minutes: its module is imported and its flags are read."""
    with pytest.raises(SystemExit) as ended:
        start([*words, "--help"])
    assert ended.value.code == 0


MODULES: dict[str, Callable[[list[str]], None]] = {
    "search.run": runs_dry,
    "search.suggest": suggests,
    "search.report": reports,
    "search.results": keeps_results,
    "trainable.data": draws_picture,
    "trainable.fields": prints_fields,
    "trainable.lr_plot": draws_picture,
    "benchmarks.efficiency": prints_help,
    "benchmarks.faults": prints_help,
    "benchmarks.findings": prints_help,
    "benchmarks.gpu": prints_help,
    "benchmarks.gpu_study": prints_help,
    "benchmarks.mutation": prints_help,
    "benchmarks.report": prints_help,
    "benchmarks.results": prints_help,
    "benchmarks.ridge": prints_help,
    "benchmarks.ridge_curves": prints_help,
    "benchmarks.packs": prints_help,
    "benchmarks.scale": prints_help,
    "benchmarks.search": prints_help,
    "benchmarks.serve": prints_help,
    "benchmarks.trial": prints_help,
}


def runs_module(words: list[str]) -> None:
    if words[1] == GUIDES[0]:
        runpy.run_path(words[1])
        return
    assert words[1] == "-m"
    assert words[2] in MODULES, f"no test knows {words[2]}"
    MODULES[words[2]](words[2:])


def names_tests(words: list[str]) -> None:
    """`pytest` with markers that are declared, and files that exist."""
    project = (ROOT / "pyproject.toml").read_text()
    for flag, value in itertools.pairwise(words):
        assert flag != "-m" or f'"{value}: ' in project
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).is_file()


def parses_as_ray(words: list[str]) -> None:
    """Ray's own command line takes the words; a study submitted with them is one of ours."""
    import ray.scripts.scripts  # seconds that no other test needs

    command: click.Command = ray.scripts.scripts.cli
    words = words[1:]
    while isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(command.name, words.copy())
    if "cluster_config_file" in context.params:
        assert Path(context.params["cluster_config_file"]).is_file()
    if "--" in words:
        starts_on_a_cluster(words[words.index("--") + 1 :])


def starts_on_a_cluster(words: list[str]) -> None:
    assert words[:3] == ["python", "-m", "search.run"]
    arguments = parser().parse_args(words[3:])
    assert (ROOT / arguments.space).is_file()
    assert arguments.address == "auto"


def names_files(words: list[str]) -> None:
    """`docker build -f` and `kubectl apply -f`: the file is there; a study in it is one of ours."""
    if "-f" in words:
        assert Path(words[words.index("-f") + 1]).is_file()
    else:
        assert words[1] in {"get", "port-forward"}
    if "python" in words:
        starts_on_a_cluster(words[words.index("python") :])


def submits_to_slurm(words: list[str]) -> None:
    """`sbatch OPTIONS SCRIPT ARGUMENTS`: the script adds --address, and refuses no argument."""
    at = words.index("cluster/slurm.sh")
    assert Path(words[at]).is_file()
    assert all(re.fullmatch(r"--[a-z-]+=\S+", word) for word in words[1:at])
    arguments = parser().parse_args(words[at + 1 :])
    assert (ROOT / arguments.space).is_file()


def installs_uv(words: list[str]) -> None:
    assert words == ["pip", "install", "uv"]


def is_installed(words: list[str]) -> None:
    assert shutil.which(words[0], path=Path(sys.executable).parent)


def exists(words: list[str]) -> None:
    assert Path(words[0]).is_file()


def sets_environment(words: list[str]) -> None:
    assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in words[1:])


def syncs(words: list[str]) -> None:
    assert words == ["uv", "sync"]


def is_trusted(words: list[str]) -> None:
    """Commands of the shell and of git that need no test."""


PROGRAM: dict[str, Callable[[list[str]], None]] = {
    "python": runs_module,
    "pytest": names_tests,
    "ray": parses_as_ray,
    "docker": names_files,
    "kubectl": names_files,
    "sbatch": submits_to_slurm,
    "pip": installs_uv,
    "uv": syncs,
    "ruff": is_installed,
    "mypy": is_installed,
    "lint-imports": is_installed,
    ".ci/run": exists,
    "export": sets_environment,
    "umask": is_trusted,
    "git": is_trusted,
    "cd": is_trusted,
}


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_works(command: str, here: Path) -> None:
    words = shlex.split(command)
    assert words[0] in PROGRAM, f"no test knows {words[0]}"
    PROGRAM[words[0]](words)


def test_every_way_to_run_a_command_is_on_a_page() -> None:
    shown = {words[2] for words in map(shlex.split, commands()) if words[:2] == ["python", "-m"]}
    assert shown == set(MODULES)


def test_the_job_of_the_kubernetes_file_parses() -> None:
    text = (ROOT / "cluster" / "rayjob.yaml").read_text()
    (entrypoint,) = re.findall(r"python -m search\.run spaces/[^\n`]+", text)
    starts_on_a_cluster(shlex.split(entrypoint))


def test_blocks_are_in_languages_that_are_tested() -> None:
    fences = [re.findall(r"^```(\w*)\n.*?^```", text, re.DOTALL | re.M) for text in PAGES.values()]
    assert set(itertools.chain(*fences)) == {"bash", "python", "text"}


# What makes a page's training take a second.
SMALLER = {"train_images=2048,": "train_images=128, eval_images=64, width=4,"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that `run_study` was called with; it returns at once, with made results."""
    signature = inspect.signature(search.session.run_study)
    calls: list[dict[str, Any]] = []

    def run_study(*values: object, **named: object) -> Results:
        calls.append(dict(signature.bind(*values, **named).arguments))
        return open_results("results", "pcam_grid")

    monkeypatch.setattr(search.session, "run_study", run_study)
    return calls


def python_of(page: str) -> dict[str, Any]:
    """The names that a page's Python blocks leave, run one after the other."""
    names: dict[str, Any] = {}
    for code in blocks(page, "python"):
        for long, short in SMALLER.items():
            code = code.replace(long, short)
        exec(compile(code, page, "exec", dont_inherit=True), names)
    return names


def test_readmes_python_runs(here: Path, told: list[dict[str, Any]]) -> None:
    names = python_of("README.md")
    study = names["study"]
    assert isinstance(study, Study)
    assert len(study.configs) * study.seeds == 4 * 5 * 3
    assert told == [{"study": study, "data": "DIR", "preview": True, "out": "preview"}]
    assert isinstance(names["results"], Results)
    assert len(names["trials"]) == 2 * 3 * 2
    assert len(names["epochs"]) == 2 * 3 * 2 * 4


def test_the_python_of_studies_runs(
    here: Path, told: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = python_of("docs/studies.md")
    assert isinstance(names["study"], Study)
    assert [call["study"] for call in told] == [names["study"], "spaces/pcam_grid.py"]
    printed = capsys.readouterr().out
    assert "val_auroc" in printed
    assert re.findall(r"EpochResult\(epoch=(\d)", printed) == ["1", "2", "3"]


def test_the_python_of_report_runs(here: Path) -> None:
    names = python_of("docs/report.md")
    assert isinstance(names["chart"], alt.TopLevelMixin)
    assert {16, 64} == set(names["analysis"].cells["batch_size"])


def test_the_explorer_of_contributing_is_a_whole_one() -> None:
    kind = python_of("CONTRIBUTING.md")["LatinHypercube"]
    vary = {"batch_size": tune.lograndint(16, 257), "base_lr": tune.loguniform(0.01, 1.0)}
    study = Study(
        name="covered", base=TrialConfig(), vary=vary, explore=kind(num_configs=8), seeds=2
    )
    tables = Tables(data_fingerprint="abc", folder=storage.folder_at("nowhere"))
    asked = ask(study, tables, room=2)
    assert len({trial.key for trial in asked}) == 8 * 2 == total(study, tables)
    assert sorted(trial.config.seed for trial in asked) == [0] * 8 + [1] * 8
    lrs = sorted(trial.config.base_lr for trial in asked if trial.config.seed == 0)
    slices = np.floor(8 * np.log10(np.array(lrs) / 0.01) / 2)
    assert slices.tolist() == list(range(8))
    assert {type(trial.config.batch_size) for trial in asked} == {int}
    assert ask(study, tables, room=2) == []
    grid = {"base_lr": tune.grid_search([0.1, 1.0])}
    with pytest.raises(ValueError, match=r"base_lr: LatinHypercube needs tune\.loguniform"):
        Study(name="covered", base=TrialConfig(), vary=grid, explore=kind(num_configs=8))


def test_no_other_page_has_python() -> None:
    pages = {page for page in PAGES if blocks(page, "python")}
    guides = {"docs/guide.md", "docs/studies.md", "docs/report.md"}
    assert pages == {"README.md", "CONTRIBUTING.md", *guides}


def test_messages_of_the_guide_are_those_that_are_printed() -> None:
    table = PAGES["docs/guide.md"].partition("# Messages")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert len(rows) > 10
    files = [
        path for room in ("search", "trainable", "cluster") for path in (ROOT / room).rglob("*.py")
    ]
    written = " ".join(path.read_text() for path in files)
    printed = re.sub(r'"\s*\n\s*f?"', "", written)  # a text that goes on in the next line
    for message in re.findall(r"`([^`]+)`", " ".join(rows)):
        for part in re.split(r"\b[A-Z]+\b|\d+%?", message):  # what stands for something else
            assert part.strip(" :") in printed, message


def anchors(page: str) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[str]:
    """Where a page links to, other sites left out."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [to for to in re.findall(r"\]\(([^)]+)\)", text) if "://" not in to]


@pytest.mark.parametrize("page", list(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


def test_readme_links_to_every_page() -> None:
    assert set(PAGES) - {"README.md"} <= set(links("README.md"))


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200
