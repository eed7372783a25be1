"""Our networks, zero gammas and what BatchNorm becomes, against papers and torch."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from trainable.config import ACTIVATIONS, TrialConfig
from trainable.data.cache import open_data
from trainable.finetune import finetune
from trainable.models import build_model, check_model, last_gammas
from trainable.normalization import GhostBatchNorm2d, apply_norm, precise_statistics

SCRATCH = TrialConfig(model="plain", pretrained="none", precision="fp32", augment="none")
GENERATOR = torch.Generator().manual_seed(0)


def batch(n: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(n, 3, size, size, generator=GENERATOR)
    return images, torch.arange(n) % 2


@pytest.mark.parametrize(
    ("name", "size", "giga_macs", "million_parameters"),
    [
        # He et al. 2019, table 5.
        ("timm/resnet50", 224, 4.1, 25),
        ("timm/resnet50c", 224, 4.3, 25),
        ("timm/resnet50d", 224, 4.3, 25),
        # Howard et al. 2017, table 8; Szegedy et al. 2015 and torchvision's model card.
        ("timm/mobilenetv1_100", 224, 0.569, 4.2),
        ("inception_v3", 299, 5.71, 23.8),
    ],
)
def test_networks_cost_what_their_papers_say(
    name: str, size: int, giga_macs: float, million_parameters: float
) -> None:
    with torch.device("meta"):
        config = replace(SCRATCH, model=name)
        model = build_model(config, num_classes=1000).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.02)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert parameters == pytest.approx(million_parameters, rel=0.03)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("model", ["plain", "residual"])
def test_own_networks_with_every_activation(activation: str, model: str) -> None:
    torch.manual_seed(0)
    config = replace(SCRATCH, model=model, activation=activation, depth=7, kernel_size=5)
    network = build_model(config, num_classes=3)
    out = network(torch.randn(4, 3, 33, 33))
    assert out.shape == (4, 3)
    assert out.isfinite().all()
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 8


def test_shortcuts_add_no_parameters() -> None:
    sizes = {
        model: sum(
            p.numel()
            for p in build_model(
                replace(SCRATCH, model=model, depth=12), num_classes=2
            ).parameters()
        )
        for model in ("plain", "residual")
    }
    assert sizes["plain"] == sizes["residual"]


@pytest.mark.parametrize("seed", [0, 1])
def test_deep_plain_networks_learn_worse_than_residual_ones(seed: int) -> None:
    # He et al. 2016, figure 1: more layers raise the training error, shortcuts bring it down.
    data = open_data("digits")
    base = replace(SCRATCH, dataset="digits", width=8, batch_size=64, base_lr=0.4, epochs=3)

    def last_loss(model: str, depth: int) -> float:
        config = replace(base, model=model, depth=depth, seed=seed)
        return list(finetune(config, data=data))[-1].train_loss

    deep = last_loss("plain", 40)
    assert deep > last_loss("plain", 6) + 1.0
    assert deep > last_loss("residual", 40) + 0.5


@pytest.mark.parametrize("model", ["residual", "resnet18", "timm/resnet26d"])
def test_zero_gamma_makes_every_block_its_shortcut(model: str) -> None:
    config = replace(SCRATCH, model=model, depth=6)
    started = build_model(replace(config, zero_gamma=True), num_classes=2)
    gammas = last_gammas(started)
    assert gammas
    assert all((gamma == 0).all() for gamma in gammas)
    plain = build_model(config, num_classes=2)
    assert all((gamma == 1).all() for gamma in last_gammas(plain))
    # What the block's convolutions do makes no difference at the start.
    images = torch.randn(2, 3, 64, 64)
    started.eval()
    before = started(images)
    for name, parameter in started.named_parameters():
        if "conv2" in name or "convolutions.0.0" in name:
            parameter.data.mul_(3.0)
    assert torch.equal(before, started(images))


def test_zero_gamma_is_refused_where_there_is_no_block() -> None:
    with pytest.raises(ValueError, match="zero_gamma needs residual blocks"):
        check_model(replace(SCRATCH, model="vgg16", zero_gamma=True), num_classes=2, image_size=96)


def test_ghost_batchnorm_is_a_loop_of_batchnorms() -> None:
    ghost = GhostBatchNorm2d(3)
    ghost.ghost_size = 8
    one_by_one = nn.BatchNorm2d(3)
    one_by_one.momentum = 0.1 / 4
    images, _ = batch(32)
    images += torch.arange(32.0)[:, None, None, None]
    expected = torch.cat([one_by_one(part) for part in images.split(8)])
    assert torch.allclose(ghost(images), expected, atol=1e-6)
    assert torch.allclose(ghost.running_mean, one_by_one.running_mean)
    assert torch.allclose(ghost.running_var, one_by_one.running_var)
    assert not torch.allclose(expected, nn.BatchNorm2d(3)(images), atol=0.1)
    ghost.eval()
    assert torch.equal(ghost(images), one_by_one.eval()(images))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("ghost", "GhostBatchNorm2d"), ("group", "GroupNorm"), ("frozen", "FrozenBatchNorm2d")],
)
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/efficientnet_b0"])
def test_norms_replace_every_batchnorm(norm: str, kind: str, name: str) -> None:
    torch.manual_seed(0)
    original = build_model(replace(SCRATCH, model=name), num_classes=2).eval()
    config = replace(
        SCRATCH, model=name, norm=norm, pretrained="file" if norm == "frozen" else "none"
    )
    network = build_model(replace(SCRATCH, model=name), num_classes=2)
    network.load_state_dict(original.state_dict())
    apply_norm(network, config)
    kinds = [type(m).__name__ for m in network.modules()]
    assert kinds.count(kind) == sum(isinstance(m, nn.BatchNorm2d) for m in original.modules())
    images = torch.randn(2, 3, 64, 64)
    same = torch.allclose(network.eval()(images), original(images), atol=1e-4)
    assert same == (norm != "group")
    if norm == "frozen":
        assert (
            torch.allclose(network.train()(images), original(images), atol=1e-4)
            or "efficient" in name
        )


def test_a_network_without_batchnorm_has_none_to_replace() -> None:
    with pytest.raises(ValueError, match="norm=group replaces BatchNorm, and vgg16 has none"):
        check_model(replace(SCRATCH, model="vgg16", norm="group"), num_classes=2, image_size=96)


def test_precise_statistics_are_torchs_update_bn() -> None:
    torch.manual_seed(0)
    ours = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    theirs = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    theirs.load_state_dict(ours.state_dict())
    batches = [torch.randn(8, 3, 64, 64) * (i + 1) for i in range(4)]
    precise_statistics(ours, batches)
    update_bn(batches, theirs)
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, theirs.state_dict()[name], atol=1e-5), name
    assert all(m.momentum == 0.1 for m in ours.modules() if isinstance(m, nn.BatchNorm2d))
