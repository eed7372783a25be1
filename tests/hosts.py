"""Hosts on one machine, for tests of real clusters: of several, cut off, slow, with own disks.

Each host has its own network with one address, its own name, processes, mounts and /tmp. A
keeper process holds these namespaces and ends when its input does. So nothing is left when the
tests end, however they end, and two test processes may use the same names and addresses: the
switch that joins the hosts has a network of its own, too. Needs root and iproute2.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from commands import ROOT, until

RAY = str(Path(sys.executable).parent / "ray")
ON_HOSTS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "OMP_NUM_THREADS": "1",
}
RAY_PORT = 6379
# A host that is cut off is lost after 10 to 15 s instead of 40.
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
OBJECT_STORE_BYTES = 100_000_000
# `: ` at the end keeps the shell, which as process 1 of the host collects what is orphaned there.
NAMESPACES = ("--net", "--mount", "--uts", "--pid", "--mount-proc")
SWITCH = "ip link add switch type bridge && ip link set switch up && echo ready && cat; :"
HOST = """
name=$1 tmp=$2 known=$3 && shift 3 && hostname "$name" && mkdir -p -m 1777 "$tmp" &&
for shared in "$@"; do
    mkdir -p "$tmp${shared#/tmp}" && mount --bind "$shared" "$tmp${shared#/tmp}" || exit
done &&
mount --rbind "$tmp" /tmp && mount --bind "$known" /etc/hosts && ip link set lo up &&
echo ready && cat; :
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of the hosts, with the environment of what runs on it."""

    name: str
    address: str
    folder: Path
    keeper: int
    environment: dict[str, str] = field(default_factory=dict)  # a clock of its own, say
    started: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def words(self, words: Sequence[str], cwd: Path = ROOT) -> list[str]:
        """The words of a command that runs on this host."""
        enter = ("nsenter", f"--target={self.keeper}", "--net", "--mount", "--uts", "--pid")
        return [*enter, f"--wdns={cwd}", *words]

    def start(
        self, words: Sequence[str], output: IO[Any] | int = subprocess.DEVNULL, **environment: str
    ) -> "subprocess.Popen[str]":
        """A command on this host, under way."""
        process = subprocess.Popen(
            self.words(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **ON_HOSTS, **self.environment, **environment},
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str, timeout_s: float = 60, **environment: str) -> str:
        """What a command on this host printed; it must succeed."""
        process = self.start(words, subprocess.PIPE, **environment)
        printed, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"{' '.join(words)} on {self.name}: {printed}"
        return printed

    def mount_disk(self, path: Path, megabytes: int) -> None:
        """Give the host an empty disk of its own at a path, which others do not see."""
        path.mkdir(parents=True, exist_ok=True)
        self.run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """All hosts, and the switch between them."""

    hosts: tuple[Host, ...]
    switch: int

    def cut_off(self, host: Host) -> None:
        """Pull the host's cable: its processes go on, and nothing reaches or leaves it."""
        self._ip("link", "set", host.name, "down")

    def join_again(self, host: Host) -> None:
        """Plug the cable in again."""
        self._ip("link", "set", host.name, "up")

    def slow_down(self, host: Host, *, kilobits_per_s: int, loss_percent: int = 0) -> None:
        """A narrow link to and from the host, which also loses some of what the host receives.

        Not a late one: `netem`, which delays, is missing in many kernels.
        """
        narrow = ("tbf", "rate", f"{kilobits_per_s}kbit", "burst", "16kb", "latency", "2s")
        _checked("tc", "qdisc", "replace", "dev", host.name, "root", *narrow, within=self.switch)
        _checked("tc", "qdisc", "replace", "dev", "eth0", "root", *narrow, within=host.keeper)
        lost = ("statistic", "--mode", "random", "--probability", str(loss_percent / 100))
        drop = ("INPUT", "--in-interface", "eth0", "--match", *lost, "--jump", "DROP")
        _checked("iptables", "--flush", within=host.keeper)
        _checked("iptables", "--append", *drop, within=host.keeper)

    def _ip(self, *words: str) -> None:
        _checked("ip", *words, within=self.switch)


def _checked(*words: str, within: int) -> None:
    """Run a command in the network of a keeper."""
    subprocess.run(["nsenter", f"--target={within}", "--net", *words], check=True, text=True)


