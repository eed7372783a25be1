"""What a study will take: arithmetic on measured speeds. Pure functions, nothing is run here."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from trainable.config import TrialConfig
from trainable.training.schedule import timetable

if TYPE_CHECKING:  # it imports torch
    from trainable.probe import Measured

ROW_BYTES = 25_000  # of one trial's two Parquet files, measured with 5 and with 50 epochs
MOST_KINDS = 24  # about a second each for a small network
# Fields that leave the time of an update and of an evaluation as they are. What is not named here
# counts, so that a field added later is timed and not overlooked.
NO_MATTER = frozenset(
    {
        *("base_lr", "lr_scaling", "reference_batch_size", "momentum", "nesterov", "weight_decay"),
        *("weight_decay_scaling", "beta_scaling", "ema_scaling"),
        *("no_bias_decay", "head_lr_factor", "beta1", "beta2", "eps", "zero_gamma", "select_by"),
        *("warmup_epochs", "warmup_share", "warmup_scaling", "decay", "num_steps", "step_factor"),
        *("power", "epochs", "updates", "examples", "seconds", "eval_epochs", "eval_updates"),
        *("early_stop_patience", "smoothing_convention", "distill_temperature", "distill_weight"),
        *("seed", "until_share", "begins_from"),
    }
)
# Of these only whether they are on counts.
ON_OR_OFF = frozenset(
    {"dropout", "clip_grad_norm", "ema_decay", "label_smoothing", "mixup_alpha", "cutmix_alpha"}
)
MATTER = tuple(field.name for field in fields(TrialConfig) if field.name not in NO_MATTER)

Kind = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Share:
    """A configuration that is to be trained `count` times.

    The count is below 1 for one that stands for many that are not chosen yet, for a trial of which
    a part is trained already, and for a generation of a population, which trains a part.
    """

    config: TrialConfig
    count: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What training takes, summed over trials, and how long it lasts side by side.

    `train_s` is what `train_wall_s` of the trials will add up to if none ends early; `other_s` is
    the start of each trial, its test and its checkpoints. `saved_share` of `train_s` is the most
    that stopping saves.
    """

    num_trials: int
    train_s: float
    other_s: float
    wall_s: float
    num_slots: int
    gpu_hours: float
    disk_bytes: float
    kept_disk_bytes: float
    saved_share: float


def kind_of(config: TrialConfig) -> Kind:
    """All of a config that decides how fast it trains."""
    return tuple(
        (name, bool(getattr(config, name)) if name in ON_OR_OFF else getattr(config, name))
        for name in MATTER
    )


def kinds_of(shares: Iterable[Share]) -> dict[Kind, TrialConfig]:
    """One config of each kind, those that are trained most first.

    Before any second one comes the first of each network, then of each network at each batch
    size, so that a cut leaves none of these out while it can.
    """
    counts: dict[Kind, float] = {}
    configs: dict[Kind, TrialConfig] = {}
    for share in shares:
        kind = kind_of(share.config)
        counts[kind] = counts.get(kind, 0.0) + share.count
        configs.setdefault(kind, share.config)
    most = sorted(configs, key=lambda kind: -counts[kind])
    networks = {configs[kind].model: kind for kind in reversed(most)}
    cells = {(configs[k].model, configs[k].batch_size): k for k in reversed(most)}
    first = [k for k in most if k in networks.values()]
    second = [k for k in most if k in cells.values()]
    return {kind: configs[kind] for kind in [*first, *second, *most]}


def most_similar(kind: Kind, timed: Iterable[Kind]) -> Kind:
    """The timed kind that differs in the fewest fields, then by the smallest ratios of numbers."""

    def distance(other: Kind) -> tuple[int, float]:
        different, octaves = 0, 0.0
        for (_, a), (_, b) in zip(kind, other, strict=True):
            if _is_size(a) and _is_size(b):
                octaves += abs(math.log2(float(str(a)) / float(str(b))))
            else:
                different += a != b
        return different, octaves

    return min(timed, key=distance)


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def num_evaluations(config: TrialConfig, *, train_images: int, total_images: float) -> int:
    """How often a trial of so many images is evaluated: at its end, and on the way as it says."""
    if config.eval_updates is not None:
        every = float(config.eval_updates * config.batch_size)
    elif config.epochs is not None:
        return math.ceil(config.epochs / config.eval_epochs)
    else:
        epoch_images = train_images // config.batch_size * config.batch_size
        every = float(config.eval_epochs * epoch_images)
    return max(1, math.ceil(total_images / every - 1e-9))


