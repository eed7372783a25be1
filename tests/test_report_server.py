"""The page of a running study: what it serves, to whom, and that it follows the tables."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright
from test_report_browser import CHROMIUM, FLAGS

from search.report.__main__ import main
from search.report.live import live_section
from search.report.server import looks_to_rest
from search.results import lock
from search.results.running import NAME, Pulse, state_of
from search.results.tables import Results

MakeStudy = Callable[..., Results]
ROOT = Path(__file__).parents[1]
PROGRESS: dict[str, Any] = {
    "total": 4,
    "ended": 2,
    "seconds_left": 75.0,
    "fields": ["batch_size", "base_lr", "seed"],
    "running": [
        {"batch_size": 16, "base_lr": 0.1, "seed": 0, "epoch": 1, "score": 0.8}
        | {"status": "running", "reason": ""}
    ],
    "recent": [
        {"batch_size": 64, "base_lr": 0.1, "seed": 0, "epoch": 2, "score": None}
        | {"status": "failed", "reason": "<b>no memory"}
    ],
    "surface": {
        "batch_sizes": [16, 64],
        "lrs": [0.1],
        "cells": [
            {"batch_size": 16, "base_lr": 0.1, "text": "0.850", "behind": 0.0, "running": 1},
            {"batch_size": 64, "base_lr": 0.1, "text": "fail.", "behind": None, "running": 0},
        ],
    },
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts the command on a study; returns the page's address."""
    started: list[subprocess.Popen[str]] = []
    said = (tmp_path / "stderr").open("w+")

    def start(results: Results, port: int) -> str:
        command = [sys.executable, "-u", "-m", "search.report", results.folder.uri, "--serve"]
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        return re.findall(r"http://\S+/", line)[0]

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.communicate(timeout=20)
        assert process.returncode == 0
    said.seek(0)
    complaints = said.read()
    said.close()
    assert complaints == ""


def got(address: str, **headers: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, b"", error.headers


def write_progress(results: Results, content: dict[str, Any]) -> None:
    Path(results.folder.uri, NAME).write_text(json.dumps(content))


def test_the_page_is_for_who_knows_its_address_and_changes_nothing(
    make_study: MakeStudy, served: Callable[..., str]
) -> None:
    results = make_study()
    before = {p: p.stat().st_mtime_ns for p in Path(results.folder.uri).rglob("*")}
    address = served(results, 8391)
    assert re.fullmatch(r"http://127\.0\.0\.1:8391/[\w-]{22}/", address)
    status, page, headers = got(address)
    assert status == 200
    html = gzip.decompress(page).decode()
    assert "What to use" in html
    assert "connect-src 'self'" in html
    assert got(address, **{"If-None-Match": headers["ETag"]})[0] == 304
    assert json.loads(got(f"{address}now")[1])["version"] == "1"
    root = address.rsplit("/", 2)[0]
    for other in ("/", "/now", f"/{'x' * 22}/", f"{address.removeprefix(root)}../study.json"):
        assert got(root + other)[0] == 404, other
    posted = urllib.request.Request(address, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(posted)
    assert {p: p.stat().st_mtime_ns for p in Path(results.folder.uri).rglob("*")} == before


def copy_tables(source: Results, target: Results) -> None:
    for name in ("trials", "epochs"):
        for part in Path(source.folder.uri, name).glob("*.parquet"):
            Path(target.folder.uri, name, part.name).write_bytes(part.read_bytes())


def test_the_more_cores_the_sooner_the_report_is_drawn_again() -> None:
    assert looks_to_rest(4.0, 2) == 200  # of two seconds each
    assert looks_to_rest(4.0, 32) == 13


def test_an_open_page_follows_the_study(make_study: MakeStudy, served: Callable[..., str]) -> None:
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium here")
    whole = make_study(name="whole")
    results = make_study(name="made", batch_sizes=(16, 64))
    address = served(results, 8392)
    with sync_playwright() as playwright, lock.held(results.folder):
        write_progress(results, PROGRESS)
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = chromium.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("body[data-drawn]", timeout=30_000)
        page.get_by_text("2 of 4 trials ended, about 1 m 15 s left.").wait_for(timeout=10_000)
        assert page.locator(".filling td").all_inner_texts() == ["0.850 …", "fail."]
        assert "<b>no memory" in page.locator("#now").inner_text()
        page.get_by_role("button", name="64", exact=True).click()
        page.get_by_text("The numbers of all settings").first.click()
        buttons = page.locator(".picker button")
        assert buttons.count() == 3
        copy_tables(whole, results)  # with more batch sizes
        page.wait_for_timeout(10_000)
        assert buttons.count() == 3  # the report rests while the study trains
        (Path(results.folder.uri) / lock.NAME).unlink()
        page.wait_for_function(
            "document.querySelectorAll('.picker button').length > 3", timeout=60_000
        )
        page.wait_for_timeout(1000)
        # What the reader picked and opened stays.
        assert page.locator('.picker button[aria-pressed="true"]').inner_text() == "64"
        assert page.locator("#surface tr:not([hidden]) td").first.is_visible()
        sizes = page.locator("tr[data-size]:not([hidden])").evaluate_all(
            "rows => [...new Set(rows.map(row => row.dataset.size))]"
        )
        assert sizes == ["64"]
        assert page.locator(".chart[data-drawn]").count() == page.locator(".chart").count()
        assert complaints == []
        chromium.close()


def test_whether_a_study_runs_is_told_by_its_locks_beat(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = make_study()
    pulse = Pulse()
    assert not pulse.is_running(results)
    with lock.held(results.folder):
        assert pulse.is_running(results)
        now = time.monotonic()
        monkeypatch.setattr("search.results.running.time.monotonic", lambda: now + 3600)
        assert not pulse.is_running(results)  # its holder was killed long ago
    assert not pulse.is_running(results)


def test_what_goes_on_is_said_in_a_few_lines() -> None:
    html = live_section(PROGRESS, is_running=True, metric="val_auroc")
    assert '<progress max="4" value="2"' in html
    assert '<td class="q0">0.850 …</td>' in html
    assert "&lt;b&gt;no memory" in html
    assert "data-size" not in html  # what a reader picks hides no running trial
    assert (
        live_section({}, is_running=True, metric="m") == '<p class="now">The study is starting.</p>'
    )
    idle = live_section(PROGRESS, is_running=False, metric="m")
    assert "No command is training this study now" in idle
    search = {**PROGRESS, "surface": None, "seconds_left": None}
    html = live_section(search, is_running=True, metric="m")
    assert "2 of 4 trials ended." in html
    assert "filling" not in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--serve"], "--serve needs one study's folder"),
        (["a", "b", "--serve"], "--serve needs one study's folder"),
        (["nothere", "--serve"], "nothere does not exist"),
        (["a", "--serve", "--out", "x"], "--serve cannot be combined with --out: remove it"),
        (["a", "--serve", "--table", "x"], "--serve cannot be combined with --table: remove it"),
        (["a", "--port", "80"], "--port is only for --serve"),
    ],
)
def test_what_cannot_be_served_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(make_study: MakeStudy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        where = make_study().folder.uri
        answer = subprocess.run(
            [sys.executable, "-m", "search.report", where, "--serve", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert answer.returncode == 2
    assert f"port {port} cannot be used" in answer.stderr
    assert "give another --port" in answer.stderr


def test_the_tables_are_read_again_only_where_a_file_changed(make_study: MakeStudy) -> None:
    results = make_study()
    state = state_of(results)
    assert state == state_of(results)
    Path(results.folder.uri, "trials", "new.parquet").write_bytes(b"")
    assert state != state_of(results)
