"""Does the best learning rate of a batch size move with the number of training images?

    python -m search.run spaces/data_size.py --set seeds=3

The same epochs of a 64th, an eighth and all of the training images, so fewer images are also fewer
updates.

Cost: 45 trials of 5 epochs of 4,096 to 262,144 patches, 22 million patches. Preview: 27 trials,
2 minutes on two cores.

Expected: the critical batch size grows with the data, and not with the network (Zhang 2024), so
with few images large batches lose more; the best rate moves less. Measured (docs/findings.md): a
batch of 256 loses 0.017 AUROC to one of 16 with 256 images, and 0.006 with 4,000.
"""

from ray import tune

from search.study import Study, Trend
from spaces.bases import SMALL, VGG16

study = Study(
    name="data_size",
    base=VGG16,
    vary={
        "train_images": tune.grid_search([4096, 32768, 262144]),
        "batch_size": tune.grid_search([16, 64, 256]),
        "base_lr": tune.grid_search([3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    },
    expect=(
        Trend("falls", "Zhang 2024", where={"train_images": "lowest"}),
        Trend("rises", "Hestness 2017", field="train_images"),
    ),
    preview={**SMALL, "train_images": [256, 1024, 4000], "base_lr": [0.3, 1.0, 3.0]},
)
