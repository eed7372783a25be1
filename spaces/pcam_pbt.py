"""What does a schedule look like in which the batch size and the rate change on the way?

    python -m search.run spaces/pcam_pbt.py

Population based training: eight members begin with drawn values; after every fifth of the budget
the worst two go on from the state of one of the best two, with changed values. What comes out is a
schedule, not a cell of the surface; `begins_from` says from where each went on.

Cost: 40 trials of a fifth of 10 epochs, 21 million patches. Preview: 40 trials, 1 minute.

Expected: it ends beside the best cells of `pcam_grid.py`, with rates that fall or batches that
grow. In preview (docs/findings.md) it ends at batch 16 and at 256, with equal scores.
"""

from dataclasses import replace

from ray import tune

from search.explore import Pbt
from search.study import Study
from spaces.bases import SMALL, VGG16

study = Study(
    name="pcam_pbt",
    base=replace(VGG16, epochs=10),
    vary={
        "batch_size": tune.choice([16, 32, 64, 128, 256]),
        "base_lr": tune.loguniform(1e-4, 1e-1),
    },
    explore=Pbt(size=8, generations=5),
    preview={**SMALL, "base_lr": tune.loguniform(0.03, 30.0)},
)
