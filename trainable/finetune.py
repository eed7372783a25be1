"""The loop: a generator that trains one model and yields an EpochResult after each evaluation.

for result in finetune(TrialConfig(dataset="synthetic", model="plain", pretrained="none")):
    print(result)
"""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainable import checkpoint
from trainable.checkpoint import TrialState
from trainable.config import SCORES, TrialConfig, trial_key
from trainable.data.batches import (
    DeviceSplit,
    evaluation_batches,
    normalization,
    seed_for,
    to_device,
    training_batches,
)
from trainable.data.cache import Dataset, Split, open_data
from trainable.data.sources import DataError
from trainable.device import device_name, peak_memory_gib, pick_device, reset_peak_memory
from trainable.metrics import Scores, score
from trainable.models import build_model, set_training, trained_state
from trainable.optim import build_optimizer
from trainable.record import EpochResult, TrialResult
from trainable.schedule import lr_at, peak_lr
from trainable.storage import Folder

# A loss that is not finite is noticed after at most so many updates; reading it waits for the GPU.
FINITE_CHECK_UPDATES = 100
EVAL_BATCH = {"cpu": 256, "cuda": 1024}


def finetune(
    config: TrialConfig,
    *,
    data: Dataset | None = None,
    checkpoint_folder: Folder | None = None,
    device: torch.device | None = None,
) -> Generator[EpochResult, None, TrialResult]:
    """Train one model, yielding after each epoch; the generator's return value is the summary.

    Without `data` the config's data set is looked for in `$DATA_DIR` or `data/`. With
    `checkpoint_folder` the state is written there before each yield, and a trial found there goes
    on: it yields the epochs that were done, then the rest, with the numbers of a trial that was
    never stopped. A loss that is not finite ends the trial with status `diverged`.

    Raises:
        DataError: the data is missing, broken, or too small for the batch.
        ValueError: the network or its weights do not fit the config.
    """
    data = data or open_data(config.dataset)
    trial = Trial(config, data, device or pick_device(), checkpoint_folder)
    yield from trial.results
    reason = ""
    for epoch in range(len(trial.results) + 1, config.epochs + 1):
        result, reason = trial.train_epoch(epoch)
        if result is None:
            break
        yield result
    return trial.finish(reason)


