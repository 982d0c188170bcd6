# SPDX-License-Identifier: Apache-2.0
"""RT-DETR's weights under the names of transformers and of the authors, into our configs."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.key_map import Converter, StateDict
from vastdet.model_zoo.rt_detr_models import (
    CONFIGS,
    DECODER_LAYERS,
    NARROW,
    join_projections,
    rt_detr_converter,
    rt_detr_transformers_converter,
    split_projections,
)

LINE = re.compile(r"^(\S+) \(([\d, ]*)\) float32")
BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
every = pytest.mark.parametrize(("version", "depth"), list(CONFIGS))


def model_shapes(config: str) -> dict[str, torch.Size]:
    """Names and shapes of the model that a config builds, without counts of batches."""
    cfg = get_config(config)
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    return {k: v.shape for k, v in state.items() if not k.endswith("num_batches_tracked")}


def assert_complete(converter: Converter, state_dict: StateDict) -> None:
    converted = converter.to_detectron2(state_dict)
    assert {k: v.shape for k, v in converted.items()} == model_shapes(converter.config)
    back = converter.from_detectron2(converted)
    assert all(torch.equal(back[name], state_dict[name]) for name in back.keys() & state_dict)
    left = {name for name in state_dict if not name.endswith(converter.ignored)}
    assert left <= back.keys()


@every
def test_every_tensor_of_transformers_has_its_place(version: int, depth: int) -> None:
    transformers = pytest.importorskip("transformers")
    kind, is_narrow = "V2" if version == 2 else "", depth in NARROW
    widths = [64, 128, 256, 512] if is_narrow else [256, 512, 1024, 2048]
    encoder = 384 if depth == 101 else 256
    backbone = transformers.RTDetrResNetConfig(
        hidden_sizes=widths,
        depths=BLOCKS[depth],
        layer_type="basic" if is_narrow else "bottleneck",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = getattr(transformers, f"RTDetr{kind}Config")(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        encoder_hidden_dim=encoder,
        encoder_ffn_dim=2048 if depth == 101 else 1024,
        decoder_in_channels=[encoder] * 3,
        hidden_expansion=0.5 if is_narrow else 1.0,
        decoder_layers=DECODER_LAYERS[depth],
        num_labels=80,
    )
    with torch.device("meta"):
        theirs = getattr(transformers, f"RTDetr{kind}ForObjectDetection")(config)
    converter = rt_detr_transformers_converter(depth, version=version)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in theirs.state_dict().items()
    }
    for pair in converter.pairs:
        state.update({copy: state[pair.source] for copy in pair.copies if copy in state})
    joined = join_projections(state)
    split = split_projections(joined)
    assert split.keys() == state.keys()
    assert all(torch.equal(split[name], tensor) for name, tensor in state.items())
    assert_complete(converter, joined)


@every
def test_every_released_tensor_has_its_place(version: int, depth: int, shared_data: Path) -> None:
    kind = "v2" if version == 2 else ""
    listed = shared_data.parent / "facts" / "state_dicts" / f"rtdetr{kind}_r{depth}vd.txt"
    if not listed.is_file():
        pytest.skip(f"no list of names at {listed}")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for line in listed.read_text("utf-8").splitlines():
        if found := LINE.match(line):
            shape = [int(n) for n in found[2].split(",") if n.strip()]
            state[found[1]] = torch.rand(shape, generator=generator)
    assert_complete(rt_detr_converter(depth, version=version), state)


def test_another_depth_is_left_over() -> None:
    converter = rt_detr_converter(18)
    tensor = torch.zeros(1)
    state = {pair.source: tensor for pair in rt_detr_converter(34).pairs}
    with pytest.raises(ValueError, match=r"not the state dict of RT-DETR ResNet-18-vd"):
        converter.to_detectron2(state)
