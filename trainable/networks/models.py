"""Networks by name, with a new head, and only their last blocks trained."""

import difflib
import hashlib
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from trainable.config import OWN_MODELS, TrialConfig, file_of
from trainable.networks.normalization import apply_norm
from trainable.networks.plain import ResidualBlock, own_network

POOLING = (nn.MaxPool2d, nn.AvgPool2d)


def check_model(config: TrialConfig, *, num_classes: int, image_size: int) -> None:
    """Refuse a config whose network does not exist or cannot be what it asks for.

    Builds it and sends two images through, without memory or weights: it takes milliseconds.

    Raises:
        ValueError: with the nearest names, or with what does not fit.
    """
    known = [*OWN_MODELS, *zoo.list_models(module=zoo)]
    if config.model.startswith("timm/"):
        known = [f"timm/{each}" for each in timm.list_models()]
    if config.model not in known:
        near = difflib.get_close_matches(config.model, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"model must be plain, residual, a torchvision name or timm/NAME, "
            f"got {config.model!r}{hint}"
        )
    size = config.image_size or image_size
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of uninitialised weights, of which meta tensors have none
        model = _build(config, num_classes=num_classes, load=False)
        set_training(model)
        try:
            with torch.no_grad():
                out = model(torch.empty(2, 3, size, size))
        except Exception as error:  # a network may dislike a size in its own way
            raise ValueError(
                f"{config.model} cannot take images of {size}x{size} px: {one_line(error)}"
            ) from error
    if not isinstance(out, Tensor) or out.shape != (2, num_classes):
        raise ValueError(f"{config.model} is not a classifier of images")


def available_weights(name: str, pretrained: str) -> str:
    """`pretrained`, or `none` where ImageNet weights are wanted and cannot be had here.

    A file comes back with its digest, having been loaded once to see that it fits.

    Raises:
        ValueError: `pretrained` is a path and there is no file.
    """
    if pretrained not in ("none", "imagenet"):
        known = with_digest(pretrained, "pretrained")
        load_weights(bare_network(name), Path(file_of(known)))  # refused now, not in each trial
        return known
    if pretrained == "none":
        return "none"
    try:
        pretrained_network(name)
    except ValueError:
        return "none"
    return "imagenet"


def with_digest(path: str, field: str) -> str:
    """`/absolute/path#digest` of a file that a field names: the digest is what identifies it.

    Raises:
        ValueError: there is no such file.
    """
    file = Path(file_of(path))
    if not file.is_file():
        raise ValueError(f"{field} names the file {path!r}, and there is none")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return f"{file.resolve()}#{digest}"


def pretrained_network(name: str, *, dropout: float = 0.0) -> nn.Module:
    """The network with ImageNet weights, as its library loads them: from the cache, else fetched.

    Raises:
        ValueError: they are in neither.
    """
    try:
        if name.startswith("timm/"):
            short = name.removeprefix("timm/")
            made: nn.Module = timm.create_model(short, pretrained=True, drop_rate=dropout)
            return made
        weights = zoo.get_model_weights(name)
        # VGG16's and ResNet's first version, which the literature fine-tunes.
        chosen = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)
        made = zoo.get_model(name, weights=chosen, progress=False)
        return made
    except (OSError, RuntimeError) as error:  # urllib's and the hub's errors are OSErrors
        raise ValueError(
            f"no ImageNet weights for {name}: not in torch's cache, and fetching them failed "
            f"({one_line(error)}); give pretrained='none' or the path of a file"
        ) from error


def build_model(config: TrialConfig, *, num_classes: int) -> nn.Module:
    """The network with weights loaded, a new head of `num_classes`, and frozen blocks frozen.

    The new head and, without weights, the whole network are drawn from torch's global generator:
    seed it first.

    Raises:
        ValueError: the weights are of another network, there are fewer blocks than
            `train_blocks`, or nothing for `norm` or `zero_gamma` to change.
    """
    return _build(config, num_classes=num_classes, load=True)


