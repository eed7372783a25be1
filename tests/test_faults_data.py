"""The fault matrix, of the images on disk: a file of theirs breaks while a study runs."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from faulty_study import SPACE, Command, doubled, enough, go_on, harm, run_again
from PIL import Image

from search.results import tables
from search.study.space_file import load_study
from trainable.data.synthetic import draw_patches

pytestmark = [pytest.mark.faults, pytest.mark.ray]


def write_tif(folder: Path) -> Path:
    """Kaggle's layout; returns the images' folder."""
    (folder / "train").mkdir(parents=True)
    lines = ["id,label"]
    for i, (image, label) in enumerate(zip(*patches(1400), strict=True)):
        Image.fromarray(image).save(folder / "train" / f"{i:040x}.tif")
        lines.append(f"{i:040x},{label}")
    (folder / "train_labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "train"


def write_hdf5(folder: Path) -> Path:
    """The official layout; returns the file of training images."""
    folder.mkdir()
    for split, n in (("train", 1024), ("valid", 128)):
        images, labels = patches(n)
        for key, values in (("x", images), ("y", labels.reshape(-1, 1, 1, 1))):
            with h5py.File(folder / f"camelyonpatch_level_2_split_{split}_{key}.h5", "w") as file:
                file.create_dataset(key, data=values, compression="gzip", fletcher32=True)
    return folder / "camelyonpatch_level_2_split_train_x.h5"


def patches(n: int) -> tuple[Any, Any]:
    labels = np.arange(n) % 2
    return draw_patches(labels, np.random.default_rng(0)), labels


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_hdf5, write_tif])
def test_the_data_breaks_under_way(
    write: Callable[[Path], Path], command: Command, fault_matrix: list[Any], tmp_path: Path
) -> None:
    """The study goes on from the node's cache; the next one names the file; mended, it goes on."""
    epochs = load_study(SPACE).base.epochs
    data = tmp_path / "data"
    written = write(data)
    struck = written if written.is_file() else sorted(written.iterdir())[7]
    command.settings = ("--set", "dataset=pcam", "--data", str(data))
    command.environment = {"DATA_CACHE_DIR": str(tmp_path / "cache")}
    command.start()
    command.wait_for(enough)
    sound, about = struck.read_bytes(), struck.stat()
    harm(struck, "truncated")
    status, said = command.end()
    assert status == 0, said  # all that it needs was decoded before
    before = command.rows()
    assert (before.groupby("trial_key").size() == epochs).all()
    command.settings = (*command.settings, "--set", "seeds=2")
    began = time.monotonic()
    status, said = run_again(command)
    took = time.monotonic() - began
    assert status == 2, said
    assert struck.name in said
    assert len(command.rows()) == len(before)
    struck.write_bytes(sound)
    os.utime(struck, ns=(about.st_atime_ns, about.st_mtime_ns))
    recovered = go_on(command)
    assert tables.faults(tables.open_folder(str(command.out / "faulty"))) == []
    after = command.rows().set_index(["trial_key", "epoch"])
    seen = before.set_index(["trial_key", "epoch"])
    assert len(after) == 2 * len(seen)
    lost = seen.index.difference(after.index)
    again = int((after.loc[seen.index, "epoch_wall_s"] != seen["epoch_wall_s"]).sum())
    kind = "HDF5" if write is write_hdf5 else "tif"
    row = {"fault": f"{kind} truncated", "detected after": took, "recovered after": recovered}
    fault_matrix.append(
        {**row, "epochs done again": again, "rows lost": len(lost), "doubled": doubled(command)}
    )
    assert len(lost) == again == 0
