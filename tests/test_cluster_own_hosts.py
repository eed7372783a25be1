"""cluster/own_hosts.yaml over SSH: `ray up`, a study on all hosts, `ray down`.

    uv run pytest -m slow tests/test_cluster_own_hosts.py

Needs Debian's packages openssh-server and rsync beside what tests/hosts.py needs. Only one thing of
the file is left out: hosts without a network beyond them install no packages, and use those here.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from commands import ROOT, until
from faulty_study import SPACE
from hosts import ON_HOSTS, RAY, Host, alive, hosts

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
HOME = Path("/tmp/home")  # each host has its own
SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""


@dataclass(frozen=True, kw_only=True)
class OwnHosts:
    """A head, another host, and the machine of the one who types."""

    head: Host
    other: Host
    desk: Host
    file: Path

    def ray(self, command: str, *words: str) -> str:
        """What one of Ray's commands that take the cluster's file printed."""
        program = [RAY, command, "-y"] if command in ("up", "down") else [RAY, command]
        return self.desk.run(*program, str(self.file), *words, timeout_s=280, HOME=str(HOME))


@pytest.fixture
def own_hosts(tmp_path: Path) -> Iterator[OwnHosts]:
    for program in ("sshd", "ssh", "rsync", "ssh-keygen"):
        if shutil.which(program, path=f"/usr/sbin:{os.environ['PATH']}") is None:
            pytest.skip(f"no {program} here")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("key", "host_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "passwd").write_text(
        f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    )
    with hosts(3, tmp_path / "hosts", loopback=True) as made:
        for host in made.hosts:
            prepare(host, folder)
        head, other, desk = made.hosts
        write = f"umask 077; mkdir {HOME}/.ray; echo {ON_HOSTS['RAY_AUTH_TOKEN']} > $0"
        desk.run("bash", "-c", write, f"{HOME}/.ray/auth_token")
        file = tmp_path / "own_hosts.yaml"
        file.write_text(yaml.safe_dump(filled_in(head, other, folder / "key")))
        yield OwnHosts(head=head, other=other, desk=desk, file=file)


def prepare(host: Host, folder: Path) -> None:
    """An SSH server, a home, and in it the packages of this environment."""
    host.run("mkdir", "-p", f"{HOME}/batch-lr-search", "/run/sshd")
    host.run("ln", "-s", str(ROOT / ".venv"), f"{HOME}/batch-lr-search/.venv")
    host.run("mount", "--bind", str(folder / "passwd"), "/etc/passwd")
    host.start(["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config")])


def filled_in(head: Host, other: Host, key: Path) -> dict[str, object]:
    """The file as a reader changes it."""
    text = (ROOT / "cluster" / "own_hosts.yaml").read_text()
    text = text.replace("REPLACE-head", head.address).replace("REPLACE-worker-1", other.address)
    text = text.replace(", REPLACE-worker-2", "").replace("~/.ssh/REPLACE", str(key))
    text = text.replace("ssh_user: REPLACE", "ssh_user: root")
    assert "REPLACE " not in text
    assert "REPLACE-" not in text
    cluster: dict[str, object] = yaml.safe_load(text)
    commands = cluster["setup_commands"]
    assert isinstance(commands, list)
    cluster["setup_commands"] = [words for words in commands if " install " not in words]
    assert len(commands) == 3
    return cluster


def test_a_study_on_own_hosts(own_hosts: OwnHosts, tmp_path: Path, drawn_patches: None) -> None:
    own_hosts.ray("up", "--no-config-cache")
    both = [own_hosts.head.address, own_hosts.other.address]
    assert until(lambda: sorted(alive(own_hosts.head)) == both, 180)
    out = tmp_path / "results"
    words = f"python -u -m search.run {SPACE} --address auto --out {out}"
    cache = f"export DATA_CACHE_DIR={os.environ['DATA_CACHE_DIR']}"
    printed = own_hosts.ray("exec", f"{cache}; cd ~/batch-lr-search && {words}")
    assert "2 node(s)" in printed
    trials = pd.read_parquet(out / "faulty" / "trials")
    assert list(trials["status"]) == ["completed"] * 2
    own_hosts.ray("down")
    for host in (own_hosts.head, own_hosts.other):
        assert until(lambda host=host: "raylet" not in host.run("ps", "-e", "-o", "args"), 120)
