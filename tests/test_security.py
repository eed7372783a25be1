"""What comes from elsewhere stays data, stays in its folder, and is refused in a sentence."""

import ast
import io
import json
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from made_data import (
    IMAGES,
    STEM,
    write_cifar,
    write_folders,
    write_hdf5,
    write_kaggle,
    write_parquet,
)
from made_tables import row
from PIL import Image
from ray import tune

from search.results import tables
from search.results.__main__ import main
from search.results.tables import ResultsError
from search.study.settings import apply_settings
from search.study.space_file import SpaceFileError, load_study
from search.study.study import TRIAL_FIELDS, Study
from trainable.checkpoint import load
from trainable.config import TrialConfig
from trainable.data import images
from trainable.data.cache import open_data
from trainable.data.sources import DataError
from trainable.host import storage
from trainable.host.credentials import is_secret_name
from trainable.host.storage import Folder
from trainable.networks.models import bare_network, load_weights
from trainable.networks.teacher import kept_network

CONFIG = TrialConfig(model="plain", pretrained="none")
SECRETS = ["password", "AWS_SECRET", "api_key", "apikey", "auth_token", "credentials", "passwd"]


class Touches:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


# --- names and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a/b", ".hidden", "a\nb", "a\\b", "", "a\0"])
def test_a_study_and_a_data_set_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        Study(name=name, base=CONFIG, vary={})
    with pytest.raises(ValueError, match=r"dataset (names folders|must not be empty)"):
        TrialConfig(dataset=name)


@pytest.mark.parametrize("name", ["..", "../x", "/etc/x", "a/b", "", ".", "a\0b", "a\\b"])
@pytest.mark.parametrize("uri", ["{}", "file://{}"])
def test_no_file_of_a_folder_lies_outside_of_it(name: str, uri: str, tmp_path: Path) -> None:
    folder = Folder(uri.format(tmp_path / "in"))
    (tmp_path / "x").write_bytes(b"outside")
    for use in (
        lambda: storage.write(folder, name, b"x"),
        lambda: storage.read(folder, name),
        lambda: storage.delete_file(folder, name),
        lambda: storage.create(folder, name, b"x"),
        lambda: folder / name,
    ):
        with pytest.raises(ValueError, match="is not the name of a file or folder"):
            use()
    assert (tmp_path / "x").read_bytes() == b"outside"


def test_a_table_whose_keys_lead_out_of_its_folder_is_set_aside(tmp_path: Path) -> None:
    opened = tables.open_results(str(tmp_path / "out"), "s")
    tables.commit_trial(opened, row("good"))
    table = pa.Table.from_pylist([row("../../planted")], schema=tables.TRIALS)
    pq.write_table(table, tmp_path / "out" / "s" / "trials" / "packed-x.parquet")
    assert "cannot be a trial_key" in tables.damaged(opened)["trials/packed-x.parquet"]
    assert list(tables.trials(opened)["trial_key"]) == ["good"]


def test_kaggles_table_names_only_its_own_files(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    table = tmp_path / "train_labels.csv"
    table.write_text(table.read_text().replace("id,label", "id,label\n../../other,1"))
    with pytest.raises(
        DataError, match=r"id must be the name of a file in train/, got '../../other'"
    ):
        open_data("pcam", tmp_path)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRETS)
def test_a_field_that_looks_like_a_secret_is_refused_and_its_value_not_shown(
    name: str, tmp_path: Path
) -> None:
    grid = tune.grid_search(["hunter2", "hunter3"])
    for changes in ({"vary": {name: grid}}, {"vary": {}, "preview": {name: "hunter2"}}):
        with pytest.raises(ValueError, match=f"{name} looks like a secret") as refused:
            Study(name="s", base=CONFIG, **changes)  # type: ignore[arg-type]
        assert "hunter2" not in str(refused.value)
    study = Study(name="s", base=CONFIG, vary={})
    with pytest.raises(SpaceFileError, match=f"{name} looks like a secret") as said:
        apply_settings(study, [f"{name}=hunter2"])
    assert "hunter2" not in str(said.value)
    space = tmp_path / "space.py"
    space.write_text(f"from trainable.config import TrialConfig\nTrialConfig({name}='hunter2')\n")
    with pytest.raises(SpaceFileError, match=f"TrialConfig: {name} looks like a secret"):
        load_study(space)


