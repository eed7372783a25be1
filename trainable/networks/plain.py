"""Our own networks: a plain VGG-style CNN, and the same CNN with shortcuts.

A stem halves the image. Then come `depth` convolutions in three stages; the second and the third
stage double the width and halve the image. With shortcuts, every two convolutions are a residual
block. Its shortcut has no parameters (option A of He et al. 2016, arXiv:1512.03385), so both
networks have the same parameters.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from trainable.config import TrialConfig

STAGES = 3
LEAKY_SLOPE = 0.1
SATURATING = {"sigmoid": 1.0, "tanh": 5 / 3}  # gains of torch.nn.init.calculate_gain
_MODULES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
}


def activation_of(name: str) -> nn.Module:
    """A new activation module."""
    return nn.LeakyReLU(LEAKY_SLOPE) if name == "leaky_relu" else _MODULES[name]()


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut; the last activation comes after the sum."""

    def __init__(self, convolutions: nn.Sequential, activation: nn.Module, stride: int, widen: int):
        """`widen`: how many channels of zeros the shortcut appends."""
        super().__init__()
        self.convolutions, self.activation = convolutions, activation
        self.stride, self.widen = stride, widen

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + widen, H / stride, W / stride)."""
        shortcut = avg_pool2d(x_BCHW, self.stride, ceil_mode=True) if self.stride > 1 else x_BCHW
        shortcut = pad(shortcut, (0, 0, 0, 0, 0, self.widen)) if self.widen else shortcut
        out: Tensor = self.activation(self.convolutions(x_BCHW) + shortcut)
        return out


def own_network(config: TrialConfig, *, num_classes: int) -> nn.Module:
    """The initialized network for `model=plain` or `model=residual`."""
    features, width = own_features(config)
    head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, num_classes))
    parts: list[tuple[str, nn.Module]] = [
        ("features", features),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("classifier", head),
    ]
    return nn.Sequential(OrderedDict(parts))


def own_features(config: TrialConfig, *, dilate_last: bool = False) -> tuple[nn.Sequential, int]:
    """The initialized layers before the head, and how many maps they give.

    With `dilate_last` the last stage does not halve the image: its convolutions see as much of it
    by leaving out every other pixel.
    """
    residual = config.model == "residual"
    layers: list[tuple[str, nn.Module]] = [("stem", _convolution(config, 3, config.width, 2))]
    inputs, k, per_block = config.width, 0, 2 if residual else 1
    while k < config.depth:
        stage = k * STAGES // config.depth
        # Is this the first block of its stage?
        first = k > 0 and stage != (k - per_block) * STAGES // config.depth
        outputs = config.width * 2**stage
        dilation = 2 if dilate_last and stage == STAGES - 1 else 1
        stride = 2 if first and dilation == 1 else 1
        in_block = min(per_block, config.depth - k)
        widths = [inputs] + [outputs] * in_block
        convolutions = [
            _convolution(
                config,
                widths[i],
                outputs,
                stride if i == 0 else 1,
                dilation=dilation,
                activated=not residual or i < in_block - 1,
            )
            for i in range(in_block)
        ]
        block: nn.Module = convolutions[0]
        if residual:
            block = ResidualBlock(
                nn.Sequential(*convolutions),
                activation_of(config.activation),
                stride,
                outputs - inputs,
            )
        layers.append((f"block{len(layers)}", block))
        inputs, k = outputs, k + in_block
    return nn.Sequential(OrderedDict(layers)), inputs


def _convolution(
    config: TrialConfig,
    inputs: int,
    outputs: int,
    stride: int,
    *,
    dilation: int = 1,
    activated: bool = True,
) -> nn.Sequential:
    """Convolution, normalization, activation; the convolution has a bias if norm is none."""
    size = config.kernel_size
    conv = nn.Conv2d(
        inputs,
        outputs,
        size,
        stride=stride,
        padding=dilation * (size // 2),
        dilation=dilation,
        bias=config.norm == "none",
    )
    if config.activation in SATURATING:
        nn.init.xavier_normal_(conv.weight, SATURATING[config.activation])
    elif config.activation == "selu":  # Klambauer 2017: variance 1 / fan_in
        nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    else:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    parts: list[nn.Module] = [conv]
    if config.norm != "none":
        parts.append(nn.BatchNorm2d(outputs))
    if activated:
        parts.append(activation_of(config.activation))
    return nn.Sequential(*parts)
