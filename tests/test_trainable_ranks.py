"""A trial of two ranks, processes on this machine's cores, is that of one."""

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainable import trial as trial_module
from trainable.config import TrialConfig
from trainable.data.batches import Place
from trainable.data.cache import Dataset
from trainable.feed import Feed
from trainable.finetune import finetune, follow
from trainable.host import followers
from trainable.host.followers import Followers
from trainable.host.ranks import ALONE, RankLostError, Ranks, bounds
from trainable.host.storage import Folder
from trainable.networks.models import build_model
from trainable.record import EpochResult, TrialResult
from trainable.training import step as step_module
from trainable.training.step import Step
from trainable.training.task import TASKS

Ended = tuple[list[EpochResult], TrialResult]
CPU = torch.device("cpu")
CLASSES = TASKS["classification"]


@pytest.fixture(scope="module")
def pair() -> Iterator[Followers]:
    """This process and another one, which it starts."""
    followers = Followers(2)
    yield followers
    followers.close()


@pytest.fixture
def config(tiny_config: TrialConfig) -> TrialConfig:
    return replace(tiny_config, dropout=0.0, epochs=2)


def whole(trial: Any) -> Ended:
    results = []
    while True:
        try:
            results.append(next(trial))
        except StopIteration as end:
            return results, end.value


def of_two(
    pair: Followers, config: TrialConfig, data: Dataset, *, followed: Any = follow, **more: Any
) -> Ended:
    with pair.training(followed, config, data, 1) as ranks:
        return whole(finetune(config, data=data, ranks=ranks, **more))