@contextmanager
def _keeper(namespaces: Sequence[str], script: str, *words: str) -> Iterator[int]:
    """A process that holds namespaces until this block or this process ends; skips without them."""
    process = subprocess.Popen(
        ["unshare", *namespaces, "--fork", "--kill-child", "sh", "-c", script, "sh", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            process.kill()
            pytest.skip(f"no namespaces here: {process.communicate()[1].strip()}")
        (kept,) = psutil.Process(process.pid).children()
        yield kept.pid
    finally:
        process.kill()  # and its child with it, and with that all processes of the host
        process.communicate()


@contextmanager
def hosts(count: int, folder: Path, *, loopback: bool = False) -> Iterator[Hosts]:
    """So many hosts, h1 with 10.77.0.1 and so on, each with a folder of its own.

    `loopback`: to itself each host's name is 127.0.1.1, as Debian has it.
    """
    addresses = {f"h{number}": f"10.77.0.{number}" for number in range(1, count + 1)}
    made: list[Host] = []
    with ExitStack() as stack:
        stack.callback(_collect, made)
        switch = stack.enter_context(_keeper(["--net"], SWITCH))
        for name, address in addresses.items():
            own = folder / name
            own.mkdir(parents=True)
            known = {**addresses, **({name: "127.0.1.1"} if loopback else {})}
            lines = ["127.0.0.1 localhost", *(f"{to} {host}" for host, to in known.items())]
            (own / "hosts").write_text("\n".join(lines) + "\n")
            words = (name, str(own / "tmp"), str(own / "hosts"), *_shared(folder, ROOT))
            keeper = stack.enter_context(_keeper(NAMESPACES, HOST, *words))
            _plug_in(name, address, keeper, switch)
            made.append(Host(name=name, address=address, folder=own, keeper=keeper))
        yield Hosts(hosts=tuple(made), switch=switch)


def _shared(*paths: Path) -> list[str]:
    """The folders in /tmp that the paths are in, which all hosts see."""
    tops = {Path("/tmp", path.relative_to("/tmp").parts[0]) for path in paths if _in_tmp(path)}
    return sorted(map(str, tops))


def _in_tmp(path: Path) -> bool:
    return path.is_relative_to("/tmp")


def _collect(made: list[Host]) -> None:
    """Take notice that what was started has ended with its host."""
    for host in made:
        for process in host.started:
            process.communicate(timeout=20)


def _plug_in(name: str, address: str, keeper: int, switch: int) -> None:
    """A cable from the switch, where it has the host's name, to the host, where it is eth0."""
    cable = ("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(keeper))
    _checked("ip", *cable, within=switch)
    _checked("ip", "link", "set", name, "master", "switch", "up", within=switch)
    _checked("ip", "address", "add", f"{address}/24", "dev", "eth0", within=keeper)
    _checked("ip", "link", "set", "eth0", "up", within=keeper)


# --- Ray on them ----------------------------------------------------------------------------------


def start_ray(hosts: Sequence[Host], *, num_cpus: int = 1) -> str:
    """Ray on all of them, the head on the first; returns its address when all have joined."""
    head = hosts[0]
    address = f"{head.address}:{RAY_PORT}"
    start_ray_node(head, f"--head --port={RAY_PORT} --include-dashboard=false".split(), num_cpus)
    assert until(lambda: answers_on(head), timeout_s=90), ray_log(head)
    for host in hosts[1:]:
        start_ray_node(host, [f"--address={address}"], num_cpus)
    for host in hosts:
        assert until(lambda host=host: "Ray runtime started" in ray_log(host), timeout_s=120), (
            ray_log(host)
        )
    return address


def start_ray_node(host: Host, words: list[str], num_cpus: int) -> None:
    """`ray start` on a host; what it prints is in the host's folder."""
    more = (f"--num-cpus={num_cpus}", "--num-gpus=0", "--block", "--disable-usage-stats")
    store = f"--object-store-memory={OBJECT_STORE_BYTES}"
    with open(host.folder / "ray.log", "a") as log:
        host.start(
            [RAY, "start", *words, f"--node-ip-address={host.address}", *more, store],
            log,
            **QUICK_HEALTH_CHECKS,
        )


def has_started(host: Host) -> bool:
    return "Ray runtime started" in ray_log(host)


def ray_log(host: Host) -> str:
    """What `ray start` printed on a host."""
    return (host.folder / "ray.log").read_text()


def answers_on(host: Host, port: int = RAY_PORT) -> bool:
    """Whether something listens on that port of the host."""
    listening = host.run("ss", "--listening", "--tcp", "--numeric", "--no-header")
    return f":{port} " in listening


ALIVE = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(*(node.node_manager_address for node in nodes if node.state == 0))
"""


def alive(head: Host) -> list[str]:
    """The addresses of the nodes that Ray believes to be alive."""
    return head.run(sys.executable, "-c", ALIVE, f"{head.address}:{RAY_PORT}").split()
