"""Eight configurations by TPE, the worse stopped early: for tests of the command."""

from ray import tune

from search.explore import Asha, Optuna
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="searched",
    base=TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        width=4,
        image_size=48,
        train_images=512,
        eval_images=128,
        epochs=9,
        precision="fp32",
    ),
    vary={
        "batch_size": tune.choice([32, 64]),
        "base_lr": tune.loguniform(0.01, 100.0),
    },
    explore=Optuna(num_configs=8),
    stop=Asha(),
)
