"""Which optimizer is best at which batch size, each at its own best learning rate?

    python -m search.run spaces/optimizers.py --set seeds=3

Best rates differ a thousandfold, so each has its own. Those of SGD, momentum, LARS and
schedule-free SGD grow linearly with the batch, the others as its square root.

Cost: 120 trials of 5 epochs, 157 million patches. Preview: 48 trials, 4 minutes on two cores.

Expected: momentum helps most at the largest batch (Shallue 2018); LARS pays only at batches beyond
16,000 (He 2019). Measured (docs/findings.md): momentum +0.013 AUROC at 256; at 16 all are alike.
"""

from dataclasses import replace

from ray import tune

from search.study import Better, Study
from spaces.bases import SMALL, VGG16, around, with_own_lrs

OPTIMIZERS: dict[str, dict[str, object]] = {
    "momentum": {},
    "sgd": {"momentum": 0.0},
    "rmsprop": {"optimizer": "rmsprop", "momentum": 0.0, "lr_scaling": "sqrt"},
    "adagrad": {"optimizer": "adagrad", "lr_scaling": "sqrt"},
    "adam": {"optimizer": "adam", "lr_scaling": "sqrt"},
    "lars": {"optimizer": "lars"},
    "lamb": {"optimizer": "lamb", "lr_scaling": "sqrt"},
    "schedule-free": {"optimizer": "schedulefree_sgd", "decay": "constant"},
}
SMALL_BEST = with_own_lrs(OPTIMIZERS, [1, 4, 5e-3, 5e-2, 3e-2, 30, 3e-2, 10], num=3, factor=5)
study = Study(
    name="optimizers",
    base=replace(VGG16, weight_decay=0.0),
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(1e-2)},
    explore=with_own_lrs(OPTIMIZERS, [1e-2, 1e-1, 1e-4, 1e-3, 3e-4, 10, 1e-2, 1e-1]),
    expect=(Better("variant", "momentum", "sgd", "Shallue 2018", where={"batch_size": "highest"}),),
    preview={**SMALL, "batch_size": [16, 256], "explore": SMALL_BEST},
)
