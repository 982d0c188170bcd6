# SPDX-License-Identifier: Apache-2.0
"""Weights under the names of the authors of DAB-DETR and DN-DETR."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tests.model_zoo.test_deformable_models import released
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.dab_deformable_models import (
    dab_deformable_converter,
    dn_deformable_converter,
)
from vastdet.model_zoo.key_map import Converter


def without_denoising(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model in DAB-DETR: no labels, and no channel of the contents kept free."""
    state_dict = {k: v for k, v in state_dict.items() if k != "label_enc.weight"}
    return state_dict | {"tgt_embed.weight": torch.rand(300, 256)}


@pytest.mark.parametrize("has_denoising", [True, False], ids=["DN", "DAB"])
def test_every_released_tensor_has_its_place(has_denoising: bool, shared_data: Path) -> None:
    converter: Converter = dn_deformable_converter()
    state_dict = released(shared_data, "dndeformable_r50", converter)
    if not has_denoising:
        converter, state_dict = dab_deformable_converter(), without_denoising(state_dict)
    cfg = get_config(converter.config)
    cfg.MODEL.DAB_DEFORMABLE_DETR.NUM_CLASSES = 91
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    converted = converter.to_detectron2(state_dict)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected
    back = converter.from_detectron2(converted)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], value) for key, value in state_dict.items())
