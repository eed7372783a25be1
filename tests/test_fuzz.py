"""Broken files, drawn by Hypothesis: each reader gives an error of ours or an answer, and ends.

    uv run pytest -m "slow or not slow" tests/test_fuzz.py -s      # 10,000 files, some minutes

Every reader runs in a child process, so that a crash of a parser written in C is seen and counted.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_tables import row
from PIL import Image

from search.results import files, tables
from trainable import checkpoint
from trainable.checkpoint import TrialState
from trainable.data import hdf5, images, kaggle, parquet
from trainable.data.sources import DataError
from trainable.host.storage import Folder

IN_CI = 60  # files a reader
BY_HAND = 1000
HANG_S = 20.0
PATCHES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
EPOCHS = [{"study": "s", "trial_key": "k", "attempt": 1, "epoch": e, "lr": 0.1} for e in (1, 2, 3)]


# --- a sound file of each kind, and what is read of it --------------------------------------------


def valid_parquet(folder: Path) -> bytes:
    files.write_part(Folder(str(folder)), "k.parquet", tables.EPOCHS, EPOCHS)
    return (folder / "k.parquet").read_bytes()


def read_parquet(folder: Path, content: bytes) -> Any:
    (folder / "k.parquet").write_bytes(content)
    table, damaged = files.read_parts(Folder(str(folder)), tables.EPOCHS)
    if damaged:
        raise DataError(damaged["k.parquet"])
    return table.to_pylist()


def valid_hdf5(folder: Path, key: str = "x", **packing: Any) -> bytes:
    values = PATCHES if key == "x" else np.array([0, 1, 0, 1, 0, 1], np.uint8)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset(key, data=values, **packing)
    return (folder / "x.h5").read_bytes()


def read_hdf5(folder: Path, content: bytes) -> Any:
    path = folder / "x.h5"
    path.write_bytes(content)
    chunks = list(hdf5._hdf5_reader(path, labels_file=path, n=len(PATCHES))())
    return np.concatenate(chunks).tolist()


def read_hdf5_labels(folder: Path, content: bytes) -> Any:
    path = folder / "x.h5"
    path.write_bytes(content)
    return hdf5._hdf5_labels(path).tolist()


def valid_image(kind: str, **options: Any) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(PATCHES[0]).save(packed, kind, **options)
    return packed.getvalue()


def read_image(folder: Path, content: bytes) -> Any:
    return images.decode([("image", content)]).tolist()


def valid_csv(folder: Path) -> bytes:
    packed = io.StringIO(newline="")
    csv.writer(packed).writerows([("id", "label"), *((f"{i:040x}", i % 2) for i in range(10))])
    return packed.getvalue().encode()


def read_csv(folder: Path, content: bytes) -> Any:
    (folder / "train").mkdir(exist_ok=True)
    for i in range(10):
        (folder / "train" / f"{i:040x}.tif").touch()
    (folder / "train_labels.csv").write_bytes(content)
    source = kaggle.find_kaggle(folder)
    assert source is not None
    return {name: split.labels_N.tolist() for name, split in source.splits.items()}


def valid_data_parquet(folder: Path) -> bytes:
    cells = [{"bytes": valid_image("PNG"), "path": None} for _ in range(4)]
    packed = io.BytesIO()
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}), packed)
    return packed.getvalue()


def read_data_parquet(folder: Path, content: bytes) -> Any:
    for name in ("train", "valid"):
        (folder / f"{name}.parquet").write_bytes(content)
    source = parquet.find_parquet(folder)
    assert source is not None
    return [np.concatenate(list(split.read())).tolist() for split in source.splits.values()]


def a_state() -> TrialState:
    import torch

    weights = {"w": torch.arange(12.0).reshape(3, 4)}
    return TrialState(
        trial_key="k",
        epoch=2,
        model=weights,
        step={"optimizer": weights, "updates": 3},
        best_model=weights,
        results=[{"epoch": 1}, {"epoch": 2}],
        place=(1, 0),
        noise=(0.0, 0.0),
        counters={"wall_s": 1.0},
    )


def valid_checkpoint(folder: Path) -> bytes:
    token = checkpoint.claim(Folder(str(folder)))
    checkpoint.save(a_state(), Folder(str(folder)), token=token)
    return (folder / "even.pt").read_bytes()


def read_checkpoint(folder: Path, content: bytes) -> Any:
    (folder / "even.pt").write_bytes(content)
    state = checkpoint.load(Folder(str(folder)), trial_key="k")
    if state is None:  # ignored, with a warning that names it
        raise DataError("passed over")
    return state.epoch, state.results


def read_resealed(folder: Path, content: bytes) -> Any:
    """The same, where the digest is right: what is behind it must hold by itself."""
    return read_checkpoint(folder, hashlib.sha256(content[32:]).digest() + content[32:])


def valid_trial(folder: Path) -> bytes:
    files.write_part(Folder(str(folder)), "k.parquet", tables.TRIALS, [row("k")])
    return (folder / "k.parquet").read_bytes()


@dataclass(frozen=True)
class Reader:
    """How a file is made and read; whether any change to it must be noticed."""

    make: Callable[[Path], bytes]
    read: Callable[[Path, bytes], Any]
    sealed: bool = False


READERS = {
    "results (Parquet)": Reader(valid_parquet, read_parquet, sealed=True),
    "HDF5 images": Reader(valid_hdf5, read_hdf5),
    "HDF5 images, gzip": Reader(
        lambda folder: valid_hdf5(folder, compression="gzip", fletcher32=True), read_hdf5
    ),
    "HDF5 labels": Reader(lambda folder: valid_hdf5(folder, "y"), read_hdf5_labels),
    "tif": Reader(lambda _: valid_image("TIFF"), read_image),
    "tif, LZW": Reader(lambda _: valid_image("TIFF", compression="tiff_lzw"), read_image),
    "PNG": Reader(lambda _: valid_image("PNG"), read_image),
    "JPEG": Reader(lambda _: valid_image("JPEG"), read_image),
    "CSV labels": Reader(valid_csv, read_csv),
    "data (Parquet)": Reader(valid_data_parquet, read_data_parquet),
    "checkpoints": Reader(valid_checkpoint, read_checkpoint, sealed=True),
    "checkpoints, digest made right": Reader(valid_checkpoint, read_resealed),
}


# --- the child process that reads -----------------------------------------------------------------


def serve(name: str, pipe: Connection) -> None:
    """Read what comes; say `ours`, `answer` with it, or `foreign` with the error."""
    import faulthandler
    import logging
    import resource

    faulthandler.disable()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries say of broken files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        content = pipe.recv_bytes()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = READERS[name].read(Path(folder), content)
            except DataError as error:
                pipe.send(("ours", str(error)))
            except BaseException as error:
                pipe.send(("foreign", f"{type(error).__name__}: {error}"))
            else:
                pipe.send(("answer", repr(found)))


class Child:
    """A reader's process, started again when a file has ended it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.start()

    def start(self) -> None:
        # A fork has the libraries loaded already; it has this process's one thread only.
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(self.name, other), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, at a fork
            self.process.start()
        other.close()

    def read(self, content: bytes) -> tuple[str, str]:
        self.pipe.send_bytes(content)
        if not self.pipe.poll(HANG_S):
            self.end()
            self.start()
            return "hang", f"no answer in {HANG_S:g} s"
        try:
            outcome: tuple[str, str] = self.pipe.recv()
        except EOFError:
            self.process.join()
            number = -(self.process.exitcode or 0)
            self.start()
            return "crash", signal.Signals(number).name if number > 0 else "ended"
        return outcome

    def end(self) -> None:
        self.process.kill()
        self.process.join()


