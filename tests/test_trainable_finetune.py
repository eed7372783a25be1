import gc
import math
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from made_data import write_folders
from torch import Tensor, nn

from trainable.checkpoint import SLOTS
from trainable.config import TrialConfig
from trainable.data.batches import Place, seed_for
from trainable.data.cache import Dataset, open_data
from trainable.data.sources import DataError
from trainable.feed import Feed
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.networks.models import build_model
from trainable.record import EpochResult, TrialResult
from trainable.training.step import Step

CLOCKS = ("epoch_wall_s", "images_per_s", "train_wall_s", "peak_memory_gib")


def whole(
    config: TrialConfig, data: Dataset | str | Path, folder: Folder | None = None
) -> tuple[list[EpochResult], TrialResult]:
    trial = finetune(config, data=data, checkpoint_folder=folder)
    results = []
    while True:
        try:
            results.append(next(trial))
        except StopIteration as end:
            return results, end.value


def numbers(row: EpochResult | TrialResult) -> str:
    """All that does not depend on the clock, to the last bit."""
    return repr({name: value for name, value in asdict(row).items() if name not in CLOCKS})


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "base_lr": 0.01},
    "within an epoch": {"epochs": None, "updates": 20, "eval_updates": 5, "warmup_epochs": 0.0},
    "growing batch": {"decay": "batch_growth", "step_factor": 0.5, "batch_size": 4},
    "by images": {
        "decay": "batch_growth",
        "step_factor": 0.5,
        "batch_size": 4,
        "reference_batch_size": 8,
        "optimizer": "adamw",
        "base_lr": 0.01,
        "weight_decay_scaling": "timescale",
        "ema_decay": 0.9,
        "ema_scaling": "half_life",
        "layer_decay": 0.7,
    },
    "schedule-free sgd": {
        "optimizer": "schedulefree_sgd",
        "decay": "constant",
        "base_lr": 5.0,
        "weight_decay": 1e-3,
        "microbatch_size": 8,
        "layer_decay": 0.7,
    },
    "schedule-free adamw": {
        "optimizer": "schedulefree_adamw",
        "decay": "constant",
        "base_lr": 0.05,
        "clip_grad_norm": 1.0,
        "eval_updates": 6,
        "precision": "bf16",
    },
    "all at once": {
        "ema_decay": 0.9,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "microbatch_size": 8,
        "norm": "ghost",
        "ghost_batch_size": 4,
        "precise_bn_images": 32,
        "clip_grad_norm": 0.5,
        "optimizer": "lamb",
        "base_lr": 0.02,
        "augment": "hflip+rotate+zoom+color+stain+erase",
        "precision": "bf16",
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(
    variant: str,
    stop_after: int,
    tiny_data: Dataset,
    tiny_config: TrialConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates: list[float] = []
    update = Step.update

    def counted(step: Step, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        updates.append(lr)
        return update(step, images, labels, lr)

    monkeypatch.setattr(Step, "update", counted)
    config = replace(tiny_config, **VARIANTS[variant])
    expected, expected_end = whole(config, tiny_data)
    all_updates, updates = updates, []
    folder = Folder(str(tmp_path))
    stopped = finetune(config, data=tiny_data, checkpoint_folder=folder)
    for _ in range(stop_after):
        next(stopped)
    stopped.close()
    assert updates == all_updates[: expected[stop_after - 1].updates]
    torch.manual_seed(12345)  # what happens in between must not matter
    torch.rand(7)
    updates = []
    resumed, resumed_end = whole(config, tiny_data, folder)
    # It went on: a trial that begins anew comes to the same numbers.
    assert updates == all_updates[expected[stop_after - 1].updates :]
    assert [numbers(r) for r in resumed] == [numbers(r) for r in expected]
    assert numbers(resumed_end) == numbers(expected_end)
    assert [r.epoch for r in resumed] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tiny_data: Dataset,
    tiny_config: TrialConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, _ = whole(tiny_config, tiny_data)
    folder = Folder(str(tmp_path))
    stopped = finetune(tiny_config, data=tiny_data, checkpoint_folder=folder)
    for _ in range(3):
        next(stopped)
    newest = tmp_path / SLOTS[1]
    content = bytearray(newest.read_bytes())
    content[1000] ^= 1
    newest.write_bytes(content)
    resumed, _ = whole(tiny_config, tiny_data, folder)
    assert "is damaged and is ignored" in caplog.text
    assert [numbers(r) for r in resumed] == [numbers(r) for r in expected]


def test_another_trials_checkpoint_is_not_used(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    whole(replace(tiny_config, seed=1), tiny_data, folder)
    expected, _ = whole(tiny_config, tiny_data)
    got, _ = whole(tiny_config, tiny_data, folder)
    assert [numbers(r) for r in got] == [numbers(r) for r in expected]


def test_one_seed_one_result_and_another_another(
    tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    first, again = (whole(tiny_config, tiny_data)[0] for _ in range(2))
    other, _ = whole(replace(tiny_config, seed=1), tiny_data)
    assert [numbers(r) for r in first] == [numbers(r) for r in again]
    assert first[0].train_loss != other[0].train_loss


def test_it_learns(tiny_data: Dataset, tiny_config: TrialConfig) -> None:
    # On its training images as validation: noise of 32 patches would hide a broken optimizer.
    data = replace(tiny_data, val=tiny_data.train)
    config = replace(tiny_config, augment="none", dropout=0.0, width=8, epochs=25, base_lr=1.0)
    results, end = whole(config, data)
    assert results[-1].train_loss < 0.7 * results[0].train_loss
    assert end.val_auroc > 0.9
    assert end.examples_seen == 25 * 96
    assert end.updates_completed == 25 * 6


def test_divergence_is_a_status_not_an_error(tiny_data: Dataset, tiny_config: TrialConfig) -> None:
    config = replace(tiny_config, base_lr=1e30, norm="none", warmup_epochs=0.0)
    results, end = whole(config, tiny_data)
    assert end.status == "diverged"
    assert "loss not finite" in end.reason
    assert len(results) == end.epochs_completed < 4
    assert math.isnan(end.test_auroc)


def test_best_epoch_is_validations_and_its_weights_are_tested(
    tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    for select_by in ("val_auroc", "val_accuracy", "val_loss"):
        config = replace(tiny_config, select_by=select_by, base_lr=3.0)
        results, end = whole(config, tiny_data)
        scores = [getattr(r, select_by) for r in results]
        best = min(scores) if select_by == "val_loss" else max(scores)
        assert end.best_epoch == scores.index(best) + 1
        assert end.val_auroc == results[end.best_epoch - 1].val_auroc
    # With the test split as validation both are scored with the same weights; seeds are tried
    # until one has its best before its last, else this would not show that the best are taken.
    for seed in range(20):
        config = replace(tiny_config, base_lr=30.0, decay="constant", seed=seed)
        _, end = whole(config, replace(tiny_data, val=tiny_data.test))
        assert (end.test_auroc, end.test_loss) == (end.val_auroc, end.val_loss)
        if end.best_epoch < 4:
            return
    raise AssertionError("no seed had its best epoch before the last")


def test_a_trial_counts_its_parameters(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    layer4, head, whole_network = 8_393_728, 2 * 512 + 2, 11_177_538  # of ResNet-18, two classes
    config = replace(tiny_config, model="resnet18", epochs=1, norm="batch")
    _, end = whole(config, tiny_data)
    assert (end.num_parameters, end.num_trained_parameters) == (whole_network, whole_network)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pt")
    config = replace(config, pretrained=str(tmp_path / "weights.pt"), train_blocks=1)
    _, end = whole(config, tiny_data)
    assert (end.num_parameters, end.num_trained_parameters) == (whole_network, layer4 + head)


def test_without_a_test_split_there_is_no_test_score(
    tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    _, end = whole(replace(tiny_config, epochs=1), replace(tiny_data, test=None))
    assert math.isnan(end.test_auroc)
    assert end.status == "completed"


def test_a_batch_larger_than_the_data_is_refused(
    tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    with pytest.raises(DataError, match="batch_size 97 is larger than the 96 training images"):
        next(finetune(replace(tiny_config, batch_size=97), data=tiny_data))


def test_the_folder_of_the_data_is_an_argument(tmp_path: Path, tiny_config: TrialConfig) -> None:
    (tmp_path / "moles").mkdir()
    write_folders(tmp_path / "moles")
    config = replace(tiny_config, dataset="moles", image_size=None, batch_size=4, epochs=1)
    for folder in (tmp_path / "moles", str(tmp_path / "moles")):
        results, _ = whole(config, data=folder)
        assert len(results) == 1
    with pytest.raises(DataError, match="elsewhere"):
        whole(config, data=tmp_path / "elsewhere")


def test_it_trains_without_ray() -> None:
    code = """
import sys
from trainable.config import TrialConfig
from trainable.feed import Feed
from trainable.finetune import finetune
from trainable.networks.models import build_model
config = TrialConfig(dataset="synthetic", model="plain", pretrained="none", image_size=48,
                     train_images=256, eval_images=64, epochs=2, precision="fp32")
for r in finetune(config):
    print(r)
assert "ray" not in sys.modules and "optuna" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("EpochResult(epoch=") == 2


@pytest.mark.parametrize(
    ("budget", "updates", "epochs"),
    [
        ({"updates": 10}, 10, 2),
        ({"examples": 100}, 7, 2),
        ({"epochs": 5, "eval_epochs": 2}, 30, 3),
        ({"updates": 10, "eval_updates": 4}, 10, 3),
        ({"updates": 10, "eval_updates": 100}, 10, 1),
    ],
)
def test_budgets_end_where_they_should(
    budget: dict[str, int],
    updates: int,
    epochs: int,
    tiny_data: Dataset,
    tiny_config: TrialConfig,
) -> None:
    config = replace(tiny_config, **{"epochs": None, "warmup_epochs": 0.0, **budget})
    results, end = whole(config, tiny_data)
    assert (end.updates_completed, end.examples_seen) == (updates, updates * 16)
    assert [r.epoch for r in results] == list(range(1, epochs + 1))
    assert results[-1].epochs_seen == pytest.approx(updates * 16 / 96)
    assert end.status == "completed"


def test_a_budget_of_seconds_is_kept(tiny_data: Dataset, tiny_config: TrialConfig) -> None:
    config = replace(
        tiny_config, epochs=None, seconds=1.0, warmup_epochs=0.0, warmup_share=0.1, eval_updates=20
    )
    started = time.perf_counter()
    results, end = whole(config, tiny_data)
    assert 1.0 < time.perf_counter() - started < 5.0
    assert end.status == "completed"
    assert results[-1].lr < 0.1 * results[0].lr


def test_patience_ends_a_trial_that_gets_no_better(
    tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    # A rate so small that no prediction changes: the first evaluation stays the best.
    config = replace(tiny_config, base_lr=1e-12, norm="none", early_stop_patience=3, epochs=20)
    results, end = whole(replace(config, select_by="val_accuracy"), tiny_data)
    assert len(results) == 4
    assert (end.status, end.best_epoch) == ("completed", 1)
    assert end.reason == "no better val_accuracy in 3 evaluations"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_precisions_agree(precision: str, tiny_data: Dataset, tiny_config: TrialConfig) -> None:
    exact, _ = whole(replace(tiny_config, epochs=1), tiny_data)
    rounded, _ = whole(replace(tiny_config, epochs=1, precision=precision), tiny_data)
    assert rounded[0].train_loss == pytest.approx(exact[0].train_loss, rel=0.02)
    assert (rounded[0].train_loss == exact[0].train_loss) == (precision != "bf16")


@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_trial_is_a_plain_loop_stopped_or_not(
    stop_after: int, tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    """Torch's default format, one optimizer kernel a tensor, the loss read at every step."""
    config = replace(tiny_config, epochs=3, dropout=0.0, warmup_epochs=0.0, decay="constant")
    config = replace(config, base_lr=0.1, lr_scaling="constant", no_bias_decay=False)
    config = replace(config, precise_bn_images=0)  # a plain loop has running averages
    folder = Folder(str(tmp_path))
    if stop_after:
        stopped = finetune(config, data=tiny_data, checkpoint_folder=folder)
        for _ in range(stop_after):
            next(stopped)
        stopped.close()
    expected, end = whole(config, tiny_data, folder)
    assert [each.epoch for each in expected] == [1, 2, 3]
    feed = Feed(config, tiny_data, torch.device("cpu"))
    torch.manual_seed(seed_for(config.seed, "weights"))
    model = build_model(config, num_classes=2)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=config.weight_decay, foreach=False
    )
    batches = feed.batches(Place())
    for result in expected:
        model.train()
        losses, norms, right = [], [], 0
        for images, labels in islice(batches, 96 // 16):
            optimizer.zero_grad()
            logits = model(images.contiguous())
            loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))  # type: ignore[union-attr]
            optimizer.step()
            losses.append(loss.item())
            right += int((logits.argmax(1) == labels).sum())
        assert result.train_loss == pytest.approx(sum(losses) / 6, rel=1e-4)
        assert result.grad_norm == pytest.approx(sum(norms) / 6, rel=1e-3)
        assert result.train_accuracy == pytest.approx(right / 96)
        assert (result.updates, result.examples_seen) == (6 * result.epoch, 96 * result.epoch)
        assert (result.epochs_seen, result.lr, result.batch_size_now) == (result.epoch, 0.1, 16)
        model.eval()
        images, labels = next(feed.plain(feed.val, 32))
        logits = model(images.contiguous())
        val_loss = nn.functional.cross_entropy(logits, labels)
        assert result.val_loss == pytest.approx(val_loss.item(), rel=1e-3)
        assert result.val_accuracy == pytest.approx(
            (logits.argmax(1) == labels).double().mean().item()
        )
    assert (end.updates_completed, end.examples_seen, end.epochs_completed) == (18, 288, 3)
    assert (end.status, end.reason, end.peak_lr) == ("completed", "", 0.1)


def test_fp16_on_a_cpu_is_refused(tiny_data: Dataset, tiny_config: TrialConfig) -> None:
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU"):
        next(finetune(replace(tiny_config, precision="fp16"), data=tiny_data))


def test_ten_classes_from_start_to_end() -> None:
    config = TrialConfig(
        dataset="digits",
        model="plain",
        pretrained="none",
        augment="none",
        batch_size=32,
        base_lr=1.0,
        epochs=8,
        precision="fp32",
    )
    results, end = whole(config, open_data("digits"))
    assert end.val_auroc > 0.98
    assert end.test_accuracy > 0.85
    assert end.test_auroc_low < end.test_auroc < end.test_auroc_high
    assert end.test_true_positives == -1  # counts are for two classes
    assert results[-1].val_balanced_accuracy == pytest.approx(results[-1].val_accuracy, abs=0.05)


def test_a_process_that_is_used_again_holds_nothing_of_earlier_trials(
    tiny_data: Dataset, tiny_config: TrialConfig
) -> None:
    def held_bytes() -> int:
        gc.collect()
        found = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
        return sum(each.nelement() * each.element_size() for each in found)

    list(finetune(tiny_config, data=tiny_data))
    before = held_bytes()
    kept = finetune(replace(tiny_config, seed=1), data=tiny_data)
    next(kept)
    assert held_bytes() > before  # a trial under way is seen
    list(kept)
    del kept
    list(finetune(replace(tiny_config, seed=2, width=8), data=tiny_data))
    assert held_bytes() == before


def test_a_trial_of_our_network_imports_only_what_it_uses() -> None:
    code = (
        "import sys; from trainable.config import TrialConfig; "
        "from trainable.finetune import finetune; "
        "list(finetune(TrialConfig(dataset='synthetic', model='plain', pretrained='none', "
        "train_images=64, eval_images=32, image_size=16, batch_size=32, epochs=1))); "
        "print(*{'timm', 'torchvision', 'sklearn', 'pandas', 'h5py', 'PIL', 'torch._dynamo'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
