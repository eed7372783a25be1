"""A frozen prefix that runs apart gives the numbers of the plain path, to the bit on a CPU."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import DropPath
from torch import Tensor, nn

from trainable import feed
from trainable.config import TrialConfig
from trainable.data.augment import augment
from trainable.data.cache import Dataset
from trainable.data.resident import forget
from trainable.evaluation import Evaluation
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.networks.models import (
    bare_network,
    draws,
    freeze_all_but,
    replace_head,
    set_training,
)
from trainable.networks.prefix import find_prefix, run_prefix, tail_of
from trainable.training.noise import NoiseSums
from trainable.trial import Trial

CPU = torch.device("cpu")
# Results that are times, not numbers of the training.
TIMES = {"epoch_wall_s", "images_per_s"}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of three networks, drawn."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("alexnet", "resnet18", "squeezenet1_0"):
        torch.manual_seed(0)
        torch.save(torchvision.models.get_model(name, weights=None).state_dict(), folder / name)
    return folder


def frozen_config(weights: Path, model: str = "alexnet", **changes: Any) -> TrialConfig:
    config = TrialConfig(
        dataset="tiny",
        model=model,
        pretrained=str(weights / model),
        train_blocks=1,
        image_size=64,
        batch_size=16,
        base_lr=0.02,
        momentum=0.9,
        augment="hflip+vflip+shift",
        epochs=2,
        precision="fp32",
    )
    return replace(config, **changes)


def numbers(config: TrialConfig, data: Dataset) -> list[dict[str, Any]]:
    return [
        {name: getattr(r, name) for name in r.__dataclass_fields__ if name not in TIMES}
        for r in finetune(config, data=data)
    ]


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "_attach_prefix", lambda _: None)


@pytest.mark.parametrize(
    ("name", "train_blocks", "last"),
    [
        ("vgg11", 2, "features.10"),  # the pooling after the third block
        ("alexnet", 0, "avgpool"),
        ("resnet18", 1, "layer3"),
        ("squeezenet1_0", 1, "features.11"),
        ("mobilenet_v2", 3, "features.15"),
        ("densenet121", 2, "features.transition3"),
        ("timm/resnet18", 2, "layer2"),
        ("timm/vgg11", 1, "features.15"),
        ("timm/convnext_atto", 1, "stem"),
    ],
)
def test_the_prefix_ends_before_what_is_trained(name: str, train_blocks: int, last: str) -> None:
    torch.manual_seed(0)
    model = bare_network(name)
    replace_head(model, num_classes=2, dropout=0.5)
    freeze_all_but(model, train_blocks)
    model.to(memory_format=torch.channels_last)
    prefix = find_prefix(model, image_size=64, device=CPU)
    assert prefix is not None
    assert prefix.paths[-1] == last
    assert not any(p.requires_grad for module in prefix.modules for p in module.parameters())
    images = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    set_training(model)
    torch.manual_seed(1)
    expected = model(images)
    features = run_prefix(prefix, images, chunk_size=2)
    assert not features.requires_grad
    torch.manual_seed(1)
    torch.testing.assert_close(tail_of(model, prefix.paths)(features), expected)
    torch.manual_seed(1)
    assert torch.equal(model(images), expected)  # and the network is whole as before


def test_nothing_frozen_is_no_prefix() -> None:
    model = bare_network("resnet18")
    assert find_prefix(model, image_size=64, device=CPU) is None


class Around(nn.Module):
    """A network whose stem is used twice: skipping it would change what the second use gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        stem = self.stem(x)
        out: Tensor = self.head((self.body(stem) + stem).mean((2, 3)))
        return out


def test_a_frozen_part_that_something_goes_around_is_not_skipped() -> None:
    model = Around()
    model.stem.requires_grad_(False)
    model.body.requires_grad_(False)
    assert find_prefix(model, image_size=8, device=CPU) is None
    model.body.requires_grad_(True)
    prefix = find_prefix(model, image_size=8, device=CPU)
    assert prefix is not None
    assert prefix.paths == ("stem",)


