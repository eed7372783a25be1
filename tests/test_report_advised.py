"""The first lines of page and terminal, and what a page says it cannot show."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.report.__main__ import main
from search.report.advised import print_advice
from search.report.report import write_report
from search.results.tables import Results

pytestmark = pytest.mark.usefixtures("no_drawing")
MakeStudy = Callable[..., Results]


def page(results: Results) -> str:
    return Path(results.folder.uri, "report.html").read_text()


def advice(results: Results) -> dict[str, Any]:
    numbers = json.loads(Path(results.folder.uri, "report.json").read_text())
    found: dict[str, Any] = numbers["advice"]
    return found


def test_a_page_begins_with_what_to_use_and_the_surface(make_study: MakeStudy) -> None:
    results = make_study(about={"space_file": "spaces/made.py", "preview": True})
    write_report(results)
    html, given = page(results), advice(results)
    places = ['<div class="advice">', 'id="surface"', '<div class="answer">', 'id="ridge"']
    assert [html.index(part) for part in places] == sorted(html.index(part) for part in places)
    (lines,) = re.findall(r'<div class="advice"><h2>What to use</h2><ul>(.*?)</ul>', html)
    assert given["sentences"][0].startswith("Use batch size ")
    assert len(re.findall("<li>", lines)) == len(given["sentences"])
    setting = given["settings"][0]
    # The made study's best peak lr is 0.001 B.
    assert setting["low"] < 0.001 * setting["batch_size"] < setting["high"]
    assert given["rule"][1] == pytest.approx(1.0, abs=0.2)
    assert f"peak learning rate of {setting['lr']:.2g} [" in given["sentences"][0]
    assert given["about"] in html
    commands = re.findall(r"<code>(.*?)</code>", lines)
    wanted = [f"seeds={step['seeds']}" for step in given["more"] if step["kind"] == "seeds"]
    assert [command.rpartition(" ")[2] for command in commands] == wanted


def test_the_command_prints_the_first_lines(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_study()
    assert main([results.folder.uri]) == 0
    printed = capsys.readouterr().out
    for line in advice(results)["sentences"]:
        assert f"  {line}\n" in printed
    assert printed.index("what to use") < printed.index("report: ")
    console = Console(file=io.StringIO(), width=80)
    print_advice(console, results.folder)
    assert console.file.getvalue().count("\n") == 2 + len(advice(results)["sentences"])  # type: ignore[attr-defined]


def test_of_two_batch_sizes_no_line_is_drawn_and_the_page_says_what_is_missing(
    make_study: MakeStudy,
) -> None:
    results = make_study(batch_sizes=(16, 64))
    write_report(results)
    html = page(results)
    (missing,) = re.findall(r'<section [^>]*id="missing">(.*?)</section>', html, flags=re.DOTALL)
    assert "Collapse: needs three batch sizes, with three learning rates each." in missing
    assert 'data-name="collapse"' not in html
    assert 'data-name="ridge"' not in html
    assert 'id="ridge"' in html  # its table says the best rates
    write_report(whole := make_study(name="whole"))
    assert "Collapse: needs" not in page(whole)
    assert 'data-name="ridge"' in page(whole)


def test_where_all_diverged_it_says_that_nothing_can_be_recommended(make_study: MakeStudy) -> None:
    lost = {"status": "diverged", "val_auroc": None, "val_loss": None, "test_auroc": None}
    results = make_study(**lost)
    write_report(results)
    assert advice(results)["sentences"] == ["Nothing can be recommended: no trial has a score yet."]
    assert advice(results)["settings"] == []
