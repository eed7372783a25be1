"""Bag of Tricks, Table 9 (He et al. 2019): does a better backbone make a better segmenter?

    python -m search.run spaces/transfer_segmentation.py --data VOC2012

FCN on two ResNet-50s: torchvision's of its first recipe, and GluonCV's ResNet-50-D with all tricks
of the paper. SGD with polynomial decay, as in torchvision's reference, each at its best rate.

Cost: 8 trials of 30 epochs of 1,464 images, 0.35 million images in all. As a preview on synthetic
patches, with our two networks in the place of the ResNets, a minute on two cores.

It should show that tricks carry over in part: the paper's FCN on ADE20K goes from 37.05 to 38.40
mIoU with all of them, and to 39.33 without label smoothing and mixup.
"""

from ray import tune

from search.study import Better, Study
from trainable.config import TrialConfig

BASELINE, TRICKS = "timm/resnet50.tv_in1k", "timm/resnet50d.gluon_in1k"
study = Study(
    name="transfer_segmentation",
    base=TrialConfig(
        dataset="voc",
        task="segmentation",
        augment="hflip+crop",
        batch_size=16,
        lr_scaling="constant",
        weight_decay=1e-4,
        decay="polynomial",
        epochs=30,
    ),
    vary={
        "model": tune.grid_search([BASELINE, TRICKS]),
        "base_lr": tune.grid_search([0.003, 0.01, 0.03, 0.1]),
    },
    expect=(Better("model", TRICKS, BASELINE, "He 2019, Table 9", by=0.0135),),
    preview={"model": ["plain", "residual"], "base_lr": [0.03, 0.1, 0.3, 1.0], "train_images": 512},
)
