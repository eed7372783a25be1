"""Population based training: a batch size and a learning rate that change on the way.

    python -m search.run spaces/pcam_pbt.py

Eight members begin with drawn values; after every fifth of the budget the worst two go on from
the state of one of the best two with changed values. What comes out is a schedule, not a cell of
the surface: the last generation's rows say how far it got, `begins_from` says from where.

Cost: 40 trials of a fifth of 10 epochs, so 8 whole ones. As a preview about a minute on two cores:
each generation waits for its last member.

It should end beside the best cells of `pcam_grid.py`; the answer shows how the best member got
there.
"""

from ray import tune

from search.explore import Pbt
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="pcam_pbt",
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
        epochs=10,
    ),
    vary={
        "batch_size": tune.choice([16, 32, 64, 128, 256]),
        "base_lr": tune.loguniform(1e-4, 1e-1),
    },
    explore=Pbt(size=8, generations=5),
    preview={
        "base_lr": tune.loguniform(0.03, 30.0),
        "dropout": 0.0,
        "augment": "hflip+vflip",
        "weight_decay": 0.0,
        "warmup_epochs": 0.5,
    },
)
