"""The study's lock: one holder, named to the others, taken over when it is dead."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import ROOT

from search.explore import choices
from search.results import lock
from search.results.lock import LockedError, held
from trainable.host.storage import Folder, TakenOverError

HOLDER = """
import sys, time
from search.results.lock import held
from trainable.host.storage import Folder
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


# --- the same, step by step: no process is started ------------------------------------------------


def write_lock(folder: Path, **holder: object) -> dict[str, object]:
    said = {"host": "elsewhere", "pid": 7, "started": "x", "token": "theirs", "beat": 0, **holder}
    (folder / "lock.json").write_text(json.dumps(said))
    return said


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lock_says_who_holds_it_and_is_gone_with_its_holder(tmp_path: Path) -> None:
    with held(Folder(str(tmp_path))):
        said = json.loads((tmp_path / "lock.json").read_text())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        assert said["host"] == socket.gethostname()
        assert said["pid"] == os.getpid()
        assert said["started"] == f"{boot}-{ticks}"
        assert said["beat"] == 0
        assert len(said["token"]) == 32
        (beater,) = (thread for thread in threading.enumerate() if thread.name == "lock")
        assert beater.daemon  # it does not keep a process alive that ends otherwise
        with pytest.raises(LockedError), held(Folder(str(tmp_path))):
            pass
        assert json.loads((tmp_path / "lock.json").read_text()) == said
        (tmp_path / "tables").touch()
    assert left_in(tmp_path) == ["tables"]
    assert "lock" not in {thread.name for thread in threading.enumerate()}


def test_an_error_under_the_lock_lets_it_go(tmp_path: Path) -> None:
    (tmp_path / "tables").touch()
    with pytest.raises(ZeroDivisionError), held(Folder(str(tmp_path))):
        raise ZeroDivisionError
    assert left_in(tmp_path) == ["tables"]


def test_a_lock_that_another_took_over_is_not_deleted(tmp_path: Path) -> None:
    with held(Folder(str(tmp_path))):
        theirs = write_lock(tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text()) == theirs
    (tmp_path / "lock.json").unlink()
    with held(Folder(str(tmp_path))):
        (tmp_path / "lock.json").write_bytes(b"[]")
    assert (tmp_path / "lock.json").read_bytes() == b"[]"


def test_a_lock_that_is_gone_is_let_go_without_a_word(tmp_path: Path) -> None:
    with held(Folder(str(tmp_path))):
        (tmp_path / "lock.json").unlink()


def test_a_beat_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would write the lock anew after its deletion."""
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    write, begun = lock.storage.write_once, threading.Event()

    def slowly(folder: Folder, name: str, content: bytes) -> None:
        begun.set()
        threading.Event().wait(0.2)
        write(folder, name, content)

    monkeypatch.setattr(lock.storage, "write_once", slowly)
    with held(Folder(str(tmp_path))):
        assert begun.wait(20)
    threading.Event().wait(0.3)
    assert not (tmp_path / "lock.json").exists()


def test_a_live_ones_lock_that_was_taken_away_is_put_back(tmp_path: Path) -> None:
    """Between the look at a dead holder's file and its removal another may have taken over."""
    dead = {"token": "dead"}
    live = write_lock(tmp_path, token="live")
    lock._clear_away(Folder(str(tmp_path)), dead)
    assert left_in(tmp_path) == ["lock.json"]
    assert json.loads((tmp_path / "lock.json").read_text()) == live
    lock._clear_away(Folder(str(tmp_path)), live)
    assert left_in(tmp_path) == []
    lock._clear_away(Folder(str(tmp_path)), live)  # a third one did it


