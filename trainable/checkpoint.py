"""Checkpoints: a trial's state in a folder, written atomically and verified when loaded."""

import hashlib
import io
import logging
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import torch

from trainable.host import storage
from trainable.host.storage import Folder, TakenOverError

logger = logging.getLogger(__name__)

CLAIM = "claim"  # the token of the process that trains the trial
SLOTS = ("even.pt", "odd.pt")  # written alternately: the previous state is kept


@dataclass(kw_only=True)
class TrialState:
    """Everything that a trial needs to continue after `epoch` as if it had never stopped.

    `results` are all epoch results as plain dicts: a resumed trial reports them again, in case the
    tables have lost some.
    """

    trial_key: str
    epoch: int
    model: dict[str, Any]
    step: dict[str, Any]
    best_model: dict[str, Any]
    results: list[dict[str, Any]]
    place: tuple[int, int]
    noise: tuple[float, float]
    counters: dict[str, Any]
    num_saves: int = -1  # of states of earlier versions, which were saved after every evaluation

    def __post_init__(self) -> None:
        """Count the saves of those."""
        if self.num_saves < 0:
            self.num_saves = self.epoch


def claim(folder: Folder) -> str:
    """Claim the trial for this process; returns the token that `save` needs."""
    token = uuid.uuid4().hex
    storage.write(folder, CLAIM, token.encode())
    return token


def save(state: TrialState, folder: Folder, *, token: str) -> None:
    """Write the state; the state that was saved before it is kept.

    Raises:
        TakenOverError: another process has claimed the folder, or the trial ended.
    """
    packed = io.BytesIO()
    torch.save(vars(state), packed)
    content = packed.getvalue()
    _check_claim(folder, token)
    slot = SLOTS[state.num_saves % 2]
    storage.write(folder, slot, hashlib.sha256(content).digest() + content)
    if _holder(folder) == "":  # the trial ended meanwhile, and its states were deleted
        storage.delete_file(folder, slot)
        _check_claim(folder, token)


def _check_claim(folder: Folder, token: str) -> None:
    if _holder(folder) != token:
        raise TakenOverError(f"another process continues the trial in {folder.uri}")


def _holder(folder: Folder) -> str:
    """The token of the process that trains the trial; empty if there is none."""
    try:
        return storage.read(folder, CLAIM).decode()
    except FileNotFoundError:
        return ""


class Saver:
    """Saves the states of one trial beside its training, one after the other."""

    def __init__(self, folder: Folder) -> None:
        """Claim the folder for this process."""
        self.folder, self.token = folder, claim(folder)
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a state is being written."""
        return self.thread is not None and self.thread.is_alive()

    def save(self, state: TrialState) -> None:
        """Copy the state and write it while training goes on; waits for the one before it."""
        self.wait()
        copied = TrialState(**{name: _copied(value) for name, value in vars(state).items()})
        self.thread = threading.Thread(target=self._write, args=(copied,), name="checkpoint")
        self.thread.start()

    def _write(self, state: TrialState) -> None:
        try:
            save(state, self.folder, token=self.token)
        except BaseException as error:
            self.error = error

    def close(self) -> None:
        """Wait for what is being written, whether it succeeds or not."""
        if self.thread is not None:
            self.thread.join()

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            TakenOverError: as `save`.
            OSError: it could not be written.
        """
        self.close()
        self.check()

    def check(self) -> None:
        """Raises what went wrong in a write that has ended."""
        if self.error is not None and not self.is_busy:
            raise self.error


def _copied(value: Any) -> Any:
    """A copy in main memory, which training does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def load(folder: Folder, *, trial_key: str) -> TrialState | None:
    """The newest undamaged state of this trial; None if there is none.

    A warning names a damaged state, and the previous one is used.
    """
    states = [_load_one(folder, name) for name in SLOTS]
    own = [state for state in states if state is not None and state.trial_key == trial_key]
    return max(own, key=lambda state: state.epoch, default=None)


def delete(folder: Folder) -> None:
    """Delete the states of a finished trial, but not its kept weights."""
    for name in (CLAIM, *SLOTS):
        storage.delete_file(folder, name)


def _load_one(folder: Folder, name: str) -> TrialState | None:
    try:
        content = storage.read(folder, name)
    except FileNotFoundError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("checkpoint %s/%s is damaged and is ignored", folder.uri, name)
        return None
    try:
        return TrialState(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # the unpickler fails on broken files in many ways
        logger.warning("checkpoint %s/%s cannot be read: %s", folder.uri, name, error)
        return None
