"""Four trials of a second each, for tests of the command."""

from ray import tune

from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="small",
    base=TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        width=4,
        image_size=48,
        train_images=256,
        eval_images=128,
        epochs=2,
        precision="fp32",
    ),
    vary={"batch_size": tune.grid_search([32, 64]), "base_lr": tune.grid_search([0.3, 1.0])},
)
