"""Kept weights, and the teachers made of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trainable.config import TrialConfig
from trainable.data.batches import IMAGENET_MEAN, IMAGENET_STD
from trainable.data.cache import Dataset
from trainable.finetune import finetune
from trainable.host.storage import Folder
from trainable.networks.models import build_model
from trainable.networks.teacher import (
    KEPT,
    kept_network,
    load_teacher,
    resolve_teacher,
    taught_as,
)
from trainable.trial import Trial

SCRATCH = TrialConfig(model="plain", pretrained="none", precision="fp32", augment="none")
CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)


def kept_trial(data: Dataset, config: TrialConfig, folder: Path) -> Path:
    list(finetune(config, data=data, checkpoint_folder=Folder(str(folder)), keep_weights=True))
    return folder / KEPT


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_kept_weights_are_the_whole_network(
    norm: str, tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, epochs=2, norm=norm, ghost_batch_size=8)
    path = kept_trial(tiny_data, config, tmp_path)
    network, classes = kept_network(path)
    assert classes == 2
    teacher = load_teacher(str(path), num_classes=2)
    images = torch.randn(3, 3, 48, 48)
    assert torch.equal(network.eval()(images), teacher(images))
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="has 2 classes, but the data has 3"):
        load_teacher(str(path), num_classes=3)


def test_a_teacher_pulls_the_student_towards_it(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    path = kept_trial(tiny_data, replace(tiny_config, epochs=6), tmp_path)
    teacher = load_teacher(str(path), num_classes=2)
    base = replace(tiny_config, seed=3, augment="none", dropout=0.0)
    taught = replace(
        base, distill_from=resolve_teacher(str(path)), distill_temperature=2.0, distill_weight=5.0
    )
    distance = {}
    for name, config in (("alone", base), ("taught", taught)):
        trial = Trial(config, tiny_data, CPU, None)
        while not trial.is_over:
            trial.train_on()
        trial.model.eval()
        images = trial.train.images_NHWC.permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            p, q = (m(images).softmax(1) for m in (trial.model, teacher))
        distance[name] = float((p - q).abs().mean())
    assert distance["taught"] < distance["alone"]


def channel_means(teacher: nn.Module, trial: Trial) -> torch.Tensor:
    """What the teacher's network gets of a training batch: the means of its channels."""
    taken: list[torch.Tensor] = []
    first = next(m for m in teacher.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: taken.append(given[0].mean((0, 2, 3))))
    images, labels = next(trial.feed.plain(trial.train, 96))
    trial.step.loss(images, labels)
    return taken[0]


def test_a_teacher_gets_images_as_its_weights_expect_them(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    """ImageNet's normalization for its teacher, the data's own for the student that starts anew."""
    network = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    path = tmp_path / "r18.pth"
    torch.save(network.state_dict(), path)
    config = replace(tiny_config, distill_from=resolve_teacher(f"resnet18:{path}"))
    trial = Trial(config, tiny_data, CPU, None)
    assert trial.step.teacher is not None
    pixels = trial.train.images_NHWC.float().mean((0, 1, 2)) / 255
    expected = (pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    got = channel_means(trial.step.teacher, trial)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_a_kept_teacher_gets_the_normalization_that_it_was_trained_with(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    trained_on = replace(tiny_data, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    path = kept_trial(trained_on, replace(tiny_config, epochs=1), tmp_path)
    config = replace(tiny_config, distill_from=resolve_teacher(str(path)))
    for data, mean, std in (
        (tiny_data, trained_on.mean, trained_on.std),
        (trained_on, trained_on.mean, trained_on.std),
    ):
        trial = Trial(config, data, CPU, None)
        assert trial.step.teacher is not None
        pixels = trial.train.images_NHWC.float().mean((0, 1, 2)) / 255
        expected = (pixels - torch.tensor(mean)) / torch.tensor(std)
        got = channel_means(trial.step.teacher, trial)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_weights_kept_by_an_older_version_are_normalized_as_their_config_says(
    tiny_data: Dataset, tiny_config: TrialConfig, tmp_path: Path
) -> None:
    path = kept_trial(tiny_data, replace(tiny_config, epochs=1), tmp_path)
    kept = torch.load(path, weights_only=True)
    assert kept.pop("normalization") == (tiny_data.mean, tiny_data.std)
    torch.save(kept, path)
    config, normalization = taught_as(str(path))
    assert (config.model, config.pretrained, normalization) == ("plain", "none", None)
    Trial(replace(tiny_config, distill_from=resolve_teacher(str(path))), tiny_data, CPU, None)


def test_teachers_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distill_from: the file"):
        resolve_teacher(str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match="is not a study's results"):
        resolve_teacher(str(tmp_path))
    rubbish = tmp_path / "weights.pt"
    rubbish.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="does not contain a trial's kept weights"):
        load_teacher(str(rubbish), num_classes=2)


def test_a_teacher_by_network_and_file(tmp_path: Path) -> None:
    network = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    path = tmp_path / "r18.pth"
    torch.save(network.state_dict(), path)
    teacher = load_teacher(resolve_teacher(f"resnet18:{path}"), num_classes=2)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(teacher(images), network.eval()(images))
