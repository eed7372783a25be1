"""TrialConfig: every choice of a trial, checked when it is made. Imports no torch."""

import hashlib
import json
import math
import re
import types
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, get_args

from trainable.host import credentials

# Part of every trial key. Raise it when a change of code changes the numbers a config gives.
RECIPE_VERSION = 1

SCORES = {
    "val_auroc": "max",
    "val_accuracy": "max",
    "val_balanced_accuracy": "max",
    "val_loss": "min",
}
# What a diverged trial counts as, more being better: finite, so that samplers and schedulers can
# compare it.
WORST = {"val_auroc": 0.0, "val_accuracy": 0.0, "val_balanced_accuracy": 0.0, "val_loss": -1e6}
AUGMENTATIONS = (
    *("hflip", "vflip", "rot180", "shift", "crop", "rotate", "zoom", "color", "stain", "erase"),
)
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "selu", "gelu")
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "lars", "lamb")
OWN_MODELS = ("plain", "residual")
BUDGETS = ("epochs", "updates", "examples", "seconds")
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE_FIELDS = ("pretrained", "distill_from")  # may be `PATH#DIGEST`


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

    dataset: str = _setting("pcam", "name of the data set; `synthetic` and `digits` are embedded")
    image_size: int | None = _setting(
        None, "side of the central square that is kept; None: the whole image", unit="px", low=8
    )
    train_images: int | None = _setting(
        None, "training images used, stratified by class; None: all", unit="images", low=2
    )
    eval_images: int | None = _setting(
        None,
        "images used of the validation split, and of the test split; None: all",
        unit="images",
        low=2,
    )
    augment: str = _setting(
        "hflip+vflip",
        f"random augmentations, joined with +: {', '.join(AUGMENTATIONS)}; or none",
    )

    model: str = _setting(
        "vgg16",
        "a torchvision classification network, `timm/NAME`, or our own: `plain`, or `residual`, "
        "the same with shortcuts",
    )
    pretrained: str = _setting("imagenet", "imagenet, none, or the path of a state_dict")
    train_blocks: int | None = _setting(
        None, "how many of the last blocks are trained, in addition to the head; None: all", low=0
    )
    dropout: float = _setting(0.0, "dropout before the head", low=0.0, high=0.95)
    zero_gamma: bool = _setting(
        False, "last normalization of each residual block starts at 0", source="He 2019, 3.1"
    )
    norm: str = _setting(
        "batch",
        "what replaces BatchNorm; frozen keeps its statistics and scale; none: our networks only",
        choices=("batch", "ghost", "group", "frozen", "none"),
        source="Wu & Johnson 2021",
    )
    ghost_batch_size: int = _setting(
        32, "normalization batch of norm=ghost", unit="images", low=2, source="Hoffer 2017"
    )
    precise_bn_images: int = _setting(
        0,
        "recompute BatchNorm's statistics on this many training images before each evaluation; "
        "0: use the running averages",
        unit="images",
        low=0,
        source="Wu & Johnson 2021",
    )
    width: int = _setting(16, "our networks: filters of the first block", low=1)
    depth: int = _setting(3, "our networks: convolutions after the stem", low=1, high=200)
    kernel_size: int = _setting(3, "our networks: side of a filter, odd", unit="px", low=1, high=11)
    activation: str = _setting("relu", "our networks: activation", choices=ACTIVATIONS)

    batch_size: int = _setting(64, "effective, global batch", unit="images", low=1)
    microbatch_size: int | None = _setting(
        None,
        "images in memory at the same time, with gradients accumulated; None: the whole batch, "
        "halved until it fits",
        unit="images",
        low=1,
    )
    base_lr: float = _setting(0.01, "learning rate before the batch-size rule", above=0.0)
    lr_scaling: str = _setting(
        "linear",
        "rule from base lr to peak lr; malladi also scales Adam's betas and eps",
        choices=("constant", "sqrt", "linear", "malladi"),
        source="Goyal 2017 (linear), Krizhevsky 2014 (sqrt), Malladi 2022",
    )
    reference_batch_size: int = _setting(
        256, "batch at which peak lr equals base lr", unit="images", low=1, source="He 2019"
    )
    optimizer: str = _setting(
        "sgd", "optimizer", choices=OPTIMIZERS, source="torch.optim; timm.optim (LARS, LAMB)"
    )
    momentum: float = _setting(0.9, "momentum of sgd, rmsprop and lars", low=0.0, high=0.9999)
    nesterov: bool = _setting(False, "Nesterov's momentum for sgd and lars", source="He 2019")
    beta1: float = _setting(0.9, "adam, adamw, lamb: mean of gradients", low=0.0, high=0.99999)
    beta2: float = _setting(0.999, "adam, adamw, lamb: mean of squares", low=0.0, high=0.999999)
    eps: float = _setting(1e-8, "adam, adamw, rmsprop, adagrad, lamb: added to the root", above=0.0)
    weight_decay: float = _setting(0.0, "weight decay", low=0.0)
    no_bias_decay: bool = _setting(
        True, "decay only weights, not biases nor normalization", source="He 2019, 3.1"
    )
    head_lr_factor: float = _setting(1.0, "the head's lr is this times the others'", above=0.0)
    clip_grad_norm: float = _setting(
        0.0, "clip gradients to this norm; 0 disables clipping", low=0.0
    )

    warmup_epochs: float = _setting(
        0.0, "linear warmup from 0 to peak lr", unit="epochs", low=0.0, source="Goyal 2017"
    )
    warmup_share: float = _setting(
        0.0, "warmup as a share of the budget, instead of warmup_epochs", low=0.0, high=0.99
    )
    warmup_scaling: str = _setting(
        "constant",
        "linear: warmup x batch_size / reference_batch_size (LEGW, with lr_scaling=sqrt)",
        choices=("constant", "linear"),
        source="You 2019, arXiv:1901.08256",
    )
    decay: str = _setting(
        "cosine",
        "after warmup; batch_growth grows the batch at steps instead of dropping the lr",
        choices=("cosine", "step", "polynomial", "constant", "batch_growth"),
        source="He 2019 (cosine), Smith 2018 (batch_growth)",
    )
    num_steps: int = _setting(
        3, "step, batch_growth: changes, evenly spread over the budget", low=1, high=100
    )
    step_factor: float = _setting(
        0.1, "step: lr x this; batch_growth: batch / this", above=0.0, high=0.99
    )
    power: float = _setting(1.0, "polynomial: (1 - t/T) to this power", above=0.0)

    epochs: int | None = _setting(None, "budget; 10 if no budget is set", unit="epochs", low=1)
    updates: int | None = _setting(None, "budget", unit="updates", low=1)
    examples: int | None = _setting(None, "budget", unit="images", low=1)
    seconds: float | None = _setting(None, "budget of training time", unit="s", above=0.0)
    eval_epochs: int = _setting(1, "evaluate every this many epochs", unit="epochs", low=1)
    eval_updates: int | None = _setting(
        None, "evaluate every this many updates instead", unit="updates", low=1
    )
    until_share: float = _setting(
        1.0,
        "stop at this share of the budget, with the schedule of the whole budget",
        above=0.0,
        high=1.0,
    )
    begins_from: str | None = _setting(
        None, "key of the trial in the same study whose last state this one continues from"
    )
    early_stop_patience: int | None = _setting(
        None, "stop after this many evaluations without improvement; None: never", low=1
    )

    label_smoothing: float = _setting(0.0, "epsilon", low=0.0, high=0.5, source="He 2019, 5.2")
    smoothing_convention: str = _setting(
        "paper",
        "paper: eps/(K-1) for each wrong class; torch: eps/K for every class",
        choices=("paper", "torch"),
    )
    mixup_alpha: float = _setting(0.0, "mixup; 0: none", low=0.0, source="He 2019, 5.4: 0.2")
    cutmix_alpha: float = _setting(
        0.0, "CutMix; 0: none; with mixup, one of the two per batch", low=0.0, source="Yun 2019"
    )
    distill_from: str | None = _setting(
        None,
        "teacher: NETWORK:FILE (a state_dict), a trial's kept weights, or a study's results "
        "folder (its best trial with kept weights)",
        source="He 2019, 5.3",
    )
    distill_temperature: float = _setting(20.0, "T of both softmaxes", above=0.0, source="He 2019")
    distill_weight: float = _setting(1.0, "factor of the teacher's term", above=0.0)
    ema_decay: float = _setting(
        0.0,
        "evaluate a moving average of the weights with this exponential decay; 0: none",
        low=0.0,
        high=0.99999,
    )

    precision: str = _setting(
        "bf16",
        "arithmetic of the network; tf32 and fp16 are for GPUs",
        choices=("fp32", "tf32", "bf16", "fp16"),
    )
    select_by: str = _setting(
        "val_auroc", "score that chooses the epoch whose weights are tested", choices=tuple(SCORES)
    )
    seed: int = _setting(0, "decides head, data order, augmentation, dropout", low=0)

    def __post_init__(self) -> None:
        """Check every field alone, then together."""
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))
        for each in fields(self):
            if isinstance(said := getattr(self, each.name), str) and credentials.in_uri(said):
                raise ValueError(f"{each.name} {credentials.REFUSED}")
        if not DATASET.fullmatch(self.dataset):
            raise ValueError(
                f"dataset must be letters, digits, dots, dashes or underscores and begin with a "
                f"letter or digit: it names folders; got {self.dataset!r}"
            )
        augmentations(self.augment)
        if all(getattr(self, each) is None for each in BUDGETS):
            object.__setattr__(self, "epochs", 10)
        for check in (_check_budget, _check_model, _check_optimizer, _check_losses):
            check(self)


