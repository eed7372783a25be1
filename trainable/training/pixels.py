"""Loss and scores of semantic segmentation: the class of each pixel. Void pixels count nowhere.

The loss is the mean over images of each image's mean over pixels, not torchvision's mean over all
pixels of a batch: it is the same in however many microbatches a batch is trained, and an image is
what `batch_size` and the noise scale count.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainable.config import TrialConfig
from trainable.data.sources import VOID


@dataclass(frozen=True, kw_only=True)
class PixelScores:
    """The scores of one split; all are NaN if the loss is not finite."""

    pixel_accuracy: float = math.nan
    miou: float = math.nan
    loss: float = math.nan


def pixel_loss(
    logits_BKHW: Tensor,
    masks_BHW: Tensor,
    *,
    smoothing: float = 0.0,
    config: TrialConfig | None = None,
    teacher_logits_BK: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of images with masks; of one without any class it is 0."""
    return _losses(logits_BKHW, masks_BHW, smoothing).mean()


def _losses(logits_BKHW: Tensor, masks_BHW: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy of the pixels of each image (B,)."""
    of_pixels_BHW = cross_entropy(
        logits_BKHW,
        masks_BHW.long(),
        ignore_index=VOID,
        label_smoothing=smoothing,
        reduction="none",
    )
    return of_pixels_BHW.sum((1, 2)) / (masks_BHW != VOID).sum((1, 2)).clamp(min=1)


def _predicted(logits_BKHW: Tensor) -> Tensor:
    """As `argmax`, which is several times slower over channels on a CPU."""
    return logits_BKHW.max(1).indices


def share_correct(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """The sum over images of the share of their pixels that is right."""
    is_known = masks_BHW != VOID
    right = (_predicted(logits_BKHW) == masks_BHW) & is_known
    return (right.sum((1, 2)) / is_known.sum((1, 2)).clamp(min=1)).sum()


def pixel_counts(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """One row (1, K * K + 2): pixels by class and prediction, the sum of losses, the images."""
    num_classes = logits_BKHW.shape[1]
    is_known = masks_BHW != VOID
    pairs = num_classes * masks_BHW.long() + _predicted(logits_BKHW)
    counts = torch.bincount(pairs[is_known], minlength=num_classes**2).double()
    losses_B = _losses(logits_BKHW, masks_BHW).double()
    return torch.cat([counts, losses_B.sum()[None], losses_B.new_tensor([len(losses_B)])])[None]


def no_counts(num_classes: int) -> Tensor:
    """The rows of no image."""
    return torch.zeros(0, num_classes**2 + 2, dtype=torch.float64)


def pixel_scores(rows: Tensor, masks_NHW: Tensor) -> PixelScores:
    """Pixel accuracy, the mean over classes of intersection over union, and the loss.

    As torchmetrics' `accuracy` (micro) and `jaccard_index` (macro): a class that is neither there
    nor predicted in the whole split does not count.
    """
    total = rows.sum(0)
    loss = (total[-2] / total[-1]).item()
    if not math.isfinite(loss):
        return PixelScores()
    side = math.isqrt(len(total) - 2)
    confusion_KK = total[:-2].view(side, side)
    right_K = confusion_KK.diag()
    union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - right_K
    is_there = union_K > 0
    return PixelScores(
        pixel_accuracy=(right_K.sum() / confusion_KK.sum()).item(),
        miou=(right_K[is_there] / union_K[is_there]).mean().item(),
        loss=loss,
    )
