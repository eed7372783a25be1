"""The flagship: validation AUROC over batch size and learning rate, on PatchCamelyon.

    python -m search.run spaces/pcam_grid.py

VGG16 with ImageNet weights, its last two blocks trained, SGD with momentum, a learning rate that
grows linearly with the batch, one epoch of warmup, cosine decay. Base rates are for a batch of 256.

Cost: 35 trials of 5 epochs of 262,144 patches, 46 million patches in all. Where the data is not
there it runs as a preview on synthetic patches, one to two and a half minutes on two cores.

It should show a ridge that stays near one base rate from batch 16 to 256 (the linear rule holds
for SGD here), with the best peak rate growing sixteenfold, and divergence at the high end.
"""

from ray import tune

from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="pcam_grid",
    base=TrialConfig(
        dataset="pcam",
        model="vgg16",
        pretrained="imagenet",
        train_blocks=2,
        dropout=0.5,
        augment="hflip+vflip+shift",
        optimizer="sgd",
        momentum=0.9,
        weight_decay=1e-4,
        lr_scaling="linear",
        reference_batch_size=256,
        warmup_epochs=1,
        decay="cosine",
        epochs=5,
    ),
    vary={
        "batch_size": tune.grid_search([16, 32, 64, 128, 256]),
        "base_lr": tune.grid_search([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
    },
    preview={
        # A small network trained from scratch has its optimum at other rates than VGG16.
        "base_lr": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
        "dropout": 0.0,
        "augment": "hflip+vflip",
        "weight_decay": 0.0,
        "warmup_epochs": 0.5,
    },
)
