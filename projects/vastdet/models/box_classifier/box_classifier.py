# SPDX-License-Identifier: Apache-2.0
"""Classification of ground-truth boxes, to train a backbone where no published weights are at hand.

B images, N boxes of all of them, C channels of a map, K classes, M groups of classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
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
from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.hierarchy import NO_NODE

# Cells along each side of a box, before their mean.
BOX_CELLS = 7
WEIGHT_KEY = "MODEL.BOX_CLASSIFIER.TREE_LOSS_WEIGHT"


@META_ARCH_REGISTRY.register()
class BoxClassifier(ImageModel[dict[str, Tensor]]):
    """Tells the class of each ground-truth box from the mean of a feature map inside it.

    Each map has a linear classifier of its own. With a category tree it also tells in which groups
    of the tree a box is: a rare class has few examples, what it shares with others has many.
    Detectors take up `backbone.*` by `MODEL.WEIGHTS`. It finds no boxes: at inference the
    `instances` of an image are empty.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        groups: Tensor | None = None,
        tree_loss_weight: float = 1.0,
        **parts: Any,
    ) -> None:
        """Put it together.

        Args:
            in_features: names of maps of the backbone.
            groups: (K, M) bool, the groups that each class is in; None for none.
            tree_loss_weight: of the loss of the groups.
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
        if groups is None:
            groups = torch.zeros(self.num_classes, 0)
        self.register_buffer("groups", groups.float(), persistent=False)
        self.tree_loss_weight = tree_loss_weight
        num_logits = self.num_classes + groups.shape[1]
        self.classifiers = nn.ModuleDict(
            {name: nn.Linear(shapes[name].channels, num_logits) for name in in_features}
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.BOX_CLASSIFIER`."""
        node, groups = cfg.MODEL.BOX_CLASSIFIER, None
        if node.TREE_LOSS_WEIGHT:
            groups = read_groups(cfg)
        return {
            "backbone": build_backbone(cfg),
            "num_classes": node.NUM_CLASSES,
            "in_features": node.IN_FEATURES,
            "groups": groups,
            "tree_loss_weight": node.TREE_LOSS_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Logits (N, K + M) of the targets' boxes by map, image by image; N = 0 without targets."""
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
        """Losses averaged over the boxes of all processes.

        `loss_class_<map>` is the softmax cross-entropy of the classes, `loss_tree_<map>` the sum of
        the binary cross-entropies of the groups. The share of right answers is logged as
        `accuracy_<map>`.
        """
        labels = targets.labels[targets.filled]
        num_boxes = mean_over_ranks(self.pixel_mean.new_tensor(float(len(labels)))).clamp(min=1)
        losses = {}
        for name, both in predictions.items():
            logits, groups = at_least_float32(both).tensor_split([self.num_classes], dim=-1)
            sums = F.cross_entropy(logits, labels, reduction="sum")
            losses[f"loss_class_{name}"] = sums / num_boxes
            if groups.shape[-1]:
                present = self.groups[labels]
                sums = F.binary_cross_entropy_with_logits(groups, present, reduction="sum")
                losses[f"loss_tree_{name}"] = self.tree_loss_weight * sums / num_boxes
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


def read_groups(cfg: CfgNode) -> Tensor:
    """(K, M) bool: the groups of the first training set's category tree that each class is in.

    A group is a node above some classes but not above all of them; a class that is such a node is
    in its own group.

    Raises:
        ValueError: there is no training set, it has no tree or not NUM_CLASSES categories, or its
            tree has no group.
    """
    num_classes = cfg.MODEL.BOX_CLASSIFIER.NUM_CLASSES
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            f"{WEIGHT_KEY} needs the tree of a dataset: name one in DATASETS.TRAIN, or set the "
            "weight to 0"
        )
    name = cfg.DATASETS.TRAIN[0]
    tree = CategorySpace.from_metadata(MetadataCatalog.get(name)).hierarchy
    if tree is None or tree.num_categories != num_classes:
        got = "no tree" if tree is None else f"a tree of {tree.num_categories} categories"
        raise ValueError(
            f"{WEIGHT_KEY} needs a training set with a tree of NUM_CLASSES = {num_classes} "
            f"categories; {name!r} has {got}; set the weight to 0, or train on another dataset"
        )
    groups = np.zeros((num_classes, len(tree)), dtype=bool)
    for category, node in enumerate(tree.category_nodes):
        if node != NO_NODE:
            groups[category, tree.ancestors(node)] = True
            groups[category, node] = len(tree.children(node)) > 0
    sizes = groups.sum(axis=0)
    is_group = (sizes > 0) & (sizes < num_classes)
    if not is_group.any():
        raise ValueError(
            f"the tree of {name!r} has no group above some categories but not all, which "
            f"{WEIGHT_KEY} needs; set the weight to 0, or train on another dataset"
        )
    return torch.from_numpy(groups[:, is_group])


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
