"""Does stopping the worse trials early find the same ridge for less?

    python -m search.run spaces/pcam_asha.py

The grid of `pcam_grid.py` with ASHA. A trial competes only with those of its own batch size: at
equal epochs a small batch has made more updates by every rung, and plain ASHA would favour it. The
best three configurations then get three seeds. A stopped trial is censored: this finds the ridge
cheaply, `pcam_grid.py` maps the surface.

Cost: at most 41 trials of 9 epochs, 97 million patches less what is stopped. Preview: 1 minute.

Expected: the best learning rates of `pcam_grid.py` (Goyal 2017). In preview (docs/findings.md):
B^0.98 [0.55, 1.42].
"""

from dataclasses import replace

from ray import tune

from search.explore import Asha, Leaders
from search.study import Exponent, Study
from spaces.bases import SMALL, SMALL_LRS, VGG16, VGG16_LRS

study = Study(
    name="pcam_asha",
    base=replace(VGG16, epochs=9),
    vary={
        "batch_size": tune.grid_search([16, 32, 64, 128, 256]),
        "base_lr": tune.grid_search(VGG16_LRS),
    },
    stop=Asha(by_batch_size=True),
    leaders=Leaders(top=3, seeds=3),
    expect=(Exponent(low=0.8, high=1.2, source="Goyal 2017, linear scaling rule"),),
    preview={**SMALL, "base_lr": SMALL_LRS, "epochs": 9},
)
