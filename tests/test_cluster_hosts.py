"""Studies on several hosts, with a network between them that fails (tests/hosts.py)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
from faulty_study import Command, check, enough
from hosts import ON_HOSTS, Hosts, hosts, start_ray

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True, kw_only=True)
class RayHosts:
    """Hosts with Ray on them, and the address of its head, which is on the first."""

    hosts: Hosts
    address: str


@pytest.fixture(scope="module")
def ray_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """Two hosts of one core each; the last test loses one of them."""
    with hosts(2, tmp_path_factory.mktemp("hosts")) as made:
        yield RayHosts(hosts=made, address=start_ray(made.hosts))


@pytest.fixture
def on_hosts(ray_hosts: RayHosts, command: Command) -> Command:
    """The study of two trials, started on the head's host."""
    head = ray_hosts.hosts.hosts[0]
    command.prefix = tuple(head.words([]))
    command.environment = {**ON_HOSTS, **head.environment}
    # Every evaluation is saved, so that none is trained again.
    command.settings = ("--address", ray_hosts.address, "--set", "checkpoint_every_s=0")
    return command


def test_a_study_runs_on_both_hosts(on_hosts: Command, faultless: pd.DataFrame) -> None:
    on_hosts.start()
    status, said = on_hosts.end()
    assert status == 0, said
    check(on_hosts, on_hosts.rows(), faultless, matrix=[])
    trials = pd.read_parquet(on_hosts.out / "faulty" / "trials")
    assert set(trials["host"]) == {"h1", "h2"}


def test_a_host_is_cut_off_in_the_middle(
    ray_hosts: RayHosts, on_hosts: Command, faultless: pd.DataFrame, fault_matrix: list[Any]
) -> None:
    """The trial of the lost host goes on at the other one, from its last checkpoint."""
    on_hosts.start()
    on_hosts.wait_for(enough)
    before = on_hosts.rows()
    ray_hosts.hosts.cut_off(ray_hosts.hosts.hosts[1])
    struck = time.monotonic()
    on_hosts.wait_for(lambda rows: bool((rows["attempt"] == 2).any()))
    recovered = time.monotonic() - struck
    status, said = on_hosts.end()
    assert status == 0, said
    row = {"fault": "a host is cut off", "recovered after": recovered}
    check(on_hosts, before, faultless, matrix=fault_matrix, **row)
    trials = pd.read_parquet(on_hosts.out / "faulty" / "trials")
    assert set(trials["host"]) == {"h1"}
    assert sorted(trials["attempt"]) == [1, 2]
