"""Networks by name, with a new head, of which only the last blocks may be trained.

timm and torchvision are imported by the functions that use them: each takes a second or two, which
a trial of our own networks need not wait.
"""

import difflib
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from trainable.config import (
    CLASSIFICATION,
    DETECTION,
    OWN_MODELS,
    SEGMENTATION,
    TrialConfig,
    file_of,
)
from trainable.host.messages import one_line
from trainable.networks.normalization import apply_norm
from trainable.networks.plain import ResidualBlock, own_network

POOLING = (nn.MaxPool2d, nn.AvgPool2d)
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")  # for detection
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def check_model(config: TrialConfig, *, num_classes: int, image_size: int) -> None:
    """Check that the config's network exists and can be built as the config says.

    Builds it without memory or weights and runs it on two images: this takes milliseconds. Our own
    networks are small and get memory, which saves the import of torch's compiler, two seconds.

    Raises:
        ValueError: with the nearest names, or with what does not fit.
    """
    _check_name(config.model, config.task)
    size = config.image_size or image_size
    device = "cpu" if config.model in OWN_MODELS else "meta"
    with torch.device(device), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initialization, which meta tensors do not have
        model = _build(config, num_classes=num_classes, load=False)
        set_training(model)
        # Boxes are drawn from numbers, of which there are none here.
        part = model if config.task != DETECTION else model.get_submodule("backbone")
        try:
            with torch.no_grad():
                out = part(torch.empty(2, 3, size, size))
        except Exception as error:  # networks reject a size with errors of many types
            raise ValueError(
                f"{config.model} cannot take images of {size}x{size} px: {one_line(error)}"
            ) from error
    if config.task == DETECTION:
        return
    if config.task == SEGMENTATION:
        if not isinstance(out, Tensor) or out.shape != (2, num_classes, size, size):
            raise ValueError(f"{config.model} gives no maps of features to segment images with")
    elif not isinstance(out, Tensor) or out.shape != (2, num_classes):
        raise ValueError(f"{config.model} is not an image classifier")


def _check_name(model: str, task: str) -> None:
    if model in OWN_MODELS:
        return
    if model.startswith("timm/"):
        import timm

        names = [f"timm/{name}" for name in timm.list_models()]
        if "." in model:  # the name says which of its weights: `timm/resnet50.tv_in1k`
            names = [f"timm/{name}" for name in timm.list_pretrained()]
    elif task == SEGMENTATION:
        from trainable.networks.segmentation import DILATED, HEADS

        names = [*OWN_MODELS, *(f"{head}_{name}" for head in HEADS for name in DILATED)]
    elif task == DETECTION:
        names = [*OWN_MODELS, *(f"fasterrcnn_{name}" for name in RESNETS)]
    else:
        import torchvision.models as zoo

        names = [*OWN_MODELS, *zoo.list_models(module=zoo)]
    if model not in names:
        near = difflib.get_close_matches(model, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if task != CLASSIFICATION and not model.startswith("timm/"):
            hint = f"; of task={task} there are {', '.join(names)}, and timm's"
        raise ValueError(
            f"model must be plain, residual, a torchvision name or timm/NAME, got {model!r}{hint}"
        )


def available_weights(name: str, pretrained: str) -> str:
    """`pretrained`, or `none` if ImageNet weights are asked for but not available here.

    The path of a file is returned with its digest. The file is loaded once, to check that it fits.

    Raises:
        ValueError: `pretrained` is a path, and the file is missing or does not fit.
    """
    from trainable.networks.segmentation import backbone_of

    name = backbone_of(name)
    if pretrained not in ("none", "imagenet"):
        path = with_digest(pretrained, "pretrained")
        load_weights(bare_network(name), Path(file_of(path)))  # an error now, not in every trial
        return path
    if pretrained == "none":
        return "none"
    try:
        pretrained_network(name)
    except ValueError:
        return "none"
    return "imagenet"


def with_digest(path: str, field: str) -> str:
    """`/absolute/path#digest` of a file that a field names; the digest identifies the file.

    Raises:
        ValueError: the file does not exist.
    """
    file = Path(file_of(path))
    if not file.is_file():
        raise ValueError(f"{field}: the file {path!r} does not exist")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return f"{file.resolve()}#{digest}"


def pretrained_network(
    name: str, *, dropout: float = 0.0, options: Mapping[str, Any] = NO_OPTIONS
) -> nn.Module:
    """The network with ImageNet weights, which its library takes from its cache or downloads.

    `options` are those of the library, for a network of this kind.

    Raises:
        ValueError: they are not in the cache, and the download failed.
    """
    try:
        if name.startswith("timm/"):
            import timm

            short = name.removeprefix("timm/")
            model: nn.Module = timm.create_model(
                short, pretrained=True, drop_rate=dropout, **options
            )
            return model
        import torchvision.models as zoo

        weights = zoo.get_model_weights(name)
        # The first version of VGG16's and ResNet's weights is the one that papers fine-tune.
        version = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)
        model = zoo.get_model(name, weights=version, progress=False, **options)
        return model
    except (OSError, RuntimeError) as error:  # urllib's and the hub's errors are OSErrors
        raise ValueError(
            f"no ImageNet weights for {name}: they are not in torch's cache, and the download "
            f"failed ({one_line(error)}); set pretrained='none' or the path of a file"
        ) from error


def build_model(config: TrialConfig, *, num_classes: int) -> nn.Module:
    """The network with its weights, a new head of `num_classes`, and its first blocks frozen.

    The new head and, without pretrained weights, the whole network are initialized with PyTorch's
    global generator: seed it first.

    Raises:
        ValueError: the weights are of another network, there are fewer blocks than
            `train_blocks`, or the network has nothing that `norm` or `zero_gamma` could change.
    """
    return _build(config, num_classes=num_classes, load=True)


