"""Is a batch in one piece the same as the same batch accumulated from microbatches of 16?

    python -m search.run spaces/accumulation.py --set seeds=3

A ResNet-18 from scratch (in preview a small residual network), with BatchNorm, whose statistics are
over a microbatch, and with group normalization, which knows no batch. At batch 16 both are the same
training.

Cost: 60 trials of 20 epochs, 315 million patches. Preview: 24 trials, 2 minutes on two cores.

Expected: with group normalization the same scores but for rounding; with BatchNorm its own batch
stays 16, as with ghost BatchNorm, which is better at large batches (Hoffer 2017). Measured
(docs/findings.md): equal with group normalization; with BatchNorm the difference is not resolved.
"""

from dataclasses import replace

from ray import tune

from search.explore import Variants
from search.study import Better, Study
from spaces.bases import PLAIN, SMALL

RESIDUAL = {"model": "residual", "depth": 6, "width": 12}
WHERE = {"norm": "batch", "batch_size": "highest"}
study = Study(
    name="accumulation",
    base=replace(PLAIN, model="resnet18"),
    vary={
        "norm": tune.grid_search(["batch", "group"]),
        "batch_size": tune.grid_search([16, 64, 256]),
        "base_lr": tune.grid_search([0.03, 0.1, 0.3, 1.0, 3.0]),
    },
    explore=Variants(each={"in one piece": {}, "accumulated": {"microbatch_size": 16}}),
    expect=(Better("variant", "accumulated", "in one piece", source="Hoffer 2017", where=WHERE),),
    preview={**SMALL, **RESIDUAL, "batch_size": [16, 256], "base_lr": [0.3, 1.0, 3.0]},
)
