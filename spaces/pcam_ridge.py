"""Where is the ridge of `pcam_grid.py`, found with a fraction of its trials?

    python -m search.run spaces/pcam_ridge.py

The flagship's question, without its grid: each trial is where it is expected to tell most of the
best learning rate of some batch size. A search leaves gaps where little is to be learnt;
`pcam_grid.py` maps the whole surface.

Cost: at most 16 trials of 5 epochs, 21 million patches. Preview: 16 trials, 1 minute on two cores.

Expected: the best learning rates of `pcam_grid.py` (Goyal 2017). In preview (docs/findings.md) 16
trials give good rates; how they grow stays open.
"""

from ray import tune

from search.explore import Ridge
from search.study import Study
from spaces.bases import SMALL, VGG16

study = Study(
    name="pcam_ridge",
    base=VGG16,
    vary={
        "batch_size": tune.choice([16, 32, 64, 128, 256]),
        "base_lr": tune.loguniform(1e-4, 1e-1),
    },
    explore=Ridge(num_trials=16),
    preview={**SMALL, "base_lr": tune.loguniform(0.03, 30.0)},
)
