"""Batch size, learning rate and momentum searched together by TPE, the worse stopped early.

    python -m search.run spaces/pcam_optuna.py

As `pcam_grid.py`, but 40 configurations that a sampler chooses from what the others scored, and
ASHA, which lets about one of three go on at each rung. A search finds a good configuration cheaply;
it does not map the surface: what it stopped is censored.

Cost: 40 trials of at most 9 epochs, less what is stopped. As a preview about a minute and a half on
two cores.

It should end near the best cell of `pcam_grid.py`. `optuna-dashboard` opens the journal file
`results/pcam_optuna/optuna.journal`.
"""

from ray import tune

from search.explore import Asha, Optuna
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="pcam_optuna",
    base=TrialConfig(
        dataset="pcam",
        model="vgg16",
        pretrained="imagenet",
        train_blocks=2,
        dropout=0.5,
        augment="hflip+vflip+shift",
        optimizer="sgd",
        lr_scaling="linear",
        warmup_epochs=0.5,
        epochs=9,
    ),
    vary={
        "batch_size": tune.choice([16, 32, 64, 128, 256]),
        "base_lr": tune.loguniform(1e-4, 1e-1),
        "momentum": tune.uniform(0.5, 0.98),
    },
    explore=Optuna(num_configs=40, sampler="tpe"),
    stop=Asha(reduction_factor=3, grace_share=1 / 9),
    preview={
        "base_lr": tune.loguniform(0.03, 30.0),
        "dropout": 0.0,
        "augment": "hflip+vflip",
        "warmup_epochs": 0.5,
        "epochs": 9,
    },
)
