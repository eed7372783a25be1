"""How much learning rate does warmup buy, counted in epochs and in updates?

    python -m search.run spaces/warmup.py --set seeds=3

No warmup, an epoch of it at every batch size, and as many updates at every batch size as an epoch
has at 256 (`warmup_scaling`). The high end of the rates tells: which of them still train?

Cost: 45 trials of 5 epochs, 59 million patches. Preview: 30 trials, 2 minutes on two cores.

Expected: warmup raises the largest rate that trains, and matters little at the best rate (Kalra &
Barkeshli 2024; Kosson 2024). Measured (docs/findings.md): no difference above the noise.
"""

from dataclasses import replace

from ray import tune

from search.explore import Variants
from search.study import Better, Study
from spaces.bases import SMALL, VGG16, around

EACH: dict[str, dict[str, object]] = {
    "none": {},
    "an epoch": {"warmup_epochs": 1.0},
    "as many updates": {"warmup_epochs": 1.0, "warmup_scaling": "linear"},
}
SOURCE, HIGH = "Kalra & Barkeshli 2024", {"base_lr": "highest"}
study = Study(
    name="warmup",
    base=replace(VGG16, warmup_epochs=0.0),
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(1e-2)},
    explore=Variants(each=EACH),
    expect=(Better("variant", "an epoch", than="none", source=SOURCE, where=HIGH),),
    preview={
        **{**SMALL, "warmup_epochs": 0.0},
        **{"batch_size": [16, 256], "base_lr": [0.3, 1.0, 3.0, 10.0, 30.0]},
    },
)
