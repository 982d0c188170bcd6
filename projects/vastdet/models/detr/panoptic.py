# SPDX-License-Identifier: Apache-2.0
"""DETR with a mask head: panoptic and instance segmentation (Carion et al. 2020, section 4.2).

B images, Q queries, M chosen queries, C channels, H x W the padded batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.set_detector import SetDetector, rescale
from vastdet.detr.structures import SetPredictions, Targets
from vastdet.models.detr.detr import build_criterion, detector_parts
from vastdet.models.detr.mask_head import MaskHead, QueryAttentionMaps
from vastdet.models.detr.mask_losses import (
    MaskCriterion,
    MaskPredictions,
    MaskTargets,
    mask_targets,
)
from vastdet.models.detr.panoptic_merge import PanopticMerger, PanopticSegmentation

# Masks that are brought to the size of the image at one time.
MASKS_AT_ONCE = 16


@META_ARCH_REGISTRY.register()
class PanopticDETR(SetDetector):
    """DETR whose queries, things and stuff alike, have masks too.

    Beside `instances`, which are things alone and have `pred_masks` (N, H, W) bool, an image has
    Detectron2's `panoptic_seg`: ids (H, W) int32 and a record for each segment.
    """

    @configurable
    def __init__(
        self,
        *,
        attention_maps: nn.Module,
        mask_head: MaskHead,
        merger: PanopticMerger,
        freeze_detector: bool = False,
        **parts: Any,
    ) -> None:
        """Put the parts together.

        Args:
            attention_maps: maps queries (B, Q, C), cells (B, h * w, C) and padding (B, h, w) to
                (B, Q, heads, h, w).
            mask_head: makes masks of these and the backbone's maps.
            merger: makes the panoptic segmentation.
            freeze_detector: whether only the two modules above learn, as in the authors' recipe.
            parts: see `SetDetector`.
        """
        super().__init__(**parts)
        if freeze_detector:
            self.requires_grad_(False)
        self.attention_maps = attention_maps
        self.mask_head = mask_head
        self.merger = merger

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.PANOPTIC_DETR`."""
        node = cfg.MODEL.PANOPTIC_DETR
        parts = detector_parts(cfg, node)
        return parts | {
            "criterion": build_criterion(
                node, MaskCriterion, mask_weight=node.MASK_WEIGHT, dice_weight=node.DICE_WEIGHT
            ),
            "attention_maps": QueryAttentionMaps(node.EMBED_DIM, node.NUM_HEADS),
            "mask_head": MaskHead(
                parts["backbone"].output_shape(),
                node.MASK_FEATURES,
                embed_dim=node.EMBED_DIM,
                num_heads=node.NUM_HEADS,
            ),
            "merger": PanopticMerger(
                node.NUM_THING_CLASSES,
                score_threshold=node.SCORE_THRESH_TEST,
                max_small_area=node.MAX_SMALL_AREA,
            ),
            "freeze_detector": node.FREEZE_DETECTOR,
        }

    def targets(self, batched_inputs: Sequence[Mapping[str, Any]]) -> MaskTargets:
        """The ground truth of a batch, with its masks; errors as in `mask_targets` too."""
        targets = super().targets(batched_inputs)
        return mask_targets(targets, [x["instances"] for x in batched_inputs])

    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> MaskPredictions:
        """Predictions of normalised images (3, H, W), padded to one batch."""
        pixels, mask = self.padded_batch(images)
        features = self.backbone(pixels)
        levels, masks = self.levels(features, mask)
        transformer = self.transformer
        memory = transformer.encoder(transformer.to_tokens(levels, masks))
        predictions = transformer.predict(memory, targets)
        content = predictions.decoder.content
        # There is one level, so the tokens are its cells.
        attention = self.attention_maps(content, memory.values, masks[0])

        def mask_logits(image: Tensor, query: Tensor) -> Tensor:
            return self.mask_head(levels[0], attention[image, query], features, image)

        return MaskPredictions(
            predictions.decoder,
            mask_logits=mask_logits,
            padded_size=(pixels.shape[-2], pixels.shape[-1]),
        )

    def results(
        self,
        predictions: SetPredictions,
        size: tuple[int, int],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """See `SetDetector.results`; `instances` and `panoptic_seg` of each image."""
        assert isinstance(predictions, MaskPredictions)
        found = self.detections(predictions.decoder, [size] * len(batched_inputs))
        _, queries, _ = self.select_detections(
            predictions.decoder.logits[-1],
            predictions.decoder.boxes[-1],
            self.max_detections_per_image,
        )
        results = []
        for i, (image, x) in enumerate(zip(found, batched_inputs, strict=True)):
            image.queries = queries[i]
            instances = rescale(image, x)
            things = instances.pred_classes < self.merger.num_thing_classes
            results.append(
                {
                    "instances": self.add_masks(instances[things], predictions, i, size),
                    "panoptic_seg": self.panoptic(predictions, i, size, instances.image_size),
                }
            )
        return results

    def add_masks(
        self,
        instances: Instances,
        predictions: MaskPredictions,
        image: int,
        size: tuple[int, int],
    ) -> Instances:
        """Replace the field `queries` by `pred_masks`, in the frame of the original image."""
        size_out = instances.image_size
        masks = [predictions.decoder.logits.new_zeros(0, *size_out, dtype=torch.bool)]
        if len(instances):
            for queries in instances.queries.split(MASKS_AT_ONCE):
                inside = self.masks_of(predictions, image, queries, size) > 0
                masks.append(F.interpolate(inside[None].float(), size_out)[0].bool())
        instances.remove("queries")
        instances.pred_masks = torch.cat(masks)
        return instances

    def panoptic(
        self,
        predictions: MaskPredictions,
        image: int,
        size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> PanopticSegmentation:
        """Segments of an image, in the frame of the original image."""
        queries, scores, classes = self.merger.select(predictions.decoder.logits[-1, image])
        masks = self.masks_of(predictions, image, queries, size)
        return self.merger.merge(scores, classes, masks, output_size)

    def masks_of(
        self, predictions: MaskPredictions, image: int, queries: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Mask logits (M, *size) of queries (M,) of an image, its padding cut off."""
        height, width = size
        if not len(queries):
            return predictions.decoder.logits.new_zeros(0, height, width)
        logits = predictions.mask_logits(torch.full_like(queries, image), queries)
        whole = F.interpolate(
            logits[:, None].float(), predictions.padded_size, mode="bilinear", align_corners=False
        )
        return whole[:, 0, :height, :width]
