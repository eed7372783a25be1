"""TrialConfig: every setting of a trial, checked when it is created. Imports no torch."""

import hashlib
import json
import re
from copy import copy
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Any

from trainable.fields import checked, setting
from trainable.host import credentials

# Part of every trial key. Increase it when a change of the code changes the numbers of a config.
RECIPE_VERSION = 2

CLASSIFICATION, SEGMENTATION, DETECTION = "classification", "segmentation", "detection"
# The scores of each task; the first selects a trial's epoch if nothing else is asked for.
SCORES_OF = {
    CLASSIFICATION: ("val_auroc", "val_accuracy", "val_balanced_accuracy", "val_loss"),
    SEGMENTATION: ("val_miou", "val_pixel_accuracy", "val_loss"),
    DETECTION: ("val_map", "val_map_50", "val_loss"),
}
SCORES = {
    name: "min" if name == "val_loss" else "max" for names in SCORES_OF.values() for name in names
}
# The score of a diverged trial, where more is better. It is finite, so that samplers and schedulers
# can compare it.
WORST = {name: -1e6 if name == "val_loss" else 0.0 for name in SCORES}
AUGMENTATIONS = (
    *("hflip", "vflip", "rot180", "shift", "crop", "rotate", "zoom", "color", "stain", "erase"),
)
KEEP_BOXES = ("hflip", "vflip", "rot180", "color", "stain")
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "selu", "gelu")
OPTIMIZERS = (
    *("sgd", "adam", "adamw", "rmsprop", "adagrad", "lars", "lamb"),
    *("schedulefree_sgd", "schedulefree_adamw"),
)
BATCH_NORMS = ("batch", "ghost", "sync")  # with statistics of batches
SCHEDULE_FREE = ("schedulefree_sgd", "schedulefree_adamw")
OWN_MODELS = ("plain", "residual")
BUDGETS = ("epochs", "updates", "examples", "seconds")
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE_FIELDS = ("pretrained", "distill_from")  # may be `PATH#DIGEST`


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One trial: network, data, training settings and seed.

    Raises:
        ValueError: a field has a wrong type or an impossible value; the message names the field,
            the rule and the value.
    """

    dataset: str = setting("pcam", "name of the data set; `synthetic` and `digits` are built in")
    task: str = setting(
        CLASSIFICATION,
        "what is learnt of an image: its class, the class of each pixel, or boxes with classes; "
        "`synthetic` has all three, and a folder in Pascal VOC's layout the last two",
        choices=tuple(SCORES_OF),
    )
    image_size: int | None = setting(
        None, "crop images to a central square of this side; None: no crop", unit="px", low=8
    )
    train_images: int | None = setting(
        None, "number of training images, stratified by class; None: all", unit="images", low=2
    )
    eval_images: int | None = setting(
        None, "number of images of validation and of test; None: all", unit="images", low=2
    )
    split_by: str | None = setting(
        None,
        "what train and validation must not share where validation is drawn: a column of the data "
        "set's table; `folder`, the folder that an image is in; `prefix`, its file's name before "
        "the first _; or `image`, nothing. None: the column group, patient, patient_id, slide, "
        "slide_id or wsi if there is one, else nothing",
    )
    augment: str = setting(
        "hflip+vflip",
        "random augmentations, joined with +; none, or any of " + ", ".join(AUGMENTATIONS),
    )

    model: str = setting(
        "vgg16",
        "a torchvision network for the task (`vgg16`, `fcn_resnet50`, `fasterrcnn_resnet50`), "
        "`timm/NAME`, or one of our own: `plain`, or `residual`, which is `plain` with shortcuts",
    )
    pretrained: str = setting("imagenet", "imagenet, none, or the path of a state_dict file")
    train_blocks: int | None = setting(
        None, "train the head and this many of the last blocks; None: all blocks", low=0
    )
    dropout: float = setting(0.0, "dropout probability before the head", low=0.0, high=0.95)
    zero_gamma: bool = setting(
        False, "initialize the last gamma of each residual block to 0", source="He 2019, 3.1"
    )
    norm: str = setting(
        "batch",
        "replacement of the BatchNorm layers; sync: over the images of all GPUs of a trial, where "
        "batch takes those of each GPU, or of each microbatch; frozen: fixed statistics and scale; "
        "none: only for our own networks",
        choices=("batch", "ghost", "sync", "group", "frozen", "none"),
        source="Wu & Johnson 2021",
    )
    ghost_batch_size: int = setting(
        32, "images that norm=ghost normalizes together", unit="images", low=2, source="Hoffer 2017"
    )
    precise_bn_images: int | None = setting(
        None,
        "recompute BatchNorm's statistics on this many training images before each evaluation; "
        "None: 1024 where BatchNorm is trained, which takes as long as training about 400 images; "
        "0: use the running averages, which lag most where updates are few",
        unit="images",
        low=0,
        source="Wu & Johnson 2021",
    )
    width: int = setting(16, "our own networks: filters of the first stage", low=1)
    depth: int = setting(3, "our own networks: convolutions after the stem", low=1, high=200)
    kernel_size: int = setting(3, "our own networks: kernel size, odd", unit="px", low=1, high=11)
    activation: str = setting("relu", "our own networks: activation function", choices=ACTIVATIONS)

    batch_size: int = setting(64, "effective (global) batch size", unit="images", low=1)
    microbatch_size: int | None = setting(
        None,
        "accumulate gradients over microbatches of this size, on each GPU of a trial; None: the "
        "whole batch, or a GPU's part of it, halved while memory runs out",
        unit="images",
        low=1,
    )
    base_lr: float = setting(
        0.01, "learning rate before the batch-size rule (lr_scaling)", above=0.0
    )
    lr_scaling: str = setting(
        "linear",
        "rule that turns base_lr into the peak lr; malladi also scales Adam's betas and eps",
        choices=("constant", "sqrt", "linear", "malladi"),
        source="Goyal 2017 (linear), Krizhevsky 2014 (sqrt), Malladi 2022",
    )
    reference_batch_size: int = setting(
        256,
        "batch size at which the peak lr equals base_lr",
        unit="images",
        low=1,
        source="He 2019",
    )
    optimizer: str = setting(
        "sgd",
        "optimizer; schedulefree: evaluates an average of the weights instead of letting the "
        "learning rate fall, with decay=constant",
        choices=OPTIMIZERS,
        source="torch.optim; timm.optim (LARS, LAMB); Defazio 2024, arXiv:2405.15682",
    )
    momentum: float = setting(
        0.9,
        "momentum of sgd, rmsprop and lars; schedulefree_sgd: the share of the averaged weights in "
        "those at which gradients are taken",
        low=0.0,
        high=0.9999,
    )
    nesterov: bool = setting(False, "Nesterov momentum for sgd and lars", source="He 2019")
    beta1: float = setting(
        0.9,
        "adam, adamw, lamb: decay rate of the mean gradient; schedulefree_adamw: share of the "
        "averaged weights in those at which gradients are taken",
        low=0.0,
        high=0.99999,
    )
    beta2: float = setting(
        0.999,
        "adam, adamw, lamb, schedulefree_adamw: decay rate of the mean square",
        low=0.0,
        high=0.999999,
    )
    eps: float = setting(
        1e-8,
        "adam, adamw, rmsprop, adagrad, lamb, schedulefree_adamw: added to the denominator",
        above=0.0,
    )
    beta_scaling: str = setting(
        "constant",
        "adam, adamw, lamb: half_life: beta1 and beta2 to the power of batch_size / "
        "reference_batch_size, so that both average over as many images as at the reference; "
        "beta2_half_life: beta2 alone",
        choices=("constant", "half_life", "beta2_half_life"),
        source="Marek 2025, arXiv:2507.07101 (beta2)",
    )
    weight_decay: float = setting(
        0.0,
        "weight decay: an L2 penalty in sgd, schedulefree_sgd, adam, rmsprop, adagrad and lars; "
        "decoupled from the gradient in adamw, schedulefree_adamw and lamb, where an update takes "
        "the share lr x weight_decay of a weight (in lamb times the layer's trust ratio)",
        low=0.0,
    )
    weight_decay_scaling: str = setting(
        "constant",
        "sgd, adamw, lamb, schedulefree: what stays as at the reference batch size. constant: "
        "weight_decay; inverse_lr: peak lr x weight_decay, the share of a weight that decays in an "
        "update; "
        "timescale: peak lr x weight_decay / batch_size, the share that decays in an epoch "
        "(with lr_scaling=linear the same as constant)",
        choices=("constant", "inverse_lr", "timescale"),
        source="Wang & Aitchison 2024, arXiv:2405.13698 (timescale)",
    )
    no_bias_decay: bool = setting(
        True, "no weight decay for biases and normalization", source="He 2019, 3.1"
    )
    head_lr_factor: float = setting(1.0, "factor of the head's learning rate", above=0.0)
    layer_decay: float = setting(
        1.0,
        "factor of the learning rate from each layer to the one before it; the head's is 1. Layers "
        "are timm's groups, and of other networks the blocks that train_blocks counts",
        above=0.0,
        high=1.0,
        source="Howard & Ruder 2018, arXiv:1801.06146; timm.optim",
    )
    clip_grad_norm: float = setting(
        0.0, "clip gradients to this norm; 0 disables clipping", low=0.0
    )

    warmup_epochs: float = setting(
        0.0, "linear warmup from 0 to the peak lr", unit="epochs", low=0.0, source="Goyal 2017"
    )
    warmup_share: float = setting(
        0.0, "warmup as a share of the budget, instead of warmup_epochs", low=0.0, high=0.99
    )
    warmup_scaling: str = setting(
        "constant",
        "linear: warmup_epochs x batch_size / reference_batch_size (LEGW, with lr_scaling=sqrt)",
        choices=("constant", "linear"),
        source="You 2019, arXiv:1901.08256",
    )
    decay: str = setting(
        "cosine",
        "schedule after warmup; batch_growth increases the batch size where step drops the lr",
        choices=("cosine", "step", "polynomial", "constant", "batch_growth"),
        source="He 2019 (cosine), Smith 2018 (batch_growth)",
    )
    num_steps: int = setting(
        3, "step, batch_growth: number of changes, evenly spaced over the budget", low=1, high=100
    )
    step_factor: float = setting(
        0.1, "step: lr x this factor; batch_growth: batch size / this factor", above=0.0, high=0.99
    )
    power: float = setting(1.0, "polynomial: (1 - t/T) to this power", above=0.0)

    epochs: int | None = setting(None, "budget; 10 if no budget is set", unit="epochs", low=1)
    updates: int | None = setting(None, "budget", unit="updates", low=1)
    examples: int | None = setting(None, "budget", unit="images", low=1)
    seconds: float | None = setting(None, "budget of training time", unit="s", above=0.0)
    eval_epochs: int = setting(1, "evaluate every this many epochs", unit="epochs", low=1)
    eval_updates: int | None = setting(
        None, "evaluate every this many updates, instead of eval_epochs", unit="updates", low=1
    )
    until_share: float = setting(
        1.0,
        "stop at this share of the budget; the schedule is that of the whole budget",
        above=0.0,
        high=1.0,
    )
    begins_from: str | None = setting(
        None, "key of a trial of the same study; start from its last state"
    )
    early_stop_patience: int | None = setting(
        None, "stop after this many evaluations without improvement; None: never", low=1
    )

    label_smoothing: float = setting(
        0.0, "epsilon of label smoothing", low=0.0, high=0.5, source="He 2019, 5.2"
    )
    smoothing_convention: str = setting(
        "paper",
        "paper: eps/(K-1) for each wrong class; torch: eps/K for every class",
        choices=("paper", "torch"),
    )
    mixup_alpha: float = setting(
        0.0, "alpha of mixup; 0: no mixup", low=0.0, source="He 2019, 5.4: 0.2"
    )
    cutmix_alpha: float = setting(
        0.0,
        "alpha of CutMix; 0: no CutMix; with mixup, each batch uses one of the two",
        low=0.0,
        source="Yun 2019",
    )
    distill_from: str | None = setting(
        None,
        "teacher: NETWORK:FILE (a state_dict), a trial's kept weights, or the results folder of "
        "a study (its best trial with kept weights)",
        source="He 2019, 5.3",
    )
    distill_temperature: float = setting(
        20.0, "temperature T of both softmaxes", above=0.0, source="He 2019"
    )
    distill_weight: float = setting(1.0, "factor of the teacher's term", above=0.0)
    ema_decay: float = setting(
        0.0,
        "evaluate an exponential moving average of the weights with this decay; 0 disables it",
        low=0.0,
        high=0.99999,
    )
    ema_scaling: str = setting(
        "constant",
        "half_life: ema_decay to the power of the update's batch size / reference_batch_size, so "
        "that the average covers as many images as at the reference batch size",
        choices=("constant", "half_life"),
        source="Busbridge 2023, arXiv:2307.13813",
    )

    precision: str = setting(
        "bf16",
        "floating-point format of the network; tf32 and fp16 need a GPU",
        choices=("fp32", "tf32", "bf16", "fp16"),
    )
    deterministic: bool = setting(
        True,
        "on a GPU, one seed gives one result: its libraries choose kernels by rule; False: they "
        "choose the fastest, and results differ a little from run to run",
    )
    select_by: str | None = setting(
        None,
        "score that selects the epoch whose weights are tested; None: the study's metric, and "
        "without a study val_auroc, of segmentation val_miou, of detection val_map",
        choices=tuple(SCORES),
    )
    seed: int = setting(0, "seed of initialization, data order, augmentation and dropout", low=0)

    def __post_init__(self) -> None:
        """Check each field, then the fields that depend on each other."""
        for declared in _declared():
            value = getattr(self, declared.name)
            if value is declared.default:  # which a test checks; studies have many thousand configs
                continue
            value = checked(declared, value)
            if isinstance(value, str) and credentials.in_uri(value):
                raise ValueError(f"{declared.name} {credentials.REFUSED}")
            object.__setattr__(self, declared.name, value)
        if not DATASET.fullmatch(self.dataset):
            raise ValueError(
                f"dataset names folders: it may contain letters, digits, dots, dashes and "
                f"underscores, and must start with a letter or digit; got {self.dataset!r}"
            )
        augmentations(self.augment)
        if all(getattr(self, name) is None for name in BUDGETS):
            object.__setattr__(self, "epochs", 10)
        for check in (_check_budget, _check_model, _check_optimizer, _check_losses, _check_task):
            check(self)


def _check_budget(config: TrialConfig) -> None:
    budgets = [name for name in BUDGETS if getattr(config, name) is not None]
    if len(budgets) > 1:
        raise ValueError(f"set only one of {', '.join(BUDGETS)}, got {' and '.join(budgets)}")
    if config.warmup_epochs and config.warmup_share:
        raise ValueError("set only one of warmup_epochs and warmup_share")
    if config.warmup_epochs and budgets == ["seconds"]:
        raise ValueError("with a budget in seconds, set warmup_share instead of warmup_epochs")
    if config.epochs is not None and warmup_epochs_of(config) >= config.epochs:
        raise ValueError(
            f"warmup_epochs must be less than epochs ({config.epochs}), "
            f"got {warmup_epochs_of(config):g}"
        )
    if config.decay == "batch_growth" and budgets != ["epochs"]:
        raise ValueError(f"decay=batch_growth needs a budget in epochs, got {budgets[0]}")
    if config.eval_updates is not None and config.eval_epochs != 1:
        raise ValueError("set only one of eval_updates and eval_epochs")
    if config.microbatch_size is not None and config.batch_size % config.microbatch_size:
        raise ValueError(
            f"microbatch_size must divide batch_size ({config.batch_size}), "
            f"got {config.microbatch_size}"
        )


def _check_model(config: TrialConfig) -> None:
    own = config.model in OWN_MODELS
    if own and config.pretrained != "none":
        raise ValueError(
            f"a {config.model} network has no pretrained weights: set pretrained='none', "
            f"got {config.pretrained!r}"
        )
    if config.pretrained == "none" and config.train_blocks is not None:
        raise ValueError(
            f"train_blocks={config.train_blocks} freezes pretrained blocks, but pretrained='none': "
            f"remove train_blocks or set pretrained"
        )
    if config.norm == "none" and not own:
        raise ValueError(
            f"norm='none' is only for model='plain' and model='residual', got {config.model!r}"
        )
    if config.norm == "frozen" and config.pretrained == "none":
        raise ValueError(
            "norm='frozen' keeps pretrained statistics, but pretrained='none' has none"
        )
    if config.norm == "ghost":
        memory = config.microbatch_size or config.batch_size
        if memory % config.ghost_batch_size and memory > config.ghost_batch_size:
            raise ValueError(
                f"ghost_batch_size must divide the microbatch ({memory}), "
                f"got {config.ghost_batch_size}"
            )
    if config.precise_bn_images and config.norm not in BATCH_NORMS:
        raise ValueError(
            f"precise_bn_images is only for norm=batch, norm=ghost and norm=sync, "
            f"got norm={config.norm}"
        )
    if config.kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {config.kernel_size}")
    if config.zero_gamma and (config.pretrained != "none" or config.model == "plain"):
        raise ValueError(
            "zero_gamma is an initialization of residual networks: it needs pretrained='none' and "
            f"shortcuts, got model={config.model!r} with pretrained={config.pretrained!r}"
        )
    if config.zero_gamma and config.norm == "none":
        raise ValueError("zero_gamma needs normalization layers, got norm='none'")


def _check_optimizer(config: TrialConfig) -> None:
    if config.nesterov and (config.optimizer not in ("sgd", "lars") or config.momentum == 0):
        raise ValueError("nesterov needs optimizer=sgd or lars with momentum > 0")
    if config.lr_scaling == "malladi":
        if config.optimizer not in ("adam", "adamw"):
            raise ValueError(
                f"lr_scaling=malladi is only for adam and adamw, got {config.optimizer}"
            )
        k = config.batch_size / config.reference_batch_size
        for name in ("beta1", "beta2"):
            if k * (1 - getattr(config, name)) >= 1 - 1e-9:
                raise ValueError(
                    f"lr_scaling=malladi would make {name} negative: batch_size must be less than "
                    f"{config.reference_batch_size / (1 - getattr(config, name)):g}, "
                    f"got {config.batch_size}"
                )
    _check_scalings(config)
    if config.optimizer in SCHEDULE_FREE:
        _check_schedule_free(config)


def _check_scalings(config: TrialConfig) -> None:
    """Refuse rules that the optimizer, or another rule, leaves without a meaning."""
    rule, decaying = config.weight_decay_scaling, ("sgd", "adamw", "lamb", *SCHEDULE_FREE)
    if rule != "constant" and config.optimizer not in decaying:
        raise ValueError(
            f"weight_decay_scaling={rule} is only for {', '.join(decaying)}: {config.optimizer} "
            f"divides the decay by the size of the gradients, so that lr x weight_decay is not the "
            f"share of a weight that decays"
        )
    if config.beta_scaling == "constant":
        return
    if config.optimizer not in ("adam", "adamw", "lamb"):
        raise ValueError(
            f"beta_scaling={config.beta_scaling} is only for adam, adamw and lamb, "
            f"got {config.optimizer}"
        )
    if config.lr_scaling == "malladi":
        raise ValueError(
            f"lr_scaling=malladi scales the betas itself: set lr_scaling=sqrt with "
            f"beta_scaling={config.beta_scaling}"
        )
    if config.decay == "batch_growth":
        raise ValueError(
            f"beta_scaling={config.beta_scaling} is for one batch size, and decay=batch_growth "
            f"changes it: set another decay"
        )


def _check_schedule_free(config: TrialConfig) -> None:
    """Refuse what a schedule-free optimizer does itself, or what would leave it without sense."""
    name = config.optimizer
    if config.decay != "constant":
        raise ValueError(
            f"optimizer={name} goes without a schedule after warmup: set decay='constant', "
            f"got {config.decay!r}"
        )
    if config.ema_decay:
        raise ValueError(f"optimizer={name} evaluates an average of its own: set ema_decay=0")
    share = "momentum" if name == "schedulefree_sgd" else "beta1"
    if not getattr(config, share):
        raise ValueError(f"optimizer={name} needs {share} > 0")
    if config.precise_bn_images == 0 and config.norm in BATCH_NORMS:
        raise ValueError(
            f"optimizer={name} evaluates other weights than it trains, to which BatchNorm's "
            f"running averages do not belong: leave precise_bn_images at none, got 0"
        )


def _check_losses(config: TrialConfig) -> None:
    if config.distill_from is None:
        for name in ("distill_temperature", "distill_weight"):
            if getattr(config, name) != _default(name):
                raise ValueError(f"{name} needs a teacher: set distill_from")


def _check_task(config: TrialConfig) -> None:
    check_score("select_by", config.select_by, config.task)
    if config.task == CLASSIFICATION:
        return
    for name in ("mixup_alpha", "cutmix_alpha", "distill_from"):
        if getattr(config, name) != _default(name):
            raise ValueError(f"{name} is only for task={CLASSIFICATION}, got task={config.task}")
    if "erase" in augmentations(config.augment):
        raise ValueError(
            f"augment=erase hides what task={config.task} is to find: leave it out, "
            f"got {config.augment!r}"
        )
    if config.task != DETECTION:
        return
    if config.label_smoothing:
        raise ValueError(f"label_smoothing is not for task={DETECTION}: its losses are others")
    if left := [n for n in augmentations(config.augment) if n not in KEEP_BOXES]:
        raise ValueError(
            f"augment={left[0]} does not keep boxes: with task={DETECTION} take any of "
            f"{', '.join(KEEP_BOXES)}"
        )


def check_score(field: str, score: str | None, task: str) -> None:
    """Raises ValueError where a field names a score that the task does not have."""
    if score in SCORES and score not in SCORES_OF[task]:
        raise ValueError(
            f"{field}={score} is no score of task={task}: take one of {', '.join(SCORES_OF[task])}"
        )


def selected_by(config: TrialConfig) -> str:
    """The score that selects the trial's epoch."""
    return config.select_by or SCORES_OF[config.task][0]


