"""What trials take of a cluster: shares of a GPU, their sum, and Ray's own account of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import SMALL, Run
from ray import tune
from rich.console import Console

from cluster.connect import Cluster, ConnectError
from search.execution import resources
from search.execution.cost_estimate import Share
from search.execution.resources import (
    check_cluster,
    mean_gpu_share,
    mean_slots,
    possible_resources,
    resources_of,
    share_of,
    share_that_fits,
    shares_by_batch_size,
    slots,
    with_measured_shares,
)
from search.explore import Optuna
from search.study.study import Study
from trainable.config import TrialConfig
from trainable.probe import MemoryUse

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none")
VARY = {"batch_size": tune.grid_search([16, 32, 64]), "base_lr": tune.grid_search([0.1, 1])}


def study(**changes: Any) -> Study:
    return Study(**({"name": "a", "base": BASE, "vary": VARY} | changes))


def cluster(*, num_cpus: int = 16, num_gpus: int = 2) -> Cluster:
    return Cluster(address="local", dashboard="", num_nodes=1, num_cpus=num_cpus, num_gpus=num_gpus)


def config(batch_size: int) -> TrialConfig:
    return replace(BASE, batch_size=batch_size)


@pytest.mark.parametrize(
    ("batch_size", "share"), [(8, 0.25), (16, 0.25), (31, 0.25), (32, 0.5), (64, 1.0), (999, 1.0)]
)
def test_a_share_applies_from_its_batch_size_on(batch_size: int, share: float) -> None:
    mixed = study(gpus_per_trial={64: 1.0, 16: 0.25, 32: 0.5})
    assert share_of(mixed, config(batch_size)) == share


@pytest.mark.parametrize("n", range(1, 101))
def test_as_many_trials_fit_as_the_share_says(n: int) -> None:
    """Ray counts in ten-thousandths, and n of them must not be more than a GPU."""
    share = share_of(study(gpus_per_trial=1 / n), BASE)
    assert share == round(share, 4)
    assert n * round(share * 10_000) <= 10_000
    assert slots(cluster(num_cpus=1000), {"CPU": 1, "GPU": share}) == 2 * n


def test_without_gpus_a_trial_takes_cores() -> None:
    for given in (1.0, 0.25, "auto", {16: 0.25, 64: 1.0}):
        assert possible_resources(study(gpus_per_trial=given), cluster(num_gpus=0)) == [{"CPU": 1}]
    # A cluster that is still to grow will have them.
    later = cluster(num_cpus=0, num_gpus=0)
    assert resources_of(study(), later, BASE) == {"CPU": 1, "GPU": 1.0}
    assert possible_resources(study(gpus_per_trial=0), cluster()) == [{"CPU": 1}]


def test_a_share_is_never_made_up_of_two_gpus() -> None:
    assert slots(cluster(), {"CPU": 1, "GPU": 0.4}) == 4  # not 5: two on each
    assert slots(cluster(), {"CPU": 1, "GPU": 0.6}) == 2  # not 3
    assert slots(cluster(num_cpus=3), {"CPU": 1, "GPU": 0.25}) == 3
    assert slots(cluster(num_cpus=3), {"CPU": 2}) == 1


def test_several_gpus_of_a_trial_are_of_one_node() -> None:
    whole = study(gpus_per_trial={16: 1, 64: 4})
    assert [share_of(whole, config(size)) for size in (16, 64)] == [1.0, 4.0]
    assert resources_of(whole, cluster(), config(64)) == {"CPU": 1, "GPU": 4.0}
    there = replace(cluster(num_gpus=14), gpus_of_nodes=(0, 6, 3, 5))
    assert slots(there, {"CPU": 1, "GPU": 4.0}) == 2
    assert slots(there, {"CPU": 1, "GPU": 2.0}) == 6
    assert slots(there, {"CPU": 8, "GPU": 2.0}) == 2  # of cores
    assert slots(there, {"CPU": 1, "GPU": 0.5}) == 16


def test_a_batch_has_an_image_for_each_gpu() -> None:
    there = cluster(num_gpus=32)
    with pytest.raises(ConnectError, match="a batch of 16 has less than one image for each of 32"):
        check_cluster(study(gpus_per_trial=32), there, Console())
    check_cluster(study(gpus_per_trial=16), there, Console())
    check_cluster(study(gpus_per_trial=32), cluster(num_gpus=0), Console())


def test_of_mixed_shares_the_mean_number_side_by_side_is_harmonic() -> None:
    mixed = study(gpus_per_trial={16: 0.25, 64: 1.0})
    shares = [Share(config(16)), Share(config(16)), Share(config(64), 2.0)]
    # In turns: two of eight at once take 2/8 of a turn, two of two a whole one.
    assert mean_slots(mixed, cluster(), shares) == int(4 / (2 / 8 + 2 / 2))
    assert mean_gpu_share(mixed, cluster(), shares) == (2 * 0.25 + 2 * 1.0) / 4
    assert mean_gpu_share(mixed, cluster(num_gpus=0), shares) == 0
    alike = study(gpus_per_trial=0.25)
    assert mean_slots(alike, cluster(), shares) == slots(cluster(), {"CPU": 1, "GPU": 0.25}) == 8


@pytest.mark.parametrize("need_gib", [0.7, 3.0, 9.1, 11.0, 13.0, 30.0])
def test_what_fits_fits_with_headroom_and_one_more_would_not(need_gib: float) -> None:
    n = round(1 / share_that_fits(need_gib, 24.0, most=1000))
    assert n == 1 or n * need_gib * 1.1 <= 24.0
    assert (n + 1) * need_gib * 1.1 > 24.0
    assert share_that_fits(need_gib, 24.0, most=2) >= 0.5


def test_a_batch_between_two_measured_ones_takes_what_the_larger_needs() -> None:
    measured = shares_by_batch_size({16: 2.0, 64: 9.0, 256: 5.0, 1024: 20.0}, 24.0, most=1000)
    shares = study(gpus_per_trial=measured)
    each = {size: round(1 / share_of(shares, config(size))) for size in (8, 16, 17, 64, 200, 999)}
    assert each == {8: 10, 16: 10, 17: 2, 64: 2, 200: 2, 999: 1}


def with_fake_memory(monkeypatch: pytest.MonkeyPatch, cores: int) -> list[TrialConfig]:
    asked: list[TrialConfig] = []

    def measured(declared: Study, configs: list[TrialConfig], folder: None) -> list[MemoryUse]:
        asked.extend(configs)
        return [MemoryUse(need_gib=c.batch_size / 8, total_gib=24.0) for c in configs]

    monkeypatch.setattr(resources, "_measured", measured)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": cores, "GPU": 2.0})
    return asked


def test_auto_measures_each_kind_once_and_says_what_shares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = with_fake_memory(monkeypatch, cores=16)
    auto = with_measured_shares(study(gpus_per_trial="auto"), cluster(), None, Console())
    assert sorted(c.batch_size for c in asked) == [16, 32, 64]  # a rate takes no memory
    shares = {size: share_of(auto, config(size)) for size in (16, 32, 64)}
    assert shares == {16: 0.125, 32: 0.2, 64: 0.5}  # 10, 5 and 2 by memory; 8 by cores
    said = capsys.readouterr().out
    assert "batch 64: 2 trials share a GPU: 8.0 of 24 GiB each" in said
    assert "batch 16: 8 trials share a GPU: 2.0 of 24 GiB each" in said


def test_auto_of_a_search_measures_the_ends_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_fake_memory(monkeypatch, cores=400)
    vary = {"batch_size": tune.randint(16, 129), "base_lr": tune.loguniform(0.01, 1)}
    searched = study(vary=vary, explore=Optuna(num_configs=4), gpus_per_trial="auto")
    auto = with_measured_shares(searched, cluster(), None, Console())
    assert sorted(c.batch_size for c in asked) == [16, 128]
    assert [share_of(auto, config(size)) for size in (16, 17, 100, 128)] == [0.1, 1.0, 1.0, 1.0]


def test_auto_without_gpus_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_fake_memory(monkeypatch, cores=16)
    auto = study(gpus_per_trial="auto")
    assert with_measured_shares(auto, cluster(num_gpus=0), None, Console()) is auto
    by_hand = study(gpus_per_trial={16: 0.5})
    assert with_measured_shares(by_hand, cluster(), None, Console()) is by_hand
    assert asked == []


# --- on Ray, with GPUs that are not there -------------------------------------------------------


def most_at_once(trials: pd.DataFrame) -> float:
    """The most GPUs that trials held at a moment, by the table's times."""
    return max(
        trials.loc[(trials["started_at"] <= at) & (trials["ended_at"] > at), "num_gpus"].sum()
        for at in trials["started_at"]
    )


