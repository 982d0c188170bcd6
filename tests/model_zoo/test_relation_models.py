# SPDX-License-Identifier: Apache-2.0
"""Relation-DETR's weights under the authors' names, from a list of the names in their release."""

from pathlib import Path

import torch
from detectron2.modeling import build_model
from tests.model_zoo.test_deformable_models import released
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.relation_models import relation_detr_converter


def shapes_of_our_model(num_classes: int) -> dict[str, torch.Size]:
    cfg = get_config("RelationDETR/relation_detr_R_50_12ep")
    cfg.MODEL.RELATION_DETR.NUM_CLASSES = num_classes
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    return {key: value.shape for key, value in model.state_dict().items()}


def shapes(state_dict: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state_dict.items()}


def test_every_released_tensor_has_its_place(shared_data: Path) -> None:
    converter = relation_detr_converter()
    state_dict = released(shared_data, "relation_r50", converter)
    assert len(state_dict) == 595
    # Files of the authors' training also hold the names of the classes, as numbers.
    converted = converter.to_detectron2({**state_dict, "_classes_": torch.tensor([80, -1])})
    assert shapes(converted) == shapes_of_our_model(91)
    back = converter.from_detectron2(converted)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], value) for key, value in state_dict.items())


def test_the_categories_in_use_make_our_rows(shared_data: Path) -> None:
    converter = relation_detr_converter()
    state_dict = released(shared_data, "relation_r50", converter)
    chosen = converter.to_detectron2(converter.select_categories(state_dict, range(1, 81)))
    assert shapes(chosen) == shapes_of_our_model(80)
    rows = chosen["transformer.denoising.label_embedding.weight"]
    assert torch.equal(rows[:80], state_dict["denoising_generator.label_encoder.weight"][1:81])
