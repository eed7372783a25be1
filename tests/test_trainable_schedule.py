from itertools import pairwise

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from trainable.config import TrialConfig
from trainable.schedule import lr_at, peak_lr

UPDATES_PER_EPOCH, EPOCHS = 20, 5


def lrs(config: TrialConfig) -> list[float]:
    total = EPOCHS * UPDATES_PER_EPOCH
    return [lr_at(config, u, updates_per_epoch=UPDATES_PER_EPOCH) for u in range(total)]


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 1.0, 2.0])
def test_warmup_and_cosine_are_torchs(warmup_epochs: float) -> None:
    config = TrialConfig(
        base_lr=0.3, batch_size=256, warmup_epochs=warmup_epochs, decay="cosine", epochs=EPOCHS
    )
    m = round(warmup_epochs * UPDATES_PER_EPOCH)
    opt = optimizer(0.3)
    cosine = CosineAnnealingLR(opt, T_max=EPOCHS * UPDATES_PER_EPOCH - m)
    schedule: torch.optim.lr_scheduler.LRScheduler = cosine
    if m:
        opt = optimizer(0.3)
        warmup = LinearLR(opt, start_factor=1 / m, total_iters=m - 1)
        cosine = CosineAnnealingLR(opt, T_max=EPOCHS * UPDATES_PER_EPOCH - m)
        schedule = SequentialLR(opt, [warmup, cosine], milestones=[m])
    expected = []
    for _ in range(EPOCHS * UPDATES_PER_EPOCH):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    assert lrs(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup_epochs", [0.5, 1.0, 2.0])
def test_warmup_and_cosine_are_timms(warmup_epochs: float) -> None:
    config = TrialConfig(
        base_lr=0.3, batch_size=256, warmup_epochs=warmup_epochs, decay="cosine", epochs=EPOCHS
    )
    m = round(warmup_epochs * UPDATES_PER_EPOCH)
    opt = optimizer(0.3)
    schedule = CosineLRScheduler(
        opt,
        t_initial=EPOCHS * UPDATES_PER_EPOCH - m,
        warmup_t=m,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    # timm's warmup is at t/m where the paper's first update, t = 0, is at 1/m.
    expected = []
    for update in range(EPOCHS * UPDATES_PER_EPOCH):
        schedule.step_update(update + 1 if update < m - 1 else update)
        expected.append(0.3 if update == m - 1 else opt.param_groups[0]["lr"])
    assert lrs(config) == pytest.approx(expected, rel=1e-9)


def test_constant_stays_at_the_peak_after_warmup() -> None:
    config = TrialConfig(base_lr=0.3, batch_size=256, warmup_epochs=1, decay="constant", epochs=5)
    assert lrs(config)[UPDATES_PER_EPOCH - 1 :] == [0.3] * (4 * UPDATES_PER_EPOCH + 1)
    assert lrs(config)[0] == pytest.approx(0.3 / UPDATES_PER_EPOCH)


@pytest.mark.parametrize(
    ("lr_scaling", "expected"),
    [("constant", [0.1, 0.1, 0.1]), ("sqrt", [0.05, 0.1, 0.2]), ("linear", [0.025, 0.1, 0.4])],
)
def test_batch_size_rules(lr_scaling: str, expected: list[float]) -> None:
    peaks = [
        peak_lr(TrialConfig(base_lr=0.1, batch_size=b, lr_scaling=lr_scaling))
        for b in (64, 256, 1024)
    ]
    assert peaks == pytest.approx(expected)


def test_every_batch_size_warms_up_over_the_same_examples() -> None:
    for batch_size, updates in ((16, 64), (64, 16)):
        config = TrialConfig(base_lr=1.0, batch_size=batch_size, warmup_epochs=1, epochs=3)
        rates = [lr_at(config, u, updates_per_epoch=updates) for u in range(2 * updates)]
        assert rates.index(max(rates)) + 1 == updates
        assert all(a > b for a, b in pairwise(rates[updates:]))
