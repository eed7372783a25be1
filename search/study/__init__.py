"""What a space file declares, checked; the lowest room of `search/`.

Imports `trainable.config` and Ray Tune's domains; no torch, no Optuna.
Space files use `Study`; other rooms also `explorer` (the interface, `PlannedTrial`, `Tables`).
"""

from search.study.study import Study

__all__ = ["Study"]
