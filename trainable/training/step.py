"""One step of training: from a whole batch to new weights, in as many parts as memory wants."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainable.config import TrialConfig
from trainable.networks.models import head_of
from trainable.networks.prefix import Prefix, bypassed
from trainable.networks.teacher import load_teacher
from trainable.training.graph import graph_if_faster, may_be_graphed
from trainable.training.losses import mix, right_answers, smoothing_of, training_loss
from trainable.training.optim import build_optimizer, set_lr
from trainable.training.schedule import peak_lr

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """What an update changes beside the weights: optimizer, scaler, average, microbatch."""

    def __init__(
        self, config: TrialConfig, model: nn.Module, *, num_classes: int, device: torch.device
    ) -> None:
        """Set up optimizer, average and teacher.

        Raises:
            ValueError: the teacher cannot be built or knows other classes.
        """
        self.config, self.model, self.device = config, model, device
        self.num_classes = num_classes
        self.smoothing = smoothing_of(config, num_classes=num_classes)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config, model, lr=peak_lr(config), head=head_of(model))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average: AveragedModel | None = None
        if config.ema_decay:
            decay = get_ema_multi_avg_fn(config.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=decay)
        self.teacher: nn.Module | None = None
        if config.distill_from:
            teacher = load_teacher(config.distill_from, num_classes=num_classes).to(device)
            self.teacher = teacher.to(memory_format=torch.channels_last)
        self.microbatch_size = config.microbatch_size or config.batch_size
        self.oom_retries = 0
        self.prefix: Prefix | None = None  # where there is one the network is given its features
        self.graph: Callable[[Tensor], Tensor] | None = None
        self.graphed_images = -1  # the batch that the graph is for; -1 until it was measured

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the average where one is kept."""
        return self.model if self.average is None else self.average.module

    @property
    def paths(self) -> list[str]:
        """What makes an update faster, for the record."""
        return ["cuda_graph"] if self.graph is not None else []

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "microbatch_size": self.microbatch_size,
            "oom_retries": self.oom_retries,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, with this config's own settings."""
        settings = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        kept = ("params", "step")  # LAMB counts its updates in its groups
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update({name: value for name, value in own.items() if name not in kept})
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.microbatch_size, self.oom_retries = state["microbatch_size"], state["oom_retries"]

    def update(self, images_BCHW: Tensor, labels_B: Tensor, lr: float) -> Tensor:
        """One step of the optimizer on a whole batch: (loss, right answers, gradient norm).

        Of a network with a prefix the batch is features, (B, C, H, W). The loss is summed over
        images. Where memory runs out the microbatch is halved and the step begins again: the
        batch stays what it was.
        """
        set_lr(self.optimizer, lr)
        images, targets = mix(self.config, images_BCHW, labels_B, num_classes=self.num_classes)
        if self.graphed_images < 0:
            self._measure_graph(images, targets)
        while True:
            generator = torch.get_rng_state()
            try:
                loss, right = self._accumulate(images, targets)
                break
            except torch.OutOfMemoryError:
                smaller = math.ceil(min(self.microbatch_size, len(targets)) / 2)
                if smaller == min(self.microbatch_size, len(targets)):
                    raise  # one image does not fit
                self.microbatch_size, self.oom_retries = smaller, self.oom_retries + 1
            self.optimizer.zero_grad(set_to_none=True)
            torch.set_rng_state(generator)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.trained if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.trained, self.config.clip_grad_norm, grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return torch.stack([loss, right, grad_norm.to(loss.dtype)])

    def _accumulate(self, images_BCHW: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the batch's mean loss, one microbatch after the other."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = right_sum = torch.zeros((), device=self.device)
        size = self.microbatch_size
        graph = self.graph if len(targets) == self.graphed_images <= size else None
        for images, some in zip(images_BCHW.split(size), targets.split(size), strict=True):
            loss, logits_BK = self.loss(images, some, graph)
            share = len(some) / len(targets)
            self.scaler.scale(loss * share).backward()
            loss_sum = loss_sum + loss.detach() * len(some)
            right_sum = right_sum + right_answers(logits_BK, some)
        return loss_sum, right_sum

    def loss(
        self, images: Tensor, targets: Tensor, graph: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean loss of some images, and their logits; through the network's graph where given.

        A graph is for a batch in one part: its gradients lie where its next replay writes.
        """
        forward = self.model if graph is None else graph
        with self.autocast():
            with bypassed(self.prefix):
                logits_BK = forward(images)
            with torch.no_grad():
                opinion = self.teacher(images).float() if self.teacher is not None else None
        logits_BK = logits_BK.float()
        loss = training_loss(
            logits_BK,
            targets,
            smoothing=self.smoothing,
            config=self.config,
            teacher_logits_BK=opinion,
        )
        return loss, logits_BK.detach()

    def _measure_graph(self, images: Tensor, targets: Tensor) -> None:
        """Take a CUDA graph for batches of this size where it is worth it."""
        self.graphed_images = 0
        whole = len(images) <= self.microbatch_size  # gradients in a graph do not accumulate
        if whole and may_be_graphed(self.model, self.device, images=len(images)):
            dtype = AUTOCAST.get(self.config.precision)
            with bypassed(self.prefix):
                self.graph = graph_if_faster(self.model, images, targets, dtype=dtype)
            self.graphed_images = len(images) if self.graph is not None else 0

    def autocast(self) -> torch.autocast:
        """The arithmetic of the network, as a context."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)