def _build(config: TrialConfig, *, num_classes: int, load: bool) -> nn.Module:
    if config.model in OWN_MODELS:
        model = own_network(config, num_classes=num_classes)
    else:
        if load and config.pretrained == "imagenet":
            model = pretrained_network(config.model, dropout=config.dropout)
        else:
            model = bare_network(config.model, dropout=config.dropout)
        if load and config.pretrained not in ("imagenet", "none"):
            load_weights(model, Path(file_of(config.pretrained)))
        drop_auxiliary_heads(model)
        replace_head(model, num_classes=num_classes, dropout=config.dropout)
    if config.pretrained == "none":
        _set_last_gammas(model, config)
    apply_norm(model, config)
    if config.train_blocks is not None:
        freeze_all_but(model, config.train_blocks)
    return model


def bare_network(name: str, *, dropout: float = 0.0) -> nn.Module:
    """The network of torchvision, or timm's under `timm/NAME`, as it comes, weights drawn."""
    if name.startswith("timm/"):
        made: nn.Module = timm.create_model(name.removeprefix("timm/"), drop_rate=dropout)
        return made
    # Both warn that their slow initialisation will go, unless it is switched off.
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    made = zoo.get_model(name, weights=None, **options)
    return made


def drop_auxiliary_heads(model: nn.Module) -> None:
    """Inception's and GoogLeNet's side outputs, which no later recipe trains, are removed."""
    for name in ("AuxLogits", "aux1", "aux2"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    if hasattr(model, "aux_logits"):
        setattr(model, "aux_logits", False)  # noqa: B010 - a plain attribute of torchvision's


def last_gammas(model: nn.Module) -> list[nn.Parameter]:
    """Gamma of the last normalization in each residual block; empty where there is none."""
    gammas = []
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        elif type(module).__name__ in ("BasicBlock", "Bottleneck"):  # torchvision's and timm's
            inside = [m for n, m in module.named_children() if n != "downsample"]
            norms = [m for m in inside if isinstance(m, nn.BatchNorm2d)]
        else:
            continue
        if norms:
            gammas.append(norms[-1].weight)
    return gammas


def _set_last_gammas(model: nn.Module, config: TrialConfig) -> None:
    """0 or 1 as asked: timm's networks would start at 0 unasked."""
    gammas = last_gammas(model)
    if config.zero_gamma and not gammas:
        raise ValueError(
            f"zero_gamma needs residual blocks with BatchNorm, and {config.model} has none known"
        )
    for gamma in gammas:
        nn.init.constant_(gamma, 0.0 if config.zero_gamma else 1.0)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state_dict of the same network.

    Raises:
        ValueError: the file is not a state_dict, or is of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # rubbish makes the unpickler fail in many ways
        raise ValueError(f"{path} is not a state_dict of tensors: {one_line(error)}") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} holds the weights of another network: {one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    """The beginning of an error, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) < 200 else text[:200] + " ..."


def replace_head(model: nn.Module, *, num_classes: int, dropout: float) -> None:
    """Put dropout and one linear layer in place of the classifier.

    VGG and AlexNet lose their 4096-wide layers, made for 224x224: the head gets the mean of each
    of the last feature maps.
    """
    if hasattr(model, "reset_classifier"):  # timm's; its dropout was given when it was made
        reset: Any = model.reset_classifier
        reset(num_classes)
        return
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
    for beside in model.get_submodule(name.rpartition(".")[0]).children():
        if isinstance(beside, nn.Dropout):  # ours is the only one there
            beside.p = 0.0
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(last.in_features, num_classes))
    model.set_submodule(name, head)


def head_of(model: nn.Module) -> nn.Module:
    """The part that `replace_head` made, or that holds it."""
    if hasattr(model, "get_classifier"):
        get: Any = model.get_classifier
        classifier: nn.Module = get()
        return classifier
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
        head = head_of(model)
        layers = [child for child in model.children() if head not in list(child.modules())]
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


def draws(model: nn.Module) -> bool:
    """Whether it has a kind of dropout that is on: the same images give other numbers each time."""
    return any(
        m.training
        and any(word in type(m).__name__.lower() for word in ("drop", "stochasticdepth"))
        and (getattr(m, "p", 0) or getattr(m, "drop_prob", 0))
        for m in model.modules()
    )


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