@pytest.mark.ray
def test_each_trial_gets_the_share_of_its_batch_size(
    tmp_path: Path, two_gpu_nodes: str, run_here: Run
) -> None:
    settings = ("--set", "gpus_per_trial={32: 0.5, 64: 1.0}", "--set", "seeds=2")
    done = run_here(SMALL, tmp_path, *settings, "--address", two_gpu_nodes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cores, 2 GPUs; a trial takes 1 CPU, 0.5 to 1 GPU" in done.stdout
    trials = pd.read_parquet(tmp_path / "small" / "trials")
    assert len(trials) == 8
    # What Ray gave the worker, reused or not, not what it was asked for.
    given = trials.groupby("batch_size")[["num_gpus", "gpu_shared"]].agg(set).to_dict("index")
    assert given == {
        32: {"num_gpus": {0.5}, "gpu_shared": {True}},
        64: {"num_gpus": {1.0}, "gpu_shared": {False}},
    }
    assert most_at_once(trials) <= 2.0
    small = trials[trials["batch_size"] == 32]
    # More at once than there are GPUs: some had one together.
    assert most_at_once(small) / 0.5 > 2


@pytest.mark.ray
def test_a_gpu_that_torch_does_not_see_cannot_be_measured(
    tmp_path: Path, two_gpu_nodes: str, run_here: Run
) -> None:
    settings = ("--set", "gpus_per_trial=auto", "--address", two_gpu_nodes)
    done = run_here(SMALL, tmp_path, *settings)
    assert done.returncode == 2
    assert "measuring the memory of 2 kinds of trial" in done.stdout
    said = " ".join(done.stderr.split())
    assert "gpus_per_trial=auto cannot be measured" in said
    assert "PyTorch finds none" in said
    assert "--set gpus_per_trial=1" in said
    assert "Traceback" not in done.stderr


def test_every_configuration_of_a_grid_has_its_resources() -> None:
    mixed = study(gpus_per_trial={16: 0.25, 64: 1.0})
    given = {c.batch_size: resources_of(mixed, cluster(), c) for c in mixed.configs}
    assert given == {
        16: {"CPU": 1, "GPU": 0.25},
        32: {"CPU": 1, "GPU": 0.25},
        64: {"CPU": 1, "GPU": 1.0},
    }
