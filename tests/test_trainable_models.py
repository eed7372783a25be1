from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from trainable.config import TrialConfig
from trainable.host.messages import one_line
from trainable.networks.models import (
    available_weights,
    blocks_of,
    build_model,
    check_model,
    freeze_all_but,
    head_of,
    last_gammas,
    load_weights,
    set_training,
    trained_state,
    with_digest,
)
from trainable.training.optim import parameter_groups

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


HEADS = {  # what each network's head is given, as its paper has it
    "resnet18": 512,
    "mobilenet_v2": 1280,
    "squeezenet1_0": 512,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "alexnet": 256,  # the mean of each of the last feature maps
    "timm/resnet18": 512,
    "timm/convnext_atto": 320,
}


@pytest.mark.parametrize("name", HEADS)
def test_networks_get_a_head_and_blocks(name: str) -> None:
    model = build_model(replace(SCRATCH, model=name), num_classes=3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 3)
    freeze_all_but(model, 0)
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(n for name, n in trained.items() if "norm" not in name) == 3 * (HEADS[name] + 1)
    of_norm = 2 * HEADS[name] if name == "timm/convnext_atto" else 0  # it lies in the head
    assert sum(n for name, n in trained.items() if "norm" in name) == of_norm
    blocks = blocks_of(model)
    freeze_all_but(model.requires_grad_(True), len(blocks))
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze_all_but(model, 1)
    trained_blocks = [any(p.requires_grad for m in b for p in m.parameters()) for b in blocks]
    assert trained_blocks == [False] * (len(blocks) - 1) + [True]


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
    with pytest.raises(
        ValueError, match="train_blocks must be at most 5, the number of blocks of this"
    ):
        freeze_all_but(build_model(SCRATCH, num_classes=2), 6)


@pytest.mark.parametrize("name", ["resnet19", "timm/resnet19", "vgg-16"])
def test_unknown_names_get_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        check_model(replace(SCRATCH, model=name), num_classes=2, image_size=96)


def test_a_name_that_is_like_no_other_gets_no_hint() -> None:
    config = TrialConfig(model="q", pretrained="none")
    with pytest.raises(ValueError, match=r"timm/NAME, got 'q'$"):
        check_model(config, num_classes=2, image_size=48)


def test_weights_from_a_file_are_loaded_and_others_refused(tmp_path: Path) -> None:
    original = torchvision.models.resnet18()
    path = tmp_path / "resnet18.pth"
    torch.save(original.state_dict(), path)
    config = replace(SCRATCH, model="resnet18", pretrained=str(path))
    model = build_model(config, num_classes=2)
    assert torch.equal(model.get_parameter("conv1.weight"), original.conv1.weight)
    with pytest.raises(ValueError, match="contains the weights of another network"):
        load_weights(torchvision.models.resnet34(), path)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not a state_dict"):
        load_weights(torchvision.models.resnet18(), path)
    with pytest.raises(ValueError, match="does not exist"):
        available_weights("resnet18", str(tmp_path / "none.pth"))


def test_without_network_and_cache_there_are_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert available_weights("vgg16", "imagenet") == "none"
    with pytest.raises(
        ValueError, match="no ImageNet weights for vgg16: they are not in torch's cache"
    ):
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


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "resnet18", "timm/resnet18"])
def test_dropout_before_the_head_is_the_columns(name: str) -> None:
    model = build_model(replace(SCRATCH, model=name, dropout=0.0), num_classes=2)
    assert all(m.p == 0.0 for m in model.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("alexnet", True),
        ("squeezenet1_0", True),
        ("resnet18", True),
        ("mobilenet_v2", True),
        ("timm/resnet18", False),  # its own way: in the call of the function
        ("plain", True),
    ],
)
def test_dropout_is_before_the_head(name: str, first: bool) -> None:
    torch.manual_seed(0)  # with some weights no feature of mobilenet_v2 is above 0
    config = replace(SCRATCH, model=name, dropout=0.5)
    model = build_model(config, num_classes=2).eval()
    images = torch.randn(4, 3, 64, 64)
    before = model(images)
    assert torch.equal(model(images), before)
    set_training(model)
    for module in model.modules():  # BatchNorm's own numbers aside
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(model(images), before)
    if first:
        dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p]
        assert [each.p for each in dropouts] == [0.5]
        head = head_of(model)
        assert dropouts[0] in list(head.modules())
    else:
        assert model.drop_rate == 0.5


