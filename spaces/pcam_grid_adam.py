"""Where is Adam's ridge: does the square-root rule hold, and does the best rate fall again?

    python -m search.run spaces/pcam_grid_adam.py

The flagship with Adam and rates that grow with the square root of the batch, over batch sizes up to
1,024: Li 2024 has the best rate rise up to the gradient noise scale and fall beyond it. The betas
stay: `--set lr_scaling=malladi` (batch sizes below 2,560) scales them too.

Cost: 49 trials of 5 epochs, 64 million patches. Preview: 35 trials, 4 minutes on two cores.

Expected: the best peak rate grows as the square root of the batch (Malladi 2022), and less than
that at the largest batches (Li 2024). Measured (docs/findings.md): B^0.61 [0.13, 1.09].
"""

from dataclasses import replace

from ray import tune

from search.study import Exponent, Study
from spaces.bases import SMALL, VGG16

study = Study(
    name="pcam_grid_adam",
    base=replace(VGG16, optimizer="adam", lr_scaling="sqrt", weight_decay=0.0),
    vary={
        "batch_size": tune.grid_search([16, 32, 64, 128, 256, 512, 1024]),
        "base_lr": tune.grid_search([3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]),
    },
    expect=(Exponent(low=0.3, high=0.7, source="Malladi 2022, square-root scaling rule"),),
    preview={
        **SMALL,
        "batch_size": [16, 32, 64, 128, 256],
        "base_lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
    },
)
