# SPDX-License-Identifier: Apache-2.0
"""Swin beside Detectron2's class, which Microsoft's detectors use, and beside loops."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vastdet.backbones import SwinBackbone
from vastdet.backbones.swin import SIZES, SwinSize
from vastdet.engine.activation_checkpointing import checkpoint_activations

ALL = ["res2", "res3", "res4", "res5"]
SMALL = SwinSize(8, (2, 2, 2, 2), (1, 2, 2, 4))


def make(size: SwinSize = SMALL, **options: Any) -> SwinBackbone:
    torch.manual_seed(0)
    backbone = SwinBackbone(size, **{"window_size": 4, "out_features": ALL, **options})
    for parameter in backbone.parameters():
        # At their start branches add next to nothing.
        nn.init.normal_(parameter, std=0.5)
    return backbone


@pytest.mark.parametrize(
    "size",
    [(128, 192), (61, 83), (9, 130), (5, 3)],
    ids=["whole windows", "odd", "one window high", "one patch wide"],
)
@torch.no_grad()
def test_equals_detectron2_s_class(size: tuple[int, int]) -> None:
    backbone = make().eval()
    theirs = SwinTransformer(
        embed_dim=SMALL.embed_dim, depths=SMALL.depths, num_heads=SMALL.num_heads, window_size=4
    ).eval()
    absent, surplus = theirs.load_state_dict(backbone.state_dict(), strict=False)
    assert not surplus
    assert all(name.endswith("relative_position_index") for name in absent)
    images = torch.randn(2, 3, *size)
    expected = theirs(images)
    found = backbone(images)
    assert list(found) == ALL
    for feature, values in zip(ALL, expected.values(), strict=True):
        stride, channels = backbone.output_shape()[feature].stride, found[feature].shape[1]
        assert found[feature].shape == (2, channels, *(-(-s // stride) for s in size))
        assert channels == backbone.output_shape()[feature].channels
        # Measured: 0.
        torch.testing.assert_close(found[feature], values, rtol=1e-5, atol=1e-5)


def attention_by_loops(block: SwinTransformerBlock, x: Tensor, window: int, shift: int) -> Tensor:
    """Shifted-window attention of a map (H, W, C), token by token."""
    attention = block.attn
    height, width, channels = x.shape
    padded = torch.zeros(-(-height // window) * window, -(-width // window) * window, channels)
    padded[:height, :width] = x
    rows, columns = padded.shape[:2]
    query, key, value = (
        t.unflatten(-1, (attention.num_heads, -1)) for t in attention.qkv(padded).chunk(3, dim=-1)
    )

    def place(y: int, x: int) -> tuple[int, int, int, int]:
        return (y - shift) % rows, (x - shift) % columns, int(y < shift), int(x < shift)

    mixed = torch.zeros(height, width, channels)
    for y in range(height):
        for x_ in range(width):
            py, px, *side = place(y, x_)
            scores, values = [], []
            for v in range(rows):
                for u in range(columns):
                    pv, pu, *other = place(v, u)
                    if (pv // window, pu // window) != (py // window, px // window):
                        continue
                    offset = (py % window - pv % window, px % window - pu % window)
                    row = (offset[0] + window - 1) * (2 * window - 1) + offset[1] + window - 1
                    score = (query[y, x_] * key[v, u]).sum(-1) / query.shape[-1] ** 0.5
                    # The last window of an axis holds what was at its start before the shift.
                    masked = -100.0 if other != side else 0.0
                    scores.append(score + attention.relative_position_bias_table[row] + masked)
                    values.append(value[v, u])
            weights = torch.stack(scores).softmax(0)[..., None]
            mixed[y, x_] = (weights * torch.stack(values)).sum(0).flatten()
    return attention.proj(mixed)


@pytest.mark.parametrize("size", [(6, 7), (3, 2)], ids=["several windows", "one window"])
@torch.no_grad()
def test_blocks_equal_loops(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = make(SwinSize(8, (2,), (2,)), window_size=3, out_features=["res2"]).eval().layers[0]
    x = torch.randn(1, size[0] * size[1], 8)
    found = layer(x, *size)[0][0]
    expected = x[0]
    for i, block in enumerate(layer.blocks):
        mixed = attention_by_loops(block, block.norm1(expected).unflatten(0, size), 3, i)
        expected = expected + mixed.flatten(0, 1)
        expected = expected + block.mlp(block.norm2(expected))
    # Measured: 1.4e-6 of values up to 10; without the shift the second block differs by 1.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_batch_equals_single() -> None:
    backbone = make().eval()
    images = torch.randn(3, 3, 70, 50)
    together = backbone(images)
    for i, image in enumerate(images):
        for feature, values in backbone(image[None]).items():
            torch.testing.assert_close(values[0], together[feature][i], rtol=1e-5, atol=1e-5)


def test_only_what_is_used_is_built() -> None:
    backbone = make(out_features=["res4", "res3"], drop_path_rate=0.7).train()
    assert list(backbone.output_shape()) == ["res3", "res4"]
    assert len(backbone.layers) == 3
    assert {n.split(".")[0] for n, _ in backbone.named_parameters() if n.startswith("norm")} == {
        "norm1",
        "norm2",
    }
    rates = [
        block.drop_path.p if isinstance(block.drop_path, StochasticDepth) else 0.0
        for layer in backbone.layers
        for block in layer.blocks
    ]
    # As if the last stage were there, with 0.7 at its end.
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_every_parameter_gets_a_gradient() -> None:
    backbone = make(out_features=["res3", "res4"], drop_path_rate=0.0)
    maps = backbone(torch.randn(1, 3, 33, 40))
    sum((m * torch.randn_like(m)).sum() for m in maps.values()).backward()
    without = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize(
    ("size", "millions"), [("T", 27.5), ("S", 48.8), ("B", 86.7), ("L", 195.0)]
)
def test_sizes_of_the_paper(size: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = SwinBackbone(SIZES[size], window_size=7, out_features=["res5"])
    # Table 1 counts a classifier of 1,000 categories besides: 28 (29), 50, 88, 197.
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_parameters_of_cq_dino() -> None:
    with torch.device("meta"):
        backbone = SwinBackbone(SIZES["B"], window_size=12, out_features=ALL[1:])
    # Counted in the authors' model.
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(86.88, abs=0.005)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing_stops_at_a_stage(freeze_at: int) -> None:
    backbone = make(freeze_at=freeze_at, drop_path_rate=0.9).train()
    parts = [backbone.patch_embed, *backbone.layers]
    for i, part in enumerate(parts):
        trained = i >= freeze_at
        assert all(p.requires_grad == trained for p in part.parameters())
        assert all(m.training == trained for m in part.modules())
    assert all(p.requires_grad for n, p in backbone.named_parameters() if n.startswith("norm"))
    if freeze_at > 1:
        tokens = torch.randn(1, 16, 8)
        results = [parts[1](tokens, 4, 4)[0] for _ in range(8)]
        assert all(torch.equal(results[0], result) for result in results), "no path is dropped"


def test_freezing_random_weights_is_refused(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match=r"would freeze random weights: MODEL\.WEIGHTS is empty"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": ["res3", "p4"]}, r"OUT_FEATURES is \['res3', 'p4'\], but .*'res5'\]"),
        ({"out_features": []}, "name at least one"),
        ({"drop_path_rate": 1.0}, r"DROP_PATH_RATE is 1.0; expected one in \[0, 1\)"),
        ({"freeze_at": 6}, r"FREEZE_AT is 6; expected 0 \(nothing\) to 5"),
        ({"window_size": 0}, "WINDOW_SIZE 0; expected positive"),
        ({"size": SwinSize(8, (2, 2), (1,))}, r"DEPTHS \[2, 2\], NUM_HEADS \[1\].*as many depths"),
        ({"size": SwinSize(8, (2, 2), (1, 3))}, "heads that divide the width"),
        ({"size": SwinSize(8, (), ())}, r"has the maps \[\]"),
    ],
)
def test_a_wrong_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.fixture
def swin_cfg(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 1, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 1, 2, 2]
    cfg.MODEL.SWIN.WINDOW_SIZE = 4
    return cfg


def test_an_unknown_size(swin_cfg: CfgNode) -> None:
    swin_cfg.MODEL.SWIN.SIZE = "XL"
    with pytest.raises(ValueError, match=r"SIZE is 'XL'; expected one of \['T', 'S', 'B', 'L'\]"):
        build_backbone(swin_cfg)


def test_the_config_names_a_size_or_replaces_it(swin_cfg: CfgNode) -> None:
    swin_cfg.MODEL.SWIN.OUT_FEATURES = ["res4"]
    backbone = build_backbone(swin_cfg, ShapeSpec(channels=1))
    assert backbone.output_shape() == {"res4": ShapeSpec(channels=32, stride=16)}
    assert backbone.size_divisibility == 0
    assert backbone(torch.zeros(1, 1, 20, 30))["res4"].shape == (1, 32, 2, 2)
    swin_cfg.MODEL.SWIN.EMBED_DIM = 0
    swin_cfg.MODEL.SWIN.DEPTHS = []
    swin_cfg.MODEL.SWIN.NUM_HEADS = []
    swin_cfg.MODEL.SWIN.SIZE = "S"
    with torch.device("meta"):
        layers = build_backbone(swin_cfg).layers
    assert [len(layer.blocks) for layer in layers] == [2, 2, 18]
    assert [layer.blocks[0].num_heads for layer in layers] == [3, 6, 12]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("build_swin_fpn_backbone", "p2 p3 p4 p5 p6"),
        ("build_retinanet_swin_fpn_backbone", "p3 p4 p5 p6 p7"),
    ],
)
def test_pyramids(swin_cfg: CfgNode, name: str, levels: str) -> None:
    swin_cfg.MODEL.BACKBONE.NAME = name
    swin_cfg.MODEL.FPN.IN_FEATURES = ALL if "p2" in levels else ALL[1:]
    swin_cfg.MODEL.SWIN.OUT_FEATURES = swin_cfg.MODEL.FPN.IN_FEATURES
    swin_cfg.MODEL.FPN.OUT_CHANNELS = 8
    model = build_backbone(swin_cfg)
    assert model.size_divisibility == 32
    maps = model(torch.randn(1, 3, 64, 96))
    assert " ".join(maps) == levels
    for level, shape in model.output_shape().items():
        assert maps[level].shape == (1, 8, -(-64 // shape.stride), -(-96 // shape.stride))


def test_recomputed_blocks_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = nn.Module()
        model.backbone = make(drop_path_rate=0.5).train()
        if recompute:
            assert checkpoint_activations(model) == 8
        torch.manual_seed(1)
        maps = model.backbone(torch.ones(2, 3, 40, 24))
        torch.stack([m.square().sum() for m in maps.values()]).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