def trial_cost_s(
    config: TrialConfig, measured: "Measured", *, checkpoint_every_s: float = 0.0
) -> tuple[float, float]:
    """Seconds that a whole trial trains and evaluates, and seconds that it takes beside that.

    Its state is saved at the first evaluation after each `checkpoint_every_s`, and at its end.
    """
    table = timetable(config, train_images=measured.train_images)
    seconds = table.total
    if table.unit == "images":
        seconds = table.total / measured.images_per_s
    evaluations = num_evaluations(
        config,
        train_images=measured.train_images,
        total_images=seconds * measured.images_per_s,
    )
    train_s = seconds + evaluations * measured.eval_s
    saves = evaluations
    if checkpoint_every_s:
        saves = min(evaluations, 1 + int(train_s / checkpoint_every_s))
    return train_s, measured.start_s + measured.test_s + saves * measured.save_s


def rungs_of(*, grace: float, total: float, factor: float) -> list[float]:
    """The shares of the budget at which trials are stopped: grace, and each `factor` times later.

    Li et al. 2020, arXiv:1810.05934; a rung at the very end stops nothing and is left out.
    """
    rungs = []
    while grace < total * (1 - 1e-9):
        rungs.append(grace / total)
        grace *= factor
    return rungs


def trained_share(num_trials: int, rungs: Sequence[float], *, factor: float) -> float:
    """Share of the training that is left where the best 1 / `factor` go on at every rung.

    Ideal successive halving: ranks are known at each rung and the survivors rounded down, to one
    at least. ASHA decides as trials come and lets more go on.
    """
    left, trained, before = num_trials, 0.0, 0.0
    for rung in rungs:
        trained += left * (rung - before)
        left, before = max(1, int(left / factor + 1e-9)), rung
    return (trained + left * (1 - before)) / num_trials


def _saved_s(
    rivals: Sequence[tuple[float, float]], rungs: Sequence[float], *, factor: float
) -> float:
    """Seconds that stopping saves among trials given as counts and their seconds of training."""
    num_rivals = max(1, round(sum(count for count, _ in rivals)))
    left = trained_share(num_rivals, rungs, factor=factor)
    return (1 - left) * sum(seconds for _, seconds in rivals)


def estimate(
    shares: Sequence[Share],
    timed: Mapping[Kind, "Measured"],
    *,
    num_trials: int,
    num_slots: int,
    num_at_once: int,
    gpu_share: float,
    worker_start_s: float,
    keep_weights: bool,
    checkpoint_every_s: float = 0.0,
    rungs: Sequence[float] = (),
    factor: float = 1.0,
    by_batch_size: bool = False,
) -> Estimate:
    """Sum up what the shares of `num_trials` take on `num_slots` places of `gpu_share` of a GPU.

    `num_at_once` trials have checkpoints at a time: those of a pack share a place.

    A kind that was not timed takes what the most similar one does. `rungs` and `factor` are those
    of stopping, among all trials or among those of a batch size.
    """
    train_s = other_s = weights_bytes = 0.0
    groups: dict[int, list[tuple[float, float]]] = {}
    similar: dict[Kind, Kind] = {}
    for share in shares:
        kind = kind_of(share.config)
        if kind not in similar:
            similar[kind] = most_similar(kind, timed)
        measured = timed[similar[kind]]
        training_s, beside_s = trial_cost_s(
            share.config, measured, checkpoint_every_s=checkpoint_every_s
        )
        train_s += share.count * training_s
        other_s += share.count * beside_s
        weights_bytes += share.count * measured.weights_bytes
        group = share.config.batch_size if by_batch_size else 0
        groups.setdefault(group, []).append((share.count, share.count * training_s))
    saved_s = sum(_saved_s(group, rungs, factor=factor) for group in groups.values())
    in_turn = math.ceil(num_trials / num_slots)  # of trials of the mean length
    checkpoint_bytes = max(measured.checkpoint_bytes for measured in timed.values())
    kept_bytes = num_trials * ROW_BYTES + (weights_bytes if keep_weights else 0.0)
    return Estimate(
        num_trials=num_trials,
        train_s=train_s,
        other_s=other_s,
        wall_s=worker_start_s + in_turn * (train_s + other_s) / num_trials,
        num_slots=num_slots,
        gpu_hours=(train_s + other_s) * gpu_share / 3600,
        disk_bytes=kept_bytes + 2 * num_at_once * checkpoint_bytes,
        kept_disk_bytes=kept_bytes,
        saved_share=saved_s / train_s,
    )
