"""What the studies here begin with: complete trials, and what their previews change.

This is no study itself. A study says what it changes of these, `replace(VGG16, optimizer="adam")`,
and what it varies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune

from search.explore import Variants
from trainable.config import TrialConfig

# The flagship: fine-tuned as in Kandel & Castelli 2020, with the schedule of He et al. 2019.
VGG16 = TrialConfig(
    dataset="pcam",
    model="vgg16",
    pretrained="imagenet",
    train_blocks=2,
    dropout=0.5,
    augment="hflip+vflip+shift",
    optimizer="sgd",
    momentum=0.9,
    weight_decay=1e-4,
    lr_scaling="linear",
    reference_batch_size=256,
    warmup_epochs=1,
    decay="cosine",
    epochs=5,
)
# The paper's own: a constant rate, for every batch size the same.
VGG16_KANDEL = TrialConfig(
    dataset="pcam",
    model="vgg16",
    pretrained="imagenet",
    train_blocks=2,
    dropout=0.5,
    augment="hflip+vflip+rot180+shift+zoom",
    momentum=0.9,
    lr_scaling="constant",
    decay="constant",
    epochs=50,
    select_by="val_accuracy",
)
# From scratch, as He et al. 2019 begin: one rate for every batch size, dropped tenfold three times.
RESNET50 = TrialConfig(
    dataset="pcam",
    model="timm/resnet50d",
    pretrained="none",
    augment="hflip+vflip+shift+color",
    optimizer="sgd",
    momentum=0.9,
    nesterov=True,
    lr_scaling="constant",
    reference_batch_size=256,
    weight_decay=1e-4,
    no_bias_decay=False,
    decay="step",
    num_steps=3,
    precision="fp32",
    epochs=30,
)
# The same with all the tricks of its Table 4.
RESNET50_EFFICIENT = replace(
    RESNET50,
    lr_scaling="linear",
    warmup_epochs=1,
    zero_gamma=True,
    no_bias_decay=True,
    precision="bf16",
)
# Our own network, from scratch: its depth, width, kernel and activation are fields.
PLAIN = TrialConfig(
    dataset="pcam",
    model="plain",
    pretrained="none",
    depth=6,
    width=32,
    optimizer="sgd",
    momentum=0.9,
    lr_scaling="linear",
    reference_batch_size=256,
    warmup_epochs=1,
    decay="cosine",
    epochs=20,
)

# A preview's small network is trained from scratch: its best rates lie higher than VGG16's.
VGG16_LRS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
SMALL_LRS = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
SMALL = {"dropout": 0.0, "augment": "hflip+vflip", "weight_decay": 0.0, "warmup_epochs": 0.5}
SMALL_TRICKS = {
    "model": "residual",
    "batch_size": [32, 128],
    "base_lr": [0.02, 0.05, 0.12],
    "depth": 6,
    "width": 12,
    "reference_batch_size": 32,
    "augment": "hflip+vflip",
    "epochs": 6,
}


def around(lr: float, *, num: int = 5, factor: float = 3.0) -> Any:
    """`num` learning rates about one, each `factor` times the one before."""
    exponents = range(-(num // 2), num - num // 2)
    return tune.grid_search([float(f"{lr * factor**exponent:.2g}") for exponent in exponents])


def with_own_lrs(
    each: Mapping[str, Mapping[str, object]],
    lrs: Sequence[float],
    *,
    num: int = 5,
    factor: float = 3.0,
) -> Variants:
    """Variants, each with `num` learning rates around its own of `lrs`."""
    own = [around(lr, num=num, factor=factor) for lr in lrs]
    named = zip(each.items(), own, strict=True)
    return Variants(each={name: {**more, "base_lr": values} for (name, more), values in named})
