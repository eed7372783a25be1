"""Trials of a pack have the numbers that they have alone, to the bit on a CPU."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from trainable import evaluation, feed, pack
from trainable.config import TrialConfig
from trainable.data.cache import Dataset
from trainable.data.resident import forget
from trainable.feed import Feed
from trainable.finetune import finetune
from trainable.host import pulse
from trainable.host.storage import Folder
from trainable.networks.prefix import run_prefix
from trainable.pack import Member, Outcome, Terms, train_pack
from trainable.packing import MAY_DIFFER, pack_key
from trainable.record import EpochResult, TrialResult
from trainable.training import step as step_module
from trainable.training.step import Step

CPU = torch.device("cpu")
# What depends on the clock, or says that it was a pack.
NOT_COMPARED = {"epoch_wall_s", "images_per_s", "train_wall_s", "peak_memory_gib", "pack_size"}


def numbers(row: Outcome) -> str:
    assert not isinstance(row, Exception), row
    return repr({name: v for name, v in asdict(row).items() if name not in NOT_COMPARED})


def alone(config: TrialConfig, data: Dataset) -> list[str]:
    """What a trial reports alone, its end last."""
    trial, rows = finetune(config, data=data), []
    while True:
        try:
            rows.append(numbers(next(trial)))
        except StopIteration as end:
            return [*rows, numbers(end.value)]


def packed(
    configs: Sequence[TrialConfig],
    data: Dataset,
    folders: Sequence[Folder] | None = None,
    is_stopped: Callable[[int], bool] = lambda _: False,
) -> list[list[Outcome]]:
    """What each member of a pack reports."""
    members = [
        Member(config=config, checkpoint_folder=folders[i] if folders else None)
        for i, config in enumerate(configs)
    ]
    outcomes: list[list[Outcome]] = [[] for _ in configs]
    for index, outcome in train_pack(members, Terms(data=data, device=CPU), is_stopped=is_stopped):
        outcomes[index].append(outcome)
    return outcomes


def folders_in(path: Path, count: int) -> list[Folder]:
    return [Folder(str(path / str(index))) for index in range(count)]


@pytest.fixture
def config(tiny_config: TrialConfig) -> TrialConfig:
    return replace(tiny_config, epochs=3)


OPTIMIZERS = [
    {"optimizer": "sgd", "base_lr": 0.1, "nesterov": True},
    {"optimizer": "adam", "base_lr": 0.01},
    {"optimizer": "adamw", "base_lr": 0.01, "weight_decay": 0.1},
    {"optimizer": "rmsprop", "base_lr": 0.001},
    {"optimizer": "adagrad", "base_lr": 0.01},
    {"optimizer": "lars", "base_lr": 1.0},
    {"optimizer": "lamb", "base_lr": 0.02},
    {"optimizer": "schedulefree_sgd", "base_lr": 1.0},
    {"optimizer": "schedulefree_adamw", "base_lr": 0.01},
]
RATES = [{"base_lr": lr} for lr in (0.02, 0.1, 0.5, 2.0)]
# Each with the changes that all members share, and those of each member.
PACKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "every optimizer": ({"decay": "constant"}, OPTIMIZERS),
    "rates": ({}, RATES),
    "batchnorm": ({"model": "residual", "norm": "batch", "precise_bn_images": 32}, RATES[:3]),
    "batchnorm's running averages": ({"norm": "batch", "precise_bn_images": 0}, RATES[:3]),
    "dropout": ({"dropout": 0.5, "augment": "none"}, RATES[:3]),
    "mixup and cutmix": ({"mixup_alpha": 0.2, "cutmix_alpha": 1.0}, RATES[:3]),
    "averages": ({}, [{"ema_decay": decay} for decay in (0.0, 0.5, 0.9)]),
    "microbatches": ({"microbatch_size": 4, "precision": "bf16"}, RATES[:3]),
    "a batch that grows": ({"decay": "batch_growth", "batch_size": 4}, RATES[:3]),
    "evaluated within epochs": (
        {"epochs": None, "updates": 20, "eval_updates": 4, "warmup_epochs": 0.0},
        RATES[:3],
    ),
    "losses, decay and warmup": (
        {},
        [
            {"label_smoothing": 0.1, "warmup_epochs": 1.0},
            {"head_lr_factor": 10.0, "clip_grad_norm": 0.1, "layer_decay": 0.7},
            {"weight_decay": 0.1, "no_bias_decay": False, "momentum": 0.5},
        ],
    ),
}


@pytest.mark.parametrize("name", PACKS)
def test_each_member_has_the_numbers_of_the_trial_alone(
    name: str, config: TrialConfig, tiny_data: Dataset
) -> None:
    shared, changes = PACKS[name]
    configs = [replace(config, **shared, **change) for change in changes]
    assert len({pack_key(c) for c in configs}) == 1
    rows = packed(configs, tiny_data)
    for number, (member, reported) in enumerate(zip(configs, rows, strict=True)):
        assert [numbers(row) for row in reported] == alone(member, tiny_data), number
        end = reported[-1]
        assert isinstance(end, TrialResult)
        assert end.pack_size == len(configs)
    # The members do differ: equal rows of all would prove little.
    assert len({numbers(reported[-1]) for reported in rows}) == len(configs)


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet"
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model("alexnet", weights=None).state_dict(), path)
    return path


def test_frozen_blocks_run_once_for_all_members(
    alexnet: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrialConfig(
        dataset="tiny",
        model="alexnet",
        pretrained=str(alexnet),
        train_blocks=1,
        image_size=64,
        batch_size=16,
        augment="hflip+vflip+shift",
        epochs=2,
        dropout=0.5,
        precision="fp32",
    )
    configs = [replace(config, base_lr=lr) for lr in (0.002, 0.02, 0.2)]
    expected = [alone(member, tiny_data) for member in configs]
    forget()
    images: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Tensor:
        images.append(len(arguments[1]))
        return run_prefix(*arguments, **named)

    monkeypatch.setattr(feed, "run_prefix", counted)
    monkeypatch.setattr("trainable.evaluation.Evaluation.measure_noise", lambda *_: pack_noise())
    rows = packed(configs, tiny_data)
    train, val, test = 96, 32, 32
    assert sum(images) == config.epochs * train + val + test  # type: ignore[operator]
    monkeypatch.undo()
    rows = packed(configs, tiny_data)
    assert [[numbers(row) for row in reported] for reported in rows] == expected


def pack_noise() -> Any:
    from trainable.training.noise import NoiseSums

    return NoiseSums()


def test_a_batch_that_a_member_changes_in_place_is_made_anew(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [replace(config, base_lr=lr) for lr in (0.1, 0.5)]
    expected = [alone(member, tiny_data) for member in configs]
    update = Step.update

    def careless(step: Step, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        sums = update(step, images, labels, lr)
        images.zero_()
        return sums

    monkeypatch.setattr(Step, "update", careless)
    rows = packed(configs, tiny_data)
    assert [[numbers(row) for row in reported] for reported in rows] == expected


def test_who_diverges_stops_early_or_is_stopped_leaves_and_the_others_go_on(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    config = replace(config, norm="none", warmup_epochs=0.0, epochs=4)
    configs = [
        replace(config, base_lr=1e30),
        replace(config, base_lr=0.001, early_stop_patience=1),
        replace(config, base_lr=0.01),
        replace(config, base_lr=0.02),
    ]
    asked: list[int] = []

    def is_stopped(index: int) -> bool:
        asked.append(index)
        return index == 2 and asked.count(2) == 2

    rows = packed(configs, tiny_data, is_stopped=is_stopped)
    for index in (0, 1, 3):
        assert [numbers(row) for row in rows[index]] == alone(configs[index], tiny_data), index
    ends = [row.status for reported in rows for row in reported if isinstance(row, TrialResult)]
    assert ends == ["diverged", "completed", "completed"]
    assert [numbers(row) for row in rows[2]] == alone(configs[2], tiny_data)[:2]


def test_members_go_on_from_where_each_was(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    configs = [replace(config, base_lr=lr, dropout=0.5) for lr in (0.1, 0.2, 0.5)]
    expected = [alone(member, tiny_data) for member in configs]
    folders = folders_in(tmp_path, 3)
    for index, num_epochs in ((0, 2), (2, 1)):  # the one between them begins anew
        trial = finetune(configs[index], data=tiny_data, checkpoint_folder=folders[index])
        for _ in range(num_epochs):
            next(trial)
        trial.close()
    rows = packed(configs, tiny_data, folders)
    assert [[numbers(row) for row in reported] for reported in rows] == expected
    # And a pack that was interrupted: each of the others alone, and all again, which only read.
    folders = folders_in(tmp_path / "pack", 3)
    members = [
        Member(config=member, checkpoint_folder=folder)
        for member, folder in zip(configs, folders, strict=True)
    ]
    outcomes = train_pack(members, Terms(data=tiny_data, device=CPU))
    for _ in range(5):
        next(outcomes)
    outcomes.close()
    for index, member in enumerate(configs):
        last = list(finetune(member, data=tiny_data, checkpoint_folder=folders[index]))
        assert [numbers(row) for row in last] == expected[index][:-1]
    rows = packed(configs, tiny_data, folders)
    assert [[numbers(row) for row in reported] for reported in rows] == expected


def test_a_member_that_was_stopped_before_it_went_on_leaves_at_once(
    config: TrialConfig, tiny_data: Dataset, tmp_path: Path
) -> None:
    configs = [replace(config, base_lr=lr) for lr in (0.1, 0.2)]
    folders = folders_in(tmp_path, 2)
    for member, folder in zip(configs, folders, strict=True):
        trial = finetune(member, data=tiny_data, checkpoint_folder=folder)
        next(trial), next(trial)
        trial.close()
    rows = packed(configs, tiny_data, folders, is_stopped=lambda index: index == 0)
    assert [numbers(row) for row in rows[0]] == alone(configs[0], tiny_data)[:1]
    assert [numbers(row) for row in rows[1]] == alone(configs[1], tiny_data)


def test_every_update_is_a_sign_of_life(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is the replay of a graph, and after another member's evaluation."""
    signs: list[tuple[str, int]] = []
    update = Step.update

    def seen(step: Step, *arguments: Any) -> Tensor:
        signs.append((pulse.now.phase, pulse.now.ticks))
        return update(step, *arguments)

    monkeypatch.setattr(Step, "update", seen)
    monkeypatch.setattr(step_module, "tick", lambda: None)  # the microbatches of no graph
    members = [Member(config=replace(config, base_lr=lr)) for lr in (0.1, 0.2)]
    for _ in train_pack(members, Terms(data=tiny_data, device=CPU)):
        pulse.enter("reporting")
    assert {phase for phase, _ in signs} == {"training"}
    assert len(set(signs)) == len(signs)


