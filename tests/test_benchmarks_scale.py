"""The replay of a large study: small here, through the real queue, recorder and tables."""

import argparse

import pytest

from benchmarks import scale


@pytest.mark.parametrize("explorer", ["grid", "optuna"])
def test_a_replayed_study_is_whole(explorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`measured` itself checks that no row is lost or doubled."""
    monkeypatch.setattr(scale, "BATCH_SIZES", [16, 32])
    monkeypatch.setattr(scale, "SEEDS", 3)
    options = argparse.Namespace(
        explore=explorer, epochs=3, slots=4, out=None, ray=0, no_report=True
    )
    figures = scale.measured(12, options).figures()
    assert figures["trial_ms"] > 0
    assert 0 < figures["loop_cpu_share"] <= figures["cpu_share"]


def test_a_paced_replay_keeps_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(
        explore="grid", epochs=3, slots=4, out=None, ray=0, rate=20.0, paced_s=1.0
    )
    cost = scale.measured(50, options, is_paced=True)
    assert cost.reports == 20
    assert cost.wall_s > 0.9
