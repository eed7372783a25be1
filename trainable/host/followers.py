"""The processes of a trial's other ranks: started, told what to train, watched, ended.

The process that starts them is the first rank, and all are on one node. They wait for the next
trial when one has ended, since starting a process and importing torch takes seconds. They end with
the process that started them, whatever ends it: their end of a pipe is closed then, and on Linux
the kernel ends them, even where they are stopped.
"""

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from trainable.host.device import pick_device
from trainable.host.ranks import LEAVE, LeftError, RankLostError, Ranks

ANSWER_S = 600.0  # a rank that leaves the others waiting for longer is lost
START_S = 300.0  # to start a process and to import torch, on a busy machine
GRACE_S = 30.0  # for the first rank to notice another one's error and to say it
NOTICE_S = 5.0  # between a broken connection and the end of the process at its other end
POLL_S = 0.05
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# The kernel's word that a parent has died comes when the thread ends that started the process.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="ranks")
READY, JOINED = "ready", "joined"  # what another rank says at its start
MAIN = "from trainable.host.followers import main; main()"


class Followers:
    """Ranks 1 and up of the trials of this process, which is rank 0 of `size`.

    `on_loss` is called, in another thread, when one of them ends while a trial is under way: the
    first rank may wait in a GPU's kernel for an answer that never comes.
    """

    def __init__(self, size: int, *, on_loss: Callable[[], None] = lambda: None) -> None:
        """No process is started yet."""
        self.size, self.on_loss = size, on_loss
        self.processes: list[subprocess.Popen[bytes]] = []
        self.connections: list[Connection[Any, Any]] = []
        self.errors: list[str] = []  # of those that ended, empty if nothing was said
        self.under_way = False

    def start(self) -> None:
        """Start the processes, if they do not run; they import torch meanwhile."""
        if self.processes and not self.errors:
            return
        self.close()
        for _ in range(1, self.size):
            ours, theirs = Pipe()
            self.processes.append(_STARTER.submit(_process, theirs).result())
            self.connections.append(ours)
            theirs.close()

    @contextmanager
    def training(self, follow: Callable[..., None], *arguments: Any) -> Iterator[Ranks]:
        """In this context the others do `follow(ranks, *arguments)`, and this process its part.

        They stay for the next trial, unless this process ends this one in the middle.

        Raises:
            RankLostError: one of them ended without a word, or does not answer.
            RuntimeError: one of them ended with an error, which the message has.
        """
        self.start()
        self.under_way = True
        try:
            if not dist.is_initialized():
                self._join()
            self._send((follow, arguments))
            yield Ranks(0, self.size, tell=self._tell)
        except BaseException as error:
            reason = self._error_of_one() if isinstance(error, RankLostError) else ""
            if self.under_way:  # the others may be anywhere
                self.close()
            if reason:
                raise RuntimeError(f"a rank of this trial ended with an error: {reason}") from error
            raise
        finally:
            self.under_way = False

    def close(self) -> None:
        """End the processes, and what joins them to this one."""
        self.under_way = False
        for process in self.processes:
            process.kill()
        for process, connection in zip(self.processes, self.connections, strict=True):
            process.wait()
            connection.close()
        self.processes, self.connections, self.errors = [], [], []
        if dist.is_initialized():
            dist.destroy_process_group()

    def _join(self) -> None:
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            store = str(Path(folder) / "store")
            for rank, connection in enumerate(self.connections, 1):
                connection.send((rank, self.size, store))
            self._wait_for(READY, START_S)
            join(0, self.size, store)
            self._wait_for(JOINED, ANSWER_S)  # until then they read the store
            for process, connection in zip(self.processes, self.connections, strict=True):
                watch = (process, connection, self.errors)
                threading.Thread(target=self._watch, args=watch, daemon=True).start()

    def _wait_for(self, word: str, limit_s: float) -> None:
        """Wait until each of the others has said the word."""
        deadline = time.monotonic() + limit_s
        for connection in self.connections:
            while not connection.poll(POLL_S):
                if time.monotonic() > deadline:
                    raise RankLostError(f"a rank of this trial is not {word} after {limit_s:g} s")
            try:
                message = connection.recv()
            except EOFError as error:
                raise RankLostError("a rank of this trial ended at its start") from error
            if message != word:
                self.errors.append(message)
                raise RankLostError("a rank of this trial ended at its start")

    def _watch(
        self,
        process: "subprocess.Popen[bytes]",
        connection: "Connection[Any, Any]",
        errors: list[str],
    ) -> None:
        process.wait()
        try:
            error = connection.recv() if connection.poll() else ""
        except (EOFError, OSError):  # closed with the process, or by `close`
            error = ""
        errors.append(error)
        if error:
            time.sleep(GRACE_S)
        if self.under_way and errors is self.errors:
            self.on_loss()

    def _error_of_one(self) -> str:
        """What one of them said when it ended; empty if none did so."""
        deadline = time.monotonic() + NOTICE_S
        while not self.errors and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return "".join(self.errors)

    def _tell(self, word: str) -> None:
        self._send(word)
        if word == LEAVE:
            self.under_way = False

    def _send(self, message: object) -> None:
        try:
            for connection in self.connections:
                connection.send(message)
        except OSError as error:
            raise RankLostError(f"a rank of this trial has ended: {error}") from error


def _process(connection: "Connection[Any, Any]") -> "subprocess.Popen[bytes]":
    """A process that imports what this one can import, and listens to the connection."""
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, str(connection.fileno())],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=[connection.fileno()],
        start_new_session=True,  # Ctrl-C is for the first rank, which ends the others
    )


def join(rank: int, size: int, store: str) -> None:
    """Meet the other ranks at the file `store`; each takes the GPU of its number.

    Raises:
        ValueError: there are fewer GPUs than ranks.
    """
    backend = "gloo"
    if pick_device().type == "cuda":
        if torch.cuda.device_count() < size:
            raise ValueError(
                f"a trial on {size} GPUs finds {torch.cuda.device_count()}: set a smaller "
                f"gpus_per_trial"
            )
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    for _, name in socket.if_nameindex():  # the host's own name may lead elsewhere
        if name in ("lo", "lo0"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    dist.init_process_group(
        backend,
        store=dist.FileStore(store, size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=ANSWER_S),
    )


def main() -> None:
    """One rank, from its start to its end: it does what the first rank sends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    heard: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, heard), daemon=True).start()

    def hear() -> Any:
        message = heard.get()
        if isinstance(message, Exception):
            raise message
        return message

    try:
        rank, size, store = hear()
        connection.send(READY)
        join(rank, size, store)
        connection.send(JOINED)
        ranks = Ranks(rank, size, hear=hear)
        while True:
            _follow(ranks, *hear())
    except RankLostError:  # the first rank knows it too
        os._exit(1)
    except BaseException as error:
        traceback.print_exc()  # for the worker's log
        # Ray starts a trial again whose worker is lost: after an error of a GPU that is of use.
        if not isinstance(error, torch.AcceleratorError):
            connection.send("".join(traceback.format_exception(error)))
        os._exit(1)


def _follow(ranks: Ranks, follow: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with suppress(LeftError):
        follow(ranks, *arguments)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _listen(connection: "Connection[Any, Any]", heard: "SimpleQueue[Any]") -> None:
    try:
        while True:
            heard.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)  # the first rank is gone
    except Exception as error:  # what was sent cannot be imported here
        heard.put(error)
