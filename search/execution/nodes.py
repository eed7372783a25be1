"""Whether every node of the cluster can train the study; nodes that join later are asked too."""

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from cluster.connect import ConnectError
from search.execution.hosts import Hosts, nodes_with_cores
from search.execution.preflight import Ready
from trainable.config import CLASSIFICATION
from trainable.host import storage
from trainable.host.storage import Folder

PACKAGES = ("ray", "torch", "torchvision", "timm")
LOOK_S = 5.0  # between two looks for new nodes
ANSWER_S = 1800.0  # the first command on a node decodes its data


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a node must have: the data, and the results' folder with a file in it."""

    dataset: str
    data_folder: str | None
    split_by: str | None
    data_fingerprint: str
    results: Folder
    token: str
    task: str = CLASSIFICATION


@contextmanager
def needs_known(ready: Ready) -> Iterator[Needs]:
    """What nodes must have; the file that they look for is in the results' folder in the block."""
    folder = ready.results.folder
    needs = Needs(
        dataset=ready.study.base.dataset,
        data_folder=str(ready.data_folder) if ready.data_folder else None,
        split_by=ready.study.base.split_by,
        task=ready.study.base.task,
        data_fingerprint=ready.data_fingerprint,
        results=folder,
        token=f".node-{uuid.uuid4().hex}",
    )
    storage.write(folder, needs.token, b"")
    try:
        yield needs
    finally:
        with suppress(OSError):  # an empty file, which says nothing of how the study ended
            storage.delete_file(folder, needs.token)


def check_nodes(needs: Needs, console: Console) -> frozenset[str]:
    """Ask all nodes at once whether they can train; returns the ids of those that were asked.

    Raises:
        ConnectError: some cannot; the message has a line for each problem.
    """
    asked = {node: ask_node(node, needs) for node in nodes_with_cores()}
    with console.status(f"checking {len(asked)} nodes: code, packages, data and --out"):
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    problems = [line for answer in asked.values() for line in problems_of(answer, needs)]
    if problems:
        raise ConnectError("\n".join(sorted(problems)))
    return frozenset(asked)


@dataclass
class Newcomers:
    """Nodes that joined after the first check; those that cannot train are left out."""

    needs: Needs
    hosts: Hosts
    known: frozenset[str]
    asked: dict[str, Any] = field(default_factory=dict)
    looked_at: float = -math.inf

    def look(self) -> list[str]:
        """Ask new nodes, take in answers; returns a line for each problem.

        Raises:
            NoHostError: no node is left.
        """
        if time.monotonic() - self.looked_at < LOOK_S:
            return []
        self.looked_at = time.monotonic()
        for node in set(nodes_with_cores()) - self.known:
            self.known |= {node}
            self.asked[node] = ask_node(node, self.needs)
        lines = []
        for node, answer in list(self.asked.items()):
            if ray.wait([answer], timeout=0)[0]:
                del self.asked[node]
                problems = problems_of(answer, self.needs)
                if problems and node in nodes_with_cores():  # not one that has gone meanwhile
                    host, _, why = problems[0].partition(": ")
                    lines += [*problems[1:], self.hosts.leave_out(node, host, why)]
        return lines


def ask_node(node: str, needs: Needs) -> Any:
    """A reference to what the node has: the facts that `problems_of` judges."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_facts()).options(scheduling_strategy=strategy)
    return task.remote(vars(needs) | {"results": needs.results.uri, "packages": PACKAGES})


def problems_of(answer: Any, needs: Needs) -> list[str]:
    """A sentence for each thing that keeps a node from training, with its host's name."""
    try:
        facts: Mapping[str, Any] = ray.get(answer, timeout=0)
    except RayError as error:
        why = " ".join(str(error).split())[:200]
        return [f"a node of the cluster: it does not answer ({why})"]
    host, problems = facts["host"], []
    for package in PACKAGES:
        there, here = facts["versions"].get(package, ""), version(package)
        if _release(there) != _release(here):
            problems.append(
                f"{host}: {package} is {there or 'not installed'} there and {here} here: install "
                f"requirements.lock on every node"
            )
    if facts["code"]:
        problems.append(f"{host}: the code cannot be imported there: {facts['code']}")
    elif facts["results"]:
        problems.append(
            f"{host}: --out {needs.results.uri} is not the same place there ({facts['results']}): "
            f"give a folder that all nodes share, or a URI such as s3://BUCKET/results"
        )
    if not facts["code"] and facts["data"] != needs.data_fingerprint:
        problems.append(f"{host}: {_data_problem(facts['data'], needs)}")
    return problems


def _release(version: str) -> str:
    """A version without its build: the same release may be there for cores and for CUDA."""
    return version.partition("+")[0]


def _data_problem(there: str, needs: Needs) -> str:
    if len(there) == len(needs.data_fingerprint) and " " not in there:
        return (
            f"the data there ({there[:12]}) is not the data here "
            f"({needs.data_fingerprint[:12]}): give every node the same files"
        )
    return f"{there}; the data must be at the same path on every node"


def _facts() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that Ray sends as a whole: a node may lack this module, or any other."""

    def facts(needs: dict[str, Any]) -> dict[str, Any]:
        """Look at this node: its packages, the code, the data, the results' folder."""
        import socket
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        def version_of(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return ""

        about: dict[str, Any] = {
            "host": socket.gethostname(),
            "code": "",
            "results": "",
            "data": "",
        }
        about["versions"] = {package: version_of(package) for package in needs["packages"]}
        try:
            from trainable.data.cache import open_data
            from trainable.host import storage
        except Exception as error:
            return about | {"code": f"{type(error).__name__}: {error}"}
        try:
            folder = storage.Folder(needs["results"])
            storage.read(folder, needs["token"])
            own = f"{needs['token']}-{socket.gethostname()}"
            storage.write(folder, own, b"")
            storage.delete_file(folder, own)
        except FileNotFoundError:
            about["results"] = "what was written here is not there"
        except Exception as error:
            about["results"] = f"{type(error).__name__}: {error}"
        try:
            where = needs["data_folder"]
            where = Path(where) if where else None
            of_data = {name: needs[name] for name in ("split_by", "task")}
            data = open_data(needs["dataset"], where, **of_data)
            about["data"] = data.fingerprint
        except Exception as error:
            about["data"] = str(error)
        return about

    return facts