def assert_same(one: Ended, two: Ended, rel: float = 1e-5) -> None:
    assert len(one[0]) == len(two[0])
    for first, second in zip([*one[0], one[1]], [*two[0], two[1]], strict=True):
        other = asdict(second)
        for name, value in asdict(first).items():
            if name.startswith(("val_", "test_", "train_l", "train_a", "grad", "noise")):
                assert other[name] == pytest.approx(value, rel=rel, abs=rel, nan_ok=True), name
    for name in ("status", "examples_seen", "updates_completed", "best_epoch", "peak_lr"):
        assert getattr(one[1], name) == getattr(two[1], name), name


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "none", "clip_grad_norm": 0.1, "optimizer": "adamw", "base_lr": 0.01},
        {"norm": "none", "batch_size": 17},
        {"norm": "none", "batch_size": 3, "train_images": 12, "eval_images": 5},
        {"norm": "sync"},
        {"norm": "sync", "batch_size": 17, "ema_decay": 0.9},
        {"norm": "sync", "precise_bn_images": 0, "model": "residual", "depth": 2},
        {"norm": "batch", "microbatch_size": 8},
        {"norm": "batch", "microbatch_size": 4, "precise_bn_images": 0, "ema_decay": 0.5},
        {"norm": "ghost", "ghost_batch_size": 4},
        {"norm": "none", "decay": "batch_growth", "num_steps": 1, "step_factor": 0.5},
    ],
    ids=lambda changes: "-".join(f"{value}" for value in changes.values()),
)
def test_two_ranks_train_as_one_does(
    changes: dict[str, Any], pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    """The norms of batches where the batches are the same: of all ranks, or of a microbatch."""
    config = replace(config, warmup_epochs=0, **changes)
    if config.batch_size == 3:
        config = replace(config, epochs=1)
    one = whole(finetune(config, data=tiny_data))
    two = of_two(pair, config, tiny_data)
    assert_same(one, two)
    largest = math.ceil(config.batch_size / 2)
    assert two[1].microbatch_size == min(one[1].microbatch_size, largest)
    assert one[1].accumulation_steps >= two[1].accumulation_steps


def test_a_batch_in_microbatches_is_that_of_two_ranks(
    pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    accumulated = replace(config, norm="none", microbatch_size=4)
    one = whole(finetune(accumulated, data=tiny_data))
    assert_same(one, of_two(pair, accumulated, tiny_data))
    assert_same(one, of_two(pair, replace(config, norm="none"), tiny_data))


@pytest.mark.parametrize(
    "alphas", [{"mixup_alpha": 0.4}, {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}]
)
def test_parts_are_mixed_as_their_batch_is(
    alphas: dict[str, float], config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(config, batch_size=17, norm="none", **alphas)

    def mixed(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        step = Step(
            config, build_model(config, num_classes=2), num_classes=2, device=CPU, ranks=ranks
        )
        torch.manual_seed(1)
        step.mixing_state = torch.get_rng_state()
        batches = Feed(config, tiny_data, CPU, ranks).batches(Place())
        return [step._mixed(*next(batches)) for _ in range(3)]

    parts = zip(*(mixed(Ranks(rank, 3)) for rank in range(3)), strict=True)
    for (images, targets), own in zip(mixed(ALONE), parts, strict=True):
        assert [len(part) for part, _ in own] == [5, 6, 6]
        torch.testing.assert_close(torch.cat([part for part, _ in own]), images)
        torch.testing.assert_close(torch.cat([part for _, part in own]), targets)


def test_dropout_of_each_rank_is_its_own_and_the_same_again(
    pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(config, dropout=0.5, norm="none", epochs=1)
    first, again = (of_two(pair, config, tiny_data) for _ in range(2))
    assert [r.train_loss for r in first[0]] == [r.train_loss for r in again[0]]
    assert first[1].test_loss == again[1].test_loss
    one = whole(finetune(config, data=tiny_data))
    assert one[0][0].train_loss != first[0][0].train_loss


def test_a_trial_goes_on_with_another_number_of_ranks(
    pair: Followers, config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    """They have the same key. And what leaves a trial between evaluations keeps the ranks."""
    config = replace(config, norm="none", epochs=3)
    folder = Folder(str(tmp_path))
    one = whole(finetune(config, data=tiny_data))
    assert next(finetune(config, data=tiny_data, checkpoint_folder=folder)).epoch == 1
    with pair.training(follow, config, tiny_data, 1) as ranks:
        trial = finetune(config, data=tiny_data, checkpoint_folder=folder, ranks=ranks)
        assert [next(trial).epoch, next(trial).epoch] == [1, 2]
        trial.close()
    processes = list(pair.processes)
    assert_same(one, whole(finetune(config, data=tiny_data, checkpoint_folder=folder)))
    assert_same(one, of_two(pair, config, tiny_data))
    assert pair.processes == processes


# --- what ends an attempt, or a trial, of all -----------------------------------------------------


class Refusing(nn.Module):
    """Stands in for CUDA memory: more images at once do not fit behind a part of a network."""

    def __init__(self, part: nn.Module, images: int, *, backward: bool) -> None:
        super().__init__()
        self.part, self.images, self.backward = part, images, backward

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(x)
        if self.training and len(x) > self.images:
            if not self.backward:
                raise torch.OutOfMemoryError(f"{len(x)} images do not fit")
            out.register_hook(self.refuse)
        return out

    def refuse(self, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(f"{len(gradient)} images do not fit")


def short_of_memory(
    ranks: Ranks, config: TrialConfig, data: Dataset, threads: int, *, where: str, backward: bool
) -> None:
    """A rank that has less memory than the others."""

    def build_short(*given: Any, **more: Any) -> nn.Module:
        model = build_model(*given, **more)
        model.set_submodule(where, Refusing(model.get_submodule(where), 3, backward=backward))
        return model

    trial_module.build_model = build_short  # type: ignore[attr-defined]
    try:
        follow(ranks, config, data, threads)
    finally:
        trial_module.build_model = build_model  # type: ignore[attr-defined]


def short_at_the_head(*given: Any) -> None:
    short_of_memory(*given, where="classifier", backward=False)


def short_in_the_middle(*given: Any) -> None:
    short_of_memory(*given, where="features.stem.1", backward=False)


def short_backwards(*given: Any) -> None:
    short_of_memory(*given, where="features.stem.1", backward=True)


@pytest.mark.parametrize(
    ("norm", "followed"),
    [
        ("none", short_at_the_head),
        ("sync", short_at_the_head),
        ("sync", short_in_the_middle),
        ("sync", short_backwards),
    ],
)
def test_memory_that_runs_out_in_one_rank_halves_the_microbatch_of_all(
    norm: str, followed: Any, pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(config, norm=norm, epochs=1, precise_bn_images=0 if norm == "sync" else None)
    two = of_two(pair, config, tiny_data, followed=followed)
    assert (two[1].oom_retries, two[1].microbatch_size, two[1].accumulation_steps) == (2, 2, 4)
    if norm == "none":
        assert_same(whole(finetune(config, data=tiny_data)), two)
    else:  # statistics of four images, two of each rank
        as_said = of_two(pair, replace(config, microbatch_size=2), tiny_data)
        assert_same(as_said, two)


def with_a_loss_that_is_no_number(ranks: Ranks, *given: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        no_number = replace(CLASSES, loss=lambda *a, **b: CLASSES.loss(*a, **b) * math.nan)
        patch.setattr(step_module, "task_of", lambda _: no_number)
        follow(ranks, *given)


def test_a_loss_that_is_no_number_in_one_rank_ends_all(
    pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    processes = list(pair.processes)
    rows, end = of_two(pair, config, tiny_data, followed=with_a_loss_that_is_no_number)
    assert (rows, end.status) == ([], "diverged")
    assert of_two(pair, replace(config, epochs=1), tiny_data)[1].status == "completed"
    assert pair.processes == processes


def test_a_batch_smaller_than_the_ranks_is_refused_by_all(
    pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    with pytest.raises(ValueError, match="batch_size 1 is less than one image for each of 2 GPUs"):
        of_two(pair, replace(config, batch_size=1, norm="none"), tiny_data)


# --- a rank that is lost --------------------------------------------------------------------------


def with_an_error(ranks: Ranks, *given: Any) -> None:
    def fail(*_: Any) -> Tensor:
        raise ZeroDivisionError("of one's own")

    failing = replace(CLASSES, loss=lambda *a, **b: fail())
    step_module.task_of = lambda _: failing  # type: ignore[attr-defined]
    follow(ranks, *given)


def test_an_error_of_another_rank_is_the_trials(
    pair: Followers, config: TrialConfig, tiny_data: Dataset
) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: of one's own"):
        of_two(pair, config, tiny_data, followed=with_an_error)


READS_LATE = """
import time
from pathlib import Path
from trainable.host import followers

join_at_once = followers.join

def join_slowly(rank, size, store):
    join_at_once(rank, size, store)
    time.sleep(1)
    Path(store).read_bytes()

followers.join = join_slowly
followers.main()
"""


def test_a_slow_rank_finds_what_it_meets_the_others_by(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "MAIN", READS_LATE)
    pair = Followers(2)
    try:
        assert of_two(pair, config, tiny_data)[1].status == "completed"
    finally:
        pair.close()


def test_a_killed_rank_is_noticed_and_the_next_trial_has_another(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(config, epochs=50)
    ends: list[float] = []
    pair = Followers(2, on_loss=lambda: ends.append(time.monotonic()))
    killed: list[float] = []

    def train_and_kill() -> None:
        with pair.training(follow, config, tiny_data, 1) as ranks:
            for result in finetune(config, data=tiny_data, ranks=ranks):
                if result.epoch == 2:
                    os.kill(pair.processes[0].pid, signal.SIGKILL)
                    killed.append(time.monotonic())

    try:
        with pytest.raises(RankLostError):
            train_and_kill()
        assert time.monotonic() - killed[0] < 10
        assert len(ends) == 1
        assert pair.processes == []
    finally:
        pair.close()


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [4, 5, 17, 64, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", [1, 3, 8, 500])
def test_parts_are_all_images_once_and_nearly_equal(total: int, size: int, unit: int) -> None:
    ranks = [Ranks(rank, size) for rank in range(size)]
    parts = [rank.part(total, unit) for rank in ranks]
    assert [image for part in parts for image in part] == list(range(total))
    lengths = [len(part) for part in parts]
    assert all(rank.lengths(total, unit) == lengths for rank in ranks)
    assert min(lengths) >= 1
    units = unit if total // unit >= size else 1
    assert all(length % units == 0 for length in lengths[:-1])
    assert max(lengths) - min(lengths) < 2 * units
    assert bounds(total, 1, unit) == [0, total]


def test_a_rank_alone_shares_nothing() -> None:
    values = torch.tensor([1.0])
    assert ALONE.sum_(values) is values
    assert (ALONE.largest(2.0), ALONE.of_first("a"), ALONE.goes_on(False)) == (2.0, "a", False)
    ALONE.agree()
    ALONE.leave()
