"""cluster/slurm.sh in a SLURM of three hosts: a study on all, preempted, told to end, cancelled.

    uv run pytest -m slow tests/test_cluster_slurm.py

Needs Debian's packages slurm-wlm and munge beside what tests/hosts.py needs.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import ROOT, until
from faulty_study import SPACE
from hosts import Host, hosts

from search.results import tables
from search.results.tables import Results
from trainable.host.storage import folder_at

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
CONFIGURATION = """
ClusterName=lab
SlurmctldHost=h1(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
NodeName=h1 NodeAddr=10.77.0.1 CPUs=2 State=UNKNOWN
NodeName=h2 NodeAddr=10.77.0.2 CPUs=2 State=UNKNOWN
NodeName=h3 NodeAddr=10.77.0.3 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=h[1-3] Default=YES State=UP PriorityTier=1
PartitionName=urgent Nodes=h[1-3] State=UP PriorityTier=10
"""
# `cred_expire`: a job that went back into the queue waits so long, by default two minutes.
CGROUP = "CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n"
MAX_JOB_S = 900


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A SLURM under way, and the folder that jobs are submitted from."""

    hosts: tuple[Host, ...]
    configuration: Path
    repository: Path

    def run(self, *words: str) -> str:
        return self.hosts[0].run(*words, SLURM_CONF=str(self.configuration))

    def submit(self, out: Path, setting: str, options: Sequence[str]) -> str:
        """The number of a job with the study."""
        job = ("sbatch", "--parsable", "--cpus-per-task=1", *options)
        where = (f"--chdir={self.repository}", f"--output={out}/job.log")
        words = (*job, *where, str(ROOT / "cluster/slurm.sh"))
        study = (str(SPACE), "--out", str(out), "--set", "batch_size=32,64,96", "--set", setting)
        study += ("--set", "checkpoint_every_s=0")  # nothing is trained again
        return self.run(*words, *study).strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def end(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job that has ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        assert until(lambda: self.job(number)["JobState"] in ended, MAX_JOB_S), self.job(number)
        return self.job(number)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    for program in ("slurmctld", "slurmd", "munged", "mungekey"):
        if shutil.which(program, path="/usr/sbin") is None:
            pytest.skip(f"no {program} here")
    folder = tmp_path_factory.mktemp("slurm")
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder))
    (folder / "cgroup.conf").write_text(CGROUP)
    (folder / "state").mkdir()
    (folder / "repository").mkdir()  # Ray's log is written there
    for name in ("search", "trainable", "spaces", "cluster", "tests", ".venv"):
        (folder / "repository" / name).symlink_to(ROOT / name)
    with hosts(3, folder / "hosts", loopback=True) as made:
        one = made.hosts[0]
        one.run("mungekey", "--create", f"--keyfile={folder}/munge.key")
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        one.start(["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files])
        assert until((folder / "munge.socket").exists)
        one.start(["slurmctld", "-D", "-f", str(configuration)])
        for host in made.hosts:
            host.run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
            host.start(["slurmd", "-D", "-N", host.name, "-f", str(configuration)])
        lab = Slurm(hosts=made.hosts, configuration=configuration, repository=folder / "repository")
        ready = ("sinfo", "--noheader", "--partition=all", "--format=%t %D")
        assert until(lambda: lab.run(*ready).split() == ["idle", "3"], 60), lab.run("sinfo")
        yield lab


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study as a job under way."""

    slurm: Slurm
    number: str
    out: Path

    def rows(self) -> pd.DataFrame:
        return tables.epochs(Results("faulty", folder_at(str(self.out / "faulty"))))

    def wait_for_rows(self) -> pd.DataFrame:
        """The rows when a trial on each node has some."""
        assert until(
            lambda: (self.rows().groupby("trial_key").size() >= 3).sum() >= 2, MAX_JOB_S
        ), self.printed()
        return self.rows()

    def printed(self) -> str:
        return (self.out / "job.log").read_text()

    def ends_well(self, before: pd.DataFrame | None = None) -> dict[str, str]:
        """Wait for the end of the study: complete, and with the rows that were seen before."""
        job = self.slurm.end(self.number)
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), self.printed()
        trials = pd.read_parquet(self.out / "faulty" / "trials")
        assert list(trials["status"]) == ["completed"] * 3
        assert tables.faults(tables.open_folder(str(self.out / "faulty"))) == []
        after = self.rows().set_index(["trial_key", "epoch"])
        assert not after.index.duplicated().any()
        assert len(after) == trials["epochs_completed"].sum()
        if before is not None:
            seen = before.set_index(["trial_key", "epoch"])
            assert after.loc[seen.index, "epoch_wall_s"].equals(seen["epoch_wall_s"])
        return job


@pytest.fixture
def start(slurm: Slurm, tmp_path: Path, drawn_patches: None) -> Iterator[Callable[..., Job]]:
    """Submits the study, and cancels its job where a test fails."""
    jobs: list[str] = []

    def submitted(epochs: int, *options: str) -> Job:
        out = tmp_path / str(len(jobs))
        out.mkdir()
        jobs.append(slurm.submit(out, f"epochs={epochs}", options or ("--nodes=2",)))
        return Job(slurm=slurm, number=jobs[-1], out=out)

    yield submitted
    slurm.run("scancel", "--quiet", *jobs)
    assert until(lambda: slurm.run("squeue", "--noheader") == "", 90)


def test_a_study_on_three_nodes_and_its_quiet_end(start: Callable[..., Job]) -> None:
    job = start(20, "--nodes=3")
    report = job.out / "faulty" / "report.html"
    assert until(report.exists, MAX_JOB_S), job.printed()
    written = time.monotonic()
    job.ends_well()
    assert time.monotonic() - written < 30
    trials = pd.read_parquet(job.out / "faulty" / "trials")
    assert set(trials["host"]) == {"h1", "h2", "h3"}
    assert job.printed().splitlines()[-1].startswith("report: ")
    for host in job.slurm.hosts:
        assert until(lambda host=host: "raylet" not in host.run("ps", "-e", "-o", "args"))


def test_a_job_that_is_preempted_goes_on_afterwards(
    start: Callable[..., Job], fault_matrix: list[Any]
) -> None:
    job = start(120)
    before = job.wait_for_rows()
    urgent = ("--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null")
    job.slurm.run("sbatch", *urgent, "--wrap=sleep 3")
    struck = time.monotonic()
    assert until(lambda: job.slurm.job(job.number)["Restarts"] == "1", 60)
    noticed, num_before = time.monotonic() - struck, len(job.rows())
    assert until(lambda: len(job.rows()) > num_before, MAX_JOB_S), job.printed()
    went_on = time.monotonic() - struck
    job.ends_well(before)
    row = {"fault": "a SLURM job is preempted", "detected after": noticed}
    row |= {"recovered after": went_on, "epochs done again": 0, "rows lost": 0, "doubled": 0}
    fault_matrix.append(row)


def test_a_job_whose_time_is_nearly_over_goes_on_afterwards(start: Callable[..., Job]) -> None:
    """With the signal that `--signal=B:TERM@120` sends."""
    job = start(120)
    before = job.wait_for_rows()
    job.slurm.run("scancel", "--batch", "--signal=TERM", job.number)
    assert until(lambda: job.slurm.job(job.number)["Restarts"] == "1", 60), job.printed()
    assert "interrupted: " in job.printed()
    job.ends_well(before)


def test_a_job_that_is_cancelled_stays_so(start: Callable[..., Job]) -> None:
    job = start(500)
    job.wait_for_rows()
    job.slurm.run("scancel", job.number)
    ended = job.slurm.end(job.number)
    assert ended["JobState"] == "CANCELLED"
    time.sleep(10)
    assert job.slurm.job(job.number)["Restarts"] == "0"
    assert job.slurm.job(job.number)["JobState"] == "CANCELLED"


def test_two_jobs_on_the_same_node(start: Callable[..., Job]) -> None:
    jobs = [start(20, "--nodes=1", "--nodelist=h1") for _ in range(2)]
    assert until(lambda: all(len(job.rows()) for job in jobs), MAX_JOB_S)
    for job in jobs:
        job.ends_well()
        assert set(pd.read_parquet(job.out / "faulty" / "trials")["host"]) == {"h1"}
