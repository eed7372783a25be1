"""How much of the effect of the batch size is the number of updates?

    python -m search.run spaces/budgets.py --set seeds=3

At equal epochs a batch of 16 makes sixteen times the updates of one of 256. Here every batch size
also gets as many updates, and has its own best rate in both. Equal seconds: the report's table of
scores at equal cost.

Cost: 30 trials of 5 epochs or 5,120 updates, 28 million patches. Preview: 30 trials, 3 minutes.

Expected: at equal epochs small batches score better, at equal updates large ones (Hoffer 2017);
no batch is too large once its rate is tuned and the updates are there (Shallue 2018). Measured
(docs/findings.md): at equal epochs a tie, at equal updates 256 ahead of 16 by 0.027 AUROC.
"""

from ray import tune

from search.explore import Variants
from search.study import Study, Trend
from spaces.bases import SMALL, VGG16, around


def equal(updates: int) -> Variants:
    """The base's epochs, and as many updates at every batch size."""
    return Variants(
        each={"equal epochs": {}, "equal updates": {"epochs": None, "updates": updates}}
    )


study = Study(
    name="budgets",
    base=VGG16,
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(3e-3)},
    explore=equal(updates=5120),
    expect=(
        Trend("falls", source="Hoffer 2017", where={"variant": "equal epochs"}),
        Trend("rises", source="Hoffer 2017", where={"variant": "equal updates"}),
    ),
    preview={**SMALL, "base_lr": [0.1, 0.3, 1.0, 3.0, 10.0], "explore": equal(updates=160)},
)
