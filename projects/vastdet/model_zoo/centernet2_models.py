# SPDX-License-Identifier: Apache-2.0
"""CenterNet2 under the names of the authors (xingyizhou/CenterNet2): ours are the same.

Such a file can be loaded as it is; the table is for the tool's check of every tensor, and for
--coco-categories.
"""

from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias

NUM_STAGES = 3  # of the cascade
NUM_LEVELS = 5  # P3 to P7
NUM_TOWER_CONVS = 4


def _layers(*names: str) -> list[Pair]:
    return [pair for name in names for pair in weight_and_bias(name, name)]


def proposal_pairs() -> list[Pair]:
    """Every tensor of the first stage."""
    head = "proposal_generator.centernet_head"
    # Convolution and norm; an activation follows.
    tower = [f"{head}.bbox_tower.{3 * i + j}" for i in range(NUM_TOWER_CONVS) for j in (0, 1)]
    scales = [f"{head}.scales.{level}.scale" for level in range(NUM_LEVELS)]
    return [
        *_layers(*tower, f"{head}.bbox_pred", f"{head}.agn_hm"),
        *(Pair(scale, scale) for scale in scales),
    ]


def cascade_pairs() -> list[Pair]:
    """Every tensor of the second stage."""
    pairs: list[Pair] = []
    for stage in range(NUM_STAGES):
        box_head, predictor = f"roi_heads.box_head.{stage}", f"roi_heads.box_predictor.{stage}"
        pairs += _layers(f"{box_head}.fc1", f"{box_head}.fc2", f"{predictor}.bbox_pred")
        scores = f"{predictor}.cls_score"
        pairs += weight_and_bias(scores, scores, classes=ClassRows(after=1))
    return pairs


def centernet2_converter(depth: int = 50) -> Converter:
    """xingyizhou/CenterNet2 with a ResNet and a pyramid, CenterNet2_R50_1x among them."""
    bottom_up = [p.detectron2 for p in resnet_pairs(depth, detectron2="backbone.bottom_up.")]
    pyramid = [
        f"backbone.fpn_{kind}{level}" for level in (3, 4, 5) for kind in ("lateral", "output")
    ]
    return Converter(
        name=f"CenterNet2 R_{depth} (xingyizhou/CenterNet2)",
        config=f"CenterNet2/centernet2_R_{depth}_FPN_1x.yaml",
        pairs=(
            *(Pair(name, name) for name in bottom_up),
            *_layers(*pyramid, "backbone.top_block.p6", "backbone.top_block.p7"),
            *proposal_pairs(),
            *cascade_pairs(),
        ),
        # Detectron2 once kept the normalisation of pixels with the weights.
        ignored=("num_batches_tracked", "pixel_mean", "pixel_std"),
    )
