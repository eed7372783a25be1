"""The frozen first part of a network, which runs apart from the part that is trained.

What it gives for an image depends on the image alone: it can run for many coming updates at once,
and once and for all for images that are never augmented.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.networks.models import draws, set_training


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Modules of a network, first to last, each with its place: its parent and its name in it."""

    modules: tuple[nn.Module, ...]
    places: tuple[tuple[nn.Module, str], ...]
    paths: tuple[str, ...]


def prefix_at(model: nn.Module, paths: tuple[str, ...]) -> Prefix:
    """The modules at these paths, as of this network or of a copy of it."""
    parts = [path.rpartition(".") for path in paths]
    return Prefix(
        modules=tuple(model.get_submodule(path) for path in paths),
        places=tuple((model.get_submodule(parent), name) for parent, _, name in parts),
        paths=paths,
    )


@torch.no_grad()
def find_prefix(model: nn.Module, *, image_size: int, device: torch.device) -> Prefix | None:
    """The longest chain of modules from the images on of which none is trained; None without one.

    Two images are sent through to see which module gets what the one before it gave, and again
    to see that the chain and what comes after it give the whole network's numbers.
    """
    layers = dict(_layers(model))
    calls: list[tuple[str, object, object]] = []

    def note(path: str) -> object:
        return lambda _, given, out: calls.append((path, given[0] if given else None, out))

    set_training(model)
    may_run = {path: not _is_trained(layer) and not draws(layer) for path, layer in layers.items()}
    model.eval()
    pixels = torch.linspace(-2, 2, 2 * 3 * image_size**2, device=device)  # draws from no generator
    images = pixels.view(2, 3, image_size, image_size).to(memory_format=torch.channels_last)
    hooks = [each.register_forward_hook(note(path)) for path, each in layers.items()]  # type: ignore[arg-type]
    try:
        whole = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    paths: list[str] = []
    at: object = images
    for path, given, out in calls:
        if given is not at or not may_run[path]:
            break
        paths.append(path)
        at = out
    if not any(True for path in paths for _ in layers[path].parameters()):
        return None
    prefix = prefix_at(model, tuple(paths))
    features = run_prefix(prefix, images, at_once=len(images))
    before = features.clone()
    with bypassed(prefix):
        apart = model(features)
    return prefix if torch.equal(apart, whole) and torch.equal(features, before) else None


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The network's children; those of a Sequential that is trained in part, one by one."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential) and _is_trained(child):
            yield from _layers(child, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def _is_trained(module: nn.Module) -> bool:
    return any(each.requires_grad for each in module.parameters())


@torch.no_grad()
def run_prefix(prefix: Prefix, images_BCHW: Tensor, *, at_once: int) -> Tensor:
    """Features (B, C, H, W) of images, so many or fewer at once; halved where memory runs out."""
    while True:
        try:
            parts = []
            for x in images_BCHW.tensor_split(math.ceil(len(images_BCHW) / at_once)):
                for module in prefix.modules:
                    x = module(x)
                parts.append(x)
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once = math.ceil(min(at_once, len(images_BCHW)) / 2)


@contextmanager
def bypassed(prefix: Prefix | None) -> Iterator[None]:
    """Within it the network takes the prefix's features in place of images."""
    if prefix is None:
        yield
        return
    try:
        for parent, name in prefix.places:
            parent._modules[name] = _PASS
        yield
    finally:
        for (parent, name), module in zip(prefix.places, prefix.modules, strict=True):
            parent._modules[name] = module


_PASS = nn.Identity()
