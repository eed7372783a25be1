"""Clusters whose nodes differ, come and go: what a study asks of them, and what it is told."""

import io
import json
from typing import Any

import pytest
import ray
from rich.console import Console

from cluster import connect
from cluster.connect import Cluster, ConnectError, look_again
from search.execution import runner
from search.execution.nodes import LOOK_S
from search.execution.resources import GROWTH_AT_LEAST, check_cluster, places
from search.study.study import Study
from trainable.config import TrialConfig

BASE = TrialConfig(dataset="synthetic", model="plain", pretrained="none")


def study(**changes: Any) -> Study:
    return Study(**({"name": "a", "base": BASE, "vary": {}} | changes))


def a_cluster(**changes: Any) -> Cluster:
    values: dict[str, Any] = {
        "address": "h1:6379",
        "dashboard": "",
        "num_nodes": 2,
        "num_cpus": 8,
        "num_gpus": 4,
    }
    return Cluster(**values | {"cpus_of_nodes": (4, 4), "gpus_of_nodes": (2, 2)} | changes)


def told(declared: Study, cluster: Cluster) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    check_cluster(declared, cluster, console)
    return console.export_text()


def test_more_gpus_than_any_node_has_are_refused() -> None:
    """Ray would wait for such a node in silence, for ever."""
    with pytest.raises(ConnectError) as refused:
        told(study(gpus_per_trial=4), a_cluster())
    assert str(refused.value) == (
        "a trial takes 4 GPU and no node has more than 2: lower gpus_per_trial, or start such a "
        "node"
    )
    with pytest.raises(ConnectError, match="takes 8 CPU and no node has more than 4: lower cpus_"):
        told(study(cpus_per_trial=8), a_cluster())
    assert "yet" not in told(study(), a_cluster())


def test_a_cluster_that_grows_may_start_such_a_node() -> None:
    empty = a_cluster(num_cpus=0, num_gpus=0, grows=True, cpus_of_nodes=(0,), gpus_of_nodes=(0,))
    lines = told(study(), empty).splitlines()
    assert lines[-2:] == [
        "no node has 1 CPU yet: trials wait until the cluster starts one",
        "no node has 1 GPU yet: trials wait until the cluster starts one; "
        "--set gpus_per_trial=0 trains on cores",
    ]


@pytest.mark.parametrize(
    ("num_gpus", "grows", "num_places"),
    [(4, False, 4), (4, True, 8), (0, True, GROWTH_AT_LEAST), (0, False, 1)],
)
def test_trials_wait_where_that_makes_a_cluster_grow(
    num_gpus: int, grows: bool, num_places: int
) -> None:
    cluster = a_cluster(num_cpus=num_gpus * 4, num_gpus=num_gpus, grows=grows)
    assert places(study(), cluster) == num_places


def test_nodes_that_come_and_go_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 16.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    now = look_again(a_cluster())
    assert (now.num_nodes, now.num_cpus, now.num_gpus) == (2, 24, 2)
    assert (now.cpus_of_nodes, now.gpus_of_nodes) == ((8.0, 16.0), (2.0, 0.0))
    nodes[2]["Alive"] = True
    assert look_again(now).num_gpus == 10


def test_a_study_follows_the_cluster_and_asks_it_not_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, asked = [0.0], []
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(runner, "look_again", lambda c: asked.append(c) or a_cluster(num_gpus=9))
    now = runner._looked_at(a_cluster())
    assert now().num_gpus == 4
    clock[0] = LOOK_S + 1
    assert [now().num_gpus for _ in range(5)] == [9] * 5
    assert len(asked) == 1
    local = runner._looked_at(a_cluster(address="local"))
    clock[0] = 1e6
    assert local().num_gpus == 4


@pytest.mark.parametrize(
    ("kinds", "most", "grows"),
    [
        ({"ab12": "node_ab12", "cd34": "node_cd34"}, None, False),  # as Ray names what it cannot
        ({"ab12": "ray.head.default"}, None, True),
        ({}, None, False),
        ({"ab12": "node_ab12"}, {"CPU": 64}, True),
    ],
)
def test_an_autoscaler_is_known_by_its_kinds_of_nodes(
    kinds: dict[str, str], most: Any, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = json.dumps({"autoscaler_report": {"node_type_mapping": kinds}}).encode()
    monkeypatch.setattr(connect, "_internal_kv_get", lambda _: status)
    state: Any = ray._private.state.state
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: most)
    assert connect._has_autoscaler() is grows