def test_two_that_find_a_dead_holder_do_not_take_it_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is quicker: it takes over while this one still looks at the dead one's file."""
    write_lock(tmp_path, host=socket.gethostname(), pid=os.getpid(), token="dead")
    is_alive, ours = lock._is_alive, []

    def looks(folder: Folder, holder: dict[str, object]) -> bool:
        alive = is_alive(folder, holder)
        if not ours:
            ours.append(alive)
            own = lock._start_of(os.getpid())
            write_lock(tmp_path, host=socket.gethostname(), pid=os.getpid(), started=own)
        return alive

    monkeypatch.setattr(lock, "_is_alive", looks)
    with pytest.raises(LockedError, match=f"process {os.getpid()} on"), held(Folder(str(tmp_path))):
        pass
    assert ours == [False]
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "theirs"
    assert left_in(tmp_path) == ["lock.json"]


def test_in_a_store_a_dead_holder_is_taken_over_and_a_live_one_is_not(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path}")  # a URI is no local folder to us
    write_lock(tmp_path, host=socket.gethostname(), pid=os.getpid(), token="dead")
    with held(folder):
        said = json.loads((tmp_path / "lock.json").read_text())
        assert said["started"] == lock._start_of(os.getpid())
        with pytest.raises(LockedError), held(folder):
            pass
        assert json.loads((tmp_path / "lock.json").read_text()) == said
    assert left_in(tmp_path) == []


