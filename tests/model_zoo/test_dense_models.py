# SPDX-License-Identifier: Apache-2.0
"""DETR under the authors' names, which are those of PyTorch's own transformer and torchvision."""

from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from vastdet.layers.mlp import MLP
from vastdet.model_zoo import get_config
from vastdet.model_zoo.convert_file import coco_category_ids
from vastdet.model_zoo.dense_models import detr_converter, panoptic_detr_converter
from vastdet.model_zoo.key_map import Converter

torchvision = pytest.importorskip("torchvision")
NO_OBJECT = 91  # The authors' classes are COCO's ids, so the row after 90 is that of no object.


class AuthorsTransformer(nn.Module):
    """Modules at the places where the authors have them."""

    def __init__(self) -> None:
        super().__init__()
        size = {"d_model": 256, "nhead": 8, "dim_feedforward": 2048}
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = nn.ModuleList(nn.TransformerEncoderLayer(**size) for _ in range(6))
        self.decoder.layers = nn.ModuleList(nn.TransformerDecoderLayer(**size) for _ in range(6))
        self.decoder.norm = nn.LayerNorm(256)


class AuthorsDETR(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, f"resnet{depth}")(
            norm_layer=torchvision.ops.FrozenBatchNorm2d
        )
        body = torchvision.models._utils.IntermediateLayerGetter(resnet, {"layer4": "0"})
        self.backbone = nn.Sequential(nn.Module())
        self.backbone[0].body = body
        self.transformer = AuthorsTransformer()
        self.input_proj = nn.Conv2d(2048, 256, 1)
        self.query_embed = nn.Embedding(100, 256)
        self.class_embed = nn.Linear(256, NO_OBJECT + 1)
        self.bbox_embed = MLP(256, 256, 4, 3)


class AuthorsMaskHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [264, 264, 128, 64, 32, 16]
        for i in range(5):
            setattr(self, f"lay{i + 1}", nn.Conv2d(widths[i], widths[i + 1], 3))
            setattr(self, f"gn{i + 1}", nn.GroupNorm(8, widths[i + 1]))
        for i, channels in enumerate((1024, 512, 256)):
            setattr(self, f"adapter{i + 1}", nn.Conv2d(channels, widths[i + 2], 1))
        self.out_lay = nn.Conv2d(16, 1, 3)


class AuthorsPanopticDETR(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.detr = AuthorsDETR(depth)
        self.bbox_attention = nn.Module()
        self.bbox_attention.q_linear = nn.Linear(256, 256)
        self.bbox_attention.k_linear = nn.Linear(256, 256)
        self.mask_head = AuthorsMaskHead()


def expected_shapes(config: str, num_classes: int) -> dict[str, torch.Size]:
    cfg = get_config(config)
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.PANOPTIC_DETR.NUM_CLASSES = num_classes
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "authors", "depth", "dc5"),
    [
        (detr_converter, AuthorsDETR, 50, False),
        (detr_converter, AuthorsDETR, 50, True),
        (detr_converter, AuthorsDETR, 101, False),
        (detr_converter, AuthorsDETR, 101, True),
        (panoptic_detr_converter, AuthorsPanopticDETR, 50, False),
        (panoptic_detr_converter, AuthorsPanopticDETR, 50, True),
        (panoptic_detr_converter, AuthorsPanopticDETR, 101, False),
    ],
)
def test_every_tensor_of_the_authors_has_its_place(
    make: Callable[..., Converter], authors: type[nn.Module], depth: int, dc5: bool
) -> None:
    converter = make(depth, dc5=dc5)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in authors(depth).state_dict().items()}
    # One number in each tensor: which tensor it is; memory stays low.
    state_dict = {
        name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())
    }
    converted = converter.to_detectron2(state_dict)
    expected = expected_shapes(converter.config, NO_OBJECT)
    assert {name: t.shape for name, t in converted.items()} == expected
    back = converter.from_detectron2(converted)
    assert back.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        first, other = tensor.flatten()[0], back[name].flatten()
        assert (other == first).all(), name


def test_the_80_categories_keep_the_row_of_no_object() -> None:
    converter = detr_converter()
    rows: dict[str, Tensor] = {
        "class_embed.weight": torch.arange(NO_OBJECT + 1.0)[:, None].expand(-1, 256),
        "class_embed.bias": torch.arange(NO_OBJECT + 1.0),
    }
    selected = converter.select_categories(rows, coco_category_ids())
    assert selected["class_embed.weight"].shape == (81, 256)
    assert selected["class_embed.bias"].tolist() == [*coco_category_ids(), NO_OBJECT]
