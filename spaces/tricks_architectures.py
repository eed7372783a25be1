"""What do the variants of ResNet-50 add, and how do Inception-V3 and MobileNet compare?

    python -m search.run spaces/tricks_architectures.py --set seeds=3

Tables 2 and 5 of "Bag of Tricks" (He 2019), each network at its own best rate. torchvision's and
timm's ResNet-50 is already the paper's -B; its first form is in neither. Zero gamma is left out:
not every network here can have it.

Cost: 45 trials of 30 epochs, 354 million patches. Preview: 18 trials of small networks, 2 minutes.

Expected: +0.2 % accuracy from -B to -C, +0.3 % to -D; Inception-V3 8 % above MobileNet. The preview
has smaller networks, which cannot show it.
"""

from dataclasses import replace

from ray import tune

from search.study import Better, Study
from spaces.bases import RESNET50_EFFICIENT, SMALL_TRICKS, around

B, C, D = "timm/resnet50", "timm/resnet50c", "timm/resnet50d"
INCEPTION, MOBILENET = "timm/inception_v3", "timm/mobilenetv1_100"
TABLE_2, TABLE_5 = "He 2019, Table 2", "He 2019, Table 5"
study = Study(
    name="tricks_architectures",
    metric="val_accuracy",
    base=replace(RESNET50_EFFICIENT, zero_gamma=False),
    vary={
        "model": tune.grid_search([B, C, D, INCEPTION, MOBILENET]),
        "batch_size": tune.grid_search([64, 256, 1024]),
        "base_lr": around(0.1, num=3),
    },
    expect=(
        Better("model", C, than=B, by=0.0021, source=TABLE_5),
        Better("model", D, than=C, by=0.0029, source=TABLE_5),
        Better("model", INCEPTION, than=MOBILENET, by=0.0829, source=TABLE_2),
    ),
    preview={**SMALL_TRICKS, "model": ["plain", "residual", "timm/test_resnet"]},
)
