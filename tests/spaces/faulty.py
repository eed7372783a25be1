"""Two trials of some five seconds, for faults to strike."""

from ray import tune

from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="faulty",
    base=TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        width=4,
        image_size=48,
        train_images=1024,
        eval_images=128,
        epochs=20,
        precision="fp32",
        base_lr=0.3,
    ),
    vary={"batch_size": tune.grid_search([32, 64])},
    checkpoint_every_s=0,  # after each evaluation: of what a reader saw, nothing is trained again
)
