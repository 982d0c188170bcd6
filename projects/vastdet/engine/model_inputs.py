# SPDX-License-Identifier: Apache-2.0
"""Made-up inputs for any Detectron2 model: random pixels, boxes and, where needed, proposals."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from vastdet.engine.config_files import class_count_keys, value_of

NUM_PROPOSALS = 256


def random_inputs(
    cfg: CfgNode, *, batch_size: int, image_size: tuple[int, int], num_boxes: int = 8, seed: int = 0
) -> list[dict[str, Any]]:
    """A batch in Detectron2's form, the same for the same arguments.

    Args:
        cfg: tells the number of classes, and whether the model takes precomputed proposals.
        batch_size: number of images.
        image_size: (height, width) in pixels, as the model sees them.
        num_boxes: ground-truth boxes an image.
        seed: of the random pixels and boxes.

    Returns:
        {"image": 3xHxW uint8, "height", "width", "instances": gt_boxes XYXY absolute pixels and
        gt_classes} for each image, with "proposals" if `cfg.MODEL.LOAD_PROPOSALS`.

    Raises:
        ValueError: a size is not positive.
    """
    height, width = image_size
    if batch_size < 1 or height < 1 or width < 1:
        raise ValueError(f"need a positive batch and image size, got {batch_size}, {image_size}")
    generator = torch.Generator().manual_seed(seed)
    num_classes = min((int(value_of(cfg, k)) for k in class_count_keys(cfg)), default=1)
    inputs = []
    for _ in range(batch_size):
        instances = Instances(image_size)
        instances.gt_boxes = random_boxes(num_boxes, image_size, generator)
        instances.gt_classes = torch.randint(num_classes, (num_boxes,), generator=generator)
        record: dict[str, Any] = {
            "image": torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator),
            "height": height,
            "width": width,
            "instances": instances,
        }
        if cfg.MODEL.LOAD_PROPOSALS:
            proposals = Instances(image_size)
            proposals.proposal_boxes = random_boxes(NUM_PROPOSALS, image_size, generator)
            proposals.objectness_logits = torch.randn(NUM_PROPOSALS, generator=generator)
            record["proposals"] = proposals
        inputs.append(record)
    return inputs


def random_boxes(num_boxes: int, image_size: tuple[int, int], generator: torch.Generator) -> Boxes:
    """Boxes within the image with sides of a tenth to six tenths of its own."""
    size = torch.tensor([image_size[1], image_size[0]], dtype=torch.float32)
    sides = (0.1 + 0.5 * torch.rand(num_boxes, 2, generator=generator)) * size
    corners = torch.rand(num_boxes, 2, generator=generator) * (size - sides)
    return Boxes(torch.cat([corners, corners + sides], dim=1))
