"""Where is the ridge of `pcam_grid.py`, found with a fraction of its trials?

    python -m search.run spaces/pcam_ridge.py

The flagship's question, without its grid: each trial is where it is expected to tell most of the
best learning rate of some batch size, and ends where its curve shows that it will not be the best.
A search leaves gaps where little is to be learnt; `pcam_grid.py` maps the whole surface.

Cost: at most 20 trials of 5 epochs, 26 million patches less what is stopped. Preview: 2 minutes.

Expected: the best learning rates of `pcam_grid.py` (Goyal 2017). In preview (docs/findings.md) 20
trials, 9 of them stopped, give rates within the grid's intervals.
"""

from ray import tune

from search.explore import Forecast, Ridge
from search.study import Study
from spaces.bases import SMALL, VGG16

study = Study(
    name="pcam_ridge",
    base=VGG16,
    vary={
        "batch_size": tune.choice([16, 32, 64, 128, 256]),
        "base_lr": tune.loguniform(1e-4, 1e-1),
    },
    explore=Ridge(num_trials=20),
    stop=Forecast(),
    preview={**SMALL, "base_lr": tune.loguniform(0.03, 30.0)},
)