def test_statistics_that_do_not_fit_beside_other_members_are_taken_without_them(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of halves of their batches they would be others."""
    config = replace(config, model="residual", norm="batch", precise_bn_images=32)
    configs = [replace(config, base_lr=lr) for lr in (0.1, 0.2)]
    expected = [alone(member, tiny_data) for member in configs]
    take, networks = evaluation.precise_statistics, []

    def refuse(model: nn.Module, batches: Any) -> None:
        networks.append(weakref.ref(model))
        if len(networks) == 1:
            raise torch.OutOfMemoryError
        assert networks[0]() is None  # the pack that did not fit is gone
        take(model, batches)

    monkeypatch.setattr(evaluation, "precise_statistics", refuse)
    rows = packed(configs, tiny_data)
    assert [[numbers(row) for row in reported] for reported in rows] == expected
    assert [r[-1].pack_size for r in rows if isinstance(r[-1], TrialResult)] == [1, 1]


@pytest.mark.parametrize("with_folders", [True, False], ids=["checkpoints", "none"])
def test_where_memory_runs_out_one_half_is_trained_after_the_other(
    with_folders: bool,
    config: TrialConfig,
    tiny_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(config, norm="none", warmup_epochs=0.0)
    rates = (0.1, 0.2, 1e30, 0.3, 0.4)
    configs = [replace(config, base_lr=lr) for lr in rates]
    expected = [alone(member, tiny_data) for member in configs]
    sizes: list[int] = []
    accumulate, make = Step._accumulate, pack._Pack.__init__
    updates = 0

    def made(self: Any, members: Any, *rest: Any) -> None:
        sizes.append(len(members))
        make(self, members, *rest)

    def refuse(step: Step, *arguments: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates > 44 and sizes[-1] > 2:  # in the second epoch
            raise torch.OutOfMemoryError
        return accumulate(step, *arguments)

    monkeypatch.setattr(pack._Pack, "__init__", made)
    monkeypatch.setattr(Step, "_accumulate", refuse)
    rows = packed(configs, tiny_data, folders_in(tmp_path, 5) if with_folders else None)
    assert sizes == [5, 2, 2]  # who diverged before is not trained again
    assert [[numbers(row) for row in reported] for reported in rows] == expected
    ends = [reported[-1] for reported in rows]
    assert [e.pack_size for e in ends if isinstance(e, TrialResult)] == [2, 2, 5, 2, 2]
    assert all(e.oom_retries == 0 for e in ends if isinstance(e, TrialResult))


def test_a_pack_too_large_for_the_hosts_memory_is_halved_before_it_trains(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [replace(config, base_lr=lr) for lr in (0.1, 0.2, 0.3, 0.4)]
    trial = pack.Trial(config, tiny_data, CPU, None)
    one_bytes = 4 * sum(p.numel() for p in trial.model.parameters()) * (1 + pack.STATES)
    for room, sizes in ((3.1, {4}), (1.1, {2}), (0.9, {1}), (0.0, {4})):  # 0: not known
        free_bytes = room * one_bytes / pack.MEMORY_PART
        monkeypatch.setattr(pack, "host_free_bytes", lambda free=free_bytes: free)
        ends = [reported[-1] for reported in packed(configs, tiny_data)]
        assert {e.pack_size for e in ends if isinstance(e, TrialResult)} == sizes, room
        assert [numbers(e) for e in ends] == [alone(c, tiny_data)[-1] for c in configs]


def test_a_member_alone_halves_its_microbatch(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = Step._accumulate

    def refuse(step: Step, images: Tensor, targets: Tensor, size: int, total: int) -> Any:
        if size > 8:
            raise torch.OutOfMemoryError
        return accumulate(step, images, targets, size, total)

    monkeypatch.setattr(Step, "_accumulate", refuse)
    rows = packed([replace(config, base_lr=lr) for lr in (0.1, 0.2)], tiny_data)
    ends = [reported[-1] for reported in rows]
    assert [(e.pack_size, e.microbatch_size) for e in ends if isinstance(e, TrialResult)] == [
        (1, 8),
        (1, 8),
    ]


def test_an_error_of_one_member_is_its_own(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [replace(config, base_lr=lr) for lr in (0.1, 0.2, 0.5)]
    update = Step.update

    def fail(step: Step, *arguments: Any) -> Tensor:
        if step.config.base_lr == 0.2 and step.has_stepped:
            raise RuntimeError("a bug")
        return update(step, *arguments)

    monkeypatch.setattr(Step, "update", fail)
    rows = packed(configs, tiny_data)
    assert [str(row) for row in rows[1]] == ["a bug"]
    assert isinstance(rows[1][0], RuntimeError)
    monkeypatch.undo()
    for index in (0, 2):
        assert [numbers(row) for row in rows[index]] == alone(configs[index], tiny_data)


def test_an_error_in_building_one_member_is_its_own(
    config: TrialConfig, tiny_data: Dataset
) -> None:
    configs = [replace(config, image_size=size) for size in (32, 48, 4096)]
    rows = packed(configs[2:] + configs[1:2], tiny_data)
    assert [type(row) for row in rows[0]] == [type(rows[0][0])]
    assert "image_size" in str(rows[0][0])
    assert [numbers(row) for row in rows[1]] == alone(configs[1], tiny_data)


def test_the_time_of_a_round_is_shared_and_an_evaluation_is_its_members(
    config: TrialConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(pack, "device_time_s", lambda _: now)
    monkeypatch.setattr(pack.time, "perf_counter", lambda: now)
    update, batch, evaluate = Step.update, Feed.batch, pack.Trial.evaluate

    def slow_update(step: Step, *arguments: Any) -> Tensor:
        nonlocal now
        now += 1.0
        return update(step, *arguments)

    def slow_batch(self: Feed, place: Any) -> Any:
        nonlocal now
        if self._last is None or self._last.start != place:
            now += 3.0
        return batch(self, place)

    def slow_evaluation(trial: Any) -> Any:
        nonlocal now
        trial.evaluation.evaluate = slowly(trial.evaluation.evaluate)
        return evaluate(trial)

    def slowly(function: Any) -> Any:
        def run(split: Any) -> Any:
            nonlocal now
            now += 10.0
            return function(split)

        return run

    monkeypatch.setattr(Step, "update", slow_update)
    monkeypatch.setattr(Feed, "batch", slow_batch)
    monkeypatch.setattr(pack.Trial, "evaluate", slow_evaluation)
    configs = [replace(config, base_lr=lr, epochs=1) for lr in (0.1, 0.2, 0.5)]
    rows = packed(configs, tiny_data)
    for reported in rows:
        row = reported[0]
        assert isinstance(row, EpochResult)
        # Six updates: a batch for three members, and an update of each.
        assert row.images_per_s == pytest.approx(96 / (6 * (3.0 / 3 + 1.0)))
        assert row.epoch_wall_s == pytest.approx(6 * (3.0 / 3 + 1.0) + 10.0)


def test_what_may_differ_and_who_trains_alone(config: TrialConfig) -> None:
    assert set(TrialConfig.__dataclass_fields__) >= MAY_DIFFER
    key = pack_key(config)
    assert pack_key(replace(config, base_lr=9.0, optimizer="adamw", momentum=0.1)) == key
    for change in (
        {"batch_size": 8},
        {"seed": 1},
        {"augment": "none"},
        {"width": 8},
        {"mixup_alpha": 0.2},
        {"epochs": 5},
    ):
        assert pack_key(replace(config, **change)) != key, change
    for change in (
        {"epochs": None, "seconds": 3.0, "warmup_epochs": 0.0},
        {"until_share": 0.5},
        {"begins_from": "0123"},
    ):
        assert pack_key(replace(config, **change)) is None, change
