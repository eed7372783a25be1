"""A trial's state <-> a folder: written whole or not at all, and checked when read."""

import hashlib
import io
import logging
import uuid
from dataclasses import dataclass
from typing import Any

import torch

from trainable.host import storage
from trainable.host.storage import Folder, TakenOverError

logger = logging.getLogger(__name__)

CLAIM = "claim"  # whose trial it is
SLOTS = ("even.pt", "odd.pt")  # written in turn, so that the one before is still there


@dataclass(kw_only=True)
class TrialState:
    """All that a trial needs to go on after `epoch` as if it had never stopped.

    `results` are the epoch results so far as plain dicts, so that what a table lost is reported
    again.
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


def claim(folder: Folder) -> str:
    """Say that this process trains the trial; returns the token that `save` shows."""
    token = uuid.uuid4().hex
    storage.write(folder, CLAIM, token.encode())
    return token


def save(state: TrialState, folder: Folder, *, token: str) -> None:
    """Write the state; the one of the evaluation before it stays beside it.

    Raises:
        TakenOverError: the folder was claimed by another process since.
    """
    try:
        holder = storage.read(folder, CLAIM).decode()
    except FileNotFoundError:
        holder = ""
    if holder != token:
        raise TakenOverError(f"another process goes on with the trial in {folder.uri}")
    packed = io.BytesIO()
    torch.save(vars(state), packed)
    content = packed.getvalue()
    storage.write(folder, SLOTS[state.epoch % 2], hashlib.sha256(content).digest() + content)


def load(folder: Folder, *, trial_key: str) -> TrialState | None:
    """The newest sound state of this trial; None where there is none.

    A damaged one is named in a warning, and the one before it serves.
    """
    states = [_load_one(folder, name) for name in SLOTS]
    own = [state for state in states if state is not None and state.trial_key == trial_key]
    return max(own, key=lambda state: state.epoch, default=None)


def delete(folder: Folder) -> None:
    """Remove the states of a trial that ended; kept weights stay."""
    for name in (CLAIM, *SLOTS):
        storage.delete_file(folder, name)


def _load_one(folder: Folder, name: str) -> TrialState | None:
    try:
        content = storage.read(folder, name)
    except FileNotFoundError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("checkpoint %s/%s is damaged and is passed over", folder.uri, name)
        return None
    try:
        return TrialState(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # rubbish makes the unpickler fail in many ways
        logger.warning("checkpoint %s/%s cannot be read: %s", folder.uri, name, error)
        return None
