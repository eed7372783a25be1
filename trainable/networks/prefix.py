"""The frozen first part of a network, which runs separately from the trained part.

Its output for an image depends on the image alone. So it can run for several updates together, and
only once for images that are never augmented.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.host.device import halve_until_it_fits
from trainable.host.pulse import tick
from trainable.networks.models import draws, set_training


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Modules of a network, first to last, and the path of each in it."""

    modules: tuple[nn.Module, ...]
    paths: tuple[str, ...]


def prefix_at(model: nn.Module, paths: tuple[str, ...]) -> Prefix:
    """The prefix made of the modules at these paths of a network or of its copy."""
    return Prefix(modules=tuple(model.get_submodule(path) for path in paths), paths=paths)


def fingerprint(prefix: Prefix) -> str:
    """SHA-256 of where the prefix is in its network, and of its weights and statistics."""
    digest = hashlib.sha256(repr((prefix.paths, prefix.modules)).encode())
    for module in prefix.modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tail_of(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The network without the modules at these paths: it takes their output instead of images.

    What is left is the network's own: weights and statistics are shared. Modules on the way to the
    paths are copied, and each copy has a training mode of its own.
    """
    tail = copy.copy(model)
    tail._modules = dict(model._modules)
    for name in dict.fromkeys(path.partition(".")[0] for path in paths):
        inside = [path.partition(".")[2] for path in paths if path.partition(".")[0] == name]
        child = model.get_submodule(name)
        tail._modules[name] = tail_of(child, inside) if all(inside) else nn.Identity()
    return tail


@torch.no_grad()
def find_prefix(model: nn.Module, *, image_size: int, device: torch.device) -> Prefix | None:
    """The longest chain of frozen modules that starts at the images; None if there is none.

    A forward pass of two images shows which module gets the output of the one before. A second one
    checks that the chain and the rest of the network give the same numbers as the whole network.
    """
    layers = dict(_layers(model))
    set_training(model)
    may_run = {path: not _is_trained(layer) and not draws(layer) for path, layer in layers.items()}
    model.eval()
    pixels = torch.linspace(-2, 2, 2 * 3 * image_size**2, device=device)  # uses no generator
    images = pixels.view(2, 3, image_size, image_size).to(memory_format=torch.channels_last)
    logits, calls = _recorded(model, images, layers)
    paths: list[str] = []
    chain_output: object = images
    for path, layer_input, output in calls:
        if layer_input is not chain_output or not may_run[path]:
            break
        paths.append(path)
        chain_output = output
    if not any(True for path in paths for _ in layers[path].parameters()):
        return None
    prefix = prefix_at(model, tuple(paths))
    features = run_prefix(prefix, images, chunk_size=len(images))
    before = features.clone()
    logits_apart = tail_of(model, paths)(features)
    is_same = torch.equal(logits_apart, logits) and torch.equal(features, before)
    return prefix if is_same else None


def _recorded(
    model: nn.Module, images: Tensor, layers: dict[str, nn.Module]
) -> tuple[Tensor, list[tuple[str, object, object]]]:
    """The logits of images; and each layer's path, first input and output in order of the calls."""
    calls: list[tuple[str, object, object]] = []

    def record(path: str) -> object:
        return lambda _, inputs, output: calls.append((path, inputs[0] if inputs else None, output))

    hooks = [layer.register_forward_hook(record(path)) for path, layer in layers.items()]  # type: ignore[arg-type]
    try:
        return model(images), calls
    finally:
        for hook in hooks:
            hook.remove()


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The network's children; a Sequential with trained layers is replaced by its own children."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential) and _is_trained(child):
            yield from _layers(child, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@torch.no_grad()
def run_prefix(
    prefix: Prefix,
    images_BCHW: Tensor,
    *,
    chunk_size: int,
    before_retry: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Features (B, C, H, W) of images, `chunk_size` at a time; halved while memory runs out.

    `before_retry` is told each smaller size.
    """

    def features(size: int) -> Tensor:
        parts = []
        for x in images_BCHW.tensor_split(math.ceil(len(images_BCHW) / size)):
            tick()
            for module in prefix.modules:
                x = module(x)
            parts.append(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    size = min(chunk_size, len(images_BCHW))
    return halve_until_it_fits(features, size, before_retry=before_retry)
