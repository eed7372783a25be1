"""What a trial reports: an EpochResult after each evaluation, a TrialResult at its end."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One evaluation: a row of the `epochs` table.

    `lr` is that of the epoch's last update, `train_loss`, `train_accuracy` and `grad_norm` are
    means over its updates, `epoch_wall_s` includes validation and `images_per_s` does not.
    """

    epoch: int
    updates: int
    examples_seen: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_auroc: float
    grad_norm: float
    noise_scale: float
    epoch_wall_s: float
    images_per_s: float
    microbatch_size: int


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A whole trial: what the `trials` table says beside its config.

    `val_*` are at `best_epoch`, and so are the weights that the test split is scored with. NaN
    where there is nothing to say: no finished epoch, no test split, or a diverged trial's test.
    """

    status: str
    reason: str
    peak_lr: float
    epochs_completed: int
    updates_completed: int
    examples_seen: int
    best_epoch: int
    val_auroc: float
    val_accuracy: float
    val_loss: float
    test_auroc: float
    test_accuracy: float
    test_balanced_accuracy: float
    test_loss: float
    train_wall_s: float
    images_per_s: float
    peak_memory_gib: float
    microbatch_size: int
    accumulation_steps: int
    oom_retries: int
    noise_scale: float
    device: str
