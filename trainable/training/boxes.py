"""Scores of detection: the mean average precision of boxes, as COCO defines it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data.sources import MOST_BOXES


@dataclass(frozen=True, kw_only=True)
class BoxScores:
    """The scores of one split; all are NaN if the loss is not finite.

    `map` is the mean over classes, and over overlaps from 0.5 to 0.95, of average precision; it is
    0 where nothing is found. `map_50` takes an overlap of 0.5, as Pascal VOC does.
    """

    map: float = math.nan
    map_50: float = math.nan
    loss: float = math.nan


def box_loss(
    loss: Tensor,
    boxes_BM5: Tensor,
    *,
    smoothing: float = 0.0,
    config: TrialConfig | None = None,
    teacher_logits_BK: Tensor | None = None,
) -> Tensor:
    """The sum of the network's own four losses."""
    return loss


def not_counted(loss: Tensor, boxes_BM5: Tensor) -> Tensor:
    """There is no share of correct boxes."""
    return torch.full((), math.nan, device=loss.device)


def found_boxes(model: torch.nn.Module, images_BCHW: Tensor, boxes_BM5: Tensor) -> Tensor:
    """A row (MOST_BOXES + 1, 6) of each image: what is found, after the loss of the batch."""
    found_BF6: Tensor = model(images_BCHW)
    rows = found_BF6.new_zeros(len(found_BF6), 1 + MOST_BOXES, 6)
    rows[:, 1:] = found_BF6
    rows[:, 0, 0] = model(images_BCHW, boxes_BM5)
    return rows.float()


def no_boxes(num_classes: int) -> Tensor:
    """The rows of no image."""
    return torch.zeros(0, 1 + MOST_BOXES, 6)


def box_scores(rows_NF6: Tensor, boxes_NM5: Tensor) -> BoxScores:
    """The mean average precision of the boxes that were found, by torchmetrics, and the loss."""
    # Seconds that other tasks need not wait.
    from torchmetrics.detection import MeanAveragePrecision

    loss = rows_NF6[:, 0, 0].mean().item()
    if not math.isfinite(loss):
        return BoxScores()
    precision = MeanAveragePrecision()
    precision.warn_on_many_detections = False
    found = [one[one[:, 5] > 0] for one in rows_NF6[:, 1:].cpu()]
    wanted = [one[one[:, 4] > 0] for one in boxes_NM5.cpu()]
    precision.update(
        [{"boxes": f[:, :4], "scores": f[:, 4], "labels": f[:, 5].long()} for f in found],
        [{"boxes": w[:, :4], "labels": w[:, 4].long()} for w in wanted],
    )
    scores = precision.compute()
    return BoxScores(map=scores["map"].item(), map_50=scores["map_50"].item(), loss=loss)
