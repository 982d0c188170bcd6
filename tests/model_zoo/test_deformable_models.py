# SPDX-License-Identifier: Apache-2.0
"""Weights under the authors' and detrex's names, from lists of the names in their releases."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.deformable_models import (
    deformable_detr_converter,
    deta_converter,
    dino_converter,
    dino_detrex_converter,
)
from vastdet.model_zoo.hybrid_models import h_deformable_detr_converter, rank_detr_converter
from vastdet.model_zoo.key_map import Converter

LINE = re.compile(r"^(\S+) \(([\d, ]*)\) float32")
CASES = {
    "dino_4scale_r50": (dino_converter, "DINO/dino_R_50_4scale_12ep", 91),
    "dino_detrex_r50": (dino_detrex_converter, "DINO/dino_R_50_4scale_12ep_detrex", 80),
    "ddetr_r50": (
        partial(deformable_detr_converter, "two_stage"),
        "DeformableDETR/deformable_detr_R_50_two_stage_50ep",
        91,
    ),
    "hdetr_r50": (
        h_deformable_detr_converter,
        "HDeformableDETR/h_deformable_detr_R_50_12ep",
        91,
    ),
    "rank_r50": (rank_detr_converter, "RankDETR/rank_detr_R_50_12ep", 80),
    "deta_r50": (deta_converter, "DETA/deta_R_50_12ep", 91),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, Converter, str, int]:
    make, config, num_classes = CASES[request.param]
    return request.param, make(), config, num_classes


def released(folder: Path, name: str, converter: Converter) -> dict[str, Tensor]:
    """Random tensors under all names of a release; shared ones are equal, as they are there."""
    listed = folder.parent / "facts" / "state_dicts" / f"{name}.txt"
    if not listed.is_file():
        pytest.skip(f"no list of names at {listed}")
    generator = torch.Generator().manual_seed(0)
    state_dict = {}
    for line in listed.read_text("utf-8").splitlines():
        if found := LINE.match(line):
            shape = [int(n) for n in found[2].split(",") if n.strip()]
            state_dict[found[1]] = torch.rand(shape, generator=generator)
    for pair in converter.pairs:
        state_dict.update(dict.fromkeys(pair.copies, state_dict[pair.source]))
    return state_dict


def test_every_released_tensor_has_its_place(
    case: tuple[str, Converter, str, int], shared_data: Path
) -> None:
    name, converter, config, num_classes = case
    state_dict = released(shared_data, name, converter)
    cfg = get_config(config)
    for node in cfg.MODEL.values():
        if isinstance(node, CfgNode) and "NUM_CLASSES" in node:
            node.NUM_CLASSES = num_classes
    with torch.device("meta"):
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
    converted = converter.to_detectron2(state_dict)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected
    back = converter.from_detectron2(converted)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], value) for key, value in state_dict.items())


def test_missing_left_over_and_unequal_copies(shared_data: Path) -> None:
    converter = dino_converter()
    state_dict = released(shared_data, "dino_4scale_r50", converter)
    short = {k: v for k, v in state_dict.items() if k != "transformer.tgt_embed.weight"}
    with pytest.raises(ValueError, match=r"missing: 1\n +transformer\.tgt_embed\.weight"):
        converter.to_detectron2(short)
    with pytest.raises(ValueError, match=r"left over: 1\n +surplus"):
        converter.to_detectron2({**state_dict, "surplus": torch.zeros(1)})
    other = {**state_dict, "class_embed.3.bias": torch.zeros(91)}
    with pytest.raises(ValueError, match=r"class_embed\.0\.bias and class_embed\.3\.bias differ"):
        converter.to_detectron2(other)
    # Formats that keep a shared tensor once lose nothing.
    copies = {copy for pair in converter.pairs for copy in pair.copies}
    once = {k: v for k, v in state_dict.items() if k not in copies}
    assert converter.to_detectron2(once).keys() == converter.to_detectron2(state_dict).keys()


@pytest.mark.parametrize("variant", ["plain", "refined"])
def test_one_stage_deformable_detr_has_a_name_for_every_tensor(variant: str) -> None:
    cfg = get_config(f"DeformableDETR/deformable_detr_R_50_{variant}_50ep")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    converter = deformable_detr_converter(variant)
    assert {pair.detectron2 for pair in converter.pairs} == set(model.state_dict())
    names = {name for pair in converter.pairs for name in (pair.source, *pair.copies)}
    assert {"query_embed.weight", "transformer.reference_points.bias", "class_embed.5.bias"} < names
    assert ("transformer.decoder.bbox_embed.0.layers.0.bias" in names) == (variant == "refined")
    assert "transformer.decoder.class_embed.0.bias" not in names
