"""Whose trial it is, which state is loaded, and what an orphan may not do."""

import errno
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainable import checkpoint, trial
from trainable.checkpoint import CLAIM, SLOTS, TrialState
from trainable.config import TrialConfig, trial_key
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.host import storage
from trainable.host.storage import Folder, NoSpaceError, TakenOverError
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


# --- beside training, on a clock ------------------------------------------------------------------

CPU = torch.device("cpu")


class Gate:
    """Writes of states that wait until they are let through, and how many have begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_through = threading.Semaphore(0), threading.Semaphore(0)
        self.epochs: list[int] = []
        save = checkpoint.save

        def when_let_through(state: TrialState, folder: Folder, *, token: str) -> None:
            self.epochs.append(state.epoch)
            self.begun.release()
            assert self.let_through.acquire(timeout=60)
            save(state, folder, token=token)

        monkeypatch.setattr(checkpoint, "save", when_let_through)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def config(tiny_config: TrialConfig) -> TrialConfig:
    return replace(tiny_config, image_size=16, augment="none")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a trial reads; the last one is now."""
    now = [0.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: now[-1])
    return now


def test_short_evaluations_are_saved_on_a_clock_and_at_the_end(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path, gate: Gate, clock: list[float]
) -> None:
    gate.let_through.release(9)
    made = Trial(config, tiny_data, CPU, Folder(str(tmp_path)), checkpoint_every_s=30.0)
    for now in (10.0, 35.0, 50.0):
        clock.append(now)
        made.train_on()
    made.saver.wait()
    assert gate.epochs == [2]
    assert set(contents(tmp_path)) == {CLAIM, SLOTS[1]}
    made.train_on()
    made.finish("")
    assert gate.epochs == [2, 4]  # also the state before the last one is there
    assert set(contents(tmp_path)) == {CLAIM, *SLOTS}


@pytest.mark.parametrize("saved_at", [2, 3])
def test_what_was_not_saved_is_trained_again_with_the_same_numbers(
    saved_at: int,
    config: TrialConfig,
    tiny_data: Dataset,
    tmp_path: Path,
    clock: list[float],
) -> None:
    def numbers(result: Any) -> str:
        timed = ("epoch_wall_s", "images_per_s")
        return str({n: value for n, value in asdict(result).items() if n not in timed})

    whole = [numbers(result) for result in finetune(config, data=tiny_data)]
    how: dict[str, Any] = {"data": tiny_data, "checkpoint_folder": Folder(str(tmp_path))}
    killed = finetune(config, **how, checkpoint_every_s=30.0)
    for epoch in (1, 2, 3):
        clock.append(30.0 if epoch == saved_at else clock[-1])
        next(killed)
    killed.close()
    saved = checkpoint.load(Folder(str(tmp_path)), trial_key=trial_key(config, "tiny"))
    assert saved is not None
    assert saved.epoch == saved_at
    assert [numbers(result) for result in finetune(config, **how)] == whole


def test_training_goes_on_while_its_state_is_written(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path, gate: Gate, clock: list[float]
) -> None:
    """What is written is the state of then: no later update changes it."""
    made = Trial(config, tiny_data, CPU, Folder(str(tmp_path)), checkpoint_every_s=1.0)
    clock.append(1.0)
    made.train_on()
    assert gate.begun.acquire(timeout=60)
    then = {name: value.clone() for name, value in made.weights().items()}
    clock.append(5.0)
    made.train_on()  # it is time again, but the first is not written yet
    assert gate.epochs == [1]
    gate.let_through.release(9)
    made.saver.wait()
    saved = checkpoint.load(made.folder, trial_key=made.key)
    assert saved is not None
    assert saved.epoch == 1
    assert then.keys() <= saved.model.keys()
    assert all(torch.equal(saved.model[name], then[name]) for name in then)
    assert any(not torch.equal(made.weights()[name], then[name]) for name in then)
    made.train_on()
    made.close()
    assert gate.epochs == [1, 3]


def test_a_state_that_cannot_be_written_ends_the_trial(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NoSpaceError(errno.ENOSPC, "full")

    for last in (False, True):
        made = Trial(config, tiny_data, CPU, Folder(str(tmp_path)), checkpoint_every_s=1e-9)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.storage, "write", full)
            made.train_on()
            made.close()
        with pytest.raises(NoSpaceError):
            made.finish("its loss is NaN") if last else made.train_on()


def test_a_state_written_after_the_trial_ended_goes(tmp_path: Path) -> None:
    """A scheduler stops a trial while its worker still writes: its state is deleted meanwhile."""
    folder = Folder(str(tmp_path / "states"))
    token = checkpoint.claim(folder)
    write = storage.write

    def while_it_ends(folder: Folder, name: str, content: bytes) -> None:
        checkpoint.delete(folder)
        write(folder, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write", while_it_ends)
        with pytest.raises(TakenOverError):
            checkpoint.save(state(2), folder, token=token)
    assert not (tmp_path / "states").exists()