class Dropping(nn.Module):
    """Four layers, the first three frozen, with a dropout of some kind among them."""

    def __init__(self, dropout: nn.Module, *, inside: bool) -> None:
        super().__init__()
        first, second, third, last = (nn.Conv2d(w, 4, 3, padding=1) for w in (3, 4, 4, 4))
        for frozen in (first, second, third):
            frozen.requires_grad_(False)
        if inside:  # in a block that is frozen as a whole
            block = nn.Sequential(second, dropout, third)
            self.features = nn.Sequential(first, block, last)
        else:  # between blocks
            self.features = nn.Sequential(first, second, dropout, third, last)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.head(self.features(x).mean((2, 3)))
        return out


KINDS = {
    "Dropout": lambda p: nn.Dropout(p),
    "Dropout2d": lambda p: nn.Dropout2d(p),
    "AlphaDropout": lambda p: nn.AlphaDropout(p),
    "StochasticDepth": lambda p: torchvision.ops.StochasticDepth(p, "row"),
    "DropBlock2d": lambda p: torchvision.ops.DropBlock2d(p, 3),
    "DropPath": lambda p: DropPath(p),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_prefix_ends_before_what_draws_anew_each_time(kind: str, share: float) -> None:
    model = Dropping(KINDS[kind](share), inside=False)
    prefix = find_prefix(model, image_size=8, device=CPU)
    assert prefix is not None
    before = ("features.0", "features.1")
    assert prefix.paths == (before if share else (*before, "features.2", "features.3"))
    set_training(model)
    features = torch.randn(8, 4, 8, 8)
    alike = torch.equal(*(model.features[2](features) for _ in range(2)))
    assert alike == (share == 0.0)  # what training does at this place


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_draw_in_a_frozen_block_is_off_and_of_the_prefix(kind: str) -> None:
    model = Dropping(KINDS[kind](0.5), inside=True)
    prefix = find_prefix(model, image_size=8, device=CPU)
    assert prefix is not None
    assert prefix.paths == ("features.0", "features.1")
    set_training(model)
    images = torch.randn(8, 3, 8, 8)
    expected = model(images)
    assert torch.equal(expected, model(images))
    tail = tail_of(model, prefix.paths)
    torch.testing.assert_close(tail(run_prefix(prefix, images, chunk_size=8)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_what_draws_is_what_gives_other_numbers_each_time(
    kind: str, share: float, training: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(KINDS[kind](share))).train(training)
    images = torch.randn(8, 3, 8, 8)
    assert draws(model) != torch.equal(model(images), model(images))


def test_dropout_of_the_head_is_drawn_for_each_batch(weights: Path, tiny_data: Dataset) -> None:
    """The dropout of the head stays where it was, behind features that are kept."""
    trial = Trial(frozen_config(weights, dropout=0.5, augment="none"), tiny_data, CPU, None)
    assert trial.step.prefix is not None
    trial.train_on()
    trial.step.set_training()
    inputs, _ = next(trial.feed.batches(trial.place))
    assert not torch.equal(trial.step.tail(inputs), trial.step.tail(inputs))


def test_features_in_many_parts_are_those_of_one() -> None:
    model = Dropping(nn.Identity(), inside=True)
    prefix = find_prefix(model, image_size=8, device=CPU)
    assert prefix is not None
    images = torch.randn(10, 3, 8, 8)
    sizes: list[int] = []
    prefix.modules[0].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    whole = run_prefix(prefix, images, chunk_size=10)
    for chunk_size, parts in ((4, [4, 3, 3]), (5, [5, 5]), (9, [5, 5]), (100, [10])):
        sizes.clear()
        torch.testing.assert_close(run_prefix(prefix, images, chunk_size=chunk_size), whole)
        assert sizes == parts
    assert not whole.requires_grad
    expected = model.features[1](model.features[0](images))
    torch.testing.assert_close(whole, expected)


def test_when_one_image_does_not_fit_in_the_prefix_it_is_an_error() -> None:
    prefix = find_prefix(Dropping(nn.Identity(), inside=True), image_size=8, device=CPU)
    assert prefix is not None

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError

    prefix.modules[0].register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        run_prefix(prefix, torch.randn(3, 3, 8, 8), chunk_size=8)


@pytest.mark.parametrize(
    ("model", "precision", "augment"),
    [
        ("alexnet", "fp32", "none"),
        ("alexnet", "bf16", "none"),
        ("alexnet", "fp32", "hflip+vflip+shift"),
        ("alexnet", "bf16", "hflip+rotate+zoom"),
        ("resnet18", "bf16", "vflip"),
        ("squeezenet1_0", "fp32", "none"),
    ],
)
def test_a_trial_has_the_numbers_of_the_plain_path(
    model: str,
    precision: str,
    augment: str,
    weights: Path,
    tiny_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of 24 images two updates are computed ahead, and an evaluation comes between the two.
    config = frozen_config(
        weights, model, augment=augment, precision=precision, batch_size=24, eval_updates=3
    )
    monkeypatch.setitem(feed.INFERENCE_BATCH, "cpu", 40)
    apart = numbers(config, tiny_data)
    plainly(monkeypatch)
    assert apart == numbers(config, tiny_data)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each run of a prefix."""
    numbers_of_images: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Tensor:
        numbers_of_images.append(len(arguments[1]))
        return run_prefix(*arguments, **named)

    monkeypatch.setattr(feed, "run_prefix", counted)
    return numbers_of_images


def test_features_are_kept_where_nothing_random_comes_before_them(
    weights: Path, tiny_data: Dataset, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "measure_noise", lambda *_: NoiseSums())

    def counts(config: TrialConfig, room_bytes: int) -> tuple[int, str]:
        monkeypatch.setattr(feed, "room_bytes", lambda _: room_bytes)
        forget()
        seen.clear()
        trial = Trial(config, tiny_data, CPU, None)
        while not trial.is_over:
            trial.train_on()
        paths = trial.finish("").fast_paths
        return sum(seen), paths

    train, val, test, epochs = 96, 32, 32, 3
    config = frozen_config(weights, epochs=epochs)
    augmented, paths = counts(config, 2**30)
    assert augmented == epochs * train + val + test
    assert paths == "data_mapped+frozen_prefix+test_features_kept+val_features_kept"
    plain, paths = counts(replace(config, augment="none"), 2**30)
    assert plain == train + val + test
    kept = "test_features_kept+train_features_kept+val_features_kept"
    assert paths == f"data_mapped+frozen_prefix+{kept}"
    no_room, paths = counts(replace(config, augment="none"), 1000)
    assert no_room > epochs * (train + val) + test
    assert paths == "data_mapped+frozen_prefix"


def test_the_next_trial_of_a_process_has_images_and_features_already(
    weights: Path, tiny_data: Dataset, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(config: TrialConfig, data: Dataset = tiny_data) -> tuple[Trial, int]:
        seen.clear()
        trial = Trial(config, data, CPU, None)
        while not trial.is_over:
            trial.train_on()
        trial.finish("")
        return trial, sum(seen)

    monkeypatch.setattr(Evaluation, "measure_noise", lambda *_: NoiseSums())
    config = frozen_config(weights, train_images=64)
    first, num_first = trained(config)
    train, val, test = 2 * 64, 32, 32
    assert num_first == train + val + test
    second, num_second = trained(replace(config, base_lr=0.05, batch_size=8))
    assert num_second == train
    assert second.feed.train is first.feed.train
    assert [r.val_loss for r in second.results] != [r.val_loss for r in first.results]
    for change in ({"precision": "bf16"}, {"train_blocks": 2}, {"image_size": 72}):
        other, num_images = trained(replace(config, **change))
        assert num_images == train + val + test, change
        assert (other.feed.val is first.feed.val) == ("image_size" not in change)
    moved, num_images = trained(config, replace(tiny_data, val=replace(tiny_data.val)))
    assert num_images == train + val + test
    assert moved.feed.val is not first.feed.val
    again = trained(config)[0]
    assert [r.val_loss for r in again.results] == [r.val_loss for r in first.results]


def test_what_the_next_trial_does_not_need_is_let_go(weights: Path, tiny_data: Dataset) -> None:
    trial = Trial(frozen_config(weights), tiny_data, CPU, None)
    trial.train_on()
    features = weakref.ref(trial.feed._features["val"].images_NHWC)
    labels = weakref.ref(trial.feed.val.labels_N)
    del trial
    gc.collect()
    assert features() is not None
    plain = TrialConfig(dataset="tiny", model="plain", pretrained="none", image_size=64)
    Trial(replace(plain, batch_size=8), tiny_data, CPU, None)
    assert features() is None
    assert labels() is not None  # the same images
    Trial(replace(plain, batch_size=8, image_size=48), tiny_data, CPU, None)
    assert labels() is None


def test_without_room_the_numbers_are_the_same(
    weights: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen_config(weights, augment="none", precision="bf16")
    kept = numbers(config, tiny_data)
    monkeypatch.setattr(feed, "room_bytes", lambda _: 0)
    forget()
    assert numbers(config, tiny_data) == kept


def test_a_trial_that_resumes_within_a_group_goes_on_as_it_would_have(
    weights: Path, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(feed.INFERENCE_BATCH, "cpu", 64)
    config = frozen_config(weights, batch_size=8, eval_updates=3, epochs=1)
    expected = numbers(config, tiny_data)
    folder = Folder(str(tmp_path))
    trial = Trial(config, tiny_data, CPU, folder)
    trial.train_on()
    resumed = Trial(config, tiny_data, CPU, folder)
    while not resumed.is_over:
        resumed.train_on()
    assert [r.val_loss for r in resumed.results] == [r["val_loss"] for r in expected]
    assert [r.train_loss for r in resumed.results] == [r["train_loss"] for r in expected]


@pytest.mark.parametrize(
    "change", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}, {"train_blocks": None}]
)
def test_mixed_images_go_through_the_whole_network(
    change: dict[str, Any], weights: Path, tiny_data: Dataset
) -> None:
    trial = Trial(frozen_config(weights, **change), tiny_data, CPU, None)
    assert trial.step.prefix is None


@pytest.mark.parametrize(
    "change",
    [
        {"ema_decay": 0.9},
        {"layer_decay": 0.5, "head_lr_factor": 3.0, "train_blocks": 2},
    ],
)
def test_what_is_trained_behind_a_prefix_is_trained_the_same(
    change: dict[str, Any], weights: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen_config(weights, **change)
    apart = numbers(config, tiny_data)
    plainly(monkeypatch)
    assert apart == numbers(config, tiny_data)


def test_out_of_memory_in_the_prefix_halves_its_part() -> None:
    model = bare_network("resnet18")
    freeze_all_but(model, 1)
    prefix = find_prefix(model, image_size=32, device=CPU)
    assert prefix is not None
    images = torch.randn(12, 3, 32, 32)
    expected = run_prefix(prefix, images, chunk_size=12)
    sizes = []

    def limited(_: nn.Module, given: tuple[Tensor]) -> None:
        sizes.append(len(given[0]))
        if len(given[0]) > 4:
            raise torch.OutOfMemoryError

    hook = prefix.modules[0].register_forward_pre_hook(limited)
    torch.testing.assert_close(run_prefix(prefix, images, chunk_size=12), expected)
    hook.remove()
    assert sizes == [12, 6, 3, 3, 3, 3]


def test_images_ahead_that_do_not_fit_are_taken_a_batch_at_a_time(
    weights: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen_config(weights, batch_size=8)
    expected = numbers(config, tiny_data)
    sizes: list[int] = []

    def limited(images: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(images))
        if len(images) > 8:
            raise torch.OutOfMemoryError
        return augment(images, *arguments)

    monkeypatch.setattr("trainable.data.batches.augment", limited)
    assert numbers(config, tiny_data) == expected
    assert sorted(set(sizes)) == [8, 32]
