"""A running trial: model, optimizer, position in the data, best weights, results so far."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainable import checkpoint
from trainable.checkpoint import Saver, TrialState
from trainable.config import (
    CLASSIFICATION,
    SCORES,
    SCORES_OF,
    TrialConfig,
    selected_by,
    trial_key,
)
from trainable.data.batches import Place, normalization, seed_for
from trainable.data.cache import Dataset
from trainable.data.sources import DataError
from trainable.evaluation import Evaluation
from trainable.feed import Feed, forget_others
from trainable.host.device import (
    device_name,
    device_time_s,
    keep_freed_memory,
    peak_memory_gib,
    reset_peak_memory,
    set_precision,
)
from trainable.host.pulse import enter
from trainable.host.ranks import ALONE, Ranks
from trainable.host.stopwatch import Stopwatch
from trainable.host.storage import Folder
from trainable.networks.models import build_model, trained_state
from trainable.networks.prefix import find_prefix, prefix_at
from trainable.networks.teacher import Renormalized, keep_weights, taught_as
from trainable.record import CHANCE, EpochResult, TrialResult
from trainable.training.metrics import Scores
from trainable.training.noise import NoiseSums
from trainable.training.schedule import growth, lr_at, peak_lr, timetable
from trainable.training.step import Step
from trainable.training.task import AnyScores

# Updates between two checks that the loss is finite: reading it waits for the GPU.
FINITE_CHECK_UPDATES = 100
# What a checkpoint contains of a trial besides its model, step and results.
COUNTERS = ("updates", "examples_seen", "train_s", "wall_s")


@dataclass(kw_only=True)
class Interval:
    """The training from one evaluation to the next.

    `totals` are the sums over updates of loss, correct predictions, gradient norm, and the number
    of updates that fp16 skipped because their gradients overflowed: they have no norm. `lr` and
    `batch_size` are those of the last update. `started_s` is a reading of the trial's clock. Of a
    budget in seconds, `used_s` were used up before, and `stopwatch` counts on.
    """

    totals: Tensor
    lr: float
    batch_size: int
    started_s: float
    used_s: float
    stopwatch: Stopwatch | None
    updates: int = 0
    examples: int = 0
    is_finite: bool = True


def new_network(config: TrialConfig, *, num_classes: int) -> nn.Module:
    """A trial's network before its first update, on the host; the same in every rank.

    Raises:
        ValueError: the config does not fit the network or its weights.
    """
    torch.manual_seed(seed_for(config.seed, "weights"))
    return build_model(config, num_classes=num_classes)


class Trial:
    """The state of a trial between updates, and the steps that change it.

    Of several ranks each has it; only the first one has folders. Trials that train together in a
    process have one feed, and each a clock that counts its share of the time.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: Dataset,
        device: torch.device,
        folder: Folder | None,
        start_folder: Folder | None = None,
        checkpoint_every_s: float = 0.0,
        ranks: Ranks = ALONE,
        *,
        feed: Feed | None = None,
        network: nn.Module | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Load network and data; continue from the checkpoint in `folder` if there is one.

        `start_folder` contains the state of the trial that the config `begins_from`. The state is
        saved at the first evaluation after each `checkpoint_every_s`, and at the end. `feed` is
        that of a trial with the same images, `network` what `new_network` returns for the config,
        and `clock` gives this trial's seconds.

        Raises:
            DataError: the data is too small for the batch.
            ValueError: the config does not fit its network, weights, teacher, device or the state
                that it begins from.
        """
        enter("building")
        self.config, self.data, self.device, self.folder = config, data, device, folder
        self.ranks = ranks
        self.key = trial_key(config, data.fingerprint)
        self.num_classes = len(data.classes)
        if feed is None:
            forget_others(config, data, device)
        keep_freed_memory(device)
        reset_peak_memory(device)
        set_precision(config.precision, device, deterministic=config.deterministic)
        self.clock = clock or (lambda: device_time_s(device))
        self.feed = feed or Feed(config, data, device, self.ranks)
        self.train = self.feed.train
        self._check_sizes()
        self.timetable = timetable(config, train_images=len(self.train))
        network = network or new_network(config, num_classes=self.num_classes)
        self.model = network.to(device).to(memory_format=torch.channels_last)
        self.step = Step(
            config, self.model, num_classes=self.num_classes, device=device, ranks=self.ranks
        )
        self._renormalize_for_teacher()
        self._attach_prefix()
        self.evaluation = Evaluation(config, self.feed, self.step)
        self.best_model = self.weights()
        self.results: list[EpochResult] = []
        self.place = Place()
        self.interval: Interval | None = None  # None at an evaluation
        self.updates = self.examples_seen = 0
        self.train_s = self.wall_s = 0.0
        self.noise = NoiseSums()
        self.pack_size = 1
        self.saver = Saver(folder) if folder is not None else None
        self.num_saves, self.saved_at = 0, time.monotonic()
        self.checkpoint_every_s = checkpoint_every_s
        self._continue(start_folder)

    def _check_sizes(self) -> None:
        if self.config.batch_size < self.ranks.size:
            raise DataError(
                f"batch_size {self.config.batch_size} is less than one image for each of "
                f"{self.ranks.size} GPUs: set a smaller gpus_per_trial for it"
            )
        if len(self.train) < self.config.batch_size:
            raise DataError(
                f"batch_size {self.config.batch_size} is larger than the {len(self.train)} "
                f"training images: use a smaller batch or more images"
            )
        if self.config.task != self.data.task:
            raise DataError(
                f"the data was opened for task={self.data.task}, and the trial has "
                f"task={self.config.task}"
            )
        needs_all = self.config.task == CLASSIFICATION
        if needs_all and len(self.feed.val.labels_N.unique()) < self.num_classes:
            raise DataError(
                f"the {len(self.feed.val)} validation images do not contain every class: set a "
                f"larger eval_images"
            )

    def _renormalize_for_teacher(self) -> None:
        """Give a teacher whose weights expect another normalization images in that one."""
        if self.step.teacher is None or self.config.distill_from is None:
            return
        config, kept = taught_as(self.config.distill_from)
        wanted = kept or normalization(config, self.data.mean, self.data.std)
        if wanted != self.feed.normalization:
            teacher = Renormalized(self.step.teacher, images=self.feed.normalization, wanted=wanted)
            self.step.teacher = teacher.eval().to(self.device)

    def _attach_prefix(self) -> None:
        """Run frozen first blocks separately, unless images are mixed or a teacher needs them.

        Of the other tasks, networks enlarge their outputs to the size of the images.
        """
        c = self.config
        if c.task != CLASSIFICATION:
            return
        if c.train_blocks is None or c.mixup_alpha or c.cutmix_alpha or c.distill_from:
            return
        if self.feed.prefix is not None:  # that of a network with the same frozen blocks
            self.step.use_prefix(prefix_at(self.model, self.feed.prefix.paths))
            return
        size = c.image_size or self.data.train.images_NHWC.shape[1]
        prefix = find_prefix(self.model, image_size=size, device=self.device)
        self.step.use_prefix(prefix)
        self.feed.use_prefix(prefix, self.step.autocast)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained weights and statistics of the evaluated network."""
        state = trained_state(self.step.evaluated)
        return {name: value.detach().clone() for name, value in state.items()}

    # --- checkpoints ------------------------------------------------------------------------------

    def _continue(self, start_folder: Folder | None) -> None:
        """Take over the trial's own last state, or that of the trial that it begins from."""
        if state := self._saved_in(self.folder, self.key):
            self._restore(state)
        elif self.config.begins_from:
            self._begin_from(self.config.begins_from, start_folder)

    def _restore(self, state: TrialState) -> None:
        self.model.load_state_dict(state.model, strict=False)
        self.step.load_state_dict(state.step)
        self.best_model = {name: value.to(self.device) for name, value in state.best_model.items()}
        self.results = [EpochResult(**row) for row in state.results]
        self.place = Place(*state.place)
        self.noise = NoiseSums(*state.noise)
        self.num_saves = state.num_saves
        for name, value in state.counters.items():
            setattr(self, name, value)

    def _saved_in(self, folder: Folder | None, key: str) -> TrialState | None:
        """The state of a trial in a folder, if there is one; the first rank reads it for all."""
        state = checkpoint.load(folder, trial_key=key) if folder is not None else None
        return self.ranks.of_first(state)

    def _begin_from(self, key: str, folder: Folder | None) -> None:
        """Take another trial's weights, optimizer state and position, but not its scores."""
        state = self._saved_in(folder, key)
        if state is None:
            raise ValueError(
                f"this trial begins from the last state of trial {key}, which is not in "
                f"{folder.uri if folder else 'any given folder'}"
            )
        microbatch_size = self.step.microbatch_size
        state.counters |= {"train_s": 0.0, "wall_s": 0.0}
        self._restore(state)
        self.step.microbatch_size, self.step.oom_retries = microbatch_size, 0
        self.results, self.noise = [], NoiseSums()
        self.best_model = self.weights()

    def _save(self) -> None:
        """Save the state beside training, if it is time, or the trial is over.

        Raises:
            TakenOverError: another process continues the trial, as an earlier save found.
            OSError: an earlier state could not be written.
        """
        if self.saver is None:
            return
        self.saver.check()
        is_due = time.monotonic() - self.saved_at >= self.checkpoint_every_s
        if not self.is_over and (not is_due or (self.checkpoint_every_s and self.saver.is_busy)):
            return
        enter("saving")
        self.num_saves += 1
        self.saver.save(
            TrialState(
                trial_key=self.key,
                epoch=len(self.results),
                model={name: value.detach() for name, value in trained_state(self.model).items()},
                step=self.step.state_dict(),
                best_model=self.best_model,
                results=[asdict(result) for result in self.results],
                place=(self.place.epoch, self.place.start),
                noise=(self.noise.trace_sigma, self.noise.squared_gradient),
                counters={name: getattr(self, name) for name in COUNTERS},
                num_saves=self.num_saves,
            )
        )
        self.saved_at = time.monotonic()
        if not self.checkpoint_every_s:
            self.saver.wait()

    def close(self) -> None:
        """Wait for a state that is being written; a trial that ends early does so too."""
        if self.saver is not None:
            self.saver.close()

    # --- training ---------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much of the budget is used, in the timetable's unit."""
        return self.train_s if self.timetable.unit == "seconds" else float(self.examples_seen)

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up or `early_stop_patience` is exhausted."""
        return self.progress >= self.end or self._out_of_patience()

    @property
    def end(self) -> float:
        """Where this trial ends, in the timetable's unit: the whole budget, or a share of it."""
        return self.timetable.total * self.config.until_share

    def _out_of_patience(self) -> bool:
        best, patience = self.best(), self.config.early_stop_patience
        if patience is None or not self.results:
            return False
        return len(self.results) - (best.epoch if best else 0) >= patience

    def train_on(self) -> tuple[EpochResult | None, str]:
        """Train to the next evaluation and evaluate; None and the reason if it diverged."""
        while not self.update():
            pass
        return self.evaluate()

    def evaluate(self) -> tuple[EpochResult | None, str]:
        """Evaluate after an update that called for it; None and the reason if it diverged."""
        number = len(self.results) + 1
        interval, self.interval = self.interval, None
        if interval is None or not interval.is_finite:
            return None, f"training loss not finite by update {self.updates} (epoch {number})"
        loss, correct, grad_norm, skipped = interval.totals.tolist()
        applied = interval.updates - skipped
        train_s = self.clock() - interval.started_s
        self.train_s = self.ranks.of_first(interval.used_s + train_s)
        enter("evaluating")
        self.step.to_evaluation()
        self.evaluation.share_statistics(interval.batch_size)
        self.evaluation.refresh_statistics(self.step.evaluated)
        val, _ = self.evaluation.evaluate(self.feed.val)
        if not math.isfinite(val.loss):
            return None, f"validation loss not finite after epoch {number}"
        noise = self.evaluation.measure_noise(number)
        self.noise = self.noise.followed_by(noise)
        is_measured = noise != NoiseSums()
        wall_s = self.clock() - interval.started_s
        self.wall_s += wall_s
        result = EpochResult(
            epoch=number,
            epochs_seen=self.examples_seen / len(self.train),
            updates=self.updates,
            examples_seen=self.examples_seen,
            lr=interval.lr,
            batch_size_now=interval.batch_size,
            train_loss=loss / interval.examples,
            train_accuracy=correct / interval.examples,
            **{f"val_{name}": value for name, value in asdict(val).items()},
            grad_norm=grad_norm / applied if applied else math.nan,
            noise_scale=self.noise.scale,
            noise_trace=noise.trace_sigma if is_measured else math.nan,
            noise_squared_gradient=noise.squared_gradient if is_measured else math.nan,
            epoch_wall_s=wall_s,
            images_per_s=interval.examples / train_s,
            microbatch_size=min(
                self.step.microbatch_size, self.step.largest_part(interval.batch_size)
            ),
        )
        self.results.append(result)
        if self.best() is result:
            self.best_model = self.weights()
        self._save()
        return result, ""

    def update(self) -> bool:
        """One update; whether an evaluation is due after it, or its loss is not finite."""
        enter("training")  # a sign of life each time: a CUDA graph gives none of its own
        if self.interval is None:
            self.interval = self._new_interval(len(self.results) + 1)
        interval = self.interval
        self._update(*self.feed.batch(self.place), interval)
        if interval.stopwatch is not None:
            now_s = interval.used_s + interval.stopwatch.after_update()
            self.train_s = self.ranks.of_first(now_s)
        at_evaluation = self._at_evaluation()
        if at_evaluation or interval.updates % FINITE_CHECK_UPDATES == 0:
            interval.is_finite = bool(interval.totals[0].isfinite())
        return at_evaluation or not interval.is_finite

    def _new_interval(self, number: int) -> Interval:
        """The training to evaluation `number`, before its first update."""
        now_s = self.clock()
        # Dropout and mixing use the global generator. Seeded here, a resumed trial draws the same
        # numbers as an uninterrupted one.
        torch.manual_seed(seed_for(self.config.seed, "dropout", number))
        if self.ranks.size > 1:  # all mix alike, and each has a dropout of its own
            self.step.mixing_state = torch.get_rng_state()
            torch.manual_seed(seed_for(self.config.seed, "dropout", number, self.ranks.rank))
        self.step.set_training()
        in_seconds = self.timetable.unit == "seconds"
        return Interval(
            totals=torch.zeros(4, device=self.device),
            lr=math.nan,
            batch_size=self.config.batch_size,
            started_s=now_s,
            used_s=self.train_s,
            stopwatch=Stopwatch(self.device, self.clock) if in_seconds else None,
        )

    def _update(self, inputs_B: Tensor, labels_B: Tensor, interval: Interval) -> None:
        """One update with its learning rate, counted in the trial and in the interval."""
        size, factor = growth(self.config, self.place.epoch, train_images=len(self.train))
        interval.lr = lr_at(self.config, self.timetable, self.progress) * factor
        interval.batch_size = size
        if self.ranks.size > 1:
            self.step.batch_size = size
        sums = self.step.update(inputs_B, labels_B, interval.lr)
        if self.step.scaler.is_enabled():
            is_skipped = ~sums[2].isfinite()
            sums[2] = sums[2].where(~is_skipped, 0)
            interval.totals[3] += is_skipped
        interval.totals[:3] += sums
        interval.updates += 1
        interval.examples += size
        self.updates += 1
        self.examples_seen += size

    def _at_evaluation(self) -> bool:
        if self.progress >= self.end:
            return True
        if self.config.eval_updates is not None:
            return self.updates % self.config.eval_updates == 0
        size, _ = growth(self.config, self.place.epoch, train_images=len(self.train))
        is_last_of_epoch = self.place.start + size > len(self.train)
        return is_last_of_epoch and self.place.epoch % self.config.eval_epochs == 0

    # --- scores -----------------------------------------------------------------------------------

    def best(self) -> EpochResult | None:
        """The best evaluation by `select_by`; the first of equals."""
        name = selected_by(self.config)
        sign = 1 if SCORES[name] == "max" else -1
        scored = [result for result in self.results if math.isfinite(getattr(result, name))]
        return max(scored, key=lambda result: sign * getattr(result, name), default=None)

    def finish(self, reason: str, *, keep: bool = False) -> TrialResult:
        """Score the test split once, with the weights of the best evaluation, and summarize.

        The last state is then written: another trial may begin from it.
        """
        enter("evaluating")
        last = self.results[-1] if self.results else None
        continues = self.config.until_share < 1  # in another trial, from its last state
        best = last if continues else self.best()
        scores: AnyScores = Scores()
        low = high = math.nan
        if not reason and not continues:
            self.step.evaluated.load_state_dict(self.best_model, strict=False)
            scores, low, high = self._test_scores()
            if keep and self.folder is not None:
                network, classes = self.step.evaluated, self.num_classes
                keep_weights(self.folder, self.config, network, classes, self.feed.normalization)
        if self.saver is not None:
            enter("saving")
            self.saver.wait()
        status = "diverged" if reason else "stopped" if continues else "completed"
        speeds = [result.images_per_s for result in self.results]
        part = self.step.largest_part(self.config.batch_size)
        val_scores: dict[str, Any] = {
            name: getattr(best, name) if best else math.nan for name in SCORES_OF[self.config.task]
        }
        return TrialResult(
            status=status,
            reason=reason or self._reason_of_end(),
            peak_lr=peak_lr(self.config),
            epochs_completed=len(self.results),
            updates_completed=last.updates if last else 0,
            examples_seen=last.examples_seen if last else 0,
            best_epoch=best.epoch if best else 0,
            **val_scores,
            collapsed=status == "completed" and best is not None and self._is_constant(best),
            test_auroc_low=low,
            test_auroc_high=high,
            **{f"test_{name}": value for name, value in asdict(scores).items()},
            train_wall_s=self.wall_s,
            images_per_s=float(np.median(speeds)) if speeds else math.nan,
            peak_memory_gib=self.ranks.largest(peak_memory_gib(self.device)),
            microbatch_size=min(self.step.microbatch_size, part),
            accumulation_steps=math.ceil(part / self.step.microbatch_size),
            oom_retries=self.step.oom_retries,
            pack_size=self.pack_size,
            num_parameters=sum(p.numel() for p in self.model.parameters()),
            num_trained_parameters=sum(
                p.numel() for p in self.model.parameters() if p.requires_grad
            ),
            noise_scale=self.noise.scale,
            device=device_name(self.device),
            fast_paths="+".join([*self.feed.paths, *self.step.paths]),
        )

    def _is_constant(self, result: EpochResult) -> bool:
        """Whether every image had the same prediction: no order at all, and always one class."""
        one_class = math.isclose(result.val_balanced_accuracy, 1 / self.num_classes)
        return result.val_auroc == CHANCE and one_class

    def _test_scores(self) -> tuple[AnyScores, float, float]:
        """Scores of the test split and the interval of its AUROC; NaN without a test split."""
        if self.data.test is None:
            return Scores(), math.nan, math.nan
        split = self.feed.on_device("test", self.config.eval_images)
        scores, rows = self.evaluation.evaluate(split)
        return scores, *self.step.task.auroc_interval(rows, split.targets_N)

    def _reason_of_end(self) -> str:
        """Why a trial that did not diverge ended before its whole budget; empty if it did not."""
        if self.config.until_share < 1:
            return f"stopped at {self.config.until_share:.0%} of the budget, as its config says"
        if self.progress < self.timetable.total:
            patience = self.config.early_stop_patience
            return f"no better {selected_by(self.config)} in {patience} evaluations"
        return ""
