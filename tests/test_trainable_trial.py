"""A trial between evaluations: what each update is given, when it is evaluated, how it ends."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from trainable import checkpoint, evaluation, trial
from trainable.config import SCHEDULE_FREE, SCORES_OF, TrialConfig
from trainable.data.cache import Dataset, Split
from trainable.data.sources import DataError
from trainable.feed import Feed
from trainable.host.storage import Folder
from trainable.networks.teacher import KEPT, kept_network
from trainable.record import EpochResult
from trainable.training import noise
from trainable.training.noise import NoiseSums
from trainable.training.optim import to_training
from trainable.trial import Trial

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_config: TrialConfig) -> TrialConfig:
    return replace(tiny_config, image_size=16, augment="none", dropout=0.0, warmup_epochs=0.0)


def trained(config: TrialConfig, data: Dataset, folder: Folder | None = None) -> Trial:
    made = Trial(config, data, CPU, folder)
    while not made.is_over:
        _, reason = made.train_on()
        assert not reason
    return made


def result_of(**fields: Any) -> EpochResult:
    values: dict[str, Any] = dict.fromkeys(EpochResult.__dataclass_fields__, 0.0)
    return EpochResult(**{**values, **fields})


def test_where_the_batch_may_grow_no_more_the_lr_falls(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    # A tenth of 96 images is 9. The schedule asks for batches of 4, 8, 16 and 32: the last two are
    # 9, and the lr is 9/16 and 9/32 of its peak (Smith et al. 2018).
    config = replace(
        config, decay="batch_growth", step_factor=0.5, batch_size=4, lr_scaling="constant"
    )
    made = Trial(config, tiny_data, CPU, None)
    used = []
    while not made.is_over:
        made.train_on()
        used.append(made.step.optimizer.param_groups[0]["lr"])
    expected = [0.5, 0.5, 0.5 * 9 / 16, 0.5 * 9 / 32]
    assert used == pytest.approx(expected)
    assert [each.lr for each in made.results] == pytest.approx(expected)
    assert [each.batch_size_now for each in made.results] == [4, 8, 9, 9]
    assert [each.microbatch_size for each in made.results] == [4, 4, 4, 4]
    updates = [24, 24 + 12, 24 + 12 + 10, 24 + 12 + 10 + 10]
    assert [each.updates for each in made.results] == updates
    assert made.finish("").accumulation_steps == 1


def test_each_update_has_the_lr_of_its_place(config: TrialConfig, tiny_data: Dataset) -> None:
    # Two epochs of six updates, warmup over three, then a straight line to zero over nine.
    config = replace(
        config, epochs=2, warmup_epochs=0.5, decay="polynomial", lr_scaling="constant", base_lr=0.9
    )
    made = Trial(config, tiny_data, CPU, None)
    lrs: list[float] = []
    update = made.step.update
    made.step.update = lambda x, y, lr: (lrs.append(lr), update(x, y, lr))[1]  # type: ignore
    while not made.is_over:
        made.train_on()
    assert lrs == pytest.approx([0.3, 0.6, 0.9] + [0.9 * (1 - i / 9) for i in range(9)])


@pytest.mark.parametrize("select_by", SCORES_OF["classification"])
def test_the_best_is_the_first_of_the_best_and_no_number_is_never(
    select_by: str, config: TrialConfig, tiny_data: Dataset
) -> None:
    made = Trial(replace(config, select_by=select_by), tiny_data, CPU, None)
    assert made.best() is None
    made.results = [result_of(epoch=1, **{select_by: math.nan})]
    assert made.best() is None
    values = [math.nan, 0.4, 0.6, 0.4, 0.6, 0.5]
    made.results = [result_of(epoch=i, **{select_by: v}) for i, v in enumerate(values, 1)]
    best = made.best()
    assert best is not None
    assert best.epoch == (2 if select_by == "val_loss" else 3)


def test_patience_counts_evaluations_since_the_best(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    made = Trial(replace(config, early_stop_patience=2, epochs=9), tiny_data, CPU, None)
    over = []
    for epoch, auroc in enumerate([0.5, 0.6, 0.6, 0.7, 0.1, 0.2], 1):
        made.results.append(result_of(epoch=epoch, val_auroc=auroc))
        over.append(made.is_over)
    assert over == [False] * 5 + [True]
    end = made.finish("")
    assert (end.status, end.best_epoch, end.val_auroc) == ("completed", 4, 0.7)
    assert end.reason == "no better val_auroc in 2 evaluations"


def test_a_share_of_a_budget_is_the_beginning_of_the_whole(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    whole = trained(config, tiny_data)
    folder = Folder(str(tmp_path / "half"))
    half = trained(replace(config, until_share=0.5), tiny_data, folder)
    assert [r.val_loss for r in half.results] == [r.val_loss for r in whole.results[:2]]
    end = half.finish("", keep=True)
    assert (end.status, end.reason) == (
        "stopped",
        "stopped at 50% of the budget, as its config says",
    )
    assert (end.best_epoch, end.epochs_completed) == (2, 2)  # its last, whatever was best
    assert math.isnan(end.test_auroc)  # of the whole alone
    assert not (tmp_path / "half" / KEPT).exists()
    # And who begins from it ends as the whole does.
    rest = replace(config, begins_from=half.key)
    heir = Trial(rest, tiny_data, CPU, Folder(str(tmp_path / "rest")), folder)
    assert (heir.results, heir.train_s, heir.wall_s) == ([], 0.0, 0.0)
    assert (heir.updates, heir.examples_seen) == (12, 192)
    assert all(torch.equal(each, heir.model.state_dict()[n]) for n, each in heir.best_model.items())
    while not heir.is_over:
        heir.train_on()
    assert [r.updates for r in heir.results] == [18, 24]
    assert [r.val_loss for r in heir.results] == [r.val_loss for r in whole.results[2:]]
    assert heir.finish("").status == "completed"


def test_who_begins_from_another_keeps_its_own_settings(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    half = trained(replace(config, until_share=0.5, microbatch_size=8), tiny_data, folder)
    own = replace(config, begins_from=half.key, momentum=0.3, weight_decay=0.2, microbatch_size=4)
    heir = Trial(own, tiny_data, CPU, None, folder)
    groups = heir.step.optimizer.param_groups
    assert {group["momentum"] for group in groups} == {0.3}
    assert {group["weight_decay"] for group in groups} == {0.2, 0.0}
    assert heir.step.microbatch_size == 4
    weight = heir.model.get_parameter("classifier.1.weight")
    taken = half.step.optimizer.state[half.model.get_parameter("classifier.1.weight")]
    assert torch.equal(
        heir.step.optimizer.state[weight]["momentum_buffer"], taken["momentum_buffer"]
    )
    with pytest.raises(ValueError, match="begins from the last state of trial nobody, which"):
        Trial(replace(own, begins_from="nobody"), tiny_data, CPU, None, folder)
    with pytest.raises(ValueError, match="is not in any given folder"):
        Trial(own, tiny_data, CPU, None)


def test_the_weights_of_the_best_evaluation_are_tested_and_kept(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    made = Trial(config, tiny_data, CPU, Folder(str(tmp_path)))
    made.train_on()
    best = {name: each.clone() for name, each in made.model.state_dict().items()}
    made.results[0] = replace(made.results[0], val_auroc=2.0)  # no later one is better
    while not made.is_over:
        made.train_on()
    assert any(not torch.equal(each, best[n]) for n, each in made.model.state_dict().items())
    end = made.finish("", keep=True)
    assert end.best_epoch == 1
    network, _ = kept_network(tmp_path / KEPT)
    assert all(torch.equal(each, best[n]) for n, each in network.state_dict().items())
    # The test's score by hand: its images, normalised with the data's own mean and deviation.
    assert tiny_data.test is not None
    images = torch.tensor(tiny_data.test.images_NHWC[:, 40:56, 40:56]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (tiny_data.mean, tiny_data.std))
    with torch.no_grad():
        p = network.eval()((images - mean) / std).softmax(1)[:, 1].double().numpy()
    assert end.test_auroc == pytest.approx(roc_auc_score(tiny_data.test.labels_N, p))
    assert end.test_auroc_low < end.test_auroc < end.test_auroc_high


def test_a_trial_says_how_it_went(config: TrialConfig, tiny_data: Dataset) -> None:
    made = trained(replace(config, microbatch_size=4), tiny_data)
    made.results = [
        replace(each, images_per_s=speed)
        for each, speed in zip(made.results, (5.0, 1.0, 2.0, 9.0), strict=True)
    ]
    made.noise = NoiseSums(6.0, 2.0)
    end = made.finish("")
    best = made.best()
    assert best is not None
    assert end.images_per_s == 3.5  # the median
    assert (end.microbatch_size, end.accumulation_steps, end.oom_retries) == (4, 4, 0)
    assert (end.peak_lr, end.train_wall_s) == (0.5 * 16 / 256, made.wall_s)
    assert (end.val_loss, end.val_accuracy) == (best.val_loss, best.val_accuracy)
    assert end.val_balanced_accuracy == best.val_balanced_accuracy
    assert end.noise_scale == 3.0
    assert made.train_s <= made.wall_s
    empty = Trial(config, tiny_data, CPU, None).finish("the loss is NaN")
    assert (empty.status, empty.reason) == ("diverged", "the loss is NaN")
    assert (empty.updates_completed, empty.examples_seen, empty.best_epoch) == (0, 0, 0)
    assert math.isnan(empty.val_auroc)
    assert math.isnan(empty.images_per_s)


@pytest.mark.parametrize(("base_lr", "collapses"), [(100.0, True), (0.1, False)])
def test_one_prediction_for_every_image_is_noted(
    base_lr: float, collapses: bool, config: TrialConfig, tiny_data: Dataset
) -> None:
    """Without normalization a first step that is far too long ends all activations."""
    without = {"norm": "none", "momentum": 0.0, "weight_decay": 0.0}
    of_one = replace(config, base_lr=base_lr, epochs=2, **without)
    result = trained(of_one, tiny_data).finish("")
    assert result.status == "completed"
    assert result.collapsed == collapses
    assert (result.val_auroc == 0.5) == collapses


@pytest.mark.parametrize(("every", "noticed"), [(1, 1), (4, 4), (100, 6)])
def test_a_loss_that_is_no_number_is_noticed_soon(
    every: int,
    noticed: int,
    config: TrialConfig,
    tiny_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "FINITE_CHECK_UPDATES", every)
    made = Trial(config, tiny_data, CPU, None)
    monkeypatch.setattr(made.step, "update", lambda *_: torch.tensor([math.nan, 0.0, 0.0]))
    reason = f"training loss not finite by update {noticed} (epoch 1)"
    assert made.train_on() == (None, reason)
    assert made.results == []


def test_a_validation_loss_that_is_no_number_ends_a_trial(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Trial(config, tiny_data, CPU, None)
    monkeypatch.setattr(
        made.feed,
        "evaluation",
        lambda _: iter([(torch.full((32, 3, 16, 16), math.nan), torch.zeros(32))]),
    )
    assert made.train_on() == (None, "validation loss not finite after epoch 1")


def test_data_that_is_too_small_is_refused(config: TrialConfig, tiny_data: Dataset) -> None:
    one_class = Split(images_NHWC=tiny_data.val.images_NHWC, labels_N=np.zeros(32, dtype=np.int64))
    with pytest.raises(DataError, match=r"the 32 validation images do not contain every class"):
        Trial(config, replace(tiny_data, val=one_class), CPU, None)
    with pytest.raises(DataError, match="batch_size 97 is larger than the 96 training images"):
        Trial(replace(config, batch_size=97), tiny_data, CPU, None)
    Trial(replace(config, batch_size=96), tiny_data, CPU, None)


def test_precise_statistics_are_those_of_so_many_training_images(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    # 40 images are two batches of 16, as an update has them, and 8 that would weigh too much.
    made = Trial(replace(config, precise_bn_images=40), tiny_data, CPU, None)
    means: list[Tensor] = []
    stem = made.model.get_submodule("features.stem.1")
    assert isinstance(stem, nn.BatchNorm2d)
    stem.register_forward_pre_hook(
        lambda layer, given: means.append(given[0].mean((0, 2, 3))) if layer.training else None
    )
    made.evaluation.refresh_statistics(made.model)
    made.evaluation.evaluate(made.feed.val)
    assert len(means) == 2
    assert stem.running_mean is not None
    torch.testing.assert_close(stem.running_mean, torch.stack(means).mean(0))
    taken = made.feed.random_part("precise", 0, 40)
    assert len(taken) == 40
    assert [len(each) for each in made.evaluation._whole_batches(taken, 16)] == [16, 16]
    assert [len(each) for each in made.evaluation._whole_batches(taken, 40)] == [40]


def test_statistics_are_precise_unless_asked_otherwise(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, epochs=1, batch_size=48)
    usual, of_all, running = (
        trained(replace(config, precise_bn_images=images), tiny_data).results[0].val_loss
        for images in (None, evaluation.PRECISE_BN_IMAGES, 0)
    )
    assert usual == of_all != running
    # Two updates leave running averages near 0 and 1, whatever the network computes.
    assert running > usual
    taken: list[int] = []
    part = Feed.random_part
    monkeypatch.setattr(
        Feed,
        "random_part",
        lambda feed, purpose, *rest: (taken.append(purpose), part(feed, purpose, *rest))[1],
    )
    trained(config, tiny_data)
    assert taken.count("precise") == 1  # the test split is scored with what validation chose
    for norm in ("group", "none"):
        taken.clear()
        made = trained(replace(config, norm=norm), tiny_data)
        made.finish("")
        assert "precise" not in taken


def test_noise_is_measured_with_precise_statistics_of_the_network_itself(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if an average is what validation scores."""
    means: list[Tensor] = []

    def measured(model: nn.Module, *_: object, **__: object) -> NoiseSums:
        layer = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert layer.running_mean is not None
        means.append(layer.running_mean.clone())
        return NoiseSums()

    monkeypatch.setattr(noise, "measure", measured)
    for decay in (0.0, 0.9):
        made = Trial(replace(config, ema_decay=decay, epochs=1), tiny_data, CPU, None)
        made.train_on()
        made.evaluation.refresh_statistics(made.model)
        layer = next(m for m in made.model.modules() if isinstance(m, nn.BatchNorm2d))
        assert layer.running_mean is not None
        assert torch.equal(means[-1], layer.running_mean)


