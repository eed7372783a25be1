"""What does each way to regularize do against overfitting, and which of them underfits?

    python -m search.run spaces/regularization.py --set seeds=3

A network from scratch on 8,192 images, long enough to overfit: the report's curves show training
and validation scores. Each way alone, at its own best rate.

Cost: 48 trials of 60 epochs of 8,192 patches, 24 million patches. Preview: 32 trials, 2 minutes.

Expected: flips, which make new images, help most; smoothing and mixup add a little (He 2019); early
stopping saves time rather than score. Measured (docs/findings.md): flips add 0.024 AUROC.
"""

from dataclasses import replace

from ray import tune

from search.explore import Variants
from search.study import Better, Study
from spaces.bases import PLAIN, SMALL, around

WAYS: dict[str, dict[str, object]] = {
    "none": {},
    "flips": {"augment": "hflip+vflip"},
    "flips, colour, erasing": {"augment": "hflip+vflip+color+erase"},
    "dropout": {"dropout": 0.5},
    "weight decay": {"weight_decay": 5e-3},
    "label smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup_alpha": 0.2},
    "early stopping": {"early_stop_patience": 3},
}
FEW = {"augment": "none", "width": 12, "train_images": 512, "epochs": 20, "eval_epochs": 4}
study = Study(
    name="regularization",
    base=replace(PLAIN, augment="none", train_images=8192, epochs=60, eval_epochs=2),
    vary={"batch_size": tune.grid_search([16, 256]), "base_lr": around(1.0, num=3)},
    explore=Variants(each=WAYS),
    expect=(Better("variant", "flips", than="none", source="Simard 2003"),),
    preview={**SMALL, **FEW, "base_lr": [0.3, 1.0]},
)
