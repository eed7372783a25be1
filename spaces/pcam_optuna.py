"""Which batch size, learning rate and momentum does a search find with 40 trials?

    python -m search.run spaces/pcam_optuna.py

TPE chooses each configuration from what the others scored, and ASHA lets about one of three go on
at each rung. A search finds a good configuration cheaply; it does not map the surface: what it
stopped is censored. `optuna-dashboard` opens `results/pcam_optuna/optuna.journal`.

Cost: 40 trials of at most 9 epochs, 94 million patches less what is stopped. Preview: 2 minutes.

Expected: it ends near the best cell of `pcam_grid.py`. In preview (docs/findings.md) it does.
"""

from dataclasses import replace

from ray import tune

from search.explore import Asha, Optuna
from search.study import Study
from spaces.bases import SMALL, VGG16

study = Study(
    name="pcam_optuna",
    base=replace(VGG16, weight_decay=0.0, warmup_epochs=0.5, epochs=9),
    vary={
        "batch_size": tune.choice([16, 32, 64, 128, 256]),
        "base_lr": tune.loguniform(1e-4, 1e-1),
        "momentum": tune.uniform(0.5, 0.98),
    },
    explore=Optuna(num_configs=40, sampler="tpe"),
    stop=Asha(reduction_factor=3, grace_share=1 / 9),
    preview={**SMALL, "base_lr": tune.loguniform(0.03, 30.0), "epochs": 9},
)
