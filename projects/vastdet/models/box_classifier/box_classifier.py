# SPDX-License-Identifier: Apache-2.0
"""Classification of ground-truth boxes, to train a backbone where no published weights are at hand.

B images, N boxes of all, C channels, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ROIAlign
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.image_model import ImageModel
from vastdet.detr.structures import Targets
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.models.cq_dino.selector import empty_instances

# Cells a side of a box, before their mean.
BOX_CELLS = 7


@META_ARCH_REGISTRY.register()
class BoxClassifier(ImageModel[dict[str, Tensor]]):
    """Tells the class of each ground-truth box from the mean of a feature map in it.

    Each of the maps has a linear classifier of its own, so the classes become linear in the cells
    of all of them; the losses are their softmax cross-entropies, averaged over boxes. Detectors
    take up `backbone.*` by `MODEL.WEIGHTS`. It finds no boxes: an image's `instances` are empty.
    """

    @configurable
    def __init__(self, *, in_features: Sequence[str], **parts: Any) -> None:
        """Put it together.

        Args:
            in_features: names of the backbone's maps.
            parts: as of `ImageModel`.

        Raises:
            ValueError: the backbone has no such map.
        """
        super().__init__(**parts)
        shapes = self.backbone.output_shape()
        missing = [name for name in in_features if name not in shapes]
        if missing or not in_features:
            raise ValueError(
                f"MODEL.BOX_CLASSIFIER.IN_FEATURES is {list(in_features)}; expected some of "
                f"{list(shapes)}, the maps of the backbone"
            )
        self.in_features = list(in_features)
        self.pools = nn.ModuleDict(
            {
                name: ROIAlign(BOX_CELLS, 1 / shapes[name].stride, 0, aligned=True)
                for name in in_features
            }
        )
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
        """Logits (N, K) of the targets' boxes by map, image by image; of none without targets."""
        pixels, _ = self.padded_batch(images)
        features = self.backbone(pixels)
        boxes = pixels.new_zeros(0, 5)
        if targets is not None:
            boxes = numbered_boxes(targets, images)
        return {
            name: self.classifiers[name](
                self.pools[name](features[name].to(boxes.dtype), boxes).mean(dim=(-2, -1))
            )
            for name in self.in_features
        }

    def losses(self, predictions: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`loss_class_<map>`; the share of right answers is logged as `accuracy_<map>`."""
        labels = targets.labels[targets.filled]
        losses = {}
        for name, logits in predictions.items():
            sums = F.cross_entropy(logits.float(), labels, reduction="sum")
            losses[f"loss_class_{name}"] = sums / max(1, len(labels))
            if has_event_storage() and len(labels):
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
        like = predictions[self.in_features[0]]
        return [{"instances": empty_instances(x, like)} for x in batched_inputs]


def numbered_boxes(targets: Targets, images: Sequence[Tensor]) -> Tensor:
    """(N, 5): the image's place in the batch and XYXY pixels of each filled slot."""
    sizes = torch.tensor([[x.shape[-1], x.shape[-2]] * 2 for x in images]).to(targets.boxes)
    boxes = cxcywh_to_xyxy(targets.boxes) * sizes[:, None]
    image = torch.arange(len(images), device=boxes.device)[:, None].expand(boxes.shape[:2])
    return torch.cat([image[..., None].to(boxes), boxes], dim=-1)[targets.filled]
