"""The SHA-256 in a table's footer: what no checksum of Parquet's own notices is noticed by it."""

import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search.results import files, tables
from search.results.tables import EPOCHS, Results

ROW = {"study": "s", "trial_key": "k", "seed": 3, "attempt": 1, "epoch": 1, "val_auroc": 0.5}


@pytest.fixture
def opened(tmp_path: Path) -> Results:
    found = tables.open_results(str(tmp_path), "s")
    tables.commit_epochs(found, "k", [ROW])
    tables.commit_epochs(found, "other", [ROW | {"trial_key": "other"}])
    return found


def file_of(opened: Results) -> Path:
    return Path(opened.folder.uri) / "epochs" / "k.parquet"


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(opened: Results) -> None:
    said = pq.read_metadata(file_of(opened)).metadata[b"content_sha256"]
    content = file_of(opened).read_bytes()
    assert re.fullmatch(rb"[0-9a-f]{64}", said)
    assert content.count(said) == 1
    assert hashlib.sha256(content.replace(said, b"0" * 64)).hexdigest().encode() == said


def renamed(content: bytes) -> bytes:
    """A column goes by another name: a bit of each of its names in the footer is changed."""
    return content.replace(b"val_auroc", b"val_aurob")


def retold(content: bytes) -> bytes:
    """The digest itself is another one."""
    said = re.findall(rb"[0-9a-f]{64}", content)[-1]
    return content.replace(said, said[::-1])


@pytest.mark.parametrize("harm", [renamed, retold])
def test_what_parquet_reads_without_a_word_is_noticed(
    harm: Any, opened: Results, tmp_path: Path
) -> None:
    before = file_of(opened).read_bytes()
    file_of(opened).write_bytes(harm(before))
    assert harm(before) != before
    assert len(pq.ParquetFile(file_of(opened), page_checksum_verification=True).read()) == 1
    table, damaged = files.read_parts(opened / "epochs", EPOCHS)
    said = "its SHA-256 is not the one in its footer: it was changed or truncated"
    assert damaged == {"k.parquet": said}
    assert table["trial_key"].to_pylist() == ["other"]
    assert tables.faults(opened) == [f"epochs/k.parquet cannot be read: {said}"]
    assert tables.make_sound(opened) == ["epochs/k.parquet"]


def test_a_bit_is_noticed_wherever_it_lies(opened: Results) -> None:
    content = file_of(opened).read_bytes()
    for at in range(0, len(content), 7):
        harmed = bytearray(content)
        harmed[at] ^= 1 << at % 8
        file_of(opened).write_bytes(bytes(harmed))
        table, damaged = files.read_parts(opened / "epochs", EPOCHS)
        # Where the digest's own name is hit it is a file without one: Parquet then reads all of it.
        unsealed = b"content_sha256" not in harmed
        assert damaged or (unsealed and table.num_rows == 2), at


def test_pages_are_packed_and_have_checksums_too(opened: Results) -> None:
    """So that other readers, who know nothing of the digest, can notice damage."""
    column = pq.read_metadata(file_of(opened)).row_group(0).column(EPOCHS.names.index("val_auroc"))
    assert column.compression == "ZSTD"
    content = bytearray(file_of(opened).read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    file_of(opened).write_bytes(bytes(content))
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.ParquetFile(file_of(opened), page_checksum_verification=True).read()


def test_a_file_without_a_digest_is_held_to_its_pages_checksums(opened: Results) -> None:
    table = pa.Table.from_pylist([ROW], schema=EPOCHS)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file_of(opened), write_page_checksum=True, **plain)
    content = file_of(opened).read_bytes()
    score = struct.pack("<d", ROW["val_auroc"])
    assert content.count(score) == 1
    file_of(opened).write_bytes(content.replace(score, struct.pack("<d", 0.75)))
    assert pq.read_table(file_of(opened))["val_auroc"].to_pylist() == [0.75]
    assert list(files.read_parts(opened / "epochs", EPOCHS)[1]) == ["k.parquet"]


def test_a_file_that_others_wrote_has_no_digest_and_is_read(opened: Results) -> None:
    frame = pd.DataFrame([{"trial_key": "theirs", "epoch": 1, "val_auroc": 0.25}])
    frame.to_parquet(file_of(opened).with_name("theirs.parquet"))
    table, damaged = files.read_parts(opened / "epochs", EPOCHS)
    assert damaged == {}
    assert table["trial_key"].to_pylist() == ["k", "other", "theirs"]
    assert table["val_auroc"].to_pylist() == [0.5, 0.5, 0.25]
    assert table["seed"].to_pylist() == [3, 3, None]
    assert table.schema.equals(EPOCHS)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame([{"epoch": 1}]), "it has rows without a trial_key"),
        (pd.DataFrame([{"trial_key": None, "epoch": 1}]), "it has rows without a trial_key"),
        (
            pd.DataFrame([{"trial_key": key, "epoch": 1} for key in ("k", "../k")]),
            "'../k' cannot be a trial_key: trial keys name files",
        ),
    ],
)
def test_a_file_whose_rows_are_of_no_trial_is_damaged(
    frame: pd.DataFrame, said: str, opened: Results
) -> None:
    frame.to_parquet(file_of(opened))
    assert files.read_parts(opened / "epochs", EPOCHS)[1] == {"k.parquet": said}
