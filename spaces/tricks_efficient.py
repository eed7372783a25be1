"""What does each trick for large batches add, at a small and at a large batch?

    python -m search.run spaces/tricks_efficient.py --set seeds=3

Table 4 of "Bag of Tricks" (He 2019): each trick on top of those before it, here each step at its
own best rate, with bf16 for FP16. A ResNet-50-D from scratch whose rate is dropped tenfold thrice.

Cost: 45 trials of 30 epochs, 354 million patches. Preview: 30 trials, 3 minutes on two cores.

Expected: at the largest batch warmup adds 0.8 % accuracy and zero gamma 0.4 %, at batch 256 both
0.2 %; no bias decay and half precision cost nothing (one run each there). Measured in six epochs
(docs/findings.md): zero gamma costs 2 % at the largest batch; the others cost and add nothing.
"""

from ray import tune

from search.explore import Ablation
from search.study import Better, Study
from spaces.bases import RESNET50, SMALL_TRICKS, around

STEPS: dict[str, dict[str, object]] = {
    "linear scaling": {"lr_scaling": "linear"},
    "+ warmup": {"warmup_epochs": 1},
    "+ zero gamma": {"zero_gamma": True},
    "+ no bias decay": {"no_bias_decay": True},
    "+ bf16": {"precision": "bf16"},
}
TABLE, LARGE = "He 2019, Table 4", {"batch_size": "highest"}
study = Study(
    name="tricks_efficient",
    metric="val_accuracy",
    base=RESNET50,
    vary={"batch_size": tune.grid_search([64, 256, 1024]), "base_lr": around(0.1, num=3)},
    explore=Ablation(steps=STEPS),
    expect=(
        Better("step", "+ warmup", "linear scaling", TABLE, by=0.0076, where=LARGE),
        Better("step", "+ zero gamma", "+ warmup", TABLE, by=0.0044, where=LARGE),
    ),
    preview=SMALL_TRICKS,
)