@pytest.mark.parametrize("optimizer", SCHEDULE_FREE)
def test_a_schedule_free_trial_is_scored_with_the_average_of_its_weights(
    optimizer: str, config: TrialConfig, tiny_data: Dataset
) -> None:
    """With BatchNorm's statistics of those weights; then it trains on from the others."""
    config = replace(config, optimizer=optimizer, decay="constant", base_lr=0.2, momentum=0.8)
    made = Trial(replace(config, beta1=0.8, epochs=2), tiny_data, CPU, None)
    row, _ = made.train_on()
    assert row is not None
    x = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    statistics = {name: b.clone() for name, b in made.model.named_buffers()}
    for name, value in x.items():
        assert torch.equal(made.best_model[name], value)
    made.evaluation.refresh_statistics(made.model)
    for name, buffer in made.model.named_buffers():
        assert name.endswith("num_batches_tracked") or torch.equal(buffer, statistics[name])
    assert made.evaluation.evaluate(made.feed.val)[0].loss == row.val_loss
    to_training(made.step.optimizer)
    for name, p in made.model.named_parameters():
        y = 0.8 * x[name] + 0.2 * made.step.optimizer.state[p]["z"]
        torch.testing.assert_close(p.detach(), y)
        assert p.ndim < 2 or not torch.allclose(p, x[name], rtol=1e-3)
    made.evaluation.refresh_statistics(made.model)
    assert made.evaluation.evaluate(made.feed.val)[0].loss != row.val_loss


