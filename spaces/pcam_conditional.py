"""SGD or AdamW, when each has rates, and fields, of its own?

    python -m search.run spaces/pcam_conditional.py

Their best rates lie a thousandfold apart, and only SGD has momentum: one range for both would waste
most trials. The space is a function that asks Optuna for one choice after the other.

Cost: 30 trials of at most 5 epochs, 39 million patches less what is stopped. Preview: 1 minute.

Expected: either may end ahead, each near its own best rate (Choi 2019: AdamW is not behind once
tuned). In a preview these lie at the upper end of both ranges. Measured: docs/findings.md.
"""

from dataclasses import replace
from typing import Any

from search.explore import Asha, Optuna
from search.study import Study
from spaces.bases import SMALL, VGG16


def space(trial: Any) -> dict[str, object]:
    """What is asked of Optuna for one trial."""
    chosen = {"batch_size": trial.suggest_categorical("batch_size", [16, 32, 64, 128, 256])}
    if trial.suggest_categorical("optimizer", ["sgd", "adamw"]) == "sgd":
        chosen["base_lr"] = trial.suggest_float("sgd_lr", 1e-3, 3.0, log=True)
        chosen["momentum"] = trial.suggest_float("momentum", 0.5, 0.98)
        return {**chosen, "optimizer": "sgd", "lr_scaling": "linear"}
    chosen["base_lr"] = trial.suggest_float("adamw_lr", 1e-5, 3e-2, log=True)
    return {**chosen, "optimizer": "adamw", "lr_scaling": "sqrt"}


study = Study(
    name="pcam_conditional",
    base=replace(VGG16, weight_decay=0.0, warmup_epochs=0.0, warmup_share=0.1),
    vary={},
    explore=Optuna(num_configs=30, space=space),
    stop=Asha(grace_share=0.2),
    preview={**SMALL, "warmup_epochs": 0.0, "warmup_share": 0.1},
)
