"""What a trial learns: of each task its loss, and how its scores come from what was seen.

An evaluation goes through a split batch by batch. What it keeps of a batch are rows: of
classification the logits of each image, of segmentation one row of counts, since the logits of all
pixels would not fit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.config import CLASSIFICATION, DETECTION, SEGMENTATION, TrialConfig
from trainable.host.ranks import Ranks
from trainable.training.boxes import (
    BoxScores,
    box_loss,
    box_scores,
    found_boxes,
    no_boxes,
    not_counted,
)
from trainable.training.losses import num_correct, training_loss
from trainable.training.metrics import Scores, auroc_interval, score
from trainable.training.pixels import (
    PixelScores,
    no_counts,
    pixel_counts,
    pixel_loss,
    pixel_scores,
    share_correct,
)

AnyScores = Scores | PixelScores | BoxScores


def _no_interval(rows: Tensor, targets: Tensor) -> tuple[float, float]:
    return math.nan, math.nan


@dataclass(frozen=True, kw_only=True)
class Task:
    """The functions by which tasks differ; targets are what the data has for the network to learn.

    `loss` is the mean over a microbatch's images, from the network's outputs and targets, and
    `num_correct` how many of the images are right, or their shares. A network that `takes_targets`
    gives its loss itself. `rows` are what an evaluation keeps of a batch, from the network, its
    inputs and the targets; `no_rows` those of no image of so many classes; `of_all_ranks` puts
    those of each rank together. `scores` are made of all rows and targets, and so is the interval
    of the AUROC. If `may_try_graph`, a CUDA graph of an update is tried.
    """

    loss: Callable[..., Tensor]
    num_correct: Callable[[Tensor, Tensor], Tensor]
    rows: Callable[[nn.Module, Tensor, Tensor], Tensor]
    no_rows: Callable[[int], Tensor]
    of_all_ranks: Callable[[Ranks, Tensor, int], Tensor]
    scores: Callable[[Tensor, Tensor], AnyScores]
    auroc_interval: Callable[[Tensor, Tensor], tuple[float, float]] = _no_interval
    may_try_graph: bool = False
    takes_targets: bool = False


def task_of(config: TrialConfig) -> Task:
    """The task of a trial."""
    return TASKS[config.task]


def _in_order(ranks: Ranks, own_rows: Tensor, num_images: int) -> Tensor:
    """A row of each image, of which each rank has those of its part."""
    own = ranks.part(num_images)
    rows = own_rows.new_zeros(num_images, *own_rows.shape[1:])
    rows[own.start : own.stop] = own_rows
    ranks.sum_(rows)
    return rows


def _added_up(ranks: Ranks, own_rows: Tensor, _: int) -> Tensor:
    """The sum of all rows, which are counts."""
    return ranks.sum_(own_rows.sum(0, keepdim=True))


TASKS = {
    CLASSIFICATION: Task(
        loss=training_loss,
        num_correct=num_correct,
        rows=lambda model, images_BCHW, _: model(images_BCHW).float(),
        no_rows=lambda num_classes: torch.zeros(0, num_classes),
        of_all_ranks=_in_order,
        scores=score,
        auroc_interval=auroc_interval,
        may_try_graph=True,
    ),
    SEGMENTATION: Task(
        loss=pixel_loss,
        num_correct=share_correct,
        rows=lambda model, images_BCHW, masks: pixel_counts(model(images_BCHW).float(), masks),
        no_rows=no_counts,
        of_all_ranks=_added_up,
        scores=pixel_scores,
    ),
    DETECTION: Task(
        loss=box_loss,
        num_correct=not_counted,
        rows=found_boxes,
        no_rows=no_boxes,
        of_all_ranks=_in_order,
        scores=box_scores,
        takes_targets=True,
    ),
}
