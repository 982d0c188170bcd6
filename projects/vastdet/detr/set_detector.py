# SPDX-License-Identifier: Apache-2.0
"""The meta-architecture of set prediction: backbone, neck, transformer, losses or detections.

B images, L levels, C channels, H x W the padded batch, Q queries, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vastdet.detr.detections import SelectDetections, best_pairs
from vastdet.detr.image_model import ImageModel
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.detr.tokens import resize_mask
from vastdet.layers.boxes import cxcywh_to_xyxy


class SetDetector(ImageModel[SetPredictions]):
    """Predicts a set of boxes with one transformer; each member of the family derives from it.

    Takes Detectron2's list of dicts and returns losses or `[{"instances": Instances}]` in the
    frame of the original image (`pred_boxes` XYXY pixels, `scores` in [0, 1], `pred_classes`).

    See `ImageModel` for how images are batched.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: nn.Module,
        transformer: nn.Module,
        criterion: nn.Module,
        num_classes: int,
        max_detections_per_image: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        select_detections: SelectDetections = best_pairs,
        size_divisibility: int = 0,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: gives maps by name.
            neck: maps these to L levels (B, C, H_l, W_l).
            transformer: maps levels, their padding masks (B, H_l, W_l) and, in training, targets
                to `SetPredictions`.
            criterion: turns `SetPredictions` and `Targets` into weighted losses by name.
            num_classes: K.
            max_detections_per_image: detections kept.
            pixel_mean: subtracted from the image, per channel.
            pixel_std: then divides it.
            select_detections: picks the detections from what the last layer predicts.
            size_divisibility: of the padded batch's height and width; 0 leaves it to the backbone.
        """
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
        )
        self.neck = neck
        self.transformer = transformer
        self.criterion = criterion
        self.max_detections_per_image = max_detections_per_image
        self.select_detections = select_detections

    def losses(self, predictions: SetPredictions, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses by name."""
        losses: dict[str, Tensor] = self.criterion(predictions, targets)
        return losses

    def results(
        self,
        predictions: SetPredictions,
        size: tuple[int, int],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """What is returned for images of one network input `size` (height, width)."""
        found = self.detections(predictions.decoder, [size] * len(batched_inputs))
        return [
            {"instances": rescale(image, x)} for image, x in zip(found, batched_inputs, strict=True)
        ]

    def predict_padded(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> SetPredictions:
        """Predictions of normalised images (3, H, W), padded to one batch."""
        return self.transformer(*self.padded_levels(images), targets)

    def padded_levels(self, images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels (B, C, H_l, W_l) and masks (B, H_l, W_l), True at padding, of one padded batch."""
        pixels, mask = self.padded_batch(images)
        return self.levels(self.backbone(pixels), mask)

    def levels(
        self, features: Mapping[str, Tensor], mask: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The neck's levels of the backbone's maps, and the batch's mask for each."""
        levels = self.neck(features)
        return levels, [resize_mask(mask, (x.shape[-2], x.shape[-1])) for x in levels]

    def detections(
        self, predictions: LayerPredictions, sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The best detections of the last layer, in pixels of each image's `sizes`."""
        scores, queries, classes = self.select_detections(
            predictions.logits[-1], predictions.boxes[-1], self.max_detections_per_image
        )
        boxes = cxcywh_to_xyxy(predictions.boxes[-1])
        results = []
        for i, (height, width) in enumerate(sizes):
            chosen = boxes[i, queries[i]]
            found = Instances((height, width))
            found.pred_boxes = Boxes(chosen * chosen.new_tensor([width, height, width, height]))
            found.scores = scores[i]
            found.pred_classes = classes[i]
            results.append(found)
        return results


def rescale(found: Instances, batched_input: Mapping[str, Any]) -> Instances:
    """Detections in the frame of the original image, clipped to it, those without area dropped."""
    height = batched_input.get("height", found.image_size[0])
    width = batched_input.get("width", found.image_size[1])
    return detector_postprocess(found, height, width)
