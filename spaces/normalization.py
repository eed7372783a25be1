"""Is it SGD's batch that matters, or BatchNorm's?

    python -m search.run spaces/normalization.py --set seeds=3

BatchNorm's own batch grows with SGD's; that of ghost, group and frozen normalization does not.
"running averages" evaluates BatchNorm without recomputed (precise) statistics.

Cost: 75 trials of 5 epochs, 98 million patches. Preview: 32 trials, 2 minutes on two cores.

Expected: running averages lag where updates are few, at the largest batch, and precise statistics
do not (Wu & Johnson 2021). Ghost batches of 16 are small: 32 to 128 is best there. Measured
(docs/findings.md): at 256 running averages cost 0.013 AUROC; group normalization is far behind.
"""

from dataclasses import replace

from ray import tune

from search.explore import Variants
from search.study import Better, Study
from spaces.bases import SMALL, VGG16, around

EACH: dict[str, dict[str, object]] = {
    "batch": {},
    "running averages": {"precise_bn_images": 0},
    "ghost of 16": {"norm": "ghost", "ghost_batch_size": 16},
    "group": {"norm": "group"},
}
SOURCE, LARGE = "Wu & Johnson 2021", {"batch_size": "highest"}
study = Study(
    name="normalization",
    base=replace(VGG16, model="resnet18", train_blocks=None, dropout=0.0),
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(3e-2)},
    explore=Variants(each={**EACH, "frozen": {"norm": "frozen"}}),
    expect=(Better("variant", "batch", than="running averages", source=SOURCE, where=LARGE),),
    preview={
        **{**SMALL, "batch_size": [16, 256], "base_lr": [0.3, 1.0, 3.0, 10.0]},
        "explore": Variants(each=EACH),
    },
)
