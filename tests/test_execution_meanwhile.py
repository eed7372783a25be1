import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import until

from search.execution import meanwhile
from search.execution.meanwhile import report_written
from search.results.tables import Results
from trainable.host.storage import TakenOverError


def test_meanwhile_a_report_is_written_beside(
    make_study: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meanwhile, "INTERVAL_S", 0.2)
    results = make_study(seeds=1)
    written: list[bool] = []
    with report_written(results, before=lambda: written.append(True)):
        assert until(Path(results.folder.uri, "report.html").exists)
    assert written
    began = time.monotonic()
    with report_written(results, before=lambda: None):
        time.sleep(0.5)  # a process is under way now
    assert time.monotonic() - began < 5


def test_a_study_that_was_taken_over_writes_no_more_reports(
    make_study: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a traceback: the driver itself finds out before its next row."""
    monkeypatch.setattr(meanwhile, "INTERVAL_S", 0.05)
    asked: list[bool] = []

    def taken_over() -> None:
        asked.append(True)
        raise TakenOverError("another process writes here now")

    results = make_study(seeds=1)
    Path(results.folder.uri, "report.html").unlink(missing_ok=True)
    with report_written(results, before=taken_over):
        time.sleep(0.5)
    assert asked == [True]
    assert not Path(results.folder.uri, "report.html").exists()


def test_a_report_that_takes_long_is_written_less_often(
    make_study: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meanwhile, "INTERVAL_S", 0.05)
    monkeypatch.setattr(meanwhile, "REST", 1e6)
    monkeypatch.setattr(meanwhile.sys, "executable", "true")  # a moment, and no report
    began: list[bool] = []
    with report_written(make_study(seeds=1), before=lambda: began.append(True)):
        assert until(lambda: bool(began))
        time.sleep(0.5)
    assert began == [True]