def _check_budget(config: TrialConfig) -> None:
    given = [name for name in BUDGETS if getattr(config, name) is not None]
    if len(given) > 1:
        raise ValueError(f"one budget is wanted, got {' and '.join(given)}: set the others to None")
    if config.warmup_epochs and config.warmup_share:
        raise ValueError("warmup_epochs and warmup_share are two ways to say one thing: give one")
    if config.warmup_epochs and given == ["seconds"]:
        raise ValueError("a budget in seconds takes its warmup as warmup_share, not warmup_epochs")
    if config.epochs is not None and warmup_epochs_of(config) >= config.epochs:
        raise ValueError(
            f"warmup_epochs must be less than epochs ({config.epochs}), "
            f"got {warmup_epochs_of(config):g}"
        )
    if config.decay == "batch_growth" and given != ["epochs"]:
        raise ValueError(f"decay=batch_growth needs a budget in epochs, got {given[0]}")
    if config.eval_updates is not None and config.eval_epochs != 1:
        raise ValueError("eval_updates and eval_epochs are two ways to say one thing: give one")
    if config.microbatch_size is not None and config.batch_size % config.microbatch_size:
        raise ValueError(
            f"microbatch_size must divide batch_size ({config.batch_size}), "
            f"got {config.microbatch_size}"
        )


