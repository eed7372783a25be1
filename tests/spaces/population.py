"""Four members over two generations, for tests of the command."""

from ray import tune

from search.explore import Pbt
from search.study import Study
from trainable.config import TrialConfig

study = Study(
    name="population",
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
    vary={"batch_size": tune.choice([32, 64]), "base_lr": tune.loguniform(0.1, 10.0)},
    explore=Pbt(size=4, generations=2),
)