def test_no_field_of_a_trial_looks_like_a_secret() -> None:
    assert [name for name in TRIAL_FIELDS if is_secret_name(name)] == []


@pytest.mark.parametrize(
    "uri", ["s3://user:hunter2@bucket/x", "s3://hunter2@bucket", "s3://b/x?secret_key=hunter2"]
)
def test_a_uri_with_a_password_is_refused_and_not_shown(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uses = (
        lambda: storage.folder_at(uri),
        lambda: tables.open_results(uri, "s"),
        lambda: tables.open_folder(uri),
        lambda: TrialConfig(pretrained=uri),
        lambda: Study(
            name="s", base=TrialConfig(), vary={"pretrained": tune.grid_search(["none", uri])}
        ),
        lambda: apply_settings(Study(name="s", base=CONFIG, vary={}), [f"pretrained={uri}"]),
    )
    for use in uses:
        with pytest.raises(ValueError, match="looks like a secret") as refused:
            use()
        assert "hunter2" not in str(refused.value)
    assert main(["verify", uri]) == 2
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize("value", [print, object(), {"a": 1}, b"x", Touches(Path("x"))])
def test_values_of_a_space_are_plain_data(value: object) -> None:
    with pytest.raises(ValueError, match="model"):
        Study(name="s", base=CONFIG, vary={"model": tune.grid_search(["plain", value])})


# --- pickles --------------------------------------------------------------------------------------


def test_nothing_is_unpickled_but_cifar_which_is_checked() -> None:
    loads = []
    for path in (p for f in ("search", "trainable", "cluster") for p in (ROOT / f).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert given.get("allow_pickle", "False") == "False", (path, node.lineno)
            assert "read_pickle" not in called
            assert "Tuner.restore" not in called
            assert not called.endswith(("pickle.load", "pickle.loads", "Unpickler")), path
            if called == "torch.load":
                loads.append(path.name)
                assert given.get("weights_only") == "True", (path, node.lineno)
    assert len(loads) >= 3


def test_weights_and_checkpoints_run_no_code(tmp_path: Path) -> None:
    import hashlib

    import torch

    touched = tmp_path / "touched"
    packed = io.BytesIO()
    torch.save({"x": Touches(touched)}, packed)
    (tmp_path / "weights.pt").write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match="does not contain a trial"):
        kept_network(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is not a state_dict"):
        load_weights(bare_network("resnet18"), tmp_path / "weights.pt")
    digest = hashlib.sha256(packed.getvalue()).digest()
    (tmp_path / "even.pt").write_bytes(digest + packed.getvalue())
    assert load(Folder(str(tmp_path)), trial_key="k") is None
    assert not touched.exists()


def test_pickles_of_somebody_else_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    touched = tmp_path / "touched"
    planted = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    good = planted.read_bytes()
    planted.write_bytes(pickle.dumps(Touches(touched)))
    planted.chmod(0o666)
    with pytest.raises(DataError, match="data_batch_1 belongs to another user or is writable by"):
        open_data("cifar", tmp_path)
    planted.chmod(0o644)
    with monkeypatch.context() as patch:
        patch.setattr("trainable.data.standard.ADMINISTRATOR", 4_000_000)
        patch.setattr(os, "geteuid", lambda: 4_000_001)
        with pytest.raises(DataError, match=r"copy .* to a folder of your own"):
            open_data("cifar", tmp_path)
    assert not touched.exists()
    planted.write_bytes(good)
    assert open_data("cifar", tmp_path).layout == "cifar-10-batches-py"


# --- HDF5 -----------------------------------------------------------------------------------------


def harmful(path: Path, how: str, key: str) -> None:
    """Write an HDF5 file whose array needs something that is not in it."""
    other = path.with_name("other.h5")
    with h5py.File(path) as file:
        whole = file[key][()]
    with h5py.File(other, "w") as file:
        file[key] = whole
    with h5py.File(path, "w") as file:
        if how == "external link":
            file[key] = h5py.ExternalLink(other.name, key)
        elif how == "soft link":
            file["z"] = whole
            file[key] = h5py.SoftLink("/z")
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape=whole.shape, dtype=whole.dtype)
            layout[...] = h5py.VirtualSource(other, key, shape=whole.shape)
            file.create_virtual_dataset(key, layout)
        elif how == "external storage":
            (path.parent / "raw").write_bytes(whole.tobytes())
            file.create_dataset(
                key, whole.shape, whole.dtype, external=[("raw", 0, h5py.h5f.UNLIMITED)]
            )
        else:
            made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            made.set_chunk(whole.shape)
            made.set_filter(32004, h5py.h5z.FLAG_OPTIONAL)  # LZ4: a plug-in
            space = h5py.h5s.create_simple(whole.shape)
            h5py.h5d.create(file.id, key.encode(), h5py.h5t.STD_U8LE, space, made)


@pytest.mark.parametrize("key", ["x", "y"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("external link", "is a link, and links are not followed"),
        ("soft link", "is a link, and links are not followed"),
        ("virtual", "has its data in other files"),
        ("external storage", "has its data in other files"),
        ("filter", "uses HDF5 filter 32004"),
    ],
)
def test_an_array_that_is_not_in_its_file_is_refused(
    how: str, said: str, key: str, tmp_path: Path
) -> None:
    write_hdf5(tmp_path)
    harmful(tmp_path / f"{STEM}train_{key}.h5", how, key)
    with pytest.raises(DataError, match=f"{key} {said}"):
        open_data("pcam", tmp_path)


@pytest.mark.parametrize("packing", ["gzip", "lzf"])
def test_what_h5py_packs_itself_is_read(packing: str, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "plain")
    write_hdf5(tmp_path / "packed")
    with h5py.File(tmp_path / "packed" / f"{STEM}train_x.h5", "w") as file:
        file.create_dataset(
            "x", data=IMAGES["train"], compression=packing, shuffle=True, fletcher32=True
        )
    plain, packed = (open_data("pcam", tmp_path / name) for name in ("plain", "packed"))
    assert plain.fingerprint == packed.fingerprint


def test_labels_that_claim_more_than_memory_are_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    with h5py.File(tmp_path / f"{STEM}train_y.h5", "w") as file:
        file.create_dataset("y", (2**50,), np.uint8, chunks=(1024,))
    with pytest.raises(DataError, match=r"y must be 1 to 100,000,000 integers"):
        open_data("pcam", tmp_path)
    write_hdf5(tmp_path)
    with h5py.File(tmp_path / f"{STEM}train_x.h5", "w") as file:
        file.create_dataset("x", (40, 2**20, 2**20, 3), np.uint8, chunks=(1, 64, 64, 3))
    with pytest.raises(DataError, match="more than 50 million pixels"):
        open_data("pcam", tmp_path)


@pytest.mark.parametrize("label", [2**40, -1, 0.5, float("nan"), float("inf")])
def test_a_label_that_no_class_has_is_refused(label: float, tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = next((tmp_path / "data").glob("train-*"))
    table = pq.read_table(path)
    labels = [label, *table["label"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, "label", pa.array(labels)), path)
    with pytest.raises(DataError, match="labels must be integers from 0 to 99,999"):
        open_data("pcam", tmp_path)


# --- images ---------------------------------------------------------------------------------------


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 11_000, 40_000])  # Pillow warns of the second and third
def test_an_image_larger_than_the_limit_is_not_decoded(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path)
    path = tmp_path / "train" / "tumour" / "999.png"
    path.write_bytes(png_that_claims(side, side))
    with pytest.raises(DataError, match=r"million pixels|decompression bomb"):
        open_data("pcam", tmp_path)
    packed = png_that_claims(side, side)
    with pytest.raises(DataError, match=r"million pixels|decompression bomb"):
        images.decode([("x", packed)])


def test_an_image_at_the_limit_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    Image.new("RGB", (30, 20)).save(packed, "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    assert images.decode([("x", packed.getvalue())]).shape == (1, 20, 30, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(DataError, match="30x20 px"):
        images.decode([("x", packed.getvalue())])


def test_a_lock_that_somebody_made_up_locks_nothing(tmp_path: Path) -> None:
    from search.results.lock import held

    (tmp_path / "lock.json").write_text(json.dumps({"pid": "x", "host": os.uname().nodename}))
    with held(Folder(str(tmp_path))):
        pass
    with pytest.raises(ResultsError):
        tables.open_folder(str(tmp_path))
