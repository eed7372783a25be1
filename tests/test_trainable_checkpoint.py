"""Whose trial it is, which state is loaded, and what an orphan may not do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainable import checkpoint
from trainable.checkpoint import CLAIM, SLOTS, TrialState
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.host.storage import Folder, TakenOverError
from trainable.trial import Trial


def state(epoch: int, key: str = "k") -> TrialState:
    return TrialState(
        trial_key=key,
        epoch=epoch,
        model={"w": torch.full((2,), float(epoch))},
        step={"microbatch_size": 4},
        best_model={},
        results=[{"epoch": epoch}],
        place=(epoch, 16),
        noise=(1.0, 2.0),
        counters={"updates": epoch},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_orphan_writes_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    orphan = checkpoint.claim(folder)
    checkpoint.save(state(1), folder, token=orphan)
    heir = checkpoint.claim(folder)
    assert heir != orphan
    before = contents(tmp_path)
    for epoch in (2, 3):
        with pytest.raises(TakenOverError, match=f"continues the trial in {tmp_path}"):
            checkpoint.save(state(epoch), folder, token=orphan)
    assert contents(tmp_path) == before
    checkpoint.save(state(2), folder, token=heir)
    loaded = checkpoint.load(folder, trial_key="k")
    assert loaded is not None
    assert loaded.epoch == 2


def test_a_trial_whose_folder_was_cleared_is_an_orphan_too(tmp_path: Path) -> None:
    """Its heir ended, and deleted the states with the claim."""
    folder = Folder(str(tmp_path))
    orphan = checkpoint.claim(folder)
    checkpoint.save(state(1), folder, token=orphan)
    (tmp_path / "weights.pt").write_bytes(b"kept")
    checkpoint.delete(folder)
    with pytest.raises(TakenOverError):
        checkpoint.save(state(2), folder, token=orphan)
    assert contents(tmp_path) == {"weights.pt": b"kept"}


def test_a_trial_that_goes_on_elsewhere_ends_here_and_leaves_its_states(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    config = replace(tiny_config, image_size=16, augment="none")
    orphan = Trial(config, tiny_data, torch.device("cpu"), folder)
    orphan.train_on()
    heir = Trial(config, tiny_data, torch.device("cpu"), folder)
    before = contents(tmp_path)
    with pytest.raises(TakenOverError):
        orphan.train_on()
    assert contents(tmp_path) == before
    result, _ = heir.train_on()
    assert result is not None
    assert result.epoch == 2


def test_the_newest_state_of_the_trial_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    token = checkpoint.claim(folder)
    assert checkpoint.load(folder, trial_key="k") is None
    for epoch in (1, 2, 3):
        checkpoint.save(state(epoch), folder, token=token)
        loaded = checkpoint.load(folder, trial_key="k")
        assert loaded is not None
        fields, expected = vars(loaded), vars(state(epoch))
        assert torch.equal(fields.pop("model")["w"], expected.pop("model")["w"])
        assert fields == expected
        assert checkpoint.load(folder, trial_key="another") is None
    assert set(contents(tmp_path)) == {CLAIM, *SLOTS}
    assert contents(tmp_path)[CLAIM].decode() == token
    # The state before the newest is still there.
    (tmp_path / SLOTS[1]).unlink()
    before = checkpoint.load(folder, trial_key="k")
    assert before is not None
    assert before.epoch == 2


@pytest.mark.parametrize("content", [b"", b"rubbish", b"x" * 500])
def test_what_is_no_state_is_passed_over(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(str(tmp_path))
    token = checkpoint.claim(folder)
    checkpoint.save(state(1), folder, token=token)
    (tmp_path / SLOTS[0]).write_bytes(content)
    loaded = checkpoint.load(folder, trial_key="k")
    assert loaded is not None
    assert loaded.epoch == 1
    assert f"checkpoint {tmp_path}/{SLOTS[0]} is damaged and is ignored" in caplog.text


def test_a_state_of_another_version_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    token = checkpoint.claim(folder)
    save: Any = torch.save
    monkeypatch.setattr(torch, "save", lambda fields, file: save(fields | {"more": 1}, file))
    checkpoint.save(state(2), folder, token=token)
    assert checkpoint.load(folder, trial_key="k") is None
    assert f"checkpoint {tmp_path}/{SLOTS[0]} cannot be read" in caplog.text