class Trial:
    """The state of a trial between epochs: model, optimizer, best weights, results so far."""

    def __init__(
        self, config: TrialConfig, data: Dataset, device: torch.device, folder: Folder | None
    ) -> None:
        """Load what is trained and on what; go on from the checkpoint where there is one."""
        self.config, self.data, self.device, self.folder = config, data, device, folder
        self.key = trial_key(config, data.fingerprint)
        reset_peak_memory(device)
        self.train = self._on_device(data.train, config.train_images)
        self.val = self._on_device(data.val, config.eval_images)
        self.updates_per_epoch = len(self.train) // config.batch_size
        if self.updates_per_epoch == 0:
            raise DataError(
                f"batch_size {config.batch_size} is larger than the {len(self.train)} training "
                f"images: take a smaller batch or more images"
            )
        mean, std = normalization(config, data.mean, data.std)
        self.mean_C, self.std_C = (
            torch.tensor(mean, device=device),
            torch.tensor(std, device=device),
        )
        torch.manual_seed(seed_for(config.seed, "weights"))
        model = build_model(config, num_classes=len(data.classes))
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config, self.model, lr=peak_lr(config))
        self.best_model = self.weights()
        self.results: list[EpochResult] = []
        self.train_wall_s = 0.0
        if folder is not None and (state := checkpoint.load(folder, trial_key=self.key)):
            self._restore(state)

    def _on_device(self, split: Split, num_images: int | None) -> DeviceSplit:
        return to_device(
            split, num_images=num_images, image_size=self.config.image_size, device=self.device
        )

    def weights(self) -> dict[str, Tensor]:
        """A copy of what training changes."""
        return {name: each.detach().clone() for name, each in trained_state(self.model).items()}

    def _restore(self, state: TrialState) -> None:
        self.model.load_state_dict(state.model, strict=False)
        self.optimizer.load_state_dict(state.optimizer)
        self.best_model = {name: each.to(self.device) for name, each in state.best_model.items()}
        self.results = [EpochResult(**each) for each in state.results]
        self.train_wall_s = state.train_wall_s

    def _save(self) -> None:
        if self.folder is None:
            return
        state = TrialState(
            trial_key=self.key,
            epoch=len(self.results),
            model=self.weights(),
            optimizer=self.optimizer.state_dict(),
            best_model=self.best_model,
            results=[asdict(each) for each in self.results],
            train_wall_s=self.train_wall_s,
        )
        checkpoint.save(state, self.folder)

    def train_epoch(self, epoch: int) -> tuple[EpochResult | None, str]:
        """Train and validate one epoch; None and the reason where it diverged."""
        started = time.perf_counter()
        # Dropout draws from the global generator: seeded by epoch, a resumed trial draws the same.
        torch.manual_seed(seed_for(self.config.seed, "dropout", epoch))
        set_training(self.model)
        sums_3 = torch.zeros(3, device=self.device)  # loss, right answers, gradient norm
        first = (epoch - 1) * self.updates_per_epoch
        lr = math.nan
        for done, (images_BCHW, labels_B) in enumerate(self.batches(epoch), start=1):
            update = first + done
            lr = lr_at(self.config, update - 1, updates_per_epoch=self.updates_per_epoch)
            sums_3 += self.update(images_BCHW, labels_B, lr)
            last = done == self.updates_per_epoch
            if (last or done % FINITE_CHECK_UPDATES == 0) and not sums_3[0].isfinite():
                return None, f"training loss not finite by update {update} (epoch {epoch})"
        loss, right, grad_norm = sums_3.tolist()
        train_s = time.perf_counter() - started
        val = self.evaluate(self.val)
        if not math.isfinite(val.loss):
            return None, f"validation loss not finite after epoch {epoch}"
        examples = self.updates_per_epoch * self.config.batch_size
        wall_s = time.perf_counter() - started
        self.train_wall_s += wall_s
        result = EpochResult(
            epoch=epoch,
            updates=epoch * self.updates_per_epoch,
            examples_seen=epoch * examples,
            lr=lr,
            train_loss=loss / self.updates_per_epoch,
            train_accuracy=right / examples,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            val_auroc=val.auroc,
            grad_norm=grad_norm / self.updates_per_epoch,
            noise_scale=math.nan,
            epoch_wall_s=wall_s,
            images_per_s=examples / train_s,
            microbatch_size=self.config.batch_size,
        )
        self.results.append(result)
        if self.best() is result:
            self.best_model = self.weights()
        self._save()
        return result, ""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches of images (B, 3, H, W) and labels (B,)."""
        return training_batches(
            self.train, self.config, epoch=epoch, mean_C=self.mean_C, std_C=self.std_C
        )

    def update(self, images_BCHW: Tensor, labels_B: Tensor, lr: float) -> Tensor:
        """One step of the optimizer: (loss, right answers, gradient norm), left on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self._autocast():
            logits_BK = self.model(images_BCHW)
        loss = cross_entropy(logits_BK.float(), labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.trained if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        right = (logits_BK.argmax(1) == labels_B).sum()
        return torch.stack([loss.detach(), right.to(loss.dtype), grad_norm.to(loss.dtype)])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def evaluate(self, split: DeviceSplit) -> Scores:
        """Scores of a split with the weights as they are."""
        self.model.eval()
        logits = []
        with torch.inference_mode(), self._autocast():
            for images_BCHW, _ in evaluation_batches(
                split,
                batch_size=EVAL_BATCH.get(self.device.type, 256),
                mean_C=self.mean_C,
                std_C=self.std_C,
            ):
                logits.append(self.model(images_BCHW).float())
        return score(torch.cat(logits).cpu().numpy(), split.labels_N.cpu().numpy())

    def best(self) -> EpochResult | None:
        """The epoch that validation chooses: the first of the best."""
        name = self.config.select_by
        sign = 1 if SCORES[name] == "max" else -1
        scored = [each for each in self.results if math.isfinite(getattr(each, name))]
        return max(scored, key=lambda each: sign * getattr(each, name), default=None)

    def finish(self, reason: str) -> TrialResult:
        """Score the test split at the best epoch, once, and sum the trial up."""
        best, last = self.best(), self.results[-1] if self.results else None
        nan = math.nan
        test = Scores(auroc=nan, accuracy=nan, balanced_accuracy=nan, loss=nan)
        if not reason and self.data.test is not None:
            self.model.load_state_dict(self.best_model, strict=False)
            test = self.evaluate(self._on_device(self.data.test, self.config.eval_images))
        speeds = [each.images_per_s for each in self.results]
        return TrialResult(
            status="diverged" if reason else "completed",
            reason=reason,
            peak_lr=peak_lr(self.config),
            epochs_completed=len(self.results),
            updates_completed=last.updates if last else 0,
            examples_seen=last.examples_seen if last else 0,
            best_epoch=best.epoch if best else 0,
            val_auroc=best.val_auroc if best else nan,
            val_accuracy=best.val_accuracy if best else nan,
            val_loss=best.val_loss if best else nan,
            test_auroc=test.auroc,
            test_accuracy=test.accuracy,
            test_balanced_accuracy=test.balanced_accuracy,
            test_loss=test.loss,
            train_wall_s=self.train_wall_s,
            images_per_s=float(np.median(speeds)) if speeds else nan,
            peak_memory_gib=peak_memory_gib(self.device),
            microbatch_size=self.config.batch_size,
            accumulation_steps=1,
            oom_retries=0,
            noise_scale=nan,
            device=device_name(self.device),
        )
