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
from trainable.networks.models import build_model, check_model, freeze_all_but, last_gammas
from trainable.networks.normalization import GhostBatchNorm2d, apply_norm, precise_statistics

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
    images, _ = batch(32)
    images += torch.arange(32.0)[:, None, None, None]
    parts = images.split(8)
    expected = torch.cat([one_by_one(part) for part in parts])
    assert torch.allclose(ghost(images), expected, atol=1e-6)
    assert not torch.allclose(expected, nn.BatchNorm2d(3)(images), atol=0.1)
    # The statistics move once, towards the mean of the parts'.
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(ghost.running_mean, 0.1 * mean)
    torch.testing.assert_close(ghost.running_var, 0.9 + 0.1 * variance)
    ghost.eval()
    one_by_one.load_state_dict(ghost.state_dict())
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
        network.train()
        for module in network.modules():  # EfficientNet has some, which draws in training
            if "drop" in type(module).__name__.lower():
                module.eval()
        state = {n: each.clone() for n, each in network.state_dict().items()}
        assert torch.allclose(network(images), original(images), atol=1e-4)
        assert all(torch.equal(each, state[n]) for n, each in network.state_dict().items())


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


class Normed(nn.Module):
    """A frozen and a trained BatchNorm, with a dropout before the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3)
        self.plain = nn.BatchNorm2d(3, affine=False)
        for layer in (self.first, self.second, self.plain):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.fill_(0.5)
            layer.running_var.fill_(4.0)
        self.first.requires_grad_(False)
        self.second.momentum = 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What both make of it."""
        out: torch.Tensor = self.plain(self.second(self.drop(self.first(x))))
        return out


def test_precise_statistics_leave_what_is_frozen_and_draw_nothing() -> None:
    model = Normed().train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    batches = [torch.randn(8, 3, 4, 4, generator=GENERATOR) * (i + 1) for i in range(3)]
    precise_statistics(model, batches)
    # By hand: the first layer as it was, (x - 0.5) / 2; then the plain mean over the batches.
    seen = [(x - 0.5) / (4 + 1e-5) ** 0.5 for x in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(model.second.running_mean, mean)
    torch.testing.assert_close(model.second.running_var, variance)
    for name, each in model.state_dict().items():
        if name not in ("second.running_mean", "second.running_var", "second.num_batches_tracked"):
            assert torch.equal(each, before[name]), name
    assert (model.second.momentum, model.first.momentum) == (0.3, 0.1)


def test_precise_statistics_of_a_network_with_frozen_blocks() -> None:
    model = build_model(replace(SCRATCH, model="resnet18"), num_classes=2)
    freeze_all_but(model, 1)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    precise_statistics(model, [torch.randn(8, 3, 32, 32, generator=GENERATOR)])
    changed = {n for n, each in model.state_dict().items() if not torch.equal(each, before[n])}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert changed == {
        name
        for name in before
        if name.startswith("layer4") and name.rpartition(".")[2] in statistics
    }


def test_without_trained_batchnorm_no_image_is_looked_at() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).requires_grad_(False)
    model.train()
    seen = iter([torch.zeros(1, 3, 2, 2)])
    precise_statistics(model, seen)
    assert len(list(seen)) == 1
    assert model.training


@pytest.mark.parametrize(("images", "parts"), [(32, 4), (9, 2), (8, 1), (20, 3)])
def test_ghost_parts_are_the_next_number_of_equal_ones(images: int, parts: int) -> None:
    ghost = GhostBatchNorm2d(3, momentum=0.2)
    ghost.ghost_size = 8
    x = torch.randn(images, 3, 4, 4, generator=GENERATOR)
    x += torch.arange(float(images))[:, None, None, None]
    expected = []
    for part in x.chunk(parts):
        mean, variance = part.mean((0, 2, 3)), part.var((0, 2, 3), unbiased=False)
        expected.append((part - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt())
    torch.testing.assert_close(ghost(x), torch.cat(expected), rtol=1e-4, atol=1e-4)
    # Unequal parts weigh as much as their images: their mean is the batch's.
    torch.testing.assert_close(ghost.running_mean, 0.2 * x.mean((0, 2, 3)))
    assert ghost.num_batches_tracked == 1


def test_ghost_statistics_taken_anew_are_means_over_the_parts() -> None:
    ghost = GhostBatchNorm2d(3)
    ghost.ghost_size = 8
    assert ghost.running_mean is not None
    ghost.running_mean.fill_(9.0)
    x = torch.randn(32, 3, 4, 4, generator=GENERATOR)
    precise_statistics(nn.Sequential(ghost), [x])
    torch.testing.assert_close(ghost.running_mean, x.mean((0, 2, 3)))
    variance = torch.stack([part.var((0, 2, 3)) for part in x.split(8)]).mean(0)
    torch.testing.assert_close(ghost.running_var, variance)


@pytest.mark.parametrize("norm", ["ghost", "group", "frozen"])
def test_what_replaces_batchnorm_has_its_weights_eps_and_groups(norm: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(48, eps=0.5, momentum=0.3), nn.BatchNorm2d(8))
    layer = model[0]
    assert isinstance(layer, nn.BatchNorm2d)
    for each in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
        assert each is not None
        each.copy_(torch.rand(48, generator=GENERATOR) + 0.5)
    x = torch.randn(6, 48, 4, 4, generator=GENERATOR)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    trained: torch.Tensor
    if norm == "ghost":
        parts = [
            nn.functional.batch_norm(p, None, None, weight, bias, True, 0, 0.5) for p in x.split(3)
        ]
        trained = torch.cat(parts)
    elif norm == "group":  # 32 groups, or the most that divide both
        trained = nn.functional.group_norm(x, 16, weight, bias, 0.5)
    else:
        trained = nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0, 0.5)
    config = replace(
        SCRATCH, model="resnet18", norm=norm, pretrained="file", ghost_batch_size=3, batch_size=6
    )
    apply_norm(model, config)
    model.train()
    torch.testing.assert_close(model[0](x), trained, rtol=1e-4, atol=1e-4)
    if norm == "group":
        assert [layer.num_groups for layer in model.children()] == [16, 8]
    if norm == "ghost":
        assert (model[0].momentum, model[0].ghost_size) == (0.3, 3)
    if norm == "frozen":
        assert not any(True for _ in model.parameters())


def test_norm_batch_and_none_change_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    layer = model[0]
    apply_norm(model, SCRATCH)
    apply_norm(model, replace(SCRATCH, norm="none"))
    assert model[0] is layer
