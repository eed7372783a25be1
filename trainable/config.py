"""TrialConfig: every choice of a trial, checked when it is made. Imports no torch."""

import hashlib
import json
import math
import types
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, get_args

# Part of every trial key. Raise it when a change of code changes the numbers a config gives.
RECIPE_VERSION = 1

SCORES = {"val_auroc": "max", "val_accuracy": "max", "val_loss": "min"}
AUGMENTATIONS = ("hflip", "vflip", "rot180", "shift", "zoom")


def _setting(
    default: object,
    meaning: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    source: str = "",
) -> Any:
    """A field of TrialConfig with what is needed to check it and to say what it means."""
    return field(
        default=default,
        metadata={
            "meaning": meaning,
            "unit": unit,
            "choices": choices,
            "above": above,
            "low": low,
            "high": high,
            "source": source,
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One trial: what is trained, on what, how, and from which seed.

    Raises:
        ValueError: a field has a wrong type or an impossible value; the message names the field,
            what is wanted and what was got.
    """

    dataset: str = _setting("pcam", "name of the data set; `synthetic` is the embedded one")
    image_size: int | None = _setting(
        None, "side of the central square that is kept; None: the whole image", unit="px", low=8
    )
    train_images: int | None = _setting(
        None, "training images used, drawn by class; None: all", unit="images", low=2
    )
    eval_images: int | None = _setting(
        None, "images used of each of validation and test; None: all", unit="images", low=2
    )
    augment: str = _setting(
        "hflip+vflip",
        "what is drawn anew for each image and epoch: none, or names joined with + of "
        + ", ".join(AUGMENTATIONS),
    )

    model: str = _setting(
        "vgg16", "a torchvision classification model, `timm/NAME`, or `plain` (width, depth, norm)"
    )
    pretrained: str = _setting("imagenet", "imagenet, none, or the path of a state_dict")
    train_blocks: int | None = _setting(
        None, "how many of the last blocks are trained beside the head; None: all", low=0
    )
    dropout: float = _setting(0.0, "dropout before the head", low=0.0, high=0.95)
    width: int = _setting(16, "filters of a plain network's first block", low=1)
    depth: int = _setting(3, "convolutions of a plain network after its stem", low=1, high=64)
    norm: str = _setting("batch", "normalization of a plain network", choices=("batch", "none"))

    batch_size: int = _setting(64, "effective, global batch", unit="images", low=1)
    base_lr: float = _setting(0.01, "learning rate before the batch-size rule", above=0.0)
    lr_scaling: str = _setting(
        "linear",
        "rule from base lr to peak lr",
        choices=("constant", "sqrt", "linear"),
        source="Goyal 2017 (linear), Krizhevsky 2014 (sqrt)",
    )
    reference_batch_size: int = _setting(
        256, "batch at which peak lr equals base lr", unit="images", low=1, source="He 2019"
    )
    optimizer: str = _setting("sgd", "optimizer", choices=("sgd", "adam", "adamw"))
    momentum: float = _setting(0.9, "momentum of sgd", low=0.0, high=0.9999)
    weight_decay: float = _setting(0.0, "weight decay", low=0.0)
    no_bias_decay: bool = _setting(
        True, "decay only weights, not biases nor normalization", source="He 2019"
    )

    warmup_epochs: float = _setting(
        0.0, "linear warmup from 0 to peak lr", unit="epochs", low=0.0, source="Goyal 2017"
    )
    decay: str = _setting(
        "cosine", "learning rate after warmup", choices=("cosine", "constant"), source="He 2019"
    )
    epochs: int = _setting(10, "budget", unit="epochs", low=1)

    precision: str = _setting("bf16", "arithmetic of the network", choices=("fp32", "bf16"))
    select_by: str = _setting(
        "val_auroc", "score that chooses the epoch whose weights are tested", choices=tuple(SCORES)
    )
    seed: int = _setting(0, "decides head, data order, augmentation, dropout", low=0)

    def __post_init__(self) -> None:
        """Check every field alone, then together."""
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))
        augmentations(self.augment)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if self.model == "plain" and self.pretrained != "none":
            raise ValueError(
                "a plain network has no pretrained weights: add pretrained='none', "
                f"got {self.pretrained!r}"
            )
        if self.pretrained == "none" and self.train_blocks is not None:
            raise ValueError(
                "train_blocks freezes pretrained blocks, and pretrained='none' has none: "
                f"remove train_blocks={self.train_blocks} or give weights"
            )


def _checked(each: Field[Any], value: object) -> object:
    """The value in its field's own type (a 1 in a float field becomes 1.0), or ValueError."""
    name, rules = each.name, each.metadata
    wanted = get_args(each.type) if isinstance(each.type, types.UnionType) else (each.type,)
    if value is None and types.NoneType in wanted:
        return None
    kind = wanted[0]
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and type(value) is not bool and isinstance(value, Integral):
        value = int(value)
    elif kind is float and type(value) is not bool and isinstance(value, Real):
        value = float(value)
    elif kind is not str or not isinstance(value, str):
        a = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text"}
        raise ValueError(f"{name} must be {a[kind.__name__]}, got {value!r}")
    if isinstance(value, str):
        if rules["choices"] and value not in rules["choices"]:
            raise ValueError(f"{name} must be one of {', '.join(rules['choices'])}, got {value!r}")
        if not value:
            raise ValueError(f"{name} must not be empty")
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if rules["above"] is not None and number <= rules["above"]:
        raise ValueError(f"{name} must be > {rules['above']:g}, got {value!r}")
    if rules["low"] is not None and number < rules["low"]:
        raise ValueError(f"{name} must be >= {rules['low']:g}, got {value!r}")
    if rules["high"] is not None and number > rules["high"]:
        raise ValueError(f"{name} must be <= {rules['high']:g}, got {value!r}")
    return value


def augmentations(augment: str) -> tuple[str, ...]:
    """The names in an `augment` field, in the order in which they are applied.

    Raises:
        ValueError: a name is unknown.
    """
    names = () if augment == "none" else tuple(augment.split("+"))
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"augment must be none, or names joined with + of {', '.join(AUGMENTATIONS)}, "
                f"got {augment!r}"
            )
    return tuple(name for name in AUGMENTATIONS if name in names)


def trial_key(config: TrialConfig, data_fingerprint: str) -> str:
    """16 hex digits that stand for everything that decides a trial's result.

    Fields at their default are left out, so that a field added later changes no older key.
    """
    said = {
        each.name: getattr(config, each.name)
        for each in fields(config)
        if each.default is MISSING or getattr(config, each.name) != each.default
    }
    said |= {"data_fingerprint": data_fingerprint, "recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def as_columns(config: TrialConfig) -> dict[str, Any]:
    """Each field under its own name, as the tables have it."""
    return asdict(config)
