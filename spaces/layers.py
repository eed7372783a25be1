"""Which layers to train: the head, the last blocks, or all, at which rates?

    python -m search.run spaces/layers.py --set seeds=3

Each choice at its own best rate, for each batch size; "decayed" rates fall towards the input.

Cost: 75 trials of 5 epochs, 98 million patches. Preview: 24 trials, 2 minutes on two cores.

Expected: training the last two blocks is better than the head alone (Yosinski 2014; Kandel &
Castelli 2020 train two), and decayed rates keep what the layers know (Howard & Ruder 2018).
A preview's network has no pretrained weights to keep: there (docs/findings.md) all layers at one
rate are best, and mostly the head costs 0.03 to 0.04 AUROC.
"""

from dataclasses import replace

from ray import tune

from search.explore import Variants
from search.study import Better, Study
from spaces.bases import SMALL, VGG16, around

ALL: dict[str, dict[str, object]] = {"all": {}, "all, decayed": {"layer_decay": 0.7}}
BLOCKS = {
    "head": {"train_blocks": 0},
    "last block": {"train_blocks": 1},
    "last two blocks": {"train_blocks": 2},
}
study = Study(
    name="layers",
    base=replace(VGG16, train_blocks=None),
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(3e-3)},
    explore=Variants(each={**ALL, **BLOCKS}),
    expect=(Better("variant", "all, decayed", than="all", source="Howard & Ruder 2018"),),
    preview={
        **{**SMALL, "batch_size": [16, 256], "base_lr": [0.3, 1.0, 3.0, 10.0]},
        "explore": Variants(each={**ALL, "mostly the head": {"layer_decay": 0.01}}),
    },
)
