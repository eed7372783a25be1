"""One step of training: a whole batch, in microbatches that fit in memory, to new weights."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainable.config import TrialConfig
from trainable.host.device import halve_until_it_fits
from trainable.host.pulse import tick
from trainable.host.ranks import ALONE, Ranks, bounds
from trainable.networks.models import head_of
from trainable.networks.normalization import as_part_of_batch, running_statistics
from trainable.networks.prefix import Prefix, bypassed
from trainable.networks.sync_norm import num_exchanged, synchronize
from trainable.networks.teacher import load_teacher
from trainable.training.gradients import SharedGradients
from trainable.training.graph import graph_if_faster, may_be_graphed
from trainable.training.losses import is_mixed, mix, smoothing_of
from trainable.training.optim import (
    build_optimizer,
    set_lr,
    take_step,
    to_evaluation,
    to_training,
)
from trainable.training.schedule import ema_decay_at, images_kept_together, peak_lr
from trainable.training.snapshot import Snapshot
from trainable.training.task import task_of

# What optimizers count in their groups: LAMB its updates, schedule-free ones the average's weight
# and which weights the network has.
COUNTED = ("params", "step", "k", "weight_sum", "lr_max", "scheduled_lr", "train_mode")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """What an update changes besides the weights: optimizer, scaler, average, microbatch size."""

    def __init__(
        self,
        config: TrialConfig,
        model: nn.Module,
        *,
        num_classes: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """Set up optimizer, average and teacher.

        Raises:
            ValueError: the teacher cannot be built, or was trained on other classes.
        """
        self.config, self.model, self.device = config, model, device
        self.ranks, self.task = ranks, task_of(config)
        synchronize(model, self.ranks)
        self.num_classes = num_classes
        self.smoothing = smoothing_of(config, num_classes=num_classes)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.batchnorms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.optimizer = self._new_optimizer()
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = AveragedModel(model)  # each update sets the function that averages
        self.teacher: nn.Module | None = None
        if config.distill_from:
            teacher = load_teacher(config.distill_from, num_classes=num_classes).to(device)
            self.teacher = teacher.to(memory_format=torch.channels_last)
        self.microbatch_size = config.microbatch_size or self.largest_part(config.batch_size)
        self.oom_retries = 0
        self.may_halve = True  # the microbatch; trials of a pack first train with fewer others
        self.snapshot = Snapshot(model, device)
        self.has_stepped = False
        self.prefix: Prefix | None = None  # if set, the network is given its features
        self.graph: Callable[[Tensor], Tensor] | None = None
        self.graphed_images = -1  # batch size of the graph; -1 before it was measured
        self.batch_size: int | None = None  # of which this rank has a part; None: all of it
        self.mixing_state = torch.get_rng_state()  # of several ranks, all mix alike
        if self.ranks.size > 1:
            self.graphed_images = 0  # a capture fails while another GPU is spoken to
            self.gradients = SharedGradients(self.trained, self.ranks)
            num_exchanged_ = num_exchanged(model, self.ranks.size)
            self.ranks.reserve(num_exchanged_, device if num_exchanged_ else torch.device("cpu"))

    def _new_optimizer(self) -> torch.optim.Optimizer:
        lr, head = peak_lr(self.config), head_of(self.model)
        return build_optimizer(self.config, self.model, lr=lr, head=head)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the average of the weights if one is kept."""
        return self.model if self.average is None else self.average.module

    def to_evaluation(self) -> None:
        """Make `evaluated` what is to be evaluated; the next update trains on from where it was."""
        to_evaluation(self.optimizer)

    @property
    def whole_images(self) -> int:
        """Microbatches are multiples of this many images where they can: those of a ghost."""
        return self.config.ghost_batch_size if self.config.norm == "ghost" else 1

    def largest_part(self, batch_size: int) -> int:
        """The most images of a batch that a rank has."""
        return max(self.ranks.lengths(batch_size, images_kept_together(self.config)))

    @property
    def paths(self) -> list[str]:
        """The fast paths of an update in use, for the results."""
        return ["cuda_graph"] if self.graph is not None else []

    def state_dict(self) -> dict[str, Any]:
        """The whole state, for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "microbatch_size": self.microbatch_size,
            "oom_retries": self.oom_retries,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, but keep this config's own settings."""
        settings = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update({name: value for name, value in own.items() if name not in COUNTED})
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.microbatch_size, self.oom_retries = state["microbatch_size"], state["oom_retries"]
        self.has_stepped = bool(state["optimizer"]["state"])

    def update(self, images_BCHW: Tensor, labels_B: Tensor, lr: float) -> Tensor:
        """One step of the optimizer on a whole batch: (loss, correct predictions, gradient norm).

        The loss is summed over images. With a prefix, the batch holds features (B, C, H, W). If
        memory runs out, the microbatch is halved and the step starts again: the batch stays whole,
        and the failed attempt leaves statistics, random states and gradients as they were.

        Several ranks are each given their part of a batch of `batch_size`, take the same step and
        return the same numbers, those of the whole batch.
        """
        total = self.batch_size or len(labels_B)
        set_lr(self.optimizer, lr)
        to_training(self.optimizer)
        images, targets = self._mixed(images_BCHW, labels_B)
        if self.graphed_images < 0:
            self._measure_graph(images, targets)
        self.snapshot.take()
        undo_step = None if self.has_stepped else self._first_step(lr)

        def start_again(smaller: int) -> None:
            if not self.may_halve:
                raise torch.OutOfMemoryError("the trials of this pack do not fit together")
            self.microbatch_size, self.oom_retries = smaller, self.oom_retries + 1
            self.optimizer.zero_grad(set_to_none=True)
            self.snapshot.restore()
            if undo_step is not None:
                undo_step()

        def attempt(size: int) -> tuple[Tensor, Tensor, Tensor | None]:
            sums = self._accumulate(images, targets, size, total)
            self.ranks.agree()
            if self.has_stepped:
                return *sums, None
            sums, grad_norm = self._of_all_ranks(*sums), self._apply_gradients()
            self.ranks.agree()
            return *sums, grad_norm

        loss, correct, grad_norm = halve_until_it_fits(
            self.ranks.together(attempt),
            min(self.microbatch_size, self.largest_part(total)),
            before_retry=start_again,
            multiple_of=self.whole_images,
        )
        if grad_norm is None:
            loss, correct = self._of_all_ranks(loss, correct)
            grad_norm = self._apply_gradients()
        self.has_stepped = True
        if self.average is not None:
            self._update_average(self.average, ema_decay_at(self.config, total))
        return torch.stack([loss, correct, grad_norm.to(loss.dtype)])

    def _mixed(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The batch after mixup or CutMix.

        Several ranks draw the same for it, unlike for dropout. The first image of a part is the one
        before it in the batch, which is only there to be mixed with the next.
        """
        if self.ranks.size == 1 or not is_mixed(self.config):
            return mix(self.config, images_BCHW, labels_B, num_classes=self.num_classes)
        own_state = torch.get_rng_state()
        torch.set_rng_state(self.mixing_state)
        images, targets = mix(self.config, images_BCHW, labels_B, num_classes=self.num_classes)
        self.mixing_state = torch.get_rng_state()
        torch.set_rng_state(own_state)
        return images[1:], targets[1:]

    def _of_all_ranks(self, loss: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the ranks' gradients, and their sums of loss and correct predictions."""
        if self.ranks.size == 1:
            return loss, correct
        loss, correct = self.gradients.add_up(torch.stack([loss, correct])).unbind()
        return loss, correct

    def _first_step(self, lr: float) -> Callable[[], None]:
        """How to undo the optimizer's first step, which creates its state: memory may run out.

        The weights are copied to the host for it, once a trial.
        """
        weights = [parameter.detach().to("cpu", copy=True) for parameter in self.trained]
        scaler = self.scaler.state_dict()

        def undo() -> None:
            with torch.no_grad():
                for parameter, before in zip(self.trained, weights, strict=True):
                    parameter.copy_(before)
            self.optimizer = self._new_optimizer()
            set_lr(self.optimizer, lr)
            to_training(self.optimizer)
            # A new one too: the old one refuses to unscale gradients a second time.
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaler.is_enabled())
            self.scaler.load_state_dict(scaler)

        return undo

    def _apply_gradients(self) -> Tensor:
        """The optimizer's step with the gradients, clipped if so configured; returns their norm."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.trained if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.trained, self.config.clip_grad_norm, grad_norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            take_step(self.optimizer)
        return grad_norm

    @torch.no_grad()
    def _update_average(self, average: AveragedModel, decay: float) -> None:
        """Average the weights; and BatchNorm's statistics, unless precise ones replace them.

        torch copies the live network's statistics, which belong to other weights. Its option to
        average buffers would round whole numbers down.
        """
        average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        if self.config.precise_bn_images != 0 or not int(average.n_averaged):
            average.update_parameters(self.model)
            return
        own, live = running_statistics(average.module), running_statistics(self.model)
        before = [statistic.clone() for statistic in own]
        average.update_parameters(self.model)
        if own:
            torch._foreach_copy_(own, before)
            torch._foreach_lerp_(own, live, 1 - decay)

    def _accumulate(
        self, images_BCHW: Tensor, targets: Tensor, size: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """Add up the gradients of the batch's mean loss, one microbatch of `size` after another.

        The batch has `total` images, in all ranks together. Returns the sums of loss and correct
        predictions.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = correct_sum = torch.zeros((), device=self.device)
        graph = self.graph if len(targets) == self.graphed_images <= size else None
        done = 0
        sizes = self._microbatches(size, total) if self.ranks.size > 1 else size
        for images, part in zip(images_BCHW.split(sizes), targets.split(sizes), strict=True):
            tick()
            with as_part_of_batch(self.batchnorms, done=done, size=len(part), total=len(targets)):
                loss, logits_BK = self.loss(images, part, graph)
            done += len(part)
            share = len(part) / total
            self.scaler.scale(loss * share).backward()
            loss_sum = loss_sum + loss.detach() * len(part)
            correct_sum = correct_sum + self.task.num_correct(logits_BK, part)
        return loss_sum, correct_sum

    def _microbatches(self, size: int, total: int) -> list[int]:
        """The sizes of this rank's microbatches: as many as in every other rank, none empty."""
        lengths = self.ranks.lengths(total, images_kept_together(self.config))
        own = lengths[self.ranks.rank]
        counts = [math.ceil(length / size) for length in lengths]
        if min(counts) == max(counts):
            return [min(size, own - first) for first in range(0, own, size)]
        edges = bounds(own, min(max(counts), *lengths))
        return [last - first for first, last in pairwise(edges)]

    def loss(
        self, images: Tensor, targets: Tensor, graph: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean loss of images and their logits; computed by the network's CUDA graph if given.

        A graph can only compute a whole batch: its next replay overwrites its gradients.
        """
        forward = self.model if graph is None else graph
        with self.autocast():
            with bypassed(self.prefix):
                logits_BK = forward(images, *([targets] if self.task.takes_targets else []))
            with torch.no_grad():
                teacher_logits = self.teacher(images).float() if self.teacher is not None else None
        logits_BK = logits_BK.float()
        loss = self.task.loss(
            logits_BK,
            targets,
            smoothing=self.smoothing,
            config=self.config,
            teacher_logits_BK=teacher_logits,
        )
        return loss, logits_BK.detach()

    def _measure_graph(self, images: Tensor, targets: Tensor) -> None:
        """Capture a CUDA graph for batches of this size if it is faster."""
        self.graphed_images = 0
        is_whole = len(images) <= self.microbatch_size  # a graph cannot accumulate gradients
        may_be = self.task.may_be_graphed and is_whole
        if may_be and may_be_graphed(self.model, self.device, images=len(images)):
            dtype = AUTOCAST.get(self.config.precision)
            with bypassed(self.prefix):
                self.graph = graph_if_faster(self.model, images, targets, dtype=dtype)
            self.graphed_images = len(images) if self.graph is not None else 0

    def autocast(self) -> torch.autocast:
        """The autocast context of the config's precision."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)