@pytest.mark.parametrize("norm", ["none", "ghost"])
def test_a_trial_goes_on_wherever_memory_runs_out(
    norm: str, config: TrialConfig, tiny_data: Dataset
) -> None:
    """In updates, validation, precise statistics and the noise scale, with the same numbers."""
    config = replace(config, epochs=1, norm=norm, ghost_batch_size=4, base_lr=0.1)
    whole = Trial(config, tiny_data, CPU, None)
    short = Trial(config, tiny_data, CPU, None)
    seen: dict[bool, list[int]] = {False: [], True: []}

    def refuse(model: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > 5:
            raise torch.OutOfMemoryError
        seen[torch.is_grad_enabled()].append(len(given[0]))

    short.model.register_forward_pre_hook(refuse)
    for made in (whole, short):
        made.train_on()
    expected, got = whole.results[0], short.results[0]
    for name in ("train_loss", "val_loss", "noise_scale", "grad_norm"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
    assert got.microbatch_size == 4
    assert short.step.oom_retries == 2
    assert short.feed.chunk_size == 4
    assert set(seen[True]) == {4}
    assert set(seen[False]) == {4}
    test, _, _ = short._test_scores()
    assert test.loss == pytest.approx(whole._test_scores()[0].loss, rel=1e-3)


def test_noise_is_measured_in_microbatches(config: TrialConfig, tiny_data: Dataset) -> None:
    scales = []
    for microbatch_size in (None, 2):
        made = Trial(
            replace(config, norm="none", microbatch_size=microbatch_size), tiny_data, CPU, None
        )
        sizes: list[int] = []
        made.model.register_forward_pre_hook(lambda _, given, s=sizes: s.append(len(given[0])))
        measured = made.evaluation.measure_noise(1)
        assert sizes == [8] * 8 if microbatch_size is None else [2] * 32
        scales.append(measured)
    assert scales[0].trace_sigma == pytest.approx(scales[1].trace_sigma, rel=1e-4)
    assert scales[0].squared_gradient == pytest.approx(scales[1].squared_gradient, rel=1e-3)


def test_precise_statistics_of_what_fits_are_of_whole_ghosts(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(config, norm="ghost", ghost_batch_size=32, batch_size=96)
    made = Trial(config, tiny_data, CPU, None)
    sizes: list[int] = []

    def refuse(model: nn.Module, given: tuple[Tensor, ...]) -> None:
        sizes.append(len(given[0]))
        if len(given[0]) > 64:
            raise torch.OutOfMemoryError

    made.model.register_forward_pre_hook(refuse)
    made.evaluation.refresh_statistics(made.model)
    assert sizes == [96, 64]
    layers = [m for m in made.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {layer.momentum for layer in layers} == {0.1}


@pytest.mark.parametrize(
    ("is_fp16", "norms", "expected"),
    [
        (True, [math.inf, 2.0, math.nan, 4.0, 6.0, 8.0], 5.0),
        (True, [math.inf] * 6, math.nan),
        (False, [math.inf, 2.0, 2.0, 4.0, 6.0, 8.0], math.inf),  # no update was skipped
    ],
)
def test_overflows_of_fp16_are_left_out_of_the_gradients_norm(
    is_fp16: bool,
    norms: list[float],
    expected: float,
    config: TrialConfig,
    tiny_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Trial(replace(config, base_lr=1e-9), tiny_data, CPU, None)
    left = iter(norms)
    monkeypatch.setattr(made.step.scaler, "is_enabled", lambda: is_fp16)
    monkeypatch.setattr(made.step, "_apply_gradients", lambda: torch.tensor(next(left)))
    result, _ = made.train_on()
    assert result is not None
    assert result.grad_norm == pytest.approx(expected, nan_ok=True)
    assert math.isfinite(result.train_loss)


def test_each_evaluation_keeps_its_noise_and_the_scale_follows_the_late_ones(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients shrink a hundredfold: a plain sum would be that of the first evaluations."""
    measured = [(100.0, 100.0), (100.0, 50.0), (4.0, 0.1), (4.0, 0.1), (4.0, 0.1), (4.0, 0.1)]
    left = iter(NoiseSums(*pair) for pair in measured)
    monkeypatch.setattr(noise, "measure", lambda *_, **__: next(left))
    made = trained(replace(config, epochs=6), tiny_data)
    got = [(row.noise_trace, row.noise_squared_gradient) for row in made.results]
    assert got == measured
    weights = 0.5 ** (np.arange(6)[::-1] / 3)  # half after three evaluations
    trace, squared = weights @ np.array(measured)
    assert made.results[-1].noise_scale == pytest.approx(trace / squared)
    assert made.finish("").noise_scale == made.results[-1].noise_scale


def test_a_checkpoint_without_the_columns_of_today_is_gone_on_with(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    half = trained(replace(config, until_share=0.5), tiny_data, folder)
    state = checkpoint.load(folder, trial_key=half.key)
    assert state is not None
    for row in state.results:
        del row["noise_trace"], row["noise_squared_gradient"]
    checkpoint.save(state, folder, token=half.saver.token)
    again = Trial(replace(config, until_share=0.5), tiny_data, CPU, folder)
    assert [row.val_loss for row in again.results] == [row.val_loss for row in half.results]
    assert math.isnan(again.results[0].noise_trace)
    Trial(replace(config, begins_from=half.key), tiny_data, CPU, None, folder)


def test_noise_is_measured_on_whole_parts_or_not_at_all(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def measured(*_: object, num_images: int, **__: object) -> NoiseSums:
        seen.append(num_images)
        return NoiseSums(2.0, 1.0)

    monkeypatch.setattr(noise, "measure", measured)
    for images, batch_size in ((96, 16), (16, 16), (15, 8), (8, 8)):
        made = Trial(
            replace(config, train_images=images, batch_size=batch_size), tiny_data, CPU, None
        )
        made.train_on()
        made.train_on()
        expected = NoiseSums(2.0, 1.0).followed_by(NoiseSums(2.0, 1.0))
        assert made.noise == (expected if images >= 16 else NoiseSums())
        for result in made.results:
            columns = (result.noise_trace, result.noise_squared_gradient)
            assert columns == pytest.approx(
                (2.0, 1.0) if images >= 16 else (math.nan,) * 2, nan_ok=True
            )
    assert seen == [64, 64, 16, 16]


def test_the_clock_of_a_trial_in_seconds_leaves_evaluation_out(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update takes a second of a clock of its own, an evaluation ten."""
    clock = [100.0]
    made = Trial(
        replace(config, epochs=None, seconds=8.0, decay="polynomial", lr_scaling="constant"),
        tiny_data,
        CPU,
        None,
    )
    lrs: list[float] = []

    def update(inputs: Tensor, labels: Tensor, lr: float) -> Tensor:
        lrs.append(lr)
        clock[0] += 1.0
        return torch.tensor([16.0, 8.0, 1.0])

    evaluate = made.evaluation.evaluate

    def slow(split: Any) -> Any:
        clock[0] += 10.0
        return evaluate(split)

    monkeypatch.setattr(trial, "device_time_s", lambda device: clock[0])
    monkeypatch.setattr(made.step, "update", update)
    monkeypatch.setattr(made.evaluation, "evaluate", slow)
    while not made.is_over:
        made.train_on()
    assert lrs == pytest.approx([0.5 * (1 - i / 8) for i in range(8)])
    assert [each.updates for each in made.results] == [6, 8]
    assert (made.train_s, made.wall_s) == (8.0, 28.0)
    assert [each.epoch_wall_s for each in made.results] == [16.0, 12.0]
    assert [each.images_per_s for each in made.results] == [16.0, 16.0]
    assert [each.train_loss for each in made.results] == [1.0, 1.0]
    assert [each.train_accuracy for each in made.results] == [0.5, 0.5]
    assert [each.grad_norm for each in made.results] == [1.0, 1.0]


def test_dropout_is_drawn_anew_in_each_epoch_and_from_the_seed(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    # The same images, weights that do not move: only dropout makes the losses differ.
    config = replace(
        config, dropout=0.5, base_lr=1e-30, batch_size=96, norm="none", decay="constant"
    )
    first, again, other = (
        [each.train_loss for each in trained(replace(config, seed=s), tiny_data).results]
        for s in (0, 0, 1)
    )
    assert first == again
    assert len(set(first)) == 4
    assert not set(first) & set(other)
