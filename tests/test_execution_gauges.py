"""What Prometheus scrapes of a study: a few gauges, none of a single trial."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from search.execution import gauges
from search.execution.gauges import INTERVAL_S, Gauges
from search.execution.progress import Progress

Shown = dict[tuple[str, ...], float]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What the gauges were last set to, by name and tags."""
    values: Shown = {}

    class Kept:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self.name, self.tag_keys = name, tag_keys

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self.tags = tags

        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            tags = self.tags | (tags or {})
            assert set(tags) == set(self.tag_keys)
            values[self.name, *(tags or {}).values()] = value

    monkeypatch.setattr(gauges, "Gauge", Kept)
    return values


def ends(watched: Gauges, **row: Any) -> None:
    watched.progress.ended += 1
    watched.trial_ended(row)


@pytest.mark.parametrize(("metric", "best"), [("val_auroc", 0.9), ("val_loss", 0.4)])
def test_the_gauges_follow_the_study(
    metric: str, best: float, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(gauges, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    progress = Progress(Console(quiet=True), ["base_lr"], metric, total=10, done_before=2)
    watched = Gauges("pcam_grid", metric, progress)
    watched.show()
    assert shown["study_trials", "pcam_grid", "waiting"] == 8
    assert ("study_best", "pcam_grid", metric) not in shown
    trial: Any = SimpleNamespace()
    progress.running = {"a": (trial, {"images_per_s": 100.0}), "b": (trial, {"images_per_s": 50.0})}
    watched.evaluated()
    ends(watched, status="completed", val_auroc=0.8, val_loss=0.6, peak_memory_gib=3.0)
    ends(watched, status="completed", val_auroc=0.9, val_loss=0.4, peak_memory_gib=7.5)
    ends(watched, status="diverged", val_auroc=0.99, val_loss=0.01, peak_memory_gib=math.nan)
    ends(watched, status="failed")
    assert shown["study_trials", "pcam_grid", "waiting"] == 8  # not at each row
    clock.now_s += INTERVAL_S + 1
    watched.show()
    assert {key[-1]: n for key, n in shown.items() if key[0] == "study_trials"} == {
        "completed": 2,
        "diverged": 1,
        "failed": 1,
        "running": 2,
        "waiting": 2,
    }
    assert shown["study_best", "pcam_grid", metric] == best
    assert shown["study_evaluations", "pcam_grid"] == 1
    assert shown["study_images_per_s", "pcam_grid"] == 150
    assert shown["study_trial_memory_gib", "pcam_grid"] == 7.5
    assert shown["study_seconds_left", "pcam_grid"] > 0
