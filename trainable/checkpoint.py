"""Checkpoints: a trial's state in a folder, written atomically and verified when loaded."""

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


def claim(folder: Folder) -> str:
    """Claim the trial for this process; returns the token that `save` needs."""
    token = uuid.uuid4().hex
    storage.write(folder, CLAIM, token.encode())
    return token


def save(state: TrialState, folder: Folder, *, token: str) -> None:
    """Write the state; the state of the previous evaluation is kept.

    Raises:
        TakenOverError: another process has claimed the folder.
    """
    try:
        holder = storage.read(folder, CLAIM).decode()
    except FileNotFoundError:
        holder = ""
    if holder != token:
        raise TakenOverError(f"another process continues the trial in {folder.uri}")
    packed = io.BytesIO()
    torch.save(vars(state), packed)
    content = packed.getvalue()
    storage.write(folder, SLOTS[state.epoch % 2], hashlib.sha256(content).digest() + content)


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
