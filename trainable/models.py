"""Networks by name, with a new head, and only their last blocks trained."""

from collections import OrderedDict
from pathlib import Path

import timm
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from trainable.config import TrialConfig

POOLING = (nn.MaxPool2d, nn.AvgPool2d)


def check_model(name: str) -> None:
    """Refuse a name that neither torchvision nor timm has.

    Raises:
        ValueError: with the nearest names.
    """
    import difflib

    known = ["plain", *zoo.list_models(module=zoo)]
    if name.startswith("timm/"):
        known = [f"timm/{each}" for each in timm.list_models()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"model must be plain, a torchvision name or timm/NAME, got {name!r}{hint}"
        )


def available_weights(name: str, pretrained: str) -> str:
    """`pretrained`, or `none` where ImageNet weights are wanted and cannot be had here.

    Raises:
        ValueError: `pretrained` is a path and there is no file.
    """
    if pretrained not in ("none", "imagenet"):
        if not Path(pretrained).is_file():
            raise ValueError(
                f"pretrained must be imagenet, none or a file of weights, and there is no file "
                f"{pretrained!r}"
            )
        return str(Path(pretrained).resolve())
    if pretrained == "none":
        return "none"
    try:
        _imagenet_state(name)
    except ValueError:
        return "none"
    return "imagenet"


def _imagenet_state(name: str) -> dict[str, Tensor]:
    """From the cache, else fetched.

    Raises:
        ValueError: they are in neither.
    """
    try:
        return _fetched_state(name)
    except OSError as error:  # urllib's and the hub's errors are OSErrors
        raise ValueError(
            f"no ImageNet weights for {name}: not in torch's cache, and fetching them failed "
            f"({_line(error)}); give pretrained='none' or the path of a file"
        ) from error


def _fetched_state(name: str) -> dict[str, Tensor]:
    if name.startswith("timm/"):
        return timm.create_model(name.removeprefix("timm/"), pretrained=True).state_dict()
    weights = zoo.get_model_weights(name).DEFAULT
    if name.startswith("vgg") or name.startswith("resnet"):
        weights = getattr(zoo.get_model_weights(name), "IMAGENET1K_V1", weights)
    state: dict[str, Tensor] = weights.get_state_dict(check_hash=True, progress=False)
    return state


def build_model(config: TrialConfig, *, num_classes: int) -> nn.Module:
    """The network with weights loaded, a new head of `num_classes`, and frozen blocks frozen.

    The new head and, without weights, the whole network are drawn from torch's global generator:
    seed it first.

    Raises:
        ValueError: the weights are of another network, or there are fewer blocks than
            `train_blocks`.
    """
    if config.model == "plain":
        return plain_network(config, num_classes=num_classes)
    if config.model.startswith("timm/"):
        model = timm.create_model(config.model.removeprefix("timm/"))
    else:
        model = zoo.get_model(config.model, weights=None)
    if config.pretrained == "imagenet":
        model.load_state_dict(_imagenet_state(config.model))
    if config.pretrained not in ("imagenet", "none"):
        load_weights(model, Path(config.pretrained))
    replace_head(model, num_classes=num_classes, dropout=config.dropout)
    if config.train_blocks is not None:
        freeze_all_but(model, config.train_blocks)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state_dict of the same network.

    Raises:
        ValueError: the file is not a state_dict, or is of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # rubbish makes the unpickler fail in many ways
        raise ValueError(f"{path} is not a state_dict of tensors: {_line(error)}") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} holds the weights of another network: {_line(error)}") from error


def _line(error: Exception) -> str:
    """The beginning of an error, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) < 200 else text[:200] + " ..."


def replace_head(model: nn.Module, *, num_classes: int, dropout: float) -> None:
    """Put dropout and one linear layer in place of the classifier.

    VGG and AlexNet lose their 4096-wide layers, made for 224x224: the head gets the mean of each
    of the last feature maps.
    """
    if isinstance(model, zoo.VGG | zoo.AlexNet):
        width = next(m for m in reversed(model.features) if isinstance(m, nn.Conv2d)).out_channels
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))
        return
    if isinstance(model, zoo.SqueezeNet):
        model.classifier[0] = nn.Dropout(dropout)
        model.classifier[1] = nn.Conv2d(512, num_classes, kernel_size=1)
        return
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(last.in_features, num_classes))
    model.set_submodule(name, head)


def head_of(model: nn.Module) -> nn.Module:
    """The part that `replace_head` made, or that holds it."""
    children = [child for child in model.children() if any(True for _ in child.parameters())]
    return children[-1]


def blocks_of(model: nn.Module) -> list[list[nn.Module]]:
    """The network but its head as blocks, first to last.

    Layers between two poolings are a block (VGG16 has five); where there is no pooling between
    layers each child with parameters is one (a ResNet has conv1, bn1 and four layers).
    """
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential):
        layers = list(features)
    else:
        layers = [child for child in model.children() if child is not head_of(model)]
    if sum(isinstance(layer, POOLING) for layer in layers) < 2:
        return [[layer] for layer in layers if any(True for _ in layer.parameters())]
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if isinstance(layer, POOLING):
            blocks.append([])
    return [block for block in blocks if any(any(True for _ in m.parameters()) for m in block)]


def freeze_all_but(model: nn.Module, train_blocks: int) -> None:
    """Freeze all blocks but the last `train_blocks`; the head is always trained.

    Raises:
        ValueError: the network has fewer blocks.
    """
    blocks = blocks_of(model)
    if train_blocks > len(blocks):
        raise ValueError(
            f"train_blocks must be at most {len(blocks)}, the blocks of this network, "
            f"got {train_blocks}"
        )
    for block in blocks[: len(blocks) - train_blocks]:
        for module in block:
            module.requires_grad_(False)


def set_training(model: nn.Module) -> None:
    """Training mode, but frozen parts in evaluation mode: their statistics stay ImageNet's."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters, and the statistics of trained modules."""
    frozen = {
        f"{prefix}{name}"
        for prefix, module in ((f"{n}." if n else "", m) for n, m in model.named_modules())
        for name, _ in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
        if any(True for _ in module.parameters(recurse=False))
        and not any(p.requires_grad for p in module.parameters(recurse=False))
    }
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def plain_network(config: TrialConfig, *, num_classes: int) -> nn.Module:
    """A stem and `depth` 3x3 convolutions, the width doubled at each halving of the image.

    He-initialised; without normalization the convolutions have biases.
    """

    def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=config.norm == "none")
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        norm = [nn.BatchNorm2d(outputs)] if config.norm == "batch" else []
        return [conv, *norm, nn.ReLU(inplace=True)]

    width = config.width
    layers: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(*layer(3, width, 2)))]
    for k in range(config.depth):
        halve = k < 3 and k > 0
        layers.append(
            (f"conv{k + 1}", nn.Sequential(*layer(width, width * (1 + halve), 1 + halve)))
        )
        width *= 1 + halve
    head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, num_classes))
    return nn.Sequential(
        OrderedDict(
            [
                ("features", nn.Sequential(OrderedDict(layers))),
                ("pool", nn.AdaptiveAvgPool2d(1)),
                ("flatten", nn.Flatten()),
                ("classifier", head),
            ]
        )
    )
