"""What a space file declares, checked; the lowest room of `search/`.

Imports `trainable.config` and Ray Tune's domains; no torch, no Optuna.
Space files use `Study` and what its source reports (`expected`); other rooms also `explorer` (the
interface, `PlannedTrial`, `Tables`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.study.expected import Better, Exponent, Order, Reported, Trend
    from search.study.study import Study

__all__ = ["Better", "Exponent", "Order", "Reported", "Study", "Trend"]


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: reports use this room's words, and no domains of Ray."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "study" if name == "Study" else "expected"
    return getattr(import_module(f"{__name__}.{module}"), name)
