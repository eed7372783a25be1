"""Networks for semantic segmentation: the features of a classifier, a head, and enlarged outputs.

`fcn_NAME` and `deeplabv3_NAME` are torchvision's: the same layers, without the auxiliary head. A
network of timm, and one of our own, gets FCN's head. Features are an eighth of the image's size, of
our own networks a quarter.
"""

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainable.config import OWN_MODELS, TrialConfig, file_of
from trainable.host.messages import one_line
from trainable.networks.models import bare_network, load_weights, pretrained_network
from trainable.networks.plain import own_features

HEADS = ("fcn", "deeplabv3")
STRIDE = 8
# How torchvision's networks are told to give larger feature maps.
DILATED: dict[str, dict[str, Any]] = {
    "resnet50": {"replace_stride_with_dilation": [False, True, True]},
    "resnet101": {"replace_stride_with_dilation": [False, True, True]},
    "mobilenet_v3_large": {"dilated": True},
}


class Segmenter(nn.Module):
    """Logits (B, K, H, W) of images (B, 3, H, W).

    `backbone` is named so that `blocks_of` finds its layers.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        """The head is a convolution, so that it classifies each place of the features."""
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits of each pixel."""
        logits: Tensor = self.classifier(self.backbone(images_BCHW))
        return enlarged(logits, images_BCHW.shape[-2:])


def enlarged(maps_BKHW: Tensor, size: torch.Size) -> Tensor:
    """Bilinear interpolation, as torchvision's networks do it.

    By two products of matrices: the gradient of torch's own differs from run to run on a GPU.
    """
    down, right = (
        _interpolation(few, many, maps_BKHW.device)
        for few, many in zip(maps_BKHW.shape[-2:], size, strict=True)
    )
    device = maps_BKHW.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        return down @ maps_BKHW.float() @ right.T


def _interpolation(few: int, many: int, device: torch.device) -> Tensor:
    """The weights (many, few) of a row's old pixels in its new ones; edges are repeated."""
    place = ((torch.arange(many, device=device) + 0.5) * few / many - 0.5).clamp(0, few - 1)
    old = torch.arange(few, device=device)
    return (1 - (place[:, None] - old).abs()).clamp(min=0)


def segmentation_network(config: TrialConfig, *, num_classes: int, load: bool) -> nn.Module:
    """The network with a new head; `load` says whether to give it the weights of the config.

    Raises:
        ValueError: the weights are of another network, or it gives no features.
    """
    if config.model in OWN_MODELS:
        features, width = own_features(config, dilate_last=True)
        head = nn.Conv2d(width, num_classes, kernel_size=1)
        return Segmenter(features, nn.Sequential(nn.Dropout(config.dropout), head))
    # A second that our own networks need not wait.
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.models.segmentation.fcn import FCNHead

    backbone, width = _features_of(config, load=load)
    kind = DeepLabHead if config.model.startswith("deeplabv3_") else FCNHead
    classifier = kind(width, num_classes)
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):  # torchvision's own share is 0.1
            module.p = config.dropout
    return Segmenter(backbone, classifier)


def _features_of(config: TrialConfig, *, load: bool) -> tuple[nn.Module, int]:
    """A classifier's layers before its head, with its weights, and how many maps they give."""
    name = backbone_of(config.model)
    options = {"output_stride": STRIDE} if name.startswith("timm/") else DILATED[name]
    try:
        if load and config.pretrained == "imagenet":
            model = pretrained_network(name, options=options)
        else:
            model = bare_network(name, options=options)
    except (TypeError, NotImplementedError) as error:  # it has no such option
        raise ValueError(
            f"{config.model} gives no maps of features to segment images with: {one_line(error)}"
        ) from error
    if load and config.pretrained not in ("imagenet", "none"):
        load_weights(model, Path(file_of(config.pretrained)))
    network: Any = model
    if name.startswith("timm/"):
        network.reset_classifier(0, "")
        return network, network.num_features
    if isinstance(getattr(network, "features", None), nn.Sequential):
        return network.features, network.classifier[0].in_features
    layers = [(n, m) for n, m in network.named_children() if n not in ("avgpool", "fc")]
    return nn.Sequential(OrderedDict(layers)), network.fc.in_features


def backbone_of(model: str) -> str:
    """The classifier that a network is made of: `resnet50` of `fcn_resnet50`."""
    head, _, backbone = model.partition("_")
    return backbone if head in (*HEADS, "fasterrcnn") else model