def test_a_head_gets_new_weights_and_the_rest_keeps_its_own(tmp_path: Path) -> None:
    original = torchvision.models.resnet18()
    torch.save(original.state_dict(), tmp_path / "w")
    config = replace(SCRATCH, model="resnet18", pretrained=str(tmp_path / "w"), train_blocks=1)
    model = build_model(config, num_classes=3)
    kept = {n: v for n, v in model.state_dict().items() if not n.startswith("fc")}
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in kept.items())
    trained = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer4", "fc"}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_side_outputs_are_gone(name: str) -> None:
    with torch.device("meta"):
        model = build_model(replace(SCRATCH, model=name), num_classes=3)
    assert not [n for n, _ in model.named_parameters() if "aux" in n.lower()]
    assert not model.aux_logits
    assert model.train()(torch.empty(2, 3, 96, 96, device="meta")).shape == (2, 3)


def test_timms_networks_begin_with_the_gammas_that_are_asked_for() -> None:
    for zero_gamma, value in ((False, 1.0), (True, 0.0)):
        config = replace(SCRATCH, model="timm/resnet18", zero_gamma=zero_gamma)
        gammas = last_gammas(build_model(config, num_classes=2))
        assert len(gammas) == 8
        assert all((gamma == value).all() for gamma in gammas)


def test_weights_of_a_file_keep_their_gammas(tmp_path: Path) -> None:
    original = torchvision.models.resnet18()
    gamma = original.get_parameter("layer1.0.bn2.weight")
    gamma.data.fill_(0.3)
    torch.save(original.state_dict(), tmp_path / "w")
    config = replace(SCRATCH, model="resnet18", pretrained=str(tmp_path / "w"))
    model = build_model(config, num_classes=2)
    assert torch.equal(model.get_parameter("layer1.0.bn2.weight"), gamma)


def test_a_file_is_known_by_the_digest_of_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # SHA-256 of "abc" is in FIPS 180-2, appendix B.1.
    monkeypatch.chdir(tmp_path)
    assert with_digest("a", "pretrained") == f"{tmp_path}/a#ba7816bf8f01cfea"
    assert with_digest(f"{tmp_path}/a#old", "pretrained") == f"{tmp_path}/a#ba7816bf8f01cfea"
    with pytest.raises(ValueError, match=r"distill_from: the file 'b' does not exist"):
        with_digest("b", "distill_from")


@pytest.mark.parametrize(("length", "shown"), [(199, "x" * 199), (200, "x" * 200 + " ...")])
def test_a_long_error_is_cut(length: int, shown: str) -> None:
    assert one_line(ValueError("x" * length)) == shown
    assert one_line(ValueError("a\n  b")) == "a b"


def test_what_is_no_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (nn.Flatten(), nn.Conv2d(3, 2, 3)):
        monkeypatch.setattr("trainable.networks.models._build", lambda *_, made=made, **__: made)
        with pytest.raises(ValueError, match="resnet18 is not an image classifier"):
            check_model(replace(SCRATCH, model="resnet18"), num_classes=2, image_size=16)


def test_a_network_is_checked_at_the_size_of_its_crop() -> None:
    config = replace(SCRATCH, model="vit_b_16", image_size=224)
    check_model(config, num_classes=2, image_size=96)
    with pytest.raises(ValueError, match="cannot take images of 96x96 px"):
        check_model(replace(config, image_size=None), num_classes=2, image_size=96)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "timm/resnetv2_50", "vit_b_16"])
def test_networks_with_heads_of_their_own_kind(name: str) -> None:
    size = 224 if name == "vit_b_16" else 96
    check_model(replace(SCRATCH, model=name), num_classes=3, image_size=size)
    with pytest.raises(ValueError, match="cannot take images of 16x16 px"):
        check_model(replace(SCRATCH, model="vit_b_16"), num_classes=3, image_size=16)
