"""The hosts that tests of clusters run on are hosts: alone, joined, and gone afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import until
from hosts import Host, Hosts, hosts

PORT = 7000
LISTEN = f"""
import socket
with socket.create_server(("", {PORT})) as server:
    while True:
        with server.accept()[0] as connection:
            while connection.recv(65536):
                pass
"""
CONNECT = f"""
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], {PORT}), timeout=float(sys.argv[2])).close()
print(time.monotonic() - began)
"""
SEND = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT})) as connection:
    connection.sendall(bytes(200_000))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
"""
PROCESSES = "import psutil; print(*(process.name() for process in psutil.process_iter()))"


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(2, tmp_path_factory.mktemp("hosts")) as made:
        made.hosts[1].start([sys.executable, "-c", LISTEN])
        yield made


def reached_in(from_host: Host, to: Host, timeout_s: float = 2.0) -> float | None:
    """The seconds that a connection takes; None where there is none."""
    words = [sys.executable, "-c", CONNECT, to.address, str(timeout_s)]
    with from_host.start(words, subprocess.PIPE) as connecting:
        printed = connecting.communicate()[0]
    return None if connecting.returncode else float(printed)


def test_each_host_is_its_own(two_hosts: Hosts, tmp_path: Path) -> None:
    one, other = two_hosts.hosts
    for host in two_hosts.hosts:
        assert host.run("hostname").strip() == host.name
        assert f"inet {host.address}/24" in host.run("ip", "address")
        host.run("mkdir", f"/tmp/own-{host.name}")
        assert host.run("bash", "-c", "cd /tmp; echo own*").split() == [f"own-{host.name}"]
        assert set(host.run(sys.executable, "-c", PROCESSES).split()) <= {"sh", "cat", "python"}
    one.mount_disk(tmp_path / "disk", megabytes=1)
    with pytest.raises(AssertionError, match="No space left on device"):
        one.run("dd", "if=/dev/zero", f"of={tmp_path}/disk/file", "bs=1M", "count=2")
    assert "file" in one.run("ls", str(tmp_path / "disk"))
    assert other.run("ls", str(tmp_path / "disk")) == ""


def test_a_host_is_cut_off_joined_again_and_slow(two_hosts: Hosts) -> None:
    one, other = two_hosts.hosts
    assert until(lambda: reached_in(one, other) is not None, 20)
    two_hosts.cut_off(other)
    assert reached_in(one, other) is None
    two_hosts.join_again(other)
    assert until(lambda: reached_in(one, other) is not None, 20)


@pytest.mark.skipif(not (shutil.which("tc") and shutil.which("iptables")), reason="no tc, iptables")
def test_a_host_is_slow(two_hosts: Hosts) -> None:
    one, other = two_hosts.hosts
    assert until(lambda: reached_in(one, other) is not None, 20)
    two_hosts.slow_down(other, kilobits_per_s=400)
    began = time.monotonic()
    sent = one.start([sys.executable, "-c", SEND, other.address], subprocess.PIPE)
    assert sent.communicate(timeout=30)[0] == ""
    assert time.monotonic() - began > 3  # 200 kB
    two_hosts.slow_down(other, kilobits_per_s=1_000_000)


def test_two_labs_do_not_meet(two_hosts: Hosts, tmp_path: Path) -> None:
    with hosts(2, tmp_path) as second:
        assert second.hosts[1].address == two_hosts.hosts[1].address
        assert reached_in(second.hosts[0], second.hosts[1]) is None
        assert reached_in(*two_hosts.hosts) is not None


MAKE = """
import sys, time
from pathlib import Path
from hosts import hosts
with hosts(1, Path(sys.argv[1])) as made:
    made.hosts[0].start(["setsid", "sleep", "1000"])
    print(made.hosts[0].keeper, flush=True)
    time.sleep(1000)
"""


def test_nothing_is_left_where_the_tests_are_killed(two_hosts: Hosts, tmp_path: Path) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, check=True).stdout
    making = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert making.stdout is not None
    keeper = int(making.stdout.readline())
    namespace = namespace_of(keeper)
    assert namespace is not None

    def left() -> list[int]:
        return [p for p in psutil.pids() if namespace_of(p) == namespace]

    assert until(lambda: len(left()) >= 3, 20)  # the keeper, what it waits for, and the sleeping
    making.send_signal(signal.SIGKILL)
    making.communicate()
    assert until(lambda: left() == [], 20)
    after = subprocess.run(["ip", "-o", "link"], capture_output=True, check=True).stdout
    assert after == links


def namespace_of(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:  # ended meanwhile
        return None
