# SPDX-License-Identifier: Apache-2.0
"""The first stage of CQ-DINO's training: image encoder, category queries and selection alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor

from vastdet.detr.image_model import ImageModel, empty_instances
from vastdet.detr.structures import Targets
from vastdet.detr.tokens import resize_mask
from vastdet.models.cq_dino.build import (
    build_category_side,
    build_selection_criterion,
    selection_feature,
    vocabulary,
)
from vastdet.models.cq_dino.category_side import (
    CategorySide,
    SelectionCriterion,
    labels_of_slots,
    log_recall,
    selection_outputs,
)
from vastdet.models.cq_dino.selection import SelectedCategories


@META_ARCH_REGISTRY.register()
class CQDINOSelector(ImageModel[SelectedCategories]):
    """Says which categories an image may show, without boxes; trained by image-level labels.

    Sun et al. 2025, section 4.2: 10 epochs of it come before the training of the detector, which
    takes up its weights by name. Of the ground truth only the classes of the boxes are read. An
    image's output holds `selected_categories` and `selection_scores` as those of `CQDINO`, and
    `instances` without any box.
    """

    @configurable
    def __init__(
        self,
        *,
        categories: CategorySide,
        selection_criterion: SelectionCriterion,
        selection_feature: str,
        **parts: Any,
    ) -> None:
        """See `CQDINO` and, for `parts`, `ImageModel`."""
        super().__init__(**parts)
        self.categories = categories
        self.selection_criterion = selection_criterion
        self.selection_feature = selection_feature

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.CQ_DINO`."""
        node, space = cfg.MODEL.CQ_DINO, vocabulary(cfg)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "num_classes": node.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "categories": build_category_side(cfg, space, backbone.output_shape()),
            "selection_criterion": build_selection_criterion(node, space),
            "selection_feature": selection_feature(node),
        }

    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> SelectedCategories:
        """See `ImageModel.predict_padded`."""
        pixels, mask = self.padded_batch(images)
        features = self.backbone(pixels)[self.selection_feature]
        mask = resize_mask(mask, (features.shape[-2], features.shape[-1]))
        return self.categories(features, mask).selected

    def losses(self, predictions: SelectedCategories, targets: Targets) -> dict[str, Tensor]:
        """`loss_selection`."""
        present = labels_of_slots(targets, self.num_classes)
        log_recall(predictions, present)
        return self.selection_criterion(predictions, present)

    def results(
        self,
        predictions: SelectedCategories,
        size: tuple[int, int],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """See `ImageModel.results`."""
        nothing = [empty_instances(x, predictions.logits) for x in batched_inputs]
        outputs = selection_outputs(predictions)
        return [{"instances": none, **own} for none, own in zip(nothing, outputs, strict=True)]
