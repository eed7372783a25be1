from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from trainable.config import TrialConfig
from trainable.models import (
    available_weights,
    blocks_of,
    build_model,
    check_model,
    freeze_all_but,
    load_weights,
    set_training,
    trained_state,
)
from trainable.optim import build_optimizer, parameter_groups

SCRATCH = TrialConfig(model="vgg16", pretrained="none")


def numbers(model: nn.Module, *, trained_only: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)


def test_vgg16_has_its_papers_blocks_and_kandels_trained_parameters() -> None:
    model = build_model(SCRATCH, num_classes=2)
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in block) for block in blocks_of(model)]
    assert convolutions == [2, 2, 3, 3, 3]
    freeze_all_but(model, 2)
    # papers.md 1.3: the convolutions of blocks 4 and 5; the head is 512 x 2 + 2.
    assert numbers(model, trained_only=True) == 12_979_200 + 1026
    freeze_all_but(model, 0)
    assert numbers(model, trained_only=True) == 1026


NETWORKS = ["resnet18", "mobilenet_v2", "squeezenet1_0", "densenet121", "efficientnet_b0"]


@pytest.mark.parametrize("name", [*NETWORKS, "alexnet", "timm/resnet18", "timm/convnext_atto"])
def test_networks_get_a_head_and_blocks(name: str) -> None:
    model = build_model(replace(SCRATCH, model=name), num_classes=3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 3)
    everything = numbers(model, trained_only=True)
    freeze_all_but(model, 0)
    head_only = numbers(model, trained_only=True)
    assert 0 < head_only < everything / 10
    assert any("Linear" in type(m).__name__ or isinstance(m, nn.Conv2d) for m in model.modules())


def test_frozen_batchnorm_keeps_its_statistics_and_trained_does_not() -> None:
    model = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    freeze_all_but(model, 1)
    set_training(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 3, 64, 64))
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed
    assert all(name.startswith("layer4") for name in changed)
    kept = trained_state(model)
    assert all(name.startswith(("layer4", "fc")) for name in kept)
    assert changed <= set(kept)


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="train_blocks must be at most 5, the blocks of this"):
        freeze_all_but(build_model(SCRATCH, num_classes=2), 6)


@pytest.mark.parametrize("name", ["resnet19", "timm/resnet19", "vgg-16"])
def test_unknown_names_get_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        check_model(replace(SCRATCH, model=name), num_classes=2, image_size=96)


def test_weights_from_a_file_are_loaded_and_others_refused(tmp_path: Path) -> None:
    original = torchvision.models.resnet18()
    path = tmp_path / "resnet18.pth"
    torch.save(original.state_dict(), path)
    config = replace(SCRATCH, model="resnet18", pretrained=str(path))
    model = build_model(config, num_classes=2)
    assert torch.equal(model.get_parameter("conv1.weight"), original.conv1.weight)
    with pytest.raises(ValueError, match="holds the weights of another network"):
        load_weights(torchvision.models.resnet34(), path)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not a state_dict"):
        load_weights(torchvision.models.resnet18(), path)
    with pytest.raises(ValueError, match="and there is none"):
        available_weights("resnet18", str(tmp_path / "none.pth"))


def test_without_network_and_cache_there_are_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert available_weights("vgg16", "imagenet") == "none"
    with pytest.raises(ValueError, match="no ImageNet weights for vgg16: not in torch's cache"):
        build_model(TrialConfig(model="vgg16"), num_classes=2)


def test_biases_and_normalization_do_not_decay() -> None:
    model = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    decayed, spared = parameter_groups(model, weight_decay=0.1, no_bias_decay=True)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-1] for p in decayed["params"]} == {"weight"}  # type: ignore[attr-defined]
    assert all(
        "bn" in names[id(p)] or "bias" in names[id(p)] or "downsample.1" in names[id(p)]
        for p in spared["params"]
    )  # type: ignore[attr-defined]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    (everything,) = parameter_groups(model, weight_decay=0.1, no_bias_decay=False)
    assert len(everything["params"]) == len(names)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimizers_by_name(name: str, kind: str) -> None:
    config = replace(SCRATCH, optimizer=name, momentum=0.8, weight_decay=0.1)
    model = nn.Linear(2, 2)
    built = build_optimizer(config, model, lr=0.3)
    assert type(built).__name__ == kind
    assert built.param_groups[0]["lr"] == 0.3
    assert name != "sgd" or built.param_groups[0]["momentum"] == 0.8


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "resnet18", "timm/resnet18"])
def test_dropout_before_the_head_is_the_columns(name: str) -> None:
    model = build_model(replace(SCRATCH, model=name, dropout=0.0), num_classes=2)
    assert all(m.p == 0.0 for m in model.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "timm/resnetv2_50", "vit_b_16"])
def test_networks_with_heads_of_their_own_kind(name: str) -> None:
    size = 224 if name == "vit_b_16" else 96
    check_model(replace(SCRATCH, model=name), num_classes=3, image_size=size)
    with pytest.raises(ValueError, match="cannot take images of 16x16 px"):
        check_model(replace(SCRATCH, model="vit_b_16"), num_classes=3, image_size=16)
