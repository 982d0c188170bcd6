# SPDX-License-Identifier: Apache-2.0
"""Classification of ground-truth boxes, to train a backbone where no published weights are at hand.

B images, N boxes of all of them, C channels of a map, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from vastdet.detr.image_model import ImageModel, empty_instances
from vastdet.detr.structures import Targets
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.layers.distributed import mean_over_ranks
from vastdet.layers.precision import at_least_float32

# Cells along each side of a box, before their mean.
BOX_CELLS = 7


@META_ARCH_REGISTRY.register()
class BoxClassifier(ImageModel[dict[str, Tensor]]):
    """Tells the class of each ground-truth box from the mean of a feature map inside it.

    Each map has a linear classifier of its own. Detectors take up `backbone.*` by `MODEL.WEIGHTS`.
    It finds no boxes: at inference the `instances` of an image are empty.
    """

    @configurable
    def __init__(self, *, in_features: Sequence[str], **parts: Any) -> None:
        """Put it together.

        Args:
            in_features: names of maps of the backbone.
            parts: as of `ImageModel`.

        Raises:
            ValueError: no map is named, or one that the backbone does not have.
        """
        super().__init__(**parts)
        shapes = self.backbone.output_shape()
        if not in_features or not set(in_features) <= set(shapes):
            raise ValueError(
                f"MODEL.BOX_CLASSIFIER.IN_FEATURES is {list(in_features)}; expected at least one "
                f"of {list(shapes)}, the maps of the backbone, and no others"
            )
        self.strides = {name: shapes[name].stride for name in in_features}
        self.classifiers = nn.ModuleDict(
            {name: nn.Linear(shapes[name].channels, self.num_classes) for name in in_features}
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.BOX_CLASSIFIER`."""
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.BOX_CLASSIFIER.NUM_CLASSES,
            "in_features": cfg.MODEL.BOX_CLASSIFIER.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Logits (N, K) of the targets' boxes by map, image by image; N = 0 without targets."""
        pixels, _ = self.padded_batch(images)
        features = self.backbone(pixels)
        if targets is None:
            boxes = [pixels.new_zeros(0, 4)] * len(images)
        else:
            boxes = boxes_in_pixels(targets, images)
        return {
            name: self.classifiers[name](mean_in_boxes(features[name], boxes, stride))
            for name, stride in self.strides.items()
        }

    def losses(self, predictions: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`loss_class_<map>`, softmax cross-entropies averaged over the boxes of all processes.

        The share of right answers is logged as `accuracy_<map>`.
        """
        labels = targets.labels[targets.filled]
        num_boxes = mean_over_ranks(self.pixel_mean.new_tensor(float(len(labels)))).clamp(min=1)
        losses = {}
        for name, logits in predictions.items():
            sums = F.cross_entropy(at_least_float32(logits), labels, reduction="sum")
            losses[f"loss_class_{name}"] = sums / num_boxes
            if len(labels) and has_event_storage():
                right = (logits.argmax(dim=-1) == labels).float().mean()
                get_event_storage().put_scalar(f"accuracy_{name}", right)
        return losses

    def results(
        self,
        predictions: dict[str, Tensor],
        size: tuple[int, int],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """See `ImageModel.results`."""
        return [{"instances": empty_instances(x, self.pixel_mean)} for x in batched_inputs]


def boxes_in_pixels(targets: Targets, images: Sequence[Tensor]) -> list[Tensor]:
    """The boxes of each image, XYXY pixels of the network input."""
    corners = cxcywh_to_xyxy(targets.boxes)
    sizes = torch.tensor([[x.shape[-1], x.shape[-2]] * 2 for x in images]).to(corners)
    own = zip(corners * sizes[:, None], targets.num_boxes, strict=True)
    return [image[:count] for image, count in own]


def mean_in_boxes(features: Tensor, boxes: Sequence[Tensor], stride: int) -> Tensor:
    """The means (N, C) of maps (B, C, H, W) inside XYXY boxes in pixels, a tensor an image.

    A mean is that of `BOX_CELLS` x `BOX_CELLS` cells of RoIAlign (He et al., Mask R-CNN, ICCV 2017)
    with pixels as areas (`aligned`), in the type of the boxes.
    """
    features = features.to(boxes[0].dtype)
    cells = roi_align(features, list(boxes), BOX_CELLS, 1 / stride, aligned=True)
    return cells.mean(dim=(-2, -1))
