import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from trainable.config import TrialConfig
from trainable.training.schedule import (
    adam_constants,
    ema_decay_at,
    growth,
    lr_at,
    peak_lr,
    timetable,
    weight_decay_of,
)

UPDATES_PER_EPOCH, EPOCHS = 20, 5


def lrs(config: TrialConfig) -> list[float]:
    return lrs_of(config, UPDATES_PER_EPOCH * config.batch_size)


def lrs_of(config: TrialConfig, train_images: int) -> list[float]:
    table = timetable(config, train_images=train_images)
    updates = round(table.total / config.batch_size)
    return [lr_at(config, table, float(u * config.batch_size)) for u in range(updates)]


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
        rates = lrs_of(config, 1024)[: 2 * updates]
        assert rates.index(max(rates)) + 1 == updates
        assert all(a > b for a, b in pairwise(rates[updates:]))


def test_step_is_torchs_multistep() -> None:
    config = TrialConfig(
        base_lr=0.3, batch_size=256, decay="step", num_steps=3, step_factor=0.1, epochs=120
    )
    opt = optimizer(0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(opt, [30, 60, 90], gamma=0.1)
    expected = []
    for _ in range(120):
        expected += [opt.param_groups[0]["lr"]] * 4
        opt.step()
        schedule.step()
    assert lrs_of(config, 4 * 256) == pytest.approx(expected)


@pytest.mark.parametrize("warmup_epochs", [6, 24])
def test_steps_are_counted_over_the_whole_budget_warmup_or_not(warmup_epochs: int) -> None:
    # He et al. 2019, 2.1: the drops of 120 epochs are at 30, 60 and 90, whatever came before.
    config = TrialConfig(
        base_lr=1.0, batch_size=256, decay="step", warmup_epochs=warmup_epochs, epochs=120
    )
    rates = lrs_of(config, 4 * 256)[3::4]  # the last update of each epoch
    for before, after in ((30, 31), (60, 61), (90, 91)):
        assert rates[after - 1] == pytest.approx(0.1 * rates[before - 1])
    assert rates[warmup_epochs - 1] == rates[29] == 1.0
    assert rates[119] == pytest.approx(1e-3)


def test_there_are_as_many_steps_as_asked_for_and_no_more() -> None:
    config = TrialConfig(
        base_lr=1.0, batch_size=256, decay="step", num_steps=2, step_factor=0.5, epochs=9
    )
    assert lrs_of(config, 256) == pytest.approx([1.0] * 3 + [0.5] * 3 + [0.25] * 3)
    table = timetable(config, train_images=256)
    assert lr_at(config, table, table.total) == pytest.approx(0.25)  # at its end it drops no more


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_is_torchs(power: float) -> None:
    config = TrialConfig(base_lr=0.3, batch_size=256, decay="polynomial", power=power, epochs=5)
    opt = optimizer(0.3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(opt, total_iters=100, power=power)
    expected = []
    for _ in range(100):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    assert lrs(config) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_legw_warms_up_over_epochs_in_proportion_to_the_batch() -> None:
    for batch_size, epochs in ((256, 1), (512, 2), (1024, 4)):
        config = TrialConfig(
            base_lr=0.1,
            lr_scaling="sqrt",
            warmup_epochs=1,
            warmup_scaling="linear",
            batch_size=batch_size,
            epochs=10,
        )
        rates = lrs_of(config, 4096)
        assert rates.index(max(rates)) + 1 == epochs * 4096 // batch_size
        assert max(rates) == pytest.approx(0.1 * (batch_size / 256) ** 0.5)


def test_malladis_rule() -> None:
    # Malladi et al. 2022, definition 5.2 (Adam), k = 4.
    config = TrialConfig(optimizer="adam", lr_scaling="malladi", batch_size=1024, base_lr=1e-3)
    (beta1, beta2), eps = adam_constants(config)
    assert peak_lr(config) == pytest.approx(2e-3)
    assert (beta1, beta2) == pytest.approx((0.6, 0.996))
    assert eps == pytest.approx(0.5e-8)
    assert adam_constants(TrialConfig(optimizer="adam", batch_size=1024)) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize("lr_scaling", ["constant", "sqrt", "linear"])
@pytest.mark.parametrize("batch_size", [16, 64, 1024])
def test_weight_decay_keeps_what_its_rule_names(batch_size: int, lr_scaling: str) -> None:
    at_reference = TrialConfig(
        optimizer="adamw", weight_decay=0.05, batch_size=256, lr_scaling=lr_scaling, base_lr=3e-4
    )
    other = replace(at_reference, batch_size=batch_size)
    num_images = 50_000

    def decay_by(rule: str, config: TrialConfig) -> float:
        return weight_decay_of(replace(config, weight_decay_scaling=rule))

    def share_per_update(rule: str, config: TrialConfig) -> float:
        return peak_lr(config) * decay_by(rule, config)

    def tau_epochs(rule: str, config: TrialConfig) -> float:
        """Wang & Aitchison 2024: 1 / (lr lambda) updates, each of B images, of N in an epoch."""
        return 1 / share_per_update(rule, config) / (num_images / config.batch_size)

    for rule in ("constant", "inverse_lr", "timescale"):
        assert decay_by(rule, at_reference) == 0.05
    assert decay_by("constant", other) == 0.05
    kept = share_per_update("inverse_lr", other), tau_epochs("timescale", other)
    assert kept[0] == pytest.approx(share_per_update("inverse_lr", at_reference))
    assert kept[1] == pytest.approx(tau_epochs("timescale", at_reference))
    is_same = decay_by("timescale", other) == pytest.approx(0.05)
    assert is_same == (lr_scaling == "linear")


def test_weight_decay_does_not_follow_the_base_lr() -> None:
    config = TrialConfig(weight_decay=0.05, batch_size=64, weight_decay_scaling="inverse_lr")
    assert weight_decay_of(config) == weight_decay_of(replace(config, base_lr=1.0)) == 0.2


@pytest.mark.parametrize("k", [0.25, 1.0, 4.0])
def test_averages_by_half_life_cover_as_many_images(k: float) -> None:
    config = TrialConfig(
        optimizer="adamw",
        batch_size=round(256 * k),
        beta_scaling="half_life",
        ema_decay=0.99,
        ema_scaling="half_life",
    )

    def half_life_images(decay: float) -> float:
        return math.log(0.5) / math.log(decay) * config.batch_size

    (beta1, beta2), eps = adam_constants(config)
    decays = (beta1, beta2, ema_decay_at(config, config.batch_size))
    for decay, usual in zip(decays, (0.9, 0.999, 0.99), strict=True):
        assert half_life_images(decay) == pytest.approx(math.log(0.5) / math.log(usual) * 256)
        assert decay == pytest.approx(usual**k, rel=1e-12)
    assert eps == 1e-8
    only_second = adam_constants(replace(config, beta_scaling="beta2_half_life"))
    assert only_second == ((0.9, beta2), 1e-8)
    assert ema_decay_at(replace(config, ema_scaling="constant"), config.batch_size) == 0.99
    # Malladi's 1 - k (1 - beta) is the first order of it.
    assert beta2 == pytest.approx(1 - k * 0.001, abs=(k * 0.001) ** 2 + 1e-6)


@pytest.mark.parametrize(
    ("budget", "total"),
    [({"epochs": 3}, 3 * 960), ({"updates": 7}, 7 * 64), ({"examples": 1000}, 16 * 64)],
)
def test_the_schedule_follows_the_budget(budget: dict[str, int], total: int) -> None:
    config = TrialConfig(batch_size=64, base_lr=1.0, warmup_share=0.25, **budget)
    table = timetable(config, train_images=1000)
    assert (table.unit, table.total) == ("images", total)
    rates = lrs_of(config, 1000)
    assert len(rates) == total // 64
    assert rates.index(max(rates)) + 1 == round(0.25 * total / 64)
    assert rates[-1] < 0.12 * max(rates)


def test_a_budget_of_seconds_is_spent_in_seconds() -> None:
    config = TrialConfig(batch_size=256, base_lr=1.0, warmup_share=0.1, seconds=50)
    table = timetable(config, train_images=1000)
    assert (table.unit, table.total, table.warmup) == ("seconds", 50, 5)
    assert lr_at(config, table, 2.5) == pytest.approx(0.5, abs=0.01)
    assert lr_at(config, table, 27.5) == pytest.approx(0.5)
    assert lr_at(config, table, 50) == pytest.approx(0.0)


def test_the_batch_grows_where_the_lr_would_drop() -> None:
    config = TrialConfig(
        batch_size=16, base_lr=1.0, decay="batch_growth", num_steps=3, step_factor=0.5, epochs=8
    )
    stages = [growth(config, epoch, train_images=640) for epoch in range(1, 9)]
    # N/10 = 64: the third doubling does not fit, and the lr halves instead.
    assert [size for size, _ in stages] == [16, 16, 32, 32, 64, 64, 64, 64]
    assert [factor for _, factor in stages] == [1, 1, 1, 1, 1, 1, 0.5, 0.5]
    # Smith et al.: lr / batch follows the step schedule, exactly.
    dropped = [0.5 ** ((epoch - 1) // 2) for epoch in range(1, 9)]
    assert [factor * 16 / size for size, factor in stages] == pytest.approx(dropped)


def test_a_batch_that_grows_has_all_of_its_epochs() -> None:
    # 1000 images: 62 batches of 16, 31 of 32, 15 of 64, 10 of 100 (a tenth; 128 does not fit).
    changes = {"batch_size": 16, "num_steps": 3, "step_factor": 0.5, "epochs": 4}
    config = TrialConfig(decay="batch_growth", **changes)  # type: ignore[arg-type]
    total = 62 * 16 + 31 * 32 + 15 * 64 + 10 * 100
    assert timetable(config, train_images=1000).total == total
    assert growth(config, 4, train_images=1000) == (100, pytest.approx(100 / 128))
    large = TrialConfig(decay="batch_growth", **{**changes, "batch_size": 200})  # type: ignore[arg-type]
    assert growth(large, 4, train_images=1000) == (200, 1 / 8)  # never less than it began with


def test_other_decays_do_not_grow_the_batch() -> None:
    for decay in ("cosine", "step", "polynomial", "constant"):
        config = TrialConfig(batch_size=16, decay=decay, epochs=4)
        assert growth(config, 4, train_images=1000) == (16, 1.0)


def test_warmup_is_whole_updates() -> None:
    # 1000 images make 15 updates of 64 an epoch: 1.5 epochs are 22, 0.29 of 45 updates are 13.
    about = {"batch_size": 64, "epochs": 3}
    table = timetable(TrialConfig(warmup_epochs=1.5, **about), train_images=1000)  # type: ignore[arg-type]
    assert table.warmup == 22 * 64
    assert table.total == 45 * 64
    assert table.train_images == 1000
    share = timetable(TrialConfig(warmup_share=0.29, **about), train_images=1000)  # type: ignore[arg-type]
    assert share.warmup == 13 * 64


def test_warmup_in_seconds_begins_at_a_thousandth_of_the_peak() -> None:
    config = TrialConfig(
        batch_size=256, base_lr=1.0, warmup_share=0.2, seconds=50, decay="constant"
    )
    table = timetable(config, train_images=1000)
    assert [lr_at(config, table, s) for s in (0.0, 5.0, 9.995, 10.0, 60.0)] == pytest.approx(
        [0.001, 0.501, 1.0, 1.0, 1.0]
    )


@pytest.mark.parametrize("decay", ["cosine", "polynomial"])
def test_past_its_budget_a_trial_learns_no_more(decay: str) -> None:
    config = TrialConfig(batch_size=256, base_lr=1.0, seconds=50, decay=decay)
    table = timetable(config, train_images=1000)
    assert lr_at(config, table, 50.0) == lr_at(config, table, 55.0) == 0.0
