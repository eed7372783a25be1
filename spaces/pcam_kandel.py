"""Does a large learning rate want large batches, and a small one small batches?

    python -m search.run spaces/pcam_kandel.py --data KAGGLE_FOLDER

Kandel & Castelli 2020 (doi:10.1016/j.icte.2020.04.010): VGG16, its last two blocks trained, a
constant rate, the epoch with the best validation accuracy tested. The paper does not say its head,
dropout, momentum, or how far it shifts and zooms: these are our choices. Kaggle's test labels are
not public; the official PatchCamelyon files have a test split.

Cost: 20 trials of 50 epochs of Kaggle's 176,020 patches, 176 million patches. Preview: 2 minutes.

Expected: at the low rate AUROC falls with the batch, at the high one it rises (Tables 1 and 2).
Measured (docs/findings.md): so with SGD; with Adam the preview's high rate is too high.
"""

from ray import tune

from search.study import Reported, Study, Trend
from spaces.bases import SMALL, VGG16_KANDEL
from spaces.papers import KANDEL

OPTIMIZERS, PAPER = ["adam", "sgd"], "Kandel & Castelli 2020, Tables 1 and 2"
study = Study(
    name="pcam_kandel",
    base=VGG16_KANDEL,
    vary={
        "optimizer": tune.grid_search(OPTIMIZERS),
        "batch_size": tune.grid_search([16, 32, 64, 128, 256]),
        "base_lr": tune.grid_search([1e-4, 1e-3]),
    },
    expect=(
        *(Trend("falls", PAPER, {"optimizer": o, "base_lr": "lowest"}) for o in OPTIMIZERS),
        *(Trend("rises", PAPER, {"optimizer": o, "base_lr": "highest"}) for o in OPTIMIZERS),
        Reported("test_auroc", KANDEL, PAPER),
    ),
    # Rates on either side of the small network's optimum; no BatchNorm, as VGG16 has none.
    preview={**SMALL, "warmup_epochs": 0.0, "base_lr": [0.003, 0.18], "norm": "none"},
)
