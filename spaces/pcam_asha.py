"""The grid of `pcam_grid.py` with the worse trials of each batch size stopped early.

    python -m search.run spaces/pcam_asha.py

A trial competes only with those of its own batch size: at equal epochs a small batch has made more
updates by every rung, and plain ASHA would favour it. The best three configurations then get three
seeds. A stopped trial is censored: this finds the ridge cheaply, `pcam_grid.py` maps the surface.

Cost: at most 41 trials of 9 epochs, less what is stopped: two of three at each rung. As a
preview about a minute on two cores.

It should give the best learning rates of `pcam_grid.py`.
"""

from ray import tune

from search.explore import Asha, Leaders
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="pcam_asha",
    base=TrialConfig(
        dataset="pcam",
        model="vgg16",
        pretrained="imagenet",
        train_blocks=2,
        dropout=0.5,
        augment="hflip+vflip+shift",
        optimizer="sgd",
        momentum=0.9,
        weight_decay=1e-4,
        lr_scaling="linear",
        warmup_epochs=1,
        epochs=9,
    ),
    vary={
        "batch_size": tune.grid_search([16, 32, 64, 128, 256]),
        "base_lr": tune.grid_search([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
    },
    stop=Asha(by_batch_size=True),
    leaders=Leaders(top=3, seeds=3),
    preview={
        "base_lr": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
        "dropout": 0.0,
        "augment": "hflip+vflip",
        "weight_decay": 0.0,
        "warmup_epochs": 0.5,
        "epochs": 9,
    },
)
