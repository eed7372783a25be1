"""`search.report A B`: a page, its numbers, what is printed, and wrong words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search.report.__main__ import main
from search.results.tables import Results

pytestmark = pytest.mark.usefixtures("no_drawing")
MakeStudy = Callable[..., Results]


@pytest.fixture(scope="module")
def two(make_study: MakeStudy) -> tuple[str, str]:
    """Two studies with the same trials but for the best rate, which is thrice in the second."""
    first = make_study("plain", about={"base": {"mixup_alpha": 0.0}})
    lrs = tuple(lr / 3 for lr in (0.03, 0.1, 0.3, 1.0, 3.0))
    second = make_study("mixed", about={"base": {"mixup_alpha": 0.2}}, lrs=lrs)
    return first.folder.uri, second.folder.uri


def test_two_studies_give_a_page_with_all_that_differs(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    for _ in range(2):  # a second time over the first
        assert main([*two, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((out / "comparison.json").read_text())
    html = (out / "comparison.html").read_text()
    assert numbers["names"] == ["plain", "mixed"]
    assert numbers["differing"]["mixup_alpha"] == [0.0, 0.2]
    assert set(numbers["differing"]) == {"mixup_alpha", "base_lr"}
    assert numbers["sentences"][-1].startswith("They differ in mixup_alpha 0 in plain and 0.2 in ")
    for sentence in numbers["sentences"]:
        assert sentence in printed
        assert sentence.replace("'", "&#x27;") in html
    assert 0.5 < numbers["shift"]["low"] < 1.0 < numbers["shift"]["high"] < 2.0
    assert [row["batch_size"] for row in numbers["own_best"]] == [16, 32, 64, 128, 256]
    assert 'data-name="ridges"' in html
    assert sorted(path.name for path in (out / "charts").iterdir()) == [
        *("difference.pdf", "difference.png", "difference.svg"),
        *("ridges.pdf", "ridges.png", "ridges.svg"),
    ]
    assert not list(Path(two[1]).glob("comparison*"))  # the studies' own folders stay as they are


def test_synthetic_patches_and_previews_are_called_so(
    make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = make_study("real")
    drawn = make_study("drawn", changes=[{"dataset": "synthetic"}], about={"preview": True})
    short = make_study("short", about={"preview": True})
    wanted = {
        drawn: ["dataset=synthetic in drawn: ", "Preview only: drawn had "],
        short: ["Preview only: short had "],
        real: [],
    }
    for second, begins in wanted.items():
        out = tmp_path / second.folder.uri.rpartition("/")[2]
        assert main([real.folder.uri, second.folder.uri, "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        first = json.loads((out / "comparison.json").read_text())["sentences"][: len(begins)]
        header = (out / "comparison.html").read_text().partition("</header>")[0]
        for begin, sentence in zip(begins, first, strict=True):
            assert sentence.startswith(begin)
            assert sentence in printed
            assert f'<p class="loud">{sentence}</p>' in header
        assert header.count('class="loud"') == len(begins)
        assert ("dataset=synthetic" in printed) == (second is drawn)
        assert ("Preview" in printed) == bool(begins)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ([], "needs --out FOLDER"),
        (["--out", "x", "--watch"], "--watch is not for the comparison of two studies"),
        (["--out", "x", "--metric", "nothing"], "--metric nothing is not in the tables"),
    ],
)
def test_wrong_words_are_one_line(
    more: list[str],
    wanted: str,
    two: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*two, *more]) == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_third_study_or_one_that_is_not_there_is_refused(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*two, two[0], "--out", "x"]) == 2
    assert "two studies are compared, not 3" in capsys.readouterr().err
    assert main([two[0], "nowhere", "--out", "x"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