def _check_model(config: TrialConfig) -> None:
    own = config.model in OWN_MODELS
    if own and config.pretrained != "none":
        raise ValueError(
            f"a {config.model} network has no pretrained weights: add pretrained='none', "
            f"got {config.pretrained!r}"
        )
    if config.pretrained == "none" and config.train_blocks is not None:
        raise ValueError(
            "train_blocks freezes pretrained blocks, and pretrained='none' has none: "
            f"remove train_blocks={config.train_blocks} or give weights"
        )
    if config.norm == "none" and not own:
        raise ValueError(f"norm='none' is for model='plain' or 'residual', got {config.model!r}")
    if config.norm == "frozen" and config.pretrained == "none":
        raise ValueError(
            "norm='frozen' keeps pretrained statistics, and pretrained='none' has none"
        )
    if config.norm == "ghost":
        memory = config.microbatch_size or config.batch_size
        if memory % config.ghost_batch_size and memory > config.ghost_batch_size:
            raise ValueError(
                f"ghost_batch_size must divide what is in memory at once ({memory}), "
                f"got {config.ghost_batch_size}"
            )
    if config.precise_bn_images and config.norm not in ("batch", "ghost"):
        raise ValueError(f"precise_bn_images is for norm=batch or ghost, got norm={config.norm}")
    if config.kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {config.kernel_size}")
    if config.zero_gamma and (config.pretrained != "none" or config.model == "plain"):
        raise ValueError(
            "zero_gamma is how a residual network starts: it needs pretrained='none' and a network "
            f"with shortcuts, got {config.model!r} with pretrained={config.pretrained!r}"
        )
    if config.zero_gamma and config.norm == "none":
        raise ValueError("zero_gamma needs normalization layers, got norm='none'")


def _check_optimizer(config: TrialConfig) -> None:
    if config.nesterov and (config.optimizer not in ("sgd", "lars") or config.momentum == 0):
        raise ValueError("nesterov needs optimizer=sgd or lars with momentum > 0")
    if config.lr_scaling == "malladi":
        if config.optimizer not in ("adam", "adamw"):
            raise ValueError(f"lr_scaling=malladi is for adam and adamw, got {config.optimizer}")
        k = config.batch_size / config.reference_batch_size
        for name in ("beta1", "beta2"):
            if k * (1 - getattr(config, name)) >= 1 - 1e-9:
                raise ValueError(
                    f"lr_scaling=malladi would make {name} negative: batch_size must be less than "
                    f"{config.reference_batch_size / (1 - getattr(config, name)):g}, "
                    f"got {config.batch_size}"
                )


def _check_losses(config: TrialConfig) -> None:
    if config.distill_from is None:
        for name in ("distill_temperature", "distill_weight"):
            if getattr(config, name) != _default(name):
                raise ValueError(f"{name} needs a teacher: give distill_from")


def _default(name: str) -> object:
    return next(each.default for each in fields(TrialConfig) if each.name == name)


def warmup_epochs_of(config: TrialConfig) -> float:
    """`warmup_epochs` after `warmup_scaling`."""
    k = config.batch_size / config.reference_batch_size
    return config.warmup_epochs * (k if config.warmup_scaling == "linear" else 1.0)


def file_of(value: str) -> str:
    """The path in a field that names a file, without the digest that the driver adds."""
    return value.partition("#")[0]


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
        if getattr(config, each.name) != each.default
    }
    for name in FILE_FIELDS:  # a file is its content, wherever it lies
        if "#" in str(said.get(name)):
            said[name] = said[name].partition("#")[2]
    said |= {"data_fingerprint": data_fingerprint, "recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
