"""`--list`: the studies that come with the program, on a screen, in a pipe and in docs."""

import io
import re
from pathlib import Path

import pytest
from commands import ROOT
from rich.console import Console

from search.run import main
from search.study.catalogue import PARTS, as_markdown, entries, entry_of, print_catalogue

FILES = sorted(p for p in (ROOT / "spaces").glob("*.py") if p.stem not in PARTS)


def test_every_space_file_is_listed_with_its_question_and_cost() -> None:
    known = entries()
    assert [entry.path.resolve() for entry in known] == [path.resolve() for path in FILES]
    assert len(known) >= 25
    for entry in known:
        assert entry.question.endswith("?"), entry.path.name
        assert re.match(r"(at most )?\d+ trials ", entry.cost), entry.path.name
        assert "Preview: " in entry.cost, entry.path.name


def test_the_page_of_studies_has_the_same_table() -> None:
    page = (ROOT / "docs" / "studies.md").read_text()
    assert as_markdown() in page, "docs/studies.md: replace its table by as_markdown()"


def test_a_pipe_gets_a_line_a_study_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spaces").mkdir()  # of the user's own
    monkeypatch.chdir(tmp_path)
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = [(entry.path.stem, entry.question, entry.cost) for entry in entries()]
    assert [tuple(line.split("\t")) for line in lines] == known


@pytest.mark.parametrize("inside", [True, False])
def test_a_terminal_of_80_columns_gets_a_table(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT if inside else tmp_path)
    shown = io.StringIO()
    print_catalogue(Console(file=shown, force_terminal=True, width=80, color_system=None))
    *table, how = shown.getvalue().splitlines()
    assert max(map(len, table)) <= 80
    names = [line.split()[0] for line in table if re.match(r"\w", line)]
    assert names == ["study", *(path.stem for path in FILES)]
    folder = "spaces" if inside else str(ROOT / "spaces")
    assert how == f"run one: python -m search.run {folder}/STUDY.py"


@pytest.mark.parametrize("words", [[], ["--list", "spaces/pcam_grid.py"]])
def test_the_command_takes_a_space_or_lists_them(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "SPACE.py" in capsys.readouterr().err


def test_a_file_that_says_nothing_is_listed_by_its_name(tmp_path: Path) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text("study = None\n")
    assert (entry_of(bare).question, entry_of(bare).cost) == ("", "")
