"""One step of training: a whole batch, in microbatches that fit in memory, to new weights."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainable.config import TrialConfig
from trainable.host.device import halve_until_it_fits
from trainable.host.pulse import tick
from trainable.host.ranks import ALONE, Ranks, bounds
from trainable.networks.models import head_of, set_training
from trainable.networks.normalization import as_part_of_batch, running_statistics
from trainable.networks.prefix import Prefix, tail_of
from trainable.networks.sync_norm import num_exchanged, synchronize
from trainable.networks.teacher import load_teacher
from trainable.training import graph
from trainable.training.gradients import SharedGradients
from trainable.training.graph import UpdateGraph, graph_if_faster, may_be_graphed
from trainable.training.losses import is_mixed, mix, smoothing_of
from trainable.training.optim import (
    CAPTURABLE,
    build_optimizer,
    make_capturable,
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
            self.average = AveragedModel(model)
        self.teacher: nn.Module | None = None
        if config.distill_from:
            teacher = load_teacher(config.distill_from, num_classes=num_classes).to(device)
            self.teacher = teacher.to(memory_format=torch.channels_last)
        self.microbatch_size = config.microbatch_size or self.largest_part(config.batch_size)
        self.oom_retries = 0
        self.may_halve = True  # the microbatch; trials of a pack first train with fewer others
        self.snapshot = Snapshot(model, device)
        self.has_stepped = False
        self.prefix: Prefix | None = None
        self.tail = model  # what batches are given to: the network, or without its prefix
        self.graph: UpdateGraph | None = None
        # A capture fails while another GPU is spoken to; fp16 decides on the host about each step.
        self.may_try_graph = (
            self.task.may_try_graph
            and self.ranks.size == 1
            and not self.scaler.is_enabled()
            and isinstance(self.optimizer, CAPTURABLE)
        )
        self.batch_size: int | None = None  # of which this rank has a part; None: all of it
        self.mixing_state = torch.get_rng_state()  # of several ranks, all mix alike
        if self.ranks.size > 1:
            self.gradients = SharedGradients(self.trained, self.ranks)
            num_exchanged_ = num_exchanged(model, self.ranks.size)
            self.ranks.reserve(num_exchanged_, device if num_exchanged_ else torch.device("cpu"))

    def _new_optimizer(self) -> torch.optim.Optimizer:
        lr, head = peak_lr(self.config), head_of(self.model)
        optimizer = build_optimizer(self.config, self.model, lr=lr, head=head)
        if self.device.type == graph.KIND:
            make_capturable(optimizer, self.device)
        return optimizer

    def use_prefix(self, prefix: Prefix | None) -> None:
        """From now on batches are features of this prefix of the network."""
        self.prefix = prefix
        self.tail = tail_of(self.model, prefix.paths) if prefix else self.model

    def set_training(self) -> None:
        """Put what is trained in training mode; a tail has some modules of its own."""
        set_training(self.model)
        set_training(self.tail)

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
        self.graph = None  # its optimizer had other tensors

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
        if self.may_try_graph and self.has_stepped:
            self._measure_graph(images, targets)
        is_whole = len(targets) <= self.microbatch_size
        if self.graph is not None and is_whole and self.graph.fits(images, targets):
            sums = self.graph(images, targets)
        else:
            sums = torch.stack(self._whole_or_halved(images, targets, lr, total))
            self.has_stepped = True
            if self.average is not None and not int(self.average.n_averaged):
                self.average.update_parameters(self.model)  # a copy, which it counts
                return sums
            self._average_weights(total)
        if self.average is not None:
            self.average.n_averaged += 1
        return sums

    def _whole_or_halved(
        self, images: Tensor, targets: Tensor, lr: float, total: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of loss and correct predictions, and the gradient norm, once memory suffices."""
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
        return loss, correct, grad_norm.to(loss.dtype)

    def _captured_update(self, images: Tensor, targets: Tensor) -> Tensor:
        """An update of a whole batch at once, at the rates that the optimizer has, as `update`."""
        loss, correct = self._accumulate(images, targets, len(targets), len(targets))
        grad_norm = self._apply_gradients()
        self._average_weights(len(targets))
        return torch.stack([loss, correct, grad_norm.to(loss.dtype)])

    def _measure_graph(self, images: Tensor, targets: Tensor) -> None:
        """Capture a CUDA graph for batches of this size if it is faster; that is tried once."""
        self.may_try_graph = False
        is_whole = len(images) <= self.microbatch_size  # of parts it would be another for each size
        if not is_whole or not may_be_graphed(self.device, images=len(images)):
            return
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        optimizer_state = (
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        average = self.average.module if self.average is not None else nn.Identity()
        networks = *self.trained, *self.model.buffers(), *average.parameters(), *average.buffers()
        state = [*networks, *optimizer_state, *lrs]
        self.graph = graph_if_faster(
            self._captured_update, [t.detach() for t in state], lrs, images, targets
        )
        self.optimizer.zero_grad(set_to_none=True)

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
    def _average_weights(self, batch_size: int) -> None:
        """Average the weights; and BatchNorm's statistics, unless precise ones replace them.

        torch copies the live network's statistics, which belong to other weights. Its option to
        average buffers would round whole numbers down.
        """
        if self.average is None:
            return
        share = 1 - ema_decay_at(self.config, batch_size)
        own, live = self.average.module, self.model
        torch._foreach_lerp_(list(own.parameters()), list(live.parameters()), share)
        is_precise = self.config.precise_bn_images != 0
        averaged = [] if is_precise else running_statistics(own)
        if averaged:
            torch._foreach_lerp_(averaged, running_statistics(live), share)
        are_averaged = {id(statistic) for statistic in averaged}
        for buffer, live_buffer in zip(own.buffers(), live.buffers(), strict=True):
            if id(buffer) not in are_averaged:
                buffer.copy_(live_buffer)

    def _accumulate(
        self, images_BCHW: Tensor, targets: Tensor, size: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """Add up the gradients of the batch's mean loss, one microbatch of `size` after another.

        The batch has `total` images, in all ranks together. Returns the sums of loss and correct
        predictions.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = correct_sum = torch.zeros((), device=self.device)
        done = 0
        sizes = self._microbatches(size, total) if self.ranks.size > 1 else size
        for images, part in zip(images_BCHW.split(sizes), targets.split(sizes), strict=True):
            tick()
            with as_part_of_batch(self.batchnorms, done=done, size=len(part), total=len(targets)):
                loss, logits_BK = self.loss(images, part)
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

    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of images and their logits."""
        with self.autocast():
            logits_BK = self.tail(images, *([targets] if self.task.takes_targets else []))
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

    def autocast(self) -> torch.autocast:
        """The autocast context of the config's precision."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)
