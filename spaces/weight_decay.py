"""Does the best weight decay move with the batch size, and does a time scale hold it still?

    python -m search.run spaces/weight_decay.py --set seeds=3

AdamW forgets a weight in 1 / (lr x weight_decay) updates. With `constant` these are other numbers
of epochs at other batch sizes; `timescale` keeps the number of epochs.

Cost: 54 trials of 5 epochs, 71 million patches. Preview: 36 trials, 2 minutes on two cores.

Expected: Wang & Aitchison 2024 find one number of epochs best for networks and data of many sizes.
If so for batch sizes too, a strong decay, which at batch 16 forgets too soon if it is constant,
does better with the time scale. Measured (docs/findings.md): by 0.0013 AUROC, within the noise.
"""

from dataclasses import replace

from ray import tune

from search.study import Better, Study
from spaces.bases import SMALL, VGG16

RULE, SOURCE = "weight_decay_scaling", "Wang & Aitchison 2024"
WHERE = {"batch_size": "lowest", "weight_decay": "highest"}
study = Study(
    name="weight_decay",
    base=replace(VGG16, optimizer="adamw", lr_scaling="sqrt"),
    vary={
        RULE: tune.grid_search(["constant", "timescale"]),
        "weight_decay": tune.grid_search([0.01, 0.1, 1.0]),
        "batch_size": tune.grid_search([16, 64, 256]),
        "base_lr": tune.grid_search([1e-4, 3e-4, 1e-3]),
    },
    expect=(Better(RULE, "timescale", than="constant", source=SOURCE, where=WHERE),),
    # Strong, since few updates leave a weak one no time to act; batch sizes at the ends.
    preview={
        **{**SMALL, "weight_decay": [0.03, 0.3, 3.0]},
        **{"batch_size": [16, 256], "base_lr": [3e-3, 1e-2, 3e-2]},
    },
)