# --- the changes ----------------------------------------------------------------------------------


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """What happens to a file: places are shares of its length, so that they fit any file."""
    kinds = st.sampled_from(["flip", "set", "cut", "drop", "double", "insert", "zeros"])
    place = st.floats(0, 1, exclude_max=True)
    return draw(
        st.lists(st.tuples(kinds, place, st.integers(0, 2**16 - 1)), min_size=1, max_size=4)
    )


def changed(content: bytes, what: list[tuple[str, float, int]]) -> bytes:
    made = bytearray(content)
    for kind, place, number in what:
        at, length = int(place * len(made)), number % 64 + 1
        if not made:
            break
        if kind == "flip":
            made[at] ^= 1 << number % 8
        elif kind == "set":
            made[at] = number % 256
        elif kind == "cut":
            del made[at:]
        elif kind == "drop":
            del made[at : at + length]
        elif kind == "double":
            made[at:at] = made[at : at + length]
        elif kind == "insert":
            made[at:at] = random.Random(number).randbytes(length)
        else:
            made[at : at + length] = bytes(len(made[at : at + length]))
    return bytes(made)


def fuzz(name: str, examples: int) -> Counter[str]:
    """Outcomes by kind; the first of those that must not be is in the error."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        sound = reader.make(Path(folder))
    child = Child(name)
    counts: Counter[str] = Counter()
    bad: list[str] = []
    seen: set[bytes] = set()
    try:
        kind, whole = child.read(sound)
        assert kind == "answer", (name, kind, whole)

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(changes())
        def one(what: list[tuple[str, float, int]]) -> None:
            content = changed(sound, what)
            if content in seen:
                return
            seen.add(content)
            kind, said = child.read(content)
            counts[kind] += 1
            wrong = reader.sealed and kind == "answer" and content != sound and said != whole
            if kind in ("foreign", "crash", "hang") or wrong:
                bad.append(f"{kind}: {said[:200]} after {what}")

        one()
    finally:
        child.end()
    counts["not as it must be"] = len(bad)
    counts["files"] = len(seen)
    if bad:
        sys.stdout.write("\n".join(f"{name}: {each}" for each in bad[:10]) + "\n")
    return counts


@pytest.mark.parametrize("name", list(READERS))
def test_a_broken_file_is_an_error_of_ours_or_an_answer(name: str) -> None:
    counts = fuzz(name, IN_CI)
    assert counts["not as it must be"] == 0, counts
    assert counts["ours"] > 0  # the changes do break files


@pytest.mark.slow
def test_ten_thousand_broken_files() -> None:
    table = {name: fuzz(name, BY_HAND) for name in READERS}
    kinds = ("files", "ours", "answer", "foreign", "crash", "hang")
    for name, counts in table.items():
        print(f"{name:32}", *(f"{kind} {counts[kind]:5}" for kind in kinds))
    total = {kind: sum(counts[kind] for counts in table.values()) for kind in kinds}
    print(json.dumps(total))
    assert total["files"] >= 10_000
    assert sum(counts["not as it must be"] for counts in table.values()) == 0


def test_a_reader_that_crashes_or_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures above would be worth nothing otherwise."""
    monkeypatch.setitem(globals(), "HANG_S", 1.0)

    def fails(folder: Path, content: bytes) -> Any:
        if content == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if content == b"hang":
            signal.pause()
        if content == b"foreign":
            raise KeyError("x")
        return content

    monkeypatch.setitem(READERS, "fails", Reader(valid_csv, fails))
    child = Child("fails")
    try:
        outcomes = [child.read(each)[0] for each in (b"x", b"crash", b"hang", b"foreign", b"y")]
    finally:
        child.end()
    assert outcomes == ["answer", "crash", "hang", "foreign", "answer"]
