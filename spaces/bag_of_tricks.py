"""What each trick of "Bag of Tricks" (He et al. 2019) adds, at a small and at a large batch.

    python -m search.run spaces/bag_of_tricks.py --set seeds=3

The tricks of its Tables 4 and 6, each on top of those before it: a ResNet-50-D from scratch, SGD
with momentum, at batch 256 and 1024. Without any, every batch gets the same rate, dropped tenfold
three times. Distillation needs a teacher and is left to `--set distill_from=...`.

Cost: 16 trials of 30 epochs of 262,144 patches, 126 million patches. As a preview about a minute
a seed on two cores, with a small residual network.

It should show that the large batch needs linear scaling and warmup most, and that the rest are
worth less than the noise of one seed at this size: run several.
"""

from ray import tune

from search.explore import Ablation
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="bag_of_tricks",
    base=TrialConfig(
        dataset="pcam",
        model="timm/resnet50d",
        pretrained="none",
        augment="hflip+vflip+shift+color",
        optimizer="sgd",
        momentum=0.9,
        nesterov=True,
        base_lr=0.1,
        lr_scaling="constant",
        reference_batch_size=256,
        weight_decay=1e-4,
        no_bias_decay=False,
        decay="step",
        num_steps=3,
        epochs=30,
    ),
    vary={"batch_size": tune.grid_search([256, 1024])},
    explore=Ablation(
        steps={
            "baseline": {},
            "+ linear scaling": {"lr_scaling": "linear"},
            "+ warmup": {"warmup_epochs": 1},
            "+ zero gamma": {"zero_gamma": True},
            "+ no bias decay": {"no_bias_decay": True},
            "+ cosine": {"decay": "cosine"},
            "+ label smoothing": {"label_smoothing": 0.1},
            "+ mixup": {"mixup_alpha": 0.2},
        }
    ),
    preview={
        "model": "residual",
        "depth": 6,
        "width": 12,
        "batch_size": [32, 128],
        "reference_batch_size": 32,
        "base_lr": 0.05,
        "augment": "hflip+vflip",
        "epochs": 6,
    },
)