def _build(config: TrialConfig, *, num_classes: int, load: bool) -> nn.Module:
    if config.task == SEGMENTATION:
        from trainable.networks.segmentation import segmentation_network

        model = segmentation_network(config, num_classes=num_classes, load=load)
    elif config.task == DETECTION:
        from trainable.networks.detection import detection_network

        model = detection_network(config, num_classes=num_classes, load=load)
    elif config.model in OWN_MODELS:
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


def bare_network(
    name: str, *, dropout: float = 0.0, options: Mapping[str, Any] = NO_OPTIONS
) -> nn.Module:
    """The unchanged network of torchvision, or timm's for `timm/NAME`, with random weights."""
    if name.startswith("timm/"):
        import timm

        short = name.removeprefix("timm/")
        model: nn.Module = timm.create_model(short, drop_rate=dropout, **options)
        return model
    import torchvision.models as zoo

    # Without this option both warn that their slow initialization will be removed.
    quick = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    model = zoo.get_model(name, weights=None, **quick, **options)
    return model


def drop_auxiliary_heads(model: nn.Module) -> None:
    """Remove the auxiliary classifiers of Inception and GoogLeNet, which newer recipes omit."""
    for name in ("AuxLogits", "aux1", "aux2"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    if hasattr(model, "aux_logits"):
        setattr(model, "aux_logits", False)  # noqa: B010 - a plain attribute of torchvision's


def last_gammas(model: nn.Module) -> list[nn.Parameter]:
    """Gamma of the last normalization in each residual block; empty if there is none."""
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
    """Set them to 0 or 1 as `zero_gamma` says; timm's networks start at 0 by default."""
    gammas = last_gammas(model)
    if config.zero_gamma and not gammas:
        raise ValueError(
            f"zero_gamma needs residual blocks with BatchNorm; none were found in {config.model}"
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
    except Exception as error:  # the unpickler fails on broken files in many ways
        raise ValueError(f"{path} is not a state_dict of tensors: {one_line(error)}") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} contains the weights of another network: {one_line(error)}"
        ) from error


def replace_head(model: nn.Module, *, num_classes: int, dropout: float) -> None:
    """Replace the classifier by dropout and one linear layer.

    VGG and AlexNet lose their layers of width 4096, which are made for 224x224 px: the head gets
    the mean of each of the last feature maps.
    """
    if hasattr(model, "reset_classifier"):  # of timm, which got its dropout in create_model
        reset: Any = model.reset_classifier
        reset(num_classes)
        return
    import torchvision.models as zoo

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
    for sibling in model.get_submodule(name.rpartition(".")[0]).children():
        if isinstance(sibling, nn.Dropout):  # switched off: the new head has its own
            sibling.p = 0.0
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(last.in_features, num_classes))
    model.set_submodule(name, head)


def head_of(model: nn.Module) -> nn.Module:
    """The classifier that `replace_head` made, or the module that contains it."""
    if hasattr(model, "get_classifier"):
        get: Any = model.get_classifier
        classifier: nn.Module = get()
        return classifier
    children = [child for child in model.children() if any(True for _ in child.parameters())]
    return children[-1]


def blocks_of(model: nn.Module) -> list[list[nn.Module]]:
    """The network without its head as blocks, first to last.

    The layers between two poolings are one block (VGG16 has five). In a network without poolings
    between its layers, each child with parameters is one (a ResNet has conv1, bn1 and four layers).
    """
    features = getattr(model, "backbone", getattr(model, "features", None))
    if isinstance(features, nn.Sequential):
        layers = list(features)
    elif hasattr(model, "backbone") and isinstance(features, nn.Module):
        layers = list(features.children())
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


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """`decay` to the power of each parameter's distance from the head, by the parameter's name.

    Layers are those of timm's networks themselves, in which the last one and the head are at
    distance 0; of other networks they are the blocks, of which the last is at distance 1. Frozen
    layers count. What belongs to no block is as far as the first if the network itself has it (a
    class token), and else as near as the head (a last normalization).
    """
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        matcher: Any = model.group_matcher
        layers = group_parameters(model, matcher(coarse=False), reverse=True)
        last = max(layers.values())
        return {name: decay ** (last - layer) for name, layer in layers.items()}
    blocks = blocks_of(model)
    distances = {
        id(parameter): len(blocks) - number
        for number, block in enumerate(blocks)
        for module in block
        for parameter in module.parameters()
    }
    distances |= {id(parameter): len(blocks) for parameter in model.parameters(recurse=False)}
    return {name: decay ** distances.get(id(p), 0) for name, p in model.named_parameters()}


def freeze_all_but(model: nn.Module, train_blocks: int) -> None:
    """Freeze all but the last `train_blocks` blocks; the head is always trained.

    Raises:
        ValueError: the network has fewer blocks.
    """
    blocks = blocks_of(model)
    if train_blocks > len(blocks):
        raise ValueError(
            f"train_blocks must be at most {len(blocks)}, the number of blocks of this network, "
            f"got {train_blocks}"
        )
    for block in blocks[: len(blocks) - train_blocks]:
        for module in block:
            module.requires_grad_(False)


def set_training(model: nn.Module) -> None:
    """Training mode, but evaluation mode for frozen parts: they keep ImageNet's statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def draws(model: nn.Module) -> bool:
    """Whether dropout or stochastic depth is active: the same images give different numbers."""
    return any(
        m.training
        and any(word in type(m).__name__.lower() for word in ("drop", "stochasticdepth"))
        and (getattr(m, "p", 0) or getattr(m, "drop_prob", 0))
        for m in model.modules()
    )


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The state that training changes: trained parameters, and statistics of trained modules."""
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
