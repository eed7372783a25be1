"""Which activation function trains at all, at which learning rates and batch sizes?

    python -m search.run spaces/activations.py --set seeds=3

Our plain network, nine convolutions deep and without normalization, from scratch: what saturates
lets gradients vanish on their way to the first layers.

Cost: 96 trials of 10 epochs, 252 million patches. Preview: 48 trials, 6 minutes on two cores.

Expected: sigmoid stays at chance at this depth, and tanh does not (Glorot & Bengio 2010); nor do
rectifiers (Glorot 2011); without normalization SELU is ahead of ReLU (Klambauer 2017, in fully
connected networks). Measured (docs/findings.md): the first two are reproduced; SELU against ReLU is
not resolved, and at batch 256 most diverge.
"""

from dataclasses import replace

from ray import tune

from search.study import Better, Study
from spaces.bases import PLAIN, SMALL
from trainable.config import ACTIVATIONS

study = Study(
    name="activations",
    base=replace(PLAIN, depth=9, norm="none", epochs=10),
    vary={
        "activation": tune.grid_search(list(ACTIVATIONS)),
        "batch_size": tune.grid_search([16, 64, 256]),
        "base_lr": tune.grid_search([0.03, 0.1, 0.3, 1.0]),
    },
    expect=(
        Better("activation", "tanh", than="sigmoid", source="Glorot & Bengio 2010"),
        Better("activation", "relu", than="sigmoid", source="Glorot 2011"),
        Better("activation", "selu", than="relu", source="Klambauer 2017"),
    ),
    preview={**SMALL, "batch_size": [16, 256], "base_lr": [0.1, 0.3, 1.0], "train_images": 1024},
)
