"""The cache of decoded images: built once, whole, by whoever comes first."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from made_data import truncate, write_hdf5

from trainable.data.cache import default_cache_dir, open_data


def test_the_cache_is_built_once_and_mapped(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    first = open_data("pcam", tmp_path)
    entries = {path: path.stat().st_mtime_ns for path in default_cache_dir().glob("pcam-*/*")}
    second = open_data("pcam", tmp_path)
    assert isinstance(second.train.images_NHWC, np.memmap)
    assert first.fingerprint == second.fingerprint
    again = {path: path.stat().st_mtime_ns for path in default_cache_dir().glob("pcam-*/*")}
    assert entries == again


def fingerprint_of(folder: str) -> str:
    return open_data("pcam", Path(folder)).fingerprint


def test_two_builders_at_once_build_one_cache(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len(set(pool.map(fingerprint_of, [str(tmp_path)] * 4))) == 1
    assert not list(default_cache_dir().glob("*.building"))


def test_a_cache_left_half_built_is_built_anew(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    sound = open_data("pcam", tmp_path)
    entry = max(default_cache_dir().glob("pcam-????????????????"), key=lambda p: p.stat().st_mtime)
    entry.rename(entry.with_suffix(".building"))  # as a builder leaves it that is killed
    (entry.with_suffix(".building") / "train_images.npy").write_bytes(b"half")
    assert open_data("pcam", tmp_path).fingerprint == sound.fingerprint


@pytest.mark.parametrize("struck", ["train_images.npy", "val_labels.npy", "about.json"])
def test_a_cache_that_was_cut_short_is_built_anew(struck: str, tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    sound = open_data("pcam", tmp_path)
    entry = max(default_cache_dir().glob("pcam-????????????????"), key=lambda p: p.stat().st_mtime)
    truncate(entry / struck)
    again = open_data("pcam", tmp_path)
    assert again.fingerprint == sound.fingerprint
    assert len(again.train.images_NHWC) == len(sound.train.labels_N)


def test_a_builder_killed_at_any_moment_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    code = "import sys; from pathlib import Path; from trainable.data.cache import open_data; "
    code += "print('go', flush=True); open_data('pcam', Path(sys.argv[1]))"
    cache = tmp_path / "cache"
    environment = {**os.environ, "DATA_CACHE_DIR": str(cache)}
    for delay_s in (0.0, 0.005, 0.02):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE
        ) as builder:
            assert builder.stdout is not None
            builder.stdout.readline()
            time.sleep(delay_s)
            builder.kill()
    built = open_data("pcam", tmp_path, cache_dir=cache)
    assert built.fingerprint == open_data("pcam", tmp_path).fingerprint
    assert not list(cache.glob("*.building"))


def test_building_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hdf5(tmp_path)
    monkeypatch.setattr("trainable.data.cache.LINE_S", 0.0)
    data = open_data("pcam", tmp_path)
    assert data.test is not None
    total = sum(len(each.labels_N) for each in (data.train, data.val, data.test))
    assert f"decoding pcam (hdf5): {total} of {total} images" in capsys.readouterr().err
