import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import until

from search.execution import meanwhile
from search.execution.meanwhile import report_written
from search.results.tables import Results


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
