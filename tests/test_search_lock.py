"""The study's lock: one holder, named to the others, taken over when it is dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from search import lock
from search.lock import LockedError, held
from trainable.storage import Folder

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys, time
from search.lock import held
from trainable.storage import Folder
with held(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with (
            pytest.raises(LockedError, match=f"process {holder.pid} on {socket.gethostname()}"),
            held(Folder(str(tmp_path))),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with held(Folder(str(tmp_path))):  # a dead holder's lock is taken over at once
            assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    finally:
        holder.kill()
        holder.communicate()
    assert not (tmp_path / "lock.json").exists()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    stale = {"host": socket.gethostname(), "pid": os.getpid(), "started": "b-1", "token": "t"}
    (tmp_path / "lock.json").write_text(json.dumps(stale))
    with held(Folder(str(tmp_path))):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_a_holder_elsewhere_is_alive_while_it_beats(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    path = tmp_path / "lock.json"
    elsewhere = {"host": "elsewhere", "pid": 7, "started": "x", "token": "t", "beat": 0}
    path.write_text(json.dumps(elsewhere))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.2):
            elsewhere["beat"] = int(str(elsewhere["beat"])) + 1
            path.write_text(json.dumps(elsewhere))

    beater = threading.Thread(target=beat)
    if alive:
        beater.start()
    try:
        if alive:
            with (
                pytest.raises(LockedError, match="process 7 on elsewhere"),
                held(Folder(str(tmp_path))),
            ):
                pass
        else:
            with held(Folder(str(tmp_path))):
                pass
    finally:
        stop.set()
        if alive:
            beater.join()


def test_a_lock_that_is_not_json_is_stale(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_bytes(b"\x00\x01")
    with held(Folder(str(tmp_path))):
        pass


def test_of_many_at_once_one_holds_it(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER.replace("sleep(60)", "sleep(3)"), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    said = [holder.communicate(timeout=60) for holder in holders]
    assert sum("held" in out for out, _ in said) == 1
    assert sum("LockedError" in err for _, err in said) == 4
