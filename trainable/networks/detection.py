"""Faster R-CNN for images of one size: a classifier's features, proposals of boxes, their classes.

Its parts are torchvision's. `fasterrcnn_NAME` and `timm/NAME` take the four stages of a ResNet with
a feature pyramid; our own networks have one map, of a quarter of the image's size, and smaller
heads. Images come normalized and stay as they are, so nothing of torchvision's resizing is there.
"""

from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from trainable.config import OWN_MODELS, TrialConfig, file_of
from trainable.data.sources import MOST_BOXES
from trainable.networks.models import bare_network, load_weights, pretrained_network
from trainable.networks.plain import own_features
from trainable.networks.segmentation import backbone_of

STAGES = ("layer1", "layer2", "layer3", "layer4")
RATIOS = (0.5, 1.0, 2.0)
PYRAMID_WIDTH = 256


class Detector(nn.Module):
    """The mean loss of images with boxes; or, without boxes, what is found in the images.

    What is found is (B, MOST_BOXES, 6): left, top, right, bottom, score and class, of which 0 fills
    up. Anchors and proposals are drawn by PyTorch's global generator.
    """

    def __init__(self, backbone: nn.Module, head: nn.ModuleDict) -> None:
        """`backbone` is named so that `blocks_of` finds its layers."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images_BCHW: Tensor, boxes_BM5: Tensor | None = None) -> Tensor:
        """The loss, or what is found."""
        maps = self._maps(images_BCHW)
        targets = None if boxes_BM5 is None else [_target(boxes_M5) for boxes_M5 in boxes_BM5]
        rpn, roi_heads = self.head["rpn"], self.head["roi_heads"]
        # This alone tells them to give losses; neither has dropout or BatchNorm.
        rpn.training = roi_heads.training = targets is not None
        sizes = [(images_BCHW.shape[2], images_BCHW.shape[3])] * len(images_BCHW)
        with _without_autocast(images_BCHW.device.type):
            proposals, of_proposals = rpn(ImageList(images_BCHW, sizes), maps, targets)
            found, of_boxes = roi_heads(maps, proposals, sizes, targets)
        if targets is not None:
            return torch.stack([*of_proposals.values(), *of_boxes.values()]).sum()
        return torch.stack([_padded(**one) for one in found])

    def _maps(self, images_BCHW: Tensor) -> "OrderedDict[str, Tensor]":
        """The maps of features by name, all with as many channels."""
        features = self.backbone(images_BCHW)
        if isinstance(features, Tensor):
            return OrderedDict({"0": features.float()})
        maps = self.head["fpn"](features)
        return OrderedDict((name, values.float()) for name, values in maps.items())


def _without_autocast(device: str) -> Any:
    """Boxes are not exact to the pixel in 16 bits."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _target(boxes_M5: Tensor) -> dict[str, Tensor]:
    there = boxes_M5[boxes_M5[:, 4] > 0]
    return {"boxes": there[:, :4], "labels": there[:, 4].long()}


def _padded(boxes: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    found = boxes.new_zeros(MOST_BOXES, 6)
    found[: len(boxes)] = torch.cat([boxes, scores[:, None], labels[:, None].to(boxes.dtype)], 1)
    return found


def detection_network(config: TrialConfig, *, num_classes: int, load: bool) -> nn.Module:
    """The network with a new head; `load` says whether to give it the weights of the config.

    Raises:
        ValueError: the weights are of another network, or it is no ResNet.
    """
    if config.model in OWN_MODELS:
        features, width = own_features(config, dilate_last=True)
        small = Sizes(((6, 10, 16, 24),), pooled=5, hidden=64, proposals=200, trained=32)
        return Detector(features, _heads(width, num_classes, names=["0"], sizes=small))
    backbone, widths = _stages_of(config, load=load)
    names = [str(number) for number in range(len(STAGES))]
    pyramid = FeaturePyramidNetwork(widths, PYRAMID_WIDTH, extra_blocks=LastLevelMaxPool())
    head = _heads(PYRAMID_WIDTH, num_classes, names=names, sizes=Sizes())
    head["fpn"] = pyramid
    return Detector(backbone, head)


@dataclass(frozen=True)
class Sizes:
    """Those of the heads; by default torchvision's.

    The sides of each map's anchors, those of a proposal's features, the units of the classifier,
    and of an image's proposals how many are kept, and how many are trained on.
    """

    anchors_px: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    pooled: int = 7
    hidden: int = 1024
    proposals: int = 2000
    trained: int = 512


def _heads(width: int, num_classes: int, *, names: list[str], sizes: Sizes) -> nn.ModuleDict:
    """What proposes boxes, and what classifies them."""
    most, trained, hidden = sizes.proposals, sizes.trained, sizes.hidden
    anchors = AnchorGenerator(sizes.anchors_px, (RATIOS,) * len(sizes.anchors_px))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(width, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=trained // 2,
        positive_fraction=0.5,
        pre_nms_top_n={"training": most, "testing": most // 2},
        post_nms_top_n={"training": most, "testing": most // 2},
        nms_thresh=0.7,
    )
    pool = MultiScaleRoIAlign(names, output_size=sizes.pooled, sampling_ratio=2)
    roi_heads = RoIHeads(
        pool,
        TwoMLPHead(width * sizes.pooled**2, hidden),
        FastRCNNPredictor(hidden, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=trained,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=MOST_BOXES,
    )
    return nn.ModuleDict({"rpn": rpn, "roi_heads": roi_heads})


def _stages_of(config: TrialConfig, *, load: bool) -> tuple[nn.Module, list[int]]:
    """The four stages of a ResNet with its weights, and how many maps each gives."""
    name = backbone_of(config.model)
    if load and config.pretrained == "imagenet":
        model = pretrained_network(name)
    else:
        model = bare_network(name)
    if load and config.pretrained not in ("imagenet", "none"):
        load_weights(model, Path(file_of(config.pretrained)))
    if not all(hasattr(model, stage) for stage in STAGES):
        raise ValueError(f"{config.model} is no ResNet: it has no stages {', '.join(STAGES)}")
    returned = {stage: str(number) for number, stage in enumerate(STAGES)}
    widths = [_width(model.get_submodule(stage)) for stage in STAGES]
    return IntermediateLayerGetter(model, returned), widths


def _width(stage: nn.Module) -> int:
    """The maps that a stage of residual blocks gives: those of its last normalization."""
    block = list(stage.children())[-1]
    return [m.num_features for m in block.modules() if isinstance(m, nn.BatchNorm2d)][-1]
