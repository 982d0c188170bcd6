# SPDX-License-Identifier: Apache-2.0
"""RetinaNet whose boxes are clipped to the image before non-maximum suppression."""

from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor


@META_ARCH_REGISTRY.register()
class ClippedRetinaNet(RetinaNet):
    """Detectron2's RetinaNet with torchvision's order of clipping and suppression at inference.

    Detectron2 suppresses first and clips last. Boxes that reach over the border overlap differently
    once clipped, so the two orders keep different boxes there. Training is the same.
    """

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[Tensor],
        pred_deltas: list[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        candidates = super()._decode_multi_level_predictions(
            anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
        )
        candidates.pred_boxes.clip(image_size)
        return candidates
