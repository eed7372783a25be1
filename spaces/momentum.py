"""Does momentum act as lr / (1 - momentum) alone, and at which batch sizes does it help?

    python -m search.run spaces/momentum.py --set seeds=3

Every momentum has the same effective rates, lr / (1 - momentum): if that is all, the surfaces of
all momenta look alike, column by column.

Cost: 60 trials of 5 epochs, 79 million patches. Preview: 32 trials, 3 minutes on two cores.

Expected: the effective rate decides in fine-tuning (Li 2020); momentum by itself helps only where
the effective rate is large, so at large batches (Fu 2023). Measured (docs/findings.md): at 16 it
makes no difference, at 256 it adds 0.025 AUROC.
"""

from ray import tune

from search.study import Better, Study
from spaces.bases import SMALL, VGG16, around, with_own_lrs

MOMENTA = {f"momentum {m}": {"momentum": m} for m in (0.0, 0.5, 0.9, 0.98)}
LARGE = {"batch_size": "highest"}
study = Study(
    name="momentum",
    base=VGG16,
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(1e-2)},
    explore=with_own_lrs(MOMENTA, [0.1, 0.05, 0.01, 0.002]),
    expect=(Better("momentum", 0.9, than=0.0, source="Fu 2023", where=LARGE),),
    preview={
        **SMALL,
        "batch_size": [16, 256],
        "explore": with_own_lrs(MOMENTA, [10, 5, 1, 0.2], num=4),
    },
)
