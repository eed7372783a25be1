"""What a page that many reload costs a study: its speed beside `search.report --serve`, and alone.

    uv run python -m benchmarks.serve [--minutes 8]

A study trains on all cores. In turns of twenty seconds its page is served and loaded fifty times a
second (on this machine, too), and the server and its children are suspended. The last line is a
JSON object: `slowdown` is the median time of an epoch beside the page divided by that without it,
with a bootstrapped 95 % interval; `server_share`, what the server took of all cores' time.
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

LOADS_PER_S = 50
NUM_READERS = 4
TURN_S = 20.0
TRIAL_S = 7.0  # about, of one of the study's trials, two of which train at a time
SETTINGS = ("dataset=synthetic", "train_images=2048", "eval_images=512", "batch_size=32,64")


@dataclass(frozen=True)
class Turn:
    """Seconds since the epoch between which the page was served, or was not."""

    began: float
    ended: float
    is_served: bool
    server_s: float  # of a core


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, str]]:
    """The server's process group and the page's address, as soon as the first trial has ended."""
    while not list(folder.glob("trials/*.parquet")):
        time.sleep(0.2)
    command = [sys.executable, "-u", "-m", "search.report", str(folder), "--serve"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101
            yield process.pid, re.findall(r"http://\S+/", process.stdout.readline())[0]
        finally:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGINT)


def load(address: str, until: float, taken: list[float]) -> None:
    """Reload the page as a browser does, again and again; adds the seconds of each load.

    It asks over a bare socket: http.client would take as much of the cores as the server itself.
    """
    host, port, path = re.fullmatch(r"http://([^:]+):(\d+)(/.*)", address).groups()  # type: ignore[union-attr]
    tag, due = b"", time.time()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        while time.time() < until:
            began = time.monotonic()
            tag = reload(connection, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n".encode(), tag)
            taken.append(time.monotonic() - began)
            due = max(due + NUM_READERS / LOADS_PER_S, time.time())
            time.sleep(max(0.0, due - time.time()))


def reload(connection: socket.socket, request: bytes, tag: bytes) -> bytes:
    """Ask for the page if it is no longer the one with this tag; returns the tag that it has."""
    connection.sendall(request + b"If-None-Match: " + tag + b"\r\n\r\n")
    head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if head.split()[1] == b"200":
        left = int(fields[b"Content-Length"]) - len(body)
        while left > 0:
            left -= len(connection.recv(1 << 16))
    elif head.split()[1] != b"304":
        raise RuntimeError(f"the server answered {head.decode()}")
    return fields[b"ETag"]


def cpu_s(group: int) -> float:
    """Seconds of a core that the server and its children took so far."""
    server = psutil.Process(group)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def take_turns(study: "subprocess.Popen[bytes]", folder: Path) -> tuple[list[Turn], list[float]]:
    """Serve and suspend until the study ends; the turns, and the seconds of each load."""
    turns: list[Turn] = []
    loads: list[float] = []
    with server(folder) as (group, address):
        while study.poll() is None:
            before_s = cpu_s(group)
            is_served, began = len(turns) % 2 == 0, time.time()
            os.killpg(group, signal.SIGCONT if is_served else signal.SIGSTOP)
            if is_served:
                with ThreadPoolExecutor(NUM_READERS) as readers:
                    for _ in range(NUM_READERS):
                        readers.submit(load, address, began + TURN_S, loads)
            else:
                time.sleep(TURN_S)
            turns.append(Turn(began, time.time(), is_served, cpu_s(group) - before_s))
    return turns, loads


def epochs_of(folder: Path) -> pd.DataFrame:
    """Each epoch with when it began and ended, from the end of its trial on backwards."""
    trials = pd.read_parquet(folder / "trials").set_index("trial_key")
    epochs = pd.read_parquet(folder / "epochs").sort_values(["trial_key", "epoch"], ascending=False)
    ended = trials["ended_at"].astype("int64") / 1e6
    back = epochs.groupby("trial_key")["epoch_wall_s"].cumsum()
    began = epochs["trial_key"].map(ended) - back
    return epochs.assign(began=began, ended=began + epochs["epoch_wall_s"])


def seconds_in(epochs: pd.DataFrame, turns: list[Turn], *, is_served: bool) -> Array:
    """The seconds of the epochs that lie in such a turn."""
    inside = np.zeros(len(epochs), dtype=bool)
    for turn in turns:
        if turn.is_served == is_served:
            inside |= (epochs["began"] > turn.began) & (epochs["ended"] < turn.ended)
    return epochs.loc[inside, "epoch_wall_s"].to_numpy()


def slowdown(served: Array, alone: Array) -> float:
    """The ratio of the medians."""
    return float(np.median(served) / np.median(alone))


def trained(num_lrs: int) -> tuple[pd.DataFrame, list[Turn], list[float]]:
    """The epochs of a study of that many learning rates, the turns, the seconds of each load."""
    lrs = ",".join(f"{0.01 * 1.01**k:.5g}" for k in range(num_lrs))
    words = [word for setting in (*SETTINGS, f"base_lr={lrs}") for word in ("--set", setting)]
    command = [sys.executable, "-m", "search.run", "spaces/pcam_grid.py", "--preview"]
    with tempfile.TemporaryDirectory() as out:
        with subprocess.Popen([*command, "--out", out, *words], stdout=subprocess.DEVNULL) as study:
            turns, loads = take_turns(study, Path(out, "pcam_grid"))
        if study.returncode:
            raise RuntimeError(f"the study ended with {study.returncode}")
        return epochs_of(Path(out, "pcam_grid")), turns[:-1], loads  # the last turn was cut


def main() -> None:
    """Train, take turns, print the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve")
    parser.add_argument("--minutes", type=float, default=8.0)
    epochs, turns, loads = trained(round(60 * parser.parse_args().minutes / TRIAL_S))
    served = seconds_in(epochs, turns, is_served=True)
    alone = seconds_in(epochs, turns, is_served=False)
    drawn = stats.bootstrap((served, alone), lambda a, b: slowdown(a, b), vectorized=False)
    served_s = sum(turn.ended - turn.began for turn in turns if turn.is_served)
    server_s = sum(turn.server_s for turn in turns if turn.is_served)
    print(f"{len(served)} epochs beside the page, median {np.median(served):.3f} s")
    print(f"{len(alone)} epochs alone, median {np.median(alone):.3f} s")
    print(f"{len(loads) / served_s:.0f} loads/s, median {1000 * statistics.median(loads):.0f} ms")
    figures = {
        "slowdown": slowdown(served, alone),
        "low": drawn.confidence_interval.low,
        "high": drawn.confidence_interval.high,
        "server_share": server_s / served_s / (os.cpu_count() or 1),
    }
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