@cache
def _declared() -> tuple[Field[Any], ...]:
    return fields(TrialConfig)


def _default(name: str) -> object:
    return next(declared.default for declared in _declared() if declared.name == name)


def with_seed(config: TrialConfig, seed: int) -> TrialConfig:
    """The config with another seed; faster than `replace`, which would check all fields again."""
    other = copy(config)
    object.__setattr__(other, "seed", seed)
    return other


def warmup_epochs_of(config: TrialConfig) -> float:
    """`warmup_epochs` multiplied as `warmup_scaling` says."""
    k = config.batch_size / config.reference_batch_size
    return config.warmup_epochs * (k if config.warmup_scaling == "linear" else 1.0)


def file_of(value: str) -> str:
    """The path in a field that names a file, without the digest that the driver appends."""
    return value.partition("#")[0]


def augmentations(augment: str) -> tuple[str, ...]:
    """The names in an `augment` field in the order of their application.

    Raises:
        ValueError: a name is unknown.
    """
    names = () if augment == "none" else tuple(augment.split("+"))
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"augment must be none, or any of {', '.join(AUGMENTATIONS)}, joined with +; "
                f"got {augment!r}"
            )
    return tuple(name for name in AUGMENTATIONS if name in names)


def trial_key(config: TrialConfig, data_fingerprint: str) -> str:
    """16 hex digits that identify everything that determines a trial's result.

    Fields with their default value are left out, so a new field does not change existing keys.
    """
    values = {
        declared.name: value
        for declared in _declared()
        if (value := getattr(config, declared.name)) is not declared.default
        and value != declared.default
    }
    for name in FILE_FIELDS:  # a file is identified by its content, not by its path
        if "#" in str(values.get(name)):
            values[name] = values[name].partition("#")[2]
    values |= {"data_fingerprint": data_fingerprint, "recipe_version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