def test_a_lock_that_is_let_go_while_one_looks_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(tmp_path)
    read = lock.storage.read

    def gone(folder: Folder, name: str) -> bytes:
        (tmp_path / name).unlink(missing_ok=True)
        return read(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(lock.storage, "read", gone)
        lock._take(Folder(str(tmp_path)), {"token": "mine"})
    assert json.loads((tmp_path / "lock.json").read_text()) == {"token": "mine"}


class Clock:
    """Time that passes in sleeps alone."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        self.on_sleep = lambda: None

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lock, "time", made)
    return made


def test_a_holder_elsewhere_is_given_twenty_seconds(tmp_path: Path, clock: Clock) -> None:
    holder = write_lock(tmp_path)
    assert not lock._is_alive(Folder(str(tmp_path)), holder)
    assert sum(clock.slept) == 20.0 == lock.STALE_BEATS * lock.BEAT_S
    assert max(clock.slept) == 1.0  # often, so that a beat is soon seen


def test_a_holder_elsewhere_that_beats_late_is_alive(tmp_path: Path, clock: Clock) -> None:
    holder = write_lock(tmp_path)

    def beats() -> None:
        if clock.now_s == 119.0:
            write_lock(tmp_path, beat=1)

    clock.on_sleep = beats
    assert lock._is_alive(Folder(str(tmp_path)), holder)
    assert clock.now_s == 119.0


def test_a_holder_elsewhere_that_lets_go_is_waited_for_no_longer(
    tmp_path: Path, clock: Clock
) -> None:
    holder = write_lock(tmp_path)
    clock.on_sleep = (tmp_path / "lock.json").unlink
    assert not lock._is_alive(Folder(str(tmp_path)), holder)
    assert clock.slept == [1.0]


@pytest.mark.parametrize("pid", [None, "7", 2**22 + 1])
def test_a_holder_here_without_a_process_is_dead_at_once(
    pid: object, tmp_path: Path, clock: Clock
) -> None:
    for started in ("x", "", None):
        holder = {"host": socket.gethostname(), "pid": pid, "started": started}
        assert not lock._is_alive(Folder(str(tmp_path)), holder)
    assert clock.slept == []


def test_a_process_that_has_ended_and_is_not_waited_for_has_no_start() -> None:
    child = subprocess.Popen(["true"])
    try:
        state = Path(f"/proc/{child.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert lock._start_of(child.pid) == ""
    finally:
        child.wait()
    assert lock._start_of(child.pid) == ""


def test_where_a_system_says_no_starts_a_live_process_is_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_such_file(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_such_file)
    assert lock._start_of(os.getpid()) == "?"
    assert lock._start_of(2**22 + 1) == ""


def test_a_lock_beats_and_a_full_disk_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    beats: list[int] = []
    enough = threading.Event()

    def write(folder: Folder, name: str, content: bytes) -> None:
        beats.append(json.loads(content)["beat"])
        if len(beats) == 3:
            enough.set()
        raise OSError("no room")

    monkeypatch.setattr(lock.storage, "write_once", write)
    with held(Folder(str(tmp_path))):
        assert enough.wait(20)
    assert beats[:3] == [1, 2, 3]
    assert not (tmp_path / "lock.json").exists()


PAUSED = """
import sys, time
from made_tables import row
from search.results import lock, tables
from search.results.lock import held
from search.results.tables import Results
from trainable.host.storage import Folder, TakenOverError
folder = Folder(sys.argv[1])
lock.BEAT_S = float(sys.argv[2])
with held(folder):
    print("held", flush=True)
    sys.stdin.readline()  # stopped and continued while it waits here
    try:
        tables.commit_trial(Results("s", folder), row("late"))
    except TakenOverError as error:
        print(error, flush=True)
    try:  # nor does its beat, meanwhile or later, take the lock back
        time.sleep(3 * lock.BEAT_S)
        tables.commit_epochs(Results("s", folder), "late", [])
    except TakenOverError:
        print("still", flush=True)
"""


def test_a_holder_that_was_paused_writes_nothing_after_a_takeover(tmp_path: Path) -> None:
    """A machine that was paused, as SIGSTOP does here: another one took the study over."""
    holder = subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(tmp_path), "0.5"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        theirs = write_lock(tmp_path)  # by a driver on another machine, after its twenty seconds
        threading.Event().wait(0.5 * lock.LATE_BEATS + 0.5)
        holder.send_signal(signal.SIGCONT)
        told, _ = holder.communicate("go on\n", timeout=60)
    finally:
        holder.kill()
        holder.wait()
    assert told == (
        f"another process writes to {tmp_path} now, which took this one for dead; this one stops\n"
        "still\n"
    )
    assert json.loads((tmp_path / "lock.json").read_text()) == theirs
    assert left_in(tmp_path) == ["lock.json"]


def test_a_beat_does_not_take_back_a_lock_that_is_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    folder = Folder(str(tmp_path))
    with held(folder):
        lock.check(folder)
        theirs = write_lock(tmp_path)
        threading.Event().wait(0.3)
        assert json.loads((tmp_path / "lock.json").read_text()) == theirs
        with pytest.raises(TakenOverError, match="which took this one for dead"):
            lock.check(folder)
    assert json.loads((tmp_path / "lock.json").read_text()) == theirs
    lock.check(folder)  # who holds no lock needs none: verify, tests, other tools


@pytest.mark.parametrize("uri", ["{}", "file://{}"])
def test_a_search_that_was_taken_over_writes_no_choice(uri: str, tmp_path: Path) -> None:
    """The choices are files in a folder of the study's: the study's lock is theirs too."""
    folder = Folder(uri.format(tmp_path))
    choice = choices.Choice(changes={}, params={}, distributions={})
    with held(folder):
        choices.add(folder / "choices" / "a", 0, choice)
        write_lock(tmp_path)
        lock._holds[folder.uri].confirmed = (0.0, 0.0)
        with pytest.raises(TakenOverError):
            choices.add(folder / "choices" / "a", 1, choice)
        choices.add(Folder(f"{folder.uri}-other") / "choices", 0, choice)
    assert sorted(choices.read(folder / "choices" / "a")) == [0]
    assert sorted(choices.read(Folder(f"{folder.uri}-other") / "choices")) == [0]


def test_a_beat_that_cannot_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    folder = Folder(str(tmp_path))
    write, fails = lock.storage.write_once, threading.Event()
    fails.set()

    def failing(folder: Folder, name: str, content: bytes) -> None:
        if fails.is_set():
            raise OSError(errno.ESTALE, "stale")
        write(folder, name, content)

    with held(folder):
        monkeypatch.setattr(lock.storage, "write_once", failing)
        threading.Event().wait(0.2)
        before = json.loads((tmp_path / "lock.json").read_text())["beat"]
        fails.clear()
        threading.Event().wait(0.2)
        lock.check(folder)
        assert json.loads((tmp_path / "lock.json").read_text())["beat"] > before
