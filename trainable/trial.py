"""A trial under way: model, optimizer, place in the data, best weights, results so far."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainable import checkpoint
from trainable.checkpoint import TrialState
from trainable.config import SCORES, TrialConfig, trial_key
from trainable.data.batches import DeviceSplit, Place, seed_for
from trainable.data.cache import Dataset
from trainable.data.sources import DataError
from trainable.feed import Feed
from trainable.host.device import (
    device_name,
    keep_freed_memory,
    peak_memory_gib,
    reset_peak_memory,
    set_precision,
)
from trainable.host.storage import Folder
from trainable.networks.models import build_model, set_training, trained_state
from trainable.networks.normalization import precise_statistics
from trainable.networks.prefix import bypassed, find_prefix, prefix_at
from trainable.networks.teacher import keep_weights
from trainable.record import EpochResult, TrialResult
from trainable.training import noise
from trainable.training.metrics import Scores, auroc_interval, score
from trainable.training.noise import NoiseSums
from trainable.training.schedule import growth, lr_at, peak_lr, timetable
from trainable.training.step import Step

# A loss that is not finite is noticed after at most so many updates; reading it waits for the GPU.
FINITE_CHECK_UPDATES = 100


class Trial:
    """The state of a trial between updates, and the steps that change it."""

    def __init__(
        self,
        config: TrialConfig,
        data: Dataset,
        device: torch.device,
        folder: Folder | None,
        start_folder: Folder | None = None,
    ) -> None:
        """Load what is trained and on what; go on from the checkpoint where there is one.

        `start_folder` holds the state of the trial that the config `begins_from`.

        Raises:
            DataError: the data is too small for the batch.
            ValueError: the network, its weights, its teacher, the device or the state that the
                trial begins from do not fit.
        """
        self.config, self.data, self.device, self.folder = config, data, device, folder
        self.key = trial_key(config, data.fingerprint)
        self.num_classes = len(data.classes)
        keep_freed_memory(device)
        reset_peak_memory(device)
        set_precision(config.precision, device)
        self.feed = Feed(config, data, device)
        self.train = self.feed.train
        if len(self.train) < config.batch_size:
            raise DataError(
                f"batch_size {config.batch_size} is larger than the {len(self.train)} training "
                f"images: take a smaller batch or more images"
            )
        if len(self.feed.val.labels_N.unique()) < self.num_classes:
            raise DataError(
                f"the validation images ({len(self.feed.val)}) lack a class: give a larger "
                f"eval_images"
            )
        self.timetable = timetable(config, train_images=len(self.train))
        torch.manual_seed(seed_for(config.seed, "weights"))
        model = build_model(config, num_classes=self.num_classes)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.step = Step(config, self.model, num_classes=self.num_classes, device=device)
        self._skip_what_is_frozen()
        self.best_model = self.weights()
        self.results: list[EpochResult] = []
        self.place = Place()
        self.batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self.updates = self.examples_seen = 0
        self.train_s = self.wall_s = 0.0
        self.noise = NoiseSums()
        self.token = checkpoint.claim(folder) if folder is not None else ""
        if folder is not None and (state := checkpoint.load(folder, trial_key=self.key)):
            self._restore(state)
        elif config.begins_from:
            self._begin_from(config.begins_from, start_folder)

    def _skip_what_is_frozen(self) -> None:
        """Let frozen first blocks run apart, unless images are mixed or a teacher sees them."""
        c = self.config
        if c.train_blocks is None or c.mixup_alpha or c.cutmix_alpha or c.distill_from:
            return
        size = c.image_size or self.data.train.images_NHWC.shape[1]
        prefix = find_prefix(self.model, image_size=size, device=self.device)
        self.step.prefix = prefix
        self.feed.through(prefix, self.step.autocast)

    def weights(self) -> dict[str, Tensor]:
        """A copy of what training changes in the evaluated network."""
        state = trained_state(self.step.evaluated)
        return {name: each.detach().clone() for name, each in state.items()}

    # --- checkpoints ------------------------------------------------------------------------------

    def _restore(self, state: TrialState) -> None:
        self.model.load_state_dict(state.model, strict=False)
        self.step.load_state_dict(state.step)
        self.best_model = {name: each.to(self.device) for name, each in state.best_model.items()}
        self.results = [EpochResult(**each) for each in state.results]
        self.place = Place(*state.place)
        self.noise = NoiseSums(*state.noise)
        for name, value in state.counters.items():
            setattr(self, name, value)

    def _begin_from(self, key: str, folder: Folder | None) -> None:
        """Take another trial's weights, optimizer state and place, not its scores and settings."""
        state = checkpoint.load(folder, trial_key=key) if folder is not None else None
        if state is None:
            raise ValueError(
                f"the last state of trial {key}, which this one begins from, is not in "
                f"{folder.uri if folder else 'any folder that was given'}"
            )
        microbatch_size = self.step.microbatch_size
        state.counters |= {"train_s": 0.0, "wall_s": 0.0}
        self._restore(state)
        self.step.microbatch_size, self.step.oom_retries = microbatch_size, 0
        self.results, self.noise = [], NoiseSums()
        self.best_model = self.weights()

    def _save(self) -> None:
        if self.folder is None:
            return
        counters = ("updates", "examples_seen", "train_s", "wall_s")
        state = TrialState(
            trial_key=self.key,
            epoch=len(self.results),
            model={name: each.detach() for name, each in trained_state(self.model).items()},
            step=self.step.state_dict(),
            best_model=self.best_model,
            results=[asdict(each) for each in self.results],
            place=(self.place.epoch, self.place.start),
            noise=(self.noise.trace_sigma, self.noise.squared_gradient),
            counters={name: getattr(self, name) for name in counters},
        )
        checkpoint.save(state, self.folder, token=self.token)

    # --- training ---------------------------------------------------------------------------------

    @property
    def spent(self) -> float:
        """How much of the budget is used, in the timetable's unit."""
        return self.train_s if self.timetable.unit == "seconds" else float(self.examples_seen)

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, or validation has not got better for long enough."""
        return self.spent >= self.until or self._out_of_patience()

    @property
    def until(self) -> float:
        """Where this trial ends, in the timetable's unit: the whole budget, or a share of it."""
        return self.timetable.total * self.config.until_share

    def _out_of_patience(self) -> bool:
        best, patience = self.best(), self.config.early_stop_patience
        if patience is None or not self.results:
            return False
        return len(self.results) - (best.epoch if best else 0) >= patience

    def train_on(self) -> tuple[EpochResult | None, str]:
        """Train to the next evaluation and evaluate; None and the reason where it diverged."""
        started, before = time.perf_counter(), (self.updates, self.examples_seen, self.train_s)
        number = len(self.results) + 1
        # Dropout and mixing draw from the global generator: seeded here, a resumed trial draws
        # what an uninterrupted one does.
        torch.manual_seed(seed_for(self.config.seed, "dropout", number))
        set_training(self.model)
        sums_3 = torch.zeros(3, device=self.device)  # loss, right answers, gradient norm
        lr, size = math.nan, self.config.batch_size
        clock = started
        if self.batches is None:
            self.batches = self.feed.batches(self.place)
        for inputs_B, labels_B in self.batches:
            size = len(labels_B)
            factor = growth(self.config, self.place.epoch, train_images=len(self.train))[1]
            lr = lr_at(self.config, self.timetable, self.spent) * factor
            sums_3 += self.step.update(inputs_B, labels_B, lr)
            self.updates += 1
            self.examples_seen += size
            if self.timetable.unit == "seconds":
                self.train_s, clock = self.train_s + self._now() - clock, self._now()
            done = self.updates - before[0]
            at_evaluation = self._at_evaluation()
            if (at_evaluation or done % FINITE_CHECK_UPDATES == 0) and not sums_3[0].isfinite():
                return None, f"training loss not finite by update {self.updates} (epoch {number})"
            if at_evaluation:
                break
        loss, right, grad_norm = sums_3.tolist()
        train_s = time.perf_counter() - started
        if self.timetable.unit != "seconds":
            self.train_s += train_s
        val, _ = self.evaluate(self.feed.val)
        if not math.isfinite(val.loss):
            return None, f"validation loss not finite after epoch {number}"
        self._measure_noise(number)
        wall_s = time.perf_counter() - started
        self.wall_s += wall_s
        updates, examples = self.updates - before[0], self.examples_seen - before[1]
        result = EpochResult(
            epoch=number,
            epochs_seen=self.examples_seen / len(self.train),
            updates=self.updates,
            examples_seen=self.examples_seen,
            lr=lr,
            batch_size_now=size,
            train_loss=loss / examples,
            train_accuracy=right / examples,
            **{f"val_{name}": value for name, value in asdict(val).items()},
            grad_norm=grad_norm / updates,
            noise_scale=self.noise.scale,
            epoch_wall_s=wall_s,
            images_per_s=examples / train_s,
            microbatch_size=min(self.step.microbatch_size, size),
        )
        self.results.append(result)
        if self.best() is result:
            self.best_model = self.weights()
        self._save()
        return result, ""

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _at_evaluation(self) -> bool:
        if self.spent >= self.until:
            return True
        if self.config.eval_updates is not None:
            return self.updates % self.config.eval_updates == 0
        size, _ = growth(self.config, self.place.epoch, train_images=len(self.train))
        last_of_epoch = self.place.start + size > len(self.train)
        return last_of_epoch and self.place.epoch % self.config.eval_epochs == 0

    # --- evaluation -------------------------------------------------------------------------------

    def evaluate(self, split: DeviceSplit) -> tuple[Scores, Tensor]:
        """Scores and logits (N, K) of a split with the weights as they are."""
        model = self.step.evaluated
        if self.config.precise_bn_images:
            with self.step.autocast():
                precise_statistics(model, self._plain_images(self.config.precise_bn_images))
        model.eval()
        own = self.step.prefix and prefix_at(model, self.step.prefix.paths)
        logits = []
        with torch.inference_mode(), self.step.autocast():
            for inputs_B in self.feed.evaluation(split):
                with bypassed(own):
                    logits.append(model(inputs_B).float())
        logits_NK = torch.cat(logits)
        return score(logits_NK, split.labels_N), logits_NK

    def _plain_images(self, num_images: int) -> Iterator[Tensor]:
        some = self.feed.some("precise", 0, num_images)
        size = min(self.step.microbatch_size, len(some))
        for images_BCHW, labels_B in self.feed.plain(some, size):
            if len(labels_B) == size:  # a last, small batch would weigh as much as the others
                yield images_BCHW

    def _measure_noise(self, number: int) -> None:
        some = self.feed.some("noise", number, noise.probe_images(len(self.train)))
        if len(some) < 2 * noise.PARTS:
            return
        images_BCHW, labels_B = next(self.feed.plain(some, len(some)))
        self.noise += noise.measure(
            self.model,
            self.step.trained,
            self.feed.inputs(images_BCHW),
            labels_B,
            lambda inputs, labels: self.step.loss(inputs, labels)[0],
        )

    def best(self) -> EpochResult | None:
        """The evaluation that validation chooses: the first of the best."""
        name = self.config.select_by
        sign = 1 if SCORES[name] == "max" else -1
        scored = [each for each in self.results if math.isfinite(getattr(each, name))]
        return max(scored, key=lambda each: sign * getattr(each, name), default=None)

    def finish(self, reason: str, *, keep: bool = False) -> TrialResult:
        """Score the test split at the best evaluation, once, and sum the trial up."""
        last = self.results[-1] if self.results else None
        goes_on = self.config.until_share < 1  # in another trial, from its last state
        best = last if goes_on else self.best()
        test, low, high = Scores(), math.nan, math.nan
        if not reason and not goes_on:
            self.step.evaluated.load_state_dict(self.best_model, strict=False)
            if self.data.test is not None:
                split = self.feed.on_device(self.data.test, self.config.eval_images)
                test, logits_NK = self.evaluate(split)
                low, high = auroc_interval(logits_NK, split.labels_N)
            if keep and self.folder is not None:
                keep_weights(self.folder, self.config, self.step.evaluated, self.num_classes)
        status = "diverged" if reason else "stopped" if goes_on else "completed"
        if goes_on and not reason:
            reason = f"at {self.config.until_share:.0%} of the budget, as it was asked to"
        elif not reason and self.spent < self.timetable.total:
            reason = (
                f"no better {self.config.select_by} in {self.config.early_stop_patience} epochs"
            )
        speeds = [each.images_per_s for each in self.results]
        at_best = ("auroc", "accuracy", "balanced_accuracy", "loss")
        scores: dict[str, Any] = {
            f"val_{s}": getattr(best, f"val_{s}") if best else math.nan for s in at_best
        }
        return TrialResult(
            status=status,
            reason=reason,
            peak_lr=peak_lr(self.config),
            epochs_completed=len(self.results),
            updates_completed=last.updates if last else 0,
            examples_seen=last.examples_seen if last else 0,
            best_epoch=best.epoch if best else 0,
            **scores,
            test_auroc_low=low,
            test_auroc_high=high,
            **{f"test_{name}": value for name, value in asdict(test).items()},
            train_wall_s=self.wall_s,
            images_per_s=float(np.median(speeds)) if speeds else math.nan,
            peak_memory_gib=peak_memory_gib(self.device),
            microbatch_size=min(self.step.microbatch_size, self.config.batch_size),
            accumulation_steps=math.ceil(self.config.batch_size / self.step.microbatch_size),
            oom_retries=self.step.oom_retries,
            noise_scale=self.noise.scale,
            device=device_name(self.device),
            fast_paths="+".join([*self.feed.paths, *self.step.paths]),
        )
