"""What a node lacks is told in a line before the first trial; a node that joins is asked too."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from rich.console import Console

from cluster.connect import ConnectError
from search.execution import hosts, nodes
from search.execution.hosts import Hosts
from search.execution.nodes import Needs, Newcomers, check_nodes, problems_of
from trainable.data.cache import open_data
from trainable.host import storage
from trainable.host.storage import Folder

DIGITS = open_data("digits").fingerprint


def needs_in(folder: Path, **changes: Any) -> Needs:
    """What a study of the digits asks of a node; its token is in the folder."""
    storage.write(Folder(str(folder)), ".node-token", b"")
    values: dict[str, Any] = {
        "dataset": "digits",
        "data_folder": None,
        "split_by": None,
        "data_fingerprint": DIGITS,
        "results": Folder(str(folder)),
        "token": ".node-token",
    }
    return Needs(**values | changes)


class Nodes:
    """Nodes that answer here at once, each with changes to what a sound one would say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changes: Mapping[str, Any]) -> None:
        self.changes = dict(changes)
        self.silent: set[str] = set()
        for module in (nodes, hosts):
            monkeypatch.setattr(module, "nodes_with_cores", lambda: list(self.changes))
        monkeypatch.setattr(nodes, "ask_node", self.ask)
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", lambda answer, timeout: answer())

    def ask(self, node: str, needs: Needs) -> Any:
        asked = vars(needs) | {"results": needs.results.uri, "packages": nodes.PACKAGES}

        def answer() -> dict[str, Any]:
            if error := self.changes[node].get("error"):
                raise error
            return nodes._facts()(asked) | {"host": node} | self.changes[node]

        answer.node = node  # type: ignore[attr-defined]
        return answer

    def wait(self, answers: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return [a for a in answers if a.node not in self.silent], []


def quiet() -> Console:
    return Console(quiet=True)


def test_a_node_like_this_one_has_all_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Nodes(monkeypatch, h1={}, h2={})
    check_nodes(needs_in(tmp_path), quiet())
    assert [path.name for path in tmp_path.iterdir()] == [".node-token"]


def test_every_problem_of_every_node_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {name: version(name) for name in nodes.PACKAGES}
    Nodes(
        monkeypatch,
        h1={},
        h2={"versions": versions | {"torch": "2.1.0", "timm": ""}},
        h3={"results": "what was written here is not there"},
        h4={"code": "ModuleNotFoundError: No module named 'numpy'"},
        h5={"data": "0123456789abcdef" * 4},
        h6={"data": "no pcam data in /data"},
        h7={"error": RayTaskError("facts", "it broke", ValueError("x"))},
    )
    with pytest.raises(ConnectError) as refused:
        check_nodes(needs_in(tmp_path), quiet())
    torch, timm = version("torch"), version("timm")
    *lines, last = str(refused.value).splitlines()
    assert last.startswith("h6: no pcam data in /data; the data must be at the same path")
    assert lines[0].startswith("a node of the cluster: it does not answer (")
    assert lines[1:] == [
        f"h2: timm is not installed there and {timm} here: install requirements.lock on every node",
        f"h2: torch is 2.1.0 there and {torch} here: install requirements.lock on every node",
        f"h3: --out {tmp_path} is not the same place there (what was written here is not there): "
        f"give a folder that all nodes share, or a URI such as s3://BUCKET/results",
        "h4: the code cannot be imported there: ModuleNotFoundError: No module named 'numpy'",
        f"h5: the data there (0123456789ab) is not the data here ({DIGITS[:12]}): "
        f"give every node the same files",
    ]


def test_a_folder_of_the_nodes_own_is_not_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's mistake: moved trials would start from nothing, and disks fill."""
    needs = needs_in(tmp_path)
    storage.delete_file(needs.results, needs.token)
    Nodes(monkeypatch, h1={})
    with pytest.raises(ConnectError, match=f"h1: --out {tmp_path} is not the same place there"):
        check_nodes(needs, quiet())


def test_a_node_that_joins_without_the_data_is_left_out_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(nodes, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    cluster = Nodes(monkeypatch, h1={})
    watched = Newcomers(needs_in(tmp_path), Hosts(), frozenset({"h1"}))

    def look() -> list[str]:
        clock.now_s += nodes.LOOK_S + 1
        return watched.look()

    assert look() == []
    cluster.changes |= {"h2": {}, "h3": {"data": "no digits in /data"}}
    cluster.silent = {"h3"}
    assert look() == []
    cluster.silent = set()
    (line,) = look()
    assert line == (
        "h3 is left out from now on: no digits in /data; the data must be at the same path on "
        "every node"
    )
    assert watched.hosts.left_out == {"h3": "h3: " + line.partition(": ")[2]}
    assert look() == []


def test_a_head_without_a_gpu_may_have_torch_of_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same release, of which one wheel is for cores and the other one for CUDA."""
    public = version("torch").partition("+")[0]
    versions = {name: version(name) for name in nodes.PACKAGES}
    Nodes(monkeypatch, h1={"versions": versions | {"torch": f"{public}+cu130"}})
    check_nodes(needs_in(tmp_path), quiet())
    Nodes(monkeypatch, h1={"versions": versions | {"torch": f"{public}.1+cu130"}})
    with pytest.raises(ConnectError, match=f"h1: torch is {public}.1.cu130 there and {public}"):
        check_nodes(needs_in(tmp_path), quiet())


def test_a_node_that_joined_during_the_first_check_is_asked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Nodes(monkeypatch, h1={})
    asked = check_nodes(needs_in(tmp_path), quiet())
    cluster.changes["h2"] = {"data": "no digits in /data"}
    (line,) = Newcomers(needs_in(tmp_path), Hosts(), asked).look()
    assert line.startswith("h2 is left out from now on: no digits in /data; ")


def test_a_node_that_goes_while_it_is_asked_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spot node, the only one: another one comes, and the study does not stop for that."""
    cluster = Nodes(monkeypatch, spot={"error": ray.exceptions.NodeDiedError("it was taken back")})
    watched = Newcomers(needs_in(tmp_path), Hosts(), frozenset())
    cluster.silent = {"spot"}
    assert watched.look() == []
    cluster.silent = set()
    del cluster.changes["spot"]["error"]
    watched.looked_at = -nodes.LOOK_S

    def gone(answer: Any, timeout: float) -> None:
        cluster.changes.clear()
        raise ray.exceptions.NodeDiedError("it was taken back")

    monkeypatch.setattr(ray, "get", gone)
    assert watched.look() == []
    assert watched.hosts.left_out == {}


def test_a_folder_that_a_node_may_only_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = needs_in(tmp_path)

    def refuse(folder: Folder, name: str, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(storage, "write", refuse)
    Nodes(monkeypatch, h1={})
    with pytest.raises(
        ConnectError, match=r"h1: --out .* is not the same place there \(Permission"
    ):
        check_nodes(needs, quiet())


def test_a_node_needs_nothing_of_this_project_to_answer() -> None:
    """The function is sent whole, to where the code may be what is missing."""
    code = (
        "import json, pickle, sys\n"
        "facts = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "sys.modules['trainable'] = None\n"  # it cannot be imported
        "print(json.dumps(facts({'packages': ['ray', 'no-such-package']})))\n"
        "assert not any(name.startswith('search') for name in sys.modules)"
    )
    sent = ray.cloudpickle.dumps(nodes._facts())
    words = [sys.executable, "-c", code, sent.hex()]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd="/")
    said = json.loads(done.stdout)
    assert said["host"] == socket.gethostname()
    assert said["versions"] == {"ray": version("ray"), "no-such-package": ""}
    assert said["code"].startswith("ModuleNotFoundError")


def test_a_node_that_is_gone_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(answer: Any, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError("no answer in time")

    monkeypatch.setattr(ray, "get", gone)
    (line,) = problems_of(object(), needs_in(tmp_path))
    assert line == "a node of the cluster: it does not answer (no answer in time)"
