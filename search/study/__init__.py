"""What a space file declares, checked; the lowest room of `search/`.

Imports `trainable.config` and Ray Tune's domains; no torch, no Optuna.
Space files use `Study` and what its source reports (`expected`); other rooms also `explorer` (the
interface, `PlannedTrial`, `Tables`).
"""

from search.study.expected import Better, Exponent, Order, Reported, Trend
from search.study.study import Study

__all__ = ["Better", "Exponent", "Order", "Reported", "Study", "Trend"]
