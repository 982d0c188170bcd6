# SPDX-License-Identifier: Apache-2.0
"""Conditional DETR, DAB-DETR and DN-DETR under the authors' names: those of DN-DETR, less a few.

DN-DETR adds denoising to DAB-DETR, which adds boxes to Conditional DETR.
"""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.conditional_models import (
    conditional_detr_converter,
    dab_detr_converter,
    dn_detr_converter,
)
from vastdet.model_zoo.key_map import Converter

LINE = re.compile(r"^(\S+) \(([\d, ]*)\) float32")
NUM_CLASSES = 91


@pytest.fixture
def dn_detr(shared_data: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of DN-DETR."""
    listed = shared_data.parent / "facts" / "state_dicts" / "dndetr_r50.txt"
    if not listed.is_file():
        pytest.skip(f"no list of names at {listed}")
    found = (LINE.match(line) for line in listed.read_text("utf-8").splitlines())
    return {x[1]: tuple(int(n) for n in x[2].split(",") if n.strip()) for x in found if x}


def random_tensors(shapes: dict[str, tuple[int, ...]], converter: Converter) -> dict[str, Tensor]:
    """One number in each tensor; those that are shared are equal, as they are there."""
    generator = torch.Generator().manual_seed(0)
    tensors = {k: torch.rand(1, generator=generator).expand(v) for k, v in shapes.items()}
    for pair in converter.pairs:
        tensors.update(dict.fromkeys(pair.copies, tensors[pair.source]))
    return tensors


def assert_complete(converter: Converter, shapes: dict[str, tuple[int, ...]], node: str) -> None:
    cfg = get_config(converter.config)
    cfg.MODEL[node].NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    state_dict = random_tensors(shapes, converter)
    converted = converter.to_detectron2(state_dict)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected
    back = converter.from_detectron2(converted)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], value) for key, value in state_dict.items())


def without(
    shapes: dict[str, tuple[int, ...]], count: int, pattern: str
) -> dict[str, tuple[int, ...]]:
    kept = {name: shape for name, shape in shapes.items() if not re.search(pattern, name)}
    assert len(shapes) - len(kept) == count
    return kept


def test_every_tensor_of_dn_detr_has_its_place(dn_detr: dict[str, tuple[int, ...]]) -> None:
    assert_complete(dn_detr_converter(), dn_detr, "DN_DETR")
    patterns = {"transformer.patterns.weight": (3, 256)}
    assert_complete(dn_detr_converter("R_50_DC5_3pat"), dn_detr | patterns, "DN_DETR")


def test_every_tensor_of_dab_detr_has_its_place(dn_detr: dict[str, tuple[int, ...]]) -> None:
    shapes = without(dn_detr, 1, r"^label_enc")
    assert_complete(dab_detr_converter(), shapes, "DAB_DETR")


def test_every_tensor_of_conditional_detr_has_its_place(
    dn_detr: dict[str, tuple[int, ...]],
) -> None:
    shapes = without(dn_detr, 2, r"^(label_enc|refpoint_embed)")
    shapes = without(shapes, 12, r"activation\.weight$")
    shapes = without(shapes, 4 + 4 + 6, r"encoder\.query_scale|ref_anchor_head|decoder\.bbox_embed")
    # The point follows from the position of the query.
    head = "transformer.decoder.ref_point_head.layers"
    shapes[f"{head}.0.weight"] = (256, 256)
    shapes[f"{head}.1.weight"] = (2, 256)
    shapes[f"{head}.1.bias"] = (2,)
    shapes["query_embed.weight"] = (300, 256)
    assert_complete(conditional_detr_converter(), shapes, "CONDITIONAL_DETR")
