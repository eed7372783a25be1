"""Which schedule is best: constant, steps, cosine, or a batch that grows?

    python -m search.run spaces/schedules.py --set seeds=3

At each batch size every schedule has its own best rate. `batch_growth` multiplies the batch by 5
where `step` divides the rate by 5.

Cost: 60 trials of 5 epochs, 79 million patches. Preview: 24 trials, 2 minutes on two cores.

Expected: a batch that grows ends where a rate that falls does, with fewer updates (Smith 2018);
cosine beats steps by 0.8 % accuracy on ImageNet (He 2019, Table 6), and anything that decays beats
a constant rate. Measured (docs/findings.md): cosine ahead at both batch sizes, within the noise.
"""

from dataclasses import replace

from ray import tune

from search.study import Better, Study
from spaces.bases import SMALL, VGG16

study = Study(
    name="schedules",
    base=replace(VGG16, num_steps=2, step_factor=0.2),
    vary={
        "decay": tune.grid_search(["constant", "step", "cosine", "batch_growth"]),
        "batch_size": tune.grid_search([16, 64, 256]),
        "base_lr": tune.grid_search([3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    },
    expect=(
        Better("decay", "cosine", than="step", source="He 2019, Table 6"),
        Better("decay", "cosine", than="constant", source="He 2019"),
    ),
    preview={**SMALL, "batch_size": [16, 256], "base_lr": [0.3, 1.0, 3.0]},
)
