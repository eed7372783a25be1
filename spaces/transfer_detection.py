"""Bag of Tricks, Table 8 (He et al. 2019): does a better backbone make a better detector?

    python -m search.run spaces/transfer_detection.py --data VOC2007

Faster R-CNN with a feature pyramid on two ResNet-50s: torchvision's of its first recipe, and
GluonCV's ResNet-50-D with all tricks of the paper. BatchNorm is frozen, since batches are small.

Cost: 6 trials of 12 epochs of 2,501 images, 0.18 million images in all. As a preview on synthetic
patches, with our two networks in the place of the ResNets, three minutes on two cores.

It should show that tricks carry over whole: in the paper mAP at an overlap of 0.5 goes from 77.54 to
81.33 with all of them, on the training images of VOC 2007 and 2012 together.
"""

from ray import tune

from search.study import Better, Study
from trainable.config import TrialConfig

BASELINE, TRICKS = "timm/resnet50.tv_in1k", "timm/resnet50d.gluon_in1k"
study = Study(
    name="transfer_detection",
    base=TrialConfig(
        dataset="voc",
        task="detection",
        select_by="val_map_50",
        augment="hflip",
        norm="frozen",
        batch_size=8,
        lr_scaling="constant",
        weight_decay=1e-4,
        epochs=12,
    ),
    vary={
        "model": tune.grid_search([BASELINE, TRICKS]),
        "base_lr": tune.grid_search([0.003, 0.01, 0.03]),
    },
    expect=(Better("model", TRICKS, BASELINE, "He 2019, Table 8", by=0.0379),),
    preview={"model": ["plain", "residual"], "norm": "batch", "train_images": 256, "epochs": 3},
)
