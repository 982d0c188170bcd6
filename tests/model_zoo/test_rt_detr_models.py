# SPDX-License-Identifier: Apache-2.0
"""RT-DETR's weights under the names of transformers and of the authors, into our configs."""

import itertools
from pathlib import Path

import pytest
import torch
from tests.models.rt_detr_reference import random_weights
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.convert_file import DETECTRON2_EPS, expected_tensors
from vastdet.model_zoo.key_map import Converter, StateDict
from vastdet.model_zoo.probe import build_probe_model, compare
from vastdet.model_zoo.rt_detr_models import (
    CONFIGS,
    DECODER_LAYERS,
    NARROW,
    older,
    rt_detr_converter,
    rt_detr_transformers_converter,
)

# How many tensors the authors' models have; counters of norms and masks are not among them.
NUM_RELEASED = {(1, 18): 464, (1, 34): 574, (1, 50): 694, (1, 101): 949, (2, 18): 468, (2, 50): 701}
BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
every = pytest.mark.parametrize(("version", "depth"), list(CONFIGS))


def assert_complete(converter: Converter, state_dict: StateDict) -> None:
    converted = converter.to_detectron2(state_dict)
    model = expected_tensors(converter, get_config(converter.config))
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.items()}
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
    assert_complete(converter, state)
    # Files that older releases wrote.
    old = {older(name): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    new, from_old = converter.to_detectron2(state), converter.to_detectron2(old)
    assert all(torch.equal(from_old[name], tensor) for name, tensor in new.items())


def released(version: int, depth: int) -> dict[str, list[int]]:
    """The shape of every tensor of a published model, from the list beside this file."""
    shapes = {}
    for line in Path(__file__).with_name("rt_detr_released.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, shape, models = line.split()
        if models != "all" and f"{version}-{depth}" not in models.split(","):
            continue
        choices = [part.strip("{}").split(",") for part in name.split(".")]
        for parts in itertools.product(*choices):
            shapes[".".join(parts)] = [int(n) for n in shape.split("x")]
    return shapes


@every
def test_every_released_tensor_has_its_place(version: int, depth: int) -> None:
    shapes = released(version, depth)
    assert len(shapes) == NUM_RELEASED[version, depth]
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    assert_complete(rt_detr_converter(depth, version=version), state)


def test_another_depth_is_left_over() -> None:
    converter = rt_detr_converter(18)
    tensor = torch.zeros(1)
    state = {pair.source: tensor for pair in rt_detr_converter(34).pairs}
    with pytest.raises(ValueError, match=r"not the state dict of RT-DETR ResNet-18-vd"):
        converter.to_detectron2(state)


def test_the_converted_network_is_transformers_s() -> None:
    pytest.importorskip("transformers")
    converter = rt_detr_transformers_converter(18, version=2)
    cfg = get_config(converter.config)
    # Drawn anew, weights may score two tokens alike, whose queries then change places.
    torch.manual_seed(0)
    model = build_probe_model(cfg, None)
    random_weights(model)
    ours = model.state_dict()
    theirs = converter.from_detectron2(ours)
    # Measured: logits 3.8e-6, boxes 8.9e-7, in the order of the queries.
    assert max(compare(converter, cfg, ours, theirs, batch_norm_eps=DETECTRON2_EPS).values()) < 1e-4
