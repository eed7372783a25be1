"""What a trial reports: an EpochResult after each evaluation and a TrialResult at the end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainable.config import SCORES, WORST

CHANCE = 0.5  # the AUROC of guessing


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One evaluation: a row of the `epochs` table.

    `epoch` counts evaluations from 1; by default there is one per epoch. `epochs_seen` is examples
    per training image. `lr` and `batch_size_now` are those of the last update. `train_loss`,
    `train_accuracy` and `grad_norm` are means over the updates since the previous evaluation.
    `noise_trace` and `noise_squared_gradient` are this evaluation's estimates of tr(Sigma) and
    |G|^2, NaN if they were not measured; `noise_scale` is the ratio of their running sums, in which
    an evaluation counts half after three more. `epoch_wall_s` includes validation; `images_per_s`,
    which is that of all GPUs of the trial together, does not. Scores that the trial's task does not
    have are NaN, and counts -1; `train_accuracy` is of segmentation the share of pixels.
    """

    epoch: int
    epochs_seen: float
    updates: int
    examples_seen: int
    lr: float
    batch_size_now: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float = math.nan
    val_auroc: float = math.nan
    val_balanced_accuracy: float = math.nan
    val_calibration_error: float = math.nan
    val_true_positives: int = -1
    val_false_positives: int = -1
    val_true_negatives: int = -1
    val_false_negatives: int = -1
    grad_norm: float
    noise_scale: float
    epoch_wall_s: float
    images_per_s: float
    microbatch_size: int
    noise_trace: float = math.nan  # rows of older checkpoints have neither
    noise_squared_gradient: float = math.nan
    val_miou: float = math.nan
    val_pixel_accuracy: float = math.nan
    val_map: float = math.nan
    val_map_50: float = math.nan


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A whole trial: the columns of the `trials` table besides its config.

    `val_*` are the scores at `best_epoch`; the test split is scored with the weights of that epoch.
    Values are NaN without a finished epoch or a test split, and test scores if the trial diverged;
    so are scores that the trial's task does not have, and such counts are -1.
    `collapsed`: the network predicts the same for every image.
    `test_auroc_low` and `test_auroc_high` are the bounds of DeLong's 95 % interval.
    `microbatch_size` is the final one, after `oom_retries` halvings. On several GPUs it is the
    images that each of them has at once, `accumulation_steps` counts the microbatches of one, and
    `peak_memory_gib` is that of the GPU that needed most. `fast_paths` names the
    optimizations in use: `data_on_gpu` or `data_mapped` (from a file), and any of `frozen_prefix`,
    `train_features_kept`, `val_features_kept`, `test_features_kept` and, on one GPU, `cuda_graph`
    and, without `deterministic`, `fastest_kernels`.
    Of the `pack_size` trials that trained together in one process, each has its share of the time
    of the updates and the time of its own evaluations; `peak_memory_gib` is that of all together.
    `num_parameters` counts those of the network, `num_trained_parameters` those not frozen.
    """

    status: str
    reason: str
    peak_lr: float
    epochs_completed: int
    updates_completed: int
    examples_seen: int
    best_epoch: int
    val_auroc: float = math.nan
    val_accuracy: float = math.nan
    val_loss: float = math.nan
    val_balanced_accuracy: float = math.nan
    collapsed: bool
    test_auroc: float = math.nan
    test_auroc_low: float = math.nan
    test_auroc_high: float = math.nan
    test_accuracy: float = math.nan
    test_balanced_accuracy: float = math.nan
    test_loss: float = math.nan
    test_calibration_error: float = math.nan
    test_true_positives: int = -1
    test_false_positives: int = -1
    test_true_negatives: int = -1
    test_false_negatives: int = -1
    train_wall_s: float
    images_per_s: float
    peak_memory_gib: float
    microbatch_size: int
    accumulation_steps: int
    oom_retries: int
    pack_size: int = 1
    num_parameters: int = -1
    num_trained_parameters: int = -1
    noise_scale: float
    device: str
    fast_paths: str
    val_miou: float = math.nan
    val_pixel_accuracy: float = math.nan
    val_map: float = math.nan
    val_map_50: float = math.nan
    test_miou: float = math.nan
    test_pixel_accuracy: float = math.nan
    test_map: float = math.nan
    test_map_50: float = math.nan


def finite_score(metric: str, row: Mapping[str, Any]) -> float:
    """A row's metric, with the sign that makes more better; the worst score instead of NaN."""
    value = row.get(metric)
    if row.get("status") == "diverged" or value is None or not math.isfinite(value):
        return WORST[metric]
    return float(value) if SCORES[metric] == "max" else -float(value)
