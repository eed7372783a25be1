"""From one checkpoint, how far can the batch grow, at a rescaled rate, before the loss parts?

    python -m search.run spaces/critical_branch.py --set seeds=3

Merrill 2025: train with a batch of 16 for two fifths of the budget; from that state go on with 16,
32, 64 ... at rates that grow linearly or as a square root, and at half and twice those. The largest
batch whose loss is that of 16 is the critical one at that point; `--set explore.at=0.1` asks
earlier.

Cost: 37 trials of parts of 5 epochs, 29 million patches. Preview: 31 trials, 1 minute.

Expected: the loss stays up to a critical batch and rises beyond it; that batch is small at first,
grows fast, and then stays (Merrill 2025, language models). Measured (docs/findings.md): no rise up
to 256 with square-root scaling.
"""

from dataclasses import replace

from ray import tune

from search.explore import Branch
from search.study import Study, Trend
from spaces.bases import SMALL, VGG16

study = Study(
    name="critical_branch",
    metric="val_loss",
    base=replace(VGG16, reference_batch_size=16, decay="constant"),
    vary={
        "lr_scaling": tune.grid_search(["linear", "sqrt"]),
        "batch_size": tune.grid_search([16, 32, 64, 128, 256, 512]),
        "base_lr": tune.grid_search([1e-4, 2e-4, 4e-4]),
    },
    explore=Branch(at=0.4, trunk={"batch_size": 16, "base_lr": 2e-4}),
    expect=(Trend("falls", source="Merrill 2025"),),
    preview={
        **{**SMALL, "batch_size": [16, 32, 64, 128, 256], "base_lr": [0.02, 0.04, 0.08]},
        "explore": Branch(at=0.4, trunk={"batch_size": 16, "base_lr": 0.04}),
    },
)
