import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from trainable import lr_range
from trainable.config import OPTIMIZERS, TrialConfig
from trainable.data.cache import Dataset, open_data
from trainable.finetune import finetune
from trainable.lr_range import (
    HIGHEST_LR,
    LOWEST_LR,
    RESOLUTION,
    STABLE_UPDATES,
    find_lr_range,
    largest_stable,
    losses,
    steepest,
)
from trainable.networks.models import head_of
from trainable.trial import Trial

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frozen_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's weights, drawn; the last features are made large enough to matter."""
    torch.manual_seed(0)
    state = torchvision.models.alexnet(weights=None).state_dict()
    state["features.10.weight"] *= 20
    path = tmp_path_factory.mktemp("weights") / "alexnet.pt"
    torch.save(state, path)
    return path


def sharpness(config: TrialConfig, data: Dataset) -> float:
    """Largest eigenvalue of the Hessian of the head's loss on all training images."""
    trial = Trial(config, data, CPU, None)
    trial.model.eval()
    features, labels_B = next(trial.feed.batches(trial.place))
    assert len(labels_B) == config.train_images
    head = head_of(trial.model)
    taken: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: taken.append(given[0].detach()))
    trial.step.tail(features)  # what is frozen gave the batch already
    hook.remove()
    parameters = {name: each.detach() for name, each in head.named_parameters()}
    shapes = {name: each.shape for name, each in parameters.items()}
    sizes = [each.numel() for each in parameters.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = zip(shapes, flat.split(sizes), strict=True)
        own = {name: part.view(shapes[name]) for name, part in parts}
        return cross_entropy(functional_call(head, own, (taken[0],)), labels_B)

    flat = torch.cat([each.flatten() for each in parameters.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    return float(torch.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_largest_stable_lr_is_that_of_the_curvature(
    momentum: float, frozen_features: Path, tiny_data: Dataset
) -> None:
    # Only the head is trained, on the same whole batch each time: logistic regression, whose
    # descent is stable up to 2 (1 + momentum) / curvature (Polyak 1964).
    config = TrialConfig(
        dataset="tiny",
        model="alexnet",
        pretrained=str(frozen_features),
        train_blocks=0,
        augment="none",
        image_size=64,
        train_images=16,
        batch_size=16,
        momentum=momentum,
        lr_scaling="linear",
        reference_batch_size=4,
        precision="fp32",
    )
    curvature = sharpness(config, tiny_data)
    assert curvature > 1.0  # a bias alone has 0.5: the features must have a say
    truth = 2 * (1 + momentum) / curvature
    found = find_lr_range(config, tiny_data, num_threads=1)
    assert found.stable_lr is not None
    assert found.unstable_lr is not None
    assert truth / 1.3 < found.stable_lr < truth * 1.3
    assert found.unstable_lr / found.stable_lr <= RESOLUTION
    assert found.peak_per_base == 4.0
    assert found.steepest_lr is not None
    assert found.steepest_lr < found.stable_lr


@pytest.fixture(scope="module")
def config() -> TrialConfig:
    return TrialConfig(
        dataset="synthetic",
        model="plain",
        pretrained="none",
        width=8,
        image_size=48,
        train_images=512,
        eval_images=128,
        augment="none",
        batch_size=16,
        momentum=0.0,
        lr_scaling="sqrt",
        decay="constant",
        precision="fp32",
        epochs=3,
    )


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_tenth_of_the_largest_stable_lr_learns_and_ten_times_it_does_not(
    factor: float, config: TrialConfig
) -> None:
    data = open_data("synthetic")
    found = find_lr_range(config, data, num_threads=1)
    assert found.stable_lr is not None
    trained = replace(config, base_lr=factor * found.stable_lr / found.peak_per_base)
    results = list(finetune(trained, data=data))
    learnt = bool(results) and results[-1].train_loss < 0.65 and results[-1].val_auroc > 0.7
    assert learnt == (factor < 1)


def test_a_loss_that_blew_up_on_the_way_is_not_stable(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without normalization a high rate kills units, and the loss ends at chance, as it began.
    data, dead = open_data("synthetic"), replace(config, norm="none", seed=1)
    found = find_lr_range(dead, data, num_threads=1).stable_lr
    assert found is not None
    monkeypatch.setattr(lr_range, "BLOWN_UP", math.inf)
    by_its_end_alone = find_lr_range(dead, data, num_threads=1).stable_lr
    assert by_its_end_alone is not None
    assert by_its_end_alone > found
    trial = Trial(dead, data, CPU, None)
    initial = deepcopy((trial.model.state_dict(), trial.step.state_dict()))
    assert max(losses(trial, initial, [found] * STABLE_UPDATES)) < 10
    assert max(losses(trial, initial, [by_its_end_alone] * STABLE_UPDATES)) > 100


def test_each_training_starts_anew(tiny_config: TrialConfig, tiny_data: Dataset) -> None:
    config = replace(tiny_config, optimizer="adam", mixup_alpha=0.2, ema_decay=0.9)
    config = replace(config, layer_decay=0.7, head_lr_factor=2.0)
    trial = Trial(config, tiny_data, CPU, None)
    initial = deepcopy((trial.model.state_dict(), trial.step.state_dict()))
    first = list(losses(trial, initial, [0.01] * 8))
    wild = list(losses(trial, initial, [1e3] * 3))
    assert wild[0] == first[0]
    assert wild[1:] != first[1:3]
    assert list(losses(trial, initial, [0.01] * 8)) == first
    untouched = list(losses(trial, initial, [0.0] * 2))
    assert untouched[0] == first[0]
    assert untouched[1] != first[1]


def test_the_same_seed_finds_the_same(tiny_config: TrialConfig, tiny_data: Dataset) -> None:
    found = find_lr_range(tiny_config, tiny_data, num_threads=1)
    assert find_lr_range(tiny_config, tiny_data, num_threads=1) == found
    # The base rate that a config happens to have decides nothing.
    higher = replace(tiny_config, base_lr=100 * tiny_config.base_lr)
    assert find_lr_range(higher, tiny_data, num_threads=1) == replace(
        found, peak_per_base=pytest.approx(found.peak_per_base)
    )


@pytest.mark.parametrize("centre", [1e-3, 1e-1])
def test_steepest_is_where_a_curve_falls_fastest(centre: float) -> None:
    lrs = np.geomspace(LOWEST_LR, HIGHEST_LR, 80)
    fall = -1 / (1 + np.exp(-np.log(lrs / centre)))
    rise = np.maximum(np.log(lrs / (100 * centre)), 0.0) ** 2
    found = steepest(lrs, fall + rise, fall=0.01)
    assert found is not None
    assert centre / 1.5 < found < centre * 1.5
    assert steepest(lrs, 0.001 * fall + rise, fall=0.01) is None
    assert steepest(lrs[:0], fall[:0], fall=0.01) is None


@pytest.mark.parametrize("start", [1e-5, 0.3, 100.0])
@pytest.mark.parametrize("edge", [3e-5, 0.29, 40.0])
def test_the_edge_is_bracketed_from_wherever_the_search_starts(start: float, edge: float) -> None:
    stable, unstable = largest_stable(lambda lr: lr <= edge, start=start)
    assert stable is not None
    assert unstable is not None
    assert stable <= edge < unstable <= RESOLUTION * stable


def test_without_an_edge_the_bound_is_what_is_found() -> None:
    assert largest_stable(lambda lr: True, start=0.3) == (HIGHEST_LR, None)
    assert largest_stable(lambda lr: False, start=0.3) == (None, LOWEST_LR)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_training_of_a_range_starts_anew(
    optimizer: str, tiny_config: TrialConfig, tiny_data: Dataset
) -> None:
    """Each optimizer forgets its moments and its count of updates: the same losses again."""
    config = replace(tiny_config, optimizer=optimizer, decay="constant", image_size=16, dropout=0.0)
    trial = Trial(config, tiny_data, CPU, None)
    initial = deepcopy((trial.model.state_dict(), trial.step.state_dict()))
    first, again = (list(losses(trial, initial, [0.03] * 4)) for _ in range(2))
    assert first == again
    assert len(set(first)) == 4
