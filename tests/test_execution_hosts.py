"""Nodes whose workers fail one after the other are left out; without any left a study stops."""

from typing import Any

import pytest

from search.execution import hosts
from search.execution.hosts import FAILURES_EVERYWHERE, Hosts, NoHostError


@pytest.fixture(autouse=True)
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "nodes_with_cores", lambda: ["n1", "n2", "n3"])


def error(node: str, kind: str = "AcceleratorError") -> dict[str, Any]:
    return {"kind": kind, "reason": f"{kind}: x", "node": node, "host": f"host of {node}"}


def test_a_host_is_left_out_after_three_like_failures_of_two_trials() -> None:
    watched = Hosts()
    assert watched.failed("a", error("n1")) == ""
    assert watched.failed("a", error("n1", "OSError")) == ""
    assert watched.failed("a", error("n1")) == ""
    assert watched.failed("a", error("n1")) == ""  # which may be the trial's own fault
    assert watched.failed("b", error("n1")) == (
        "host of n1 is left out from now on: 4 workers in a row failed there: AcceleratorError: x"
    )
    assert watched.failed("b", error("n1")) == ""  # it was said
    assert list(watched.left_out) == ["n1"]


def test_an_evaluation_from_there_clears_a_host() -> None:
    watched = Hosts()
    for key in ("a", "b"):
        watched.failed(key, error("n1"))
        watched.failed(key, error("n2"))
    watched.got_on("n1")
    assert watched.failed("c", error("n1")) == ""
    assert watched.failed("c", error("n2")) != ""


def test_the_study_stops_when_no_host_is_left() -> None:
    watched = Hosts()
    for node in ("n1", "n2", "n3"):
        for key in ("a", "b"):
            watched.failed(key, error(node))
    watched.failed("c", error("n1"))
    watched.failed("c", error("n3"))
    with pytest.raises(
        NoHostError, match=r"no host is left to train on: host of n1: 3 .* n2: 3 wo"
    ):
        watched.failed("c", error("n2"))


def test_a_cluster_without_any_node_for_a_moment_is_not_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Hosts()
    monkeypatch.setattr(hosts, "nodes_with_cores", list)
    assert watched.leave_out("n1", "h1", "no data") == "h1 is left out from now on: no data"


def test_the_study_stops_where_new_hosts_fail_for_ever() -> None:
    watched = Hosts()
    for i in range(FAILURES_EVERYWHERE - 1):
        watched.failed("a", error(f"spot{i}"))
    with pytest.raises(NoHostError, match=f"{FAILURES_EVERYWHERE} workers failed one after the"):
        watched.failed("a", error("the next"))
