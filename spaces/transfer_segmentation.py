"""Do tricks of the backbone carry over to semantic segmentation?

    python -m search.run spaces/transfer_segmentation.py --data VOC2012

Table 9 of "Bag of Tricks" (He 2019): FCN on two ResNet-50s, torchvision's of its first recipe and
GluonCV's ResNet-50-D with all tricks. SGD with polynomial decay, each at its best rate.

Cost: 8 trials of 30 epochs of 1,464 images, 0.35 million images. Preview: 8 trials, 1 minute.

Expected: in part. The paper's FCN on ADE20K goes from 37.05 to 38.40 mIoU with all of them, and to
39.33 without label smoothing and mixup.
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
