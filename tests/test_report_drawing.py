"""Charts are drawn in other processes: their files, wrong specifications, a process that ends."""

import os
import signal
from concurrent.futures import Future
from typing import Any

import psutil
import pytest

from search.report.drawing import Files, drawing, files_of


def bar(name: str, height: float = 1.0) -> dict[str, Any]:
    return {
        "data": {"values": [{"name": name, "height": height}]},
        "mark": "bar",
        "encoding": {
            "x": {"field": "name", "type": "nominal"},
            "y": {"field": "height", "type": "quantitative"},
        },
    }


def drawers() -> list[psutil.Process]:
    """The processes that draw."""
    children = psutil.Process().children()
    return [child for child in children if any("drawing.py" in word for word in child.cmdline())]


def test_a_chart_has_three_files_and_they_are_those_drawn_here() -> None:
    with drawing() as draw:
        files = draw(bar("a")).result()
    assert list(files) == ["svg", "png", "pdf"]
    assert b">a</text>" in files["svg"]
    assert files["png"].startswith(b"\x89PNG")
    assert files["pdf"].startswith(b"%PDF")
    here = files_of(bar("a"))
    assert (files["svg"], files["png"]) == (here["svg"], here["png"])  # a PDF has its time


def test_many_charts_keep_their_order_and_one_that_is_wrong_spoils_no_other() -> None:
    specs = [bar(f"bar{k}") for k in range(9)]
    specs[4] = {**bar("wrong"), "transform": [{"calculate": "((("}]}
    with drawing() as draw:
        charts = [draw(spec) for spec in specs]
    for k, chart in enumerate(charts):
        if k == 4:
            with pytest.raises(ValueError, match="a chart cannot be drawn"):
                chart.result()
        else:
            assert f">bar{k}</text>".encode() in chart.result()["svg"]


def test_a_process_that_ends_is_an_error_that_says_what_to_do() -> None:
    charts: list[Future[Files]] = []
    with drawing(1) as draw:
        draw(bar("a")).result()
        (child,) = drawers()
        child.kill()
        child.wait()
        charts += [draw(bar("b")), draw(bar("c"))]
    for chart in charts:
        with pytest.raises(OSError, match="write the report again"):
            chart.result()


def test_no_process_is_left_behind_and_an_error_of_the_block_is_raised() -> None:
    def fail() -> None:
        with drawing() as draw:
            draw(bar("a"))
            raise KeyError("a")

    with pytest.raises(KeyError):
        fail()
    assert not drawers()


def test_ctrl_c_is_left_to_the_report() -> None:
    with drawing(1) as draw:
        draw(bar("a")).result()
        (child,) = drawers()
        os.kill(child.pid, signal.SIGINT)
        assert draw(bar("b")).result()["svg"]
