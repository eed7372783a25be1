"""Deeper, wider, or a larger kernel, in the same time; and do shortcuts pay?

    python -m search.run spaces/depth_width.py --set seeds=3

Our own networks from scratch, all for the same seconds: a larger one sees fewer images.

Cost: 54 trials of 300 seconds, 5 GPU-hours. Preview: 36 trials of 3 seconds, 3 minutes.

Expected: a deep plain network is worse than a shallow one, its residual twin is not (He 2016). In
preview (docs/findings.md) the first is reproduced, the second not resolved.
"""

from dataclasses import replace

from ray import tune

from search.explore import Variants
from search.study import Better, Study
from spaces.bases import PLAIN, SMALL, around

SHAPES: dict[str, dict[str, object]] = {
    "depth 6": {},
    "depth 6, residual": {"model": "residual"},
    "depth 30": {"depth": 30},
    "depth 30, residual": {"depth": 30, "model": "residual"},
    "width 48": {"width": 48},
    "kernel 5": {"kernel_size": 5},
}
TIME = {"epochs": None, "warmup_epochs": 0.0, "warmup_share": 0.1}
study = Study(
    name="depth_width",
    base=replace(PLAIN, seconds=300.0, epochs=None, warmup_epochs=0, warmup_share=0.1, width=16),
    vary={"batch_size": tune.grid_search([16, 64, 256]), "base_lr": around(1.0, num=3)},
    explore=Variants(each=SHAPES),
    expect=(
        Better("variant", "depth 30, residual", than="depth 30", source="He 2016"),
        Better("variant", "depth 6", than="depth 30", source="He 2016"),
    ),
    preview={**SMALL, **TIME, "seconds": 3.0, "batch_size": [16, 256]},
)
