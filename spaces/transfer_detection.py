"""Do tricks of the backbone carry over to object detection?

    python -m search.run spaces/transfer_detection.py --data VOC2007

Table 8 of "Bag of Tricks" (He 2019): Faster R-CNN on two ResNet-50s, torchvision's of its first
recipe and GluonCV's ResNet-50-D with all tricks. BatchNorm is frozen, each at its best rate.

Cost: 6 trials of 12 epochs of 2,501 images, 0.18 million images. Preview: 6 trials, 2 minutes.

Expected: yes. The paper's mAP at an overlap of 0.5 goes from 77.54 to 81.33 on VOC 2007.
"""

from ray import tune

from search.study import Better, Study
from trainable.config import TrialConfig

BASELINE, TRICKS = "timm/resnet50.tv_in1k", "timm/resnet50d.gluon_in1k"
SMALL = {"norm": "batch", "train_images": 256, "eval_images": 128}
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
    preview={"model": ["plain", "residual"], **SMALL},
)
