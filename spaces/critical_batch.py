"""Up to which batch size do larger batches save updates without costing more images?

    python -m search.run spaces/critical_batch.py --set seeds=3

Updates to a target score at each batch size's own best rate: constant rates, so that none reaches
it because its schedule ends, and an evaluation every 32,768 images. The report has the front of
updates and images, its critical batch size, and the gradient noise scale beside it.

Cost: 42 trials of 40 epochs of 32,768 patches, 55 million patches. Preview: 25 trials, 2 minutes.

Expected: updates fall as 1/B, and stop falling near the gradient noise scale (McCandlish 2018).
Measured (docs/findings.md): 210 updates at batch 16 and 23 at 256; the noise scale is 54 images.
"""

from dataclasses import replace

from ray import tune

from search.study import Study
from spaces.bases import SMALL, VGG16, VGG16_LRS

study = Study(
    name="critical_batch",
    base=replace(VGG16, decay="constant", train_images=32_768, eval_images=8192, epochs=40),
    vary={
        "batch_size": tune.grid_search([16, 32, 64, 128, 256, 512]),
        "base_lr": tune.grid_search(VGG16_LRS),
    },
    preview={
        **SMALL,
        "batch_size": [16, 32, 64, 128, 256],
        "base_lr": [0.1, 0.3, 1.0, 3.0, 10.0],
        "train_images": 512,
        "epochs": 20,
    },
)
