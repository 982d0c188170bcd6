# SPDX-License-Identifier: Apache-2.0
"""The small DINO whose outputs, losses and gradients in the authors' code are known."""

from detectron2.config import CfgNode
from tests.models.family_reference import (
    NUM_DECODER,
    NUM_ENCODER,
    NUM_LEVELS,
    small_converter,
    small_model,
)
from torch import Tensor

from vastdet.detr.dino import dino_criterion
from vastdet.model_zoo.deformable_models import dino_transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.models.dino.dino import DINO, build_transformer


def converter() -> Converter:
    """The names of the small model."""
    return small_converter(
        "small DINO", dino_transformer_pairs(NUM_ENCODER, NUM_DECODER, num_levels=NUM_LEVELS)
    )


def small_dino(cfg: CfgNode, state_dict: dict[str, Tensor]) -> DINO:
    """Our model with the authors' weights; its input is normalised already."""
    model = small_model(DINO, cfg.MODEL.DINO, build_transformer, dino_criterion, 25)
    model.load_state_dict(converter().to_detectron2(state_dict))
    assert isinstance(model, DINO)
    return model
