"""Where is the ridge, and does the linear scaling rule hold for SGD?

    python -m search.run spaces/pcam_grid.py

The flagship: validation AUROC over batch size and learning rate on PatchCamelyon. VGG16 with
ImageNet weights, its last two blocks trained, SGD with momentum, a learning rate that grows
linearly with the batch, one epoch of warmup, cosine decay. Base rates are for a batch of 256.

Cost: 35 trials of 5 epochs, 46 million patches. Preview: 35 trials, 2 minutes on two cores.

Expected: a ridge near one base rate from batch 16 to 256, so the best peak rate grows sixteenfold
(Goyal 2017), and divergence at the high end. Measured in preview on real patches, three seeds
(docs/findings.md): B^0.81 [0.42, 1.20].
"""

from ray import tune

from search.study import Exponent, Study
from spaces.bases import SMALL, SMALL_LRS, VGG16, VGG16_LRS

study = Study(
    name="pcam_grid",
    base=VGG16,
    vary={
        "batch_size": tune.grid_search([16, 32, 64, 128, 256]),
        "base_lr": tune.grid_search(VGG16_LRS),
    },
    expect=(Exponent(low=0.8, high=1.2, source="Goyal 2017, linear scaling rule"),),
    preview={**SMALL, "base_lr": SMALL_LRS},
)
