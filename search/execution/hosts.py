"""Which nodes of the cluster are left out of a study, and when it stops for want of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

LIKE_FAILURES = 3  # so many in a row on a node, and of two trials at least: it is the node's fault
FAILURES_EVERYWHERE = 20  # so many in a row on all nodes together


class NoHostError(RuntimeError):
    """No host can train the study; the message says why. No trial failed for that."""


@dataclass
class Hosts:
    """What went wrong on each node since a trial last got on there, and who is left out."""

    left_out: dict[str, str] = field(default_factory=dict)  # node id -> host and reason
    in_a_row: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind, trial's key
    num_in_a_row: int = 0

    def got_on(self, node: str) -> None:
        """A trial reported an evaluation from there."""
        self.in_a_row.pop(node, None)
        self.num_in_a_row = 0

    def failed(self, key: str, error: Mapping[str, Any]) -> str:
        """A worker reported an error of its host's; returns a sentence if that is left out now.

        Raises:
            NoHostError: no node is left, or all that are there fail.
        """
        node, host, reason = error["node"], error["host"], error["reason"]
        failures = self.in_a_row.setdefault(node, [])
        failures.append((error["kind"], key))
        self.num_in_a_row += 1
        if self.num_in_a_row >= FAILURES_EVERYWHERE:
            raise NoHostError(
                f"{self.num_in_a_row} workers failed one after the other, the last on {host}: "
                f"{reason}"
            )
        like = [trial for kind, trial in failures if kind == error["kind"]]
        if node in self.left_out or len(like) < LIKE_FAILURES or len(set(like)) == 1:
            return ""
        return self.leave_out(node, host, f"{len(like)} workers in a row failed there: {reason}")

    def leave_out(self, node: str, host: str, why: str) -> str:
        """Send no more trials to a node; returns the sentence that says so.

        Raises:
            NoHostError: all nodes that are there are left out.
        """
        self.left_out[node] = f"{host}: {why}"
        there = set(nodes_with_cores())
        if there and there <= set(self.left_out):
            raise NoHostError(f"no host is left to train on: {'; '.join(self.left_out.values())}")
        return f"{host} is left out from now on: {why}"


def nodes_with_cores() -> list[str]:
    """The ids of the nodes that are there and can train."""
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
