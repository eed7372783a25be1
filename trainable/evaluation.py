"""An evaluation of a trial: BatchNorm's statistics, scores, gradient noise. Trains nothing."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from trainable.config import TrialConfig
from trainable.data.batches import DeviceSplit
from trainable.feed import Feed
from trainable.host.device import halve_until_it_fits
from trainable.networks.normalization import (
    precise_statistics,
    running_statistics,
    trained_batchnorms,
)
from trainable.networks.prefix import tail_of
from trainable.training import noise
from trainable.training.noise import NoiseSums
from trainable.training.schedule import images_kept_together
from trainable.training.step import Step
from trainable.training.task import AnyScores

# Training images of which precise statistics are taken by default.
PRECISE_BN_IMAGES = 1024


class Evaluation:
    """What is measured between updates, of the network as it is; halved while memory runs out."""

    def __init__(self, config: TrialConfig, feed: Feed, step: Step) -> None:
        """Nothing is measured yet."""
        self.config, self.feed, self.step = config, feed, step

    def share_statistics(self, batch_size: int) -> None:
        """Give all ranks the mean of their running statistics, each weighted by its images.

        Each rank's move linearly towards those of its own parts of the batches, so that these are
        what one rank would have got from all parts.
        """
        ranks = self.step.ranks
        if ranks.size == 1:
            return
        share = len(ranks.part(batch_size, images_kept_together(self.config))) / batch_size
        networks = {id(model): model for model in (self.step.model, self.step.evaluated)}
        self._average([s for model in networks.values() for s in _moving(model)], share)

    def _average(self, statistics: list[Tensor], share: float) -> None:
        """Replace statistics by their means over ranks, of which this one counts by its share."""
        for statistic in statistics:
            statistic.copy_(self.step.ranks.sum_(statistic * share))

    def refresh_statistics(self, model: nn.Module) -> None:
        """Take BatchNorm's statistics anew with the current weights, as `precise_bn_images` says.

        The running averages lag behind the weights, most where updates are few, so that they would
        make large batches look worse than they are.
        """
        num_images = self.config.precise_bn_images
        num_images = PRECISE_BN_IMAGES if num_images is None else num_images
        if not num_images or not trained_batchnorms(model):
            return
        split = self.feed.random_part("precise", 0, num_images)
        ranks = self.step.ranks

        def refresh(size: int) -> None:
            with self.step.autocast():
                precise_statistics(model, self._own_batches(split, size))
            ranks.agree()
            if ranks.size > 1 and self.config.norm != "sync":
                own = range(ranks.rank, len(split) // size, ranks.size)
                self._average(_moving(model), len(own) / (len(split) // size))

        halve_until_it_fits(
            ranks.together(refresh),
            min(self.step.microbatch_size, len(split)),
            before_retry=self._check_may_halve,
            multiple_of=self.step.whole_images,
        )

    def _check_may_halve(self, size: int) -> None:
        """Raises torch.OutOfMemoryError in a pack: half the batch gives other statistics."""
        if not self.step.may_halve:
            raise torch.OutOfMemoryError("the trials of this pack do not fit together")

    def _own_batches(self, split: DeviceSplit, size: int) -> Iterator[Tensor]:
        """The batches that this rank normalizes: with norm=sync its parts of larger ones."""
        ranks = self.step.ranks
        if ranks.size == 1 or self.config.norm != "sync":
            yield from islice(self._whole_batches(split, size), ranks.rank, None, ranks.size)
            return
        size = min(ranks.size * size, self.config.batch_size, len(split))
        part = ranks.part(size)
        for images_BCHW in self._whole_batches(split, size):
            yield images_BCHW[part.start : part.stop]

    def _whole_batches(self, split: DeviceSplit, size: int) -> Iterator[Tensor]:
        for images_BCHW, labels_B in self.feed.plain(split, size):
            if len(labels_B) == size:  # a smaller last batch would have the same weight
                yield images_BCHW

    def evaluate(self, split: DeviceSplit) -> tuple[AnyScores, Tensor]:
        """Scores of a split with the current weights and statistics, and the rows they are of."""
        rows = halve_until_it_fits(
            lambda _: self._rows(split),
            max(1, min(self.feed.chunk_size, len(self.step.ranks.part(len(split))))),
            before_retry=self.feed.take_fewer,
        )
        ranks, task = self.step.ranks, self.step.task
        if ranks.size > 1:
            rows = task.of_all_ranks(ranks, rows, len(split))
        return ranks.of_first(task.scores(rows, split.targets_N)), rows

    def _rows(self, split: DeviceSplit) -> Tensor:
        model, prefix = self.step.evaluated, self.step.prefix
        model = tail_of(model, prefix.paths) if prefix else model
        model.eval()
        rows = []
        with torch.inference_mode(), self.step.autocast():
            for inputs_B, targets_B in self.feed.evaluation(split):
                rows.append(self.step.task.rows(model, inputs_B, targets_B))
        if not rows:  # fewer images than ranks
            return self.step.task.no_rows(self.step.num_classes).to(self.step.device)
        return torch.cat(rows)

    def measure_noise(self, number: int) -> NoiseSums:
        """The two estimates of the noise scale after evaluation `number`; 0 with too few images."""
        num_images = noise.probe_images(len(self.feed.train))
        split = self.feed.random_part("noise", number, num_images)
        if len(split) < 2 * noise.PARTS:
            return NoiseSums()
        if self.step.average is not None:  # what was evaluated is another network
            self.refresh_statistics(self.step.model)

        return halve_until_it_fits(
            lambda size: noise.measure(
                self.step.tail,
                self.step.trained,
                lambda first, last: self.feed.random_inputs(split, number, first, last),
                lambda inputs, labels: self.step.loss(inputs, labels)[0],
                num_images=len(split),
                microbatch_size=size,
                ranks=self.step.ranks,
            ),
            min(self.step.microbatch_size, len(split) // noise.PARTS),
            before_retry=lambda _: None,
        )


def _moving(model: nn.Module) -> list[Tensor]:
    """The running statistics that training changes."""
    return [s for layer in trained_batchnorms(model) for s in running_statistics(layer)]
