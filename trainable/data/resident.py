"""What a process keeps for its next trials: images on the device, features of frozen blocks."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from trainable.data.batches import DeviceSplit
from trainable.data.cache import Split


@dataclass(frozen=True)
class Resident:
    """A split as it was made of `source`; `about` and `key` are all else that it depends on."""

    source: Split
    about: Hashable  # of a config alone
    key: Hashable
    split: DeviceSplit


Made = TypeVar("Made", DeviceSplit, DeviceSplit | None)

_RESIDENTS: dict[str, Resident] = {}


def resident(
    name: str,
    source: Split,
    about: Hashable,
    key: Hashable,
    make: Callable[[], Made],
) -> Made:
    """The split that is kept under this name, or made and kept if that depends on something else.

    None if `make` returns it.
    """
    last = _RESIDENTS.get(name)
    if last is not None and last.source is source and (last.about, last.key) == (about, key):
        return last.split
    del last
    _RESIDENTS.pop(name, None)  # first: there may be no room for both
    split = make()
    if split is not None:
        _RESIDENTS[name] = Resident(source, about, key, split)
    return split


def forget(unless: Callable[[Resident], bool] = lambda _: False) -> None:
    """Let go of what is kept, and of its memory."""
    for name, kept in list(_RESIDENTS.items()):
        if not unless(kept):
            del _RESIDENTS[name]
