"""A conditional space: the optimizer decides which rates there are, and whether momentum is one.

    python -m search.run spaces/pcam_conditional.py

SGD and AdamW have their best learning rates a thousandfold apart, and only SGD has momentum: one
range for both would waste most trials. The space is a function that asks Optuna for one choice
after the other, as in Optuna's own documentation.

Cost: 30 trials of at most 5 epochs, less what is stopped. As a preview about a minute on two cores.

It should show which optimizer ends ahead here, each at its own best rate. (As a preview the small
network is trained from scratch: its best rates lie higher, at the upper end of both ranges.)
"""

from typing import Any

from search.explore import Asha, Optuna
from search.study import Study
from trainable.config import TrialConfig


def space(trial: Any) -> dict[str, object]:
    """What is asked of Optuna for one trial."""
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    chosen = {"batch_size": trial.suggest_categorical("batch_size", [16, 32, 64, 128, 256])}
    if optimizer == "sgd":
        chosen["base_lr"] = trial.suggest_float("sgd_lr", 1e-3, 3.0, log=True)
        chosen["momentum"] = trial.suggest_float("momentum", 0.5, 0.98)
        return {**chosen, "optimizer": "sgd", "lr_scaling": "linear"}
    chosen["base_lr"] = trial.suggest_float("adamw_lr", 1e-5, 3e-2, log=True)
    return {**chosen, "optimizer": "adamw", "lr_scaling": "sqrt"}


study = Study(
    name="pcam_conditional",
    base=TrialConfig(
        dataset="pcam",
        model="vgg16",
        pretrained="imagenet",
        train_blocks=2,
        dropout=0.5,
        augment="hflip+vflip+shift",
        warmup_share=0.1,
        epochs=5,
    ),
    vary={},
    explore=Optuna(num_configs=30, space=space),
    stop=Asha(grace_share=0.2),
    preview={"dropout": 0.0, "augment": "hflip+vflip", "warmup_share": 0.1},
)
