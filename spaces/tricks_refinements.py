"""What does each refinement of training add: cosine decay, label smoothing, distillation, mixup?

    python -m search.run spaces/tricks_refinements.py --set seeds=3

Table 6 of "Bag of Tricks" (He 2019), on top of the tricks of its Table 4, each step at its own best
rate. Distillation needs a teacher: `--set distill_from=...` teaches all steps. The paper trains 200
epochs with mixup; here all steps have the same budget.

Cost: 36 trials of 30 epochs, 283 million patches. Preview: 24 trials, 3 minutes on two cores.

Expected: +0.8 % accuracy by cosine, +0.4 % by label smoothing, +0.8 % by mixup (ResNet-50-D).
Measured (docs/findings.md): +1.0 %, +0.2 % (noise), -0.3 %: six epochs are few for mixup.
"""

from ray import tune

from search.explore import Ablation
from search.study import Better, Study
from spaces.bases import RESNET50_EFFICIENT, SMALL_TRICKS, around

STEPS: dict[str, dict[str, object]] = {
    "efficient": {},
    "+ cosine": {"decay": "cosine"},
    "+ label smoothing": {"label_smoothing": 0.1},
    "+ mixup": {"mixup_alpha": 0.2},
}
TABLE = "He 2019, Table 6"
study = Study(
    name="tricks_refinements",
    metric="val_accuracy",
    base=RESNET50_EFFICIENT,
    vary={"batch_size": tune.grid_search([64, 256, 1024]), "base_lr": around(0.1, num=3)},
    explore=Ablation(steps=STEPS),
    expect=(
        Better("step", "+ cosine", "efficient", TABLE, by=0.0075),
        Better("step", "+ label smoothing", "+ cosine", TABLE, by=0.0040),
        Better("step", "+ mixup", "+ label smoothing", TABLE, by=0.0084),
    ),
    preview={**SMALL_TRICKS, "warmup_epochs": 0.5},
)
