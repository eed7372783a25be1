"""Two rates, of which the higher is better, so that the study widens; then a seed for the best."""

from ray import tune

from search.explore import Grid, Leaders
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="rounds",
    base=TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        width=4,
        image_size=48,
        train_images=256,
        eval_images=128,
        batch_size=32,
        epochs=2,
        precision="fp32",
    ),
    vary={"base_lr": tune.grid_search([0.03, 0.3])},
    explore=Grid(widen=1),
    leaders=Leaders(top=1, seeds=2),
)
