# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR beside that of transformers: outputs and losses of small random models."""

import copy
import re
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from tests.models.comparison import largest_difference
from tests.models.family_reference import make_targets
from torch import Tensor, nn

from vastdet.detr.neck import ChannelMapper
from vastdet.detr.structures import SetPredictions, Targets
from vastdet.model_zoo.deformable_models import deformable_detr_transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.models.deformable_detr.deformable_detr import (
    DeformableDETR,
    build_criterion,
    build_transformer,
)

transformers = pytest.importorskip("transformers")

WIDTH, NUM_CLASSES, NUM_LAYERS = 64, 5, 3
CHANNELS = {"res3": 16, "res4": 24, "res5": 32}
SIZES = [[96, 130], [72, 100]]
# Of boxes in transformers: x, y, w, h as shares of the image, as the targets here.
ENTRIES = [
    {
        "labels": torch.tensor([1, 4, 1]),
        "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.7], [0.8, 0.8, 0.1, 0.2]]),
    },
    {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.9, 0.4]])},
]
# Names of transformers, and what the authors' code calls the same tensor.
AUTHORS_NAMES = (
    (r"^model\.(input_proj|query_position_embeddings)", r"\1"),
    (r"^query_position_embeddings", "query_embed"),
    (r"^model\.", "transformer."),
    (r"self_attn_layer_norm", "SELF_NORM"),
    (r"encoder_attn_layer_norm", "norm1"),
    (r"encoder_attn", "cross_attn"),
    (r"(encoder.*)SELF_NORM", r"\1norm1"),
    (r"(decoder.*)SELF_NORM", r"\1norm2"),
    (r"(encoder.*)final_layer_norm", r"\1norm2"),
    (r"(decoder.*)final_layer_norm", r"\1norm3"),
    (r"mlp\.fc", "linear"),
    (r"(decoder.*self_attn)\.o_proj", r"\1.out_proj"),
)


class TheirBackbone(Backbone):
    """The backbone of transformers as one of Detectron2."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(CHANNELS, self.model(x).feature_maps, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=8 << i)
            for i, (name, channels) in enumerate(CHANNELS.items())
        }


def their_model(variant: str) -> Any:
    """A random model whose layers have heads of their own where the variant says so."""
    config = transformers.DeformableDetrConfig(
        backbone_config={
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, *CHANNELS.values()],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage2", "stage3", "stage4"],
        },
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=NUM_LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=20,
        two_stage=variant == "two_stage",
        two_stage_num_proposals=20,
        with_box_refine=variant != "plain",
        num_labels=NUM_CLASSES,
        dropout=0.0,
        auxiliary_loss=True,
        class_cost=2,  # the authors' value; theirs is 1
    )
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config)
    if variant != "plain":
        # They start as one module for all layers.
        for name in ("class_embed", "bbox_embed"):
            heads = nn.ModuleList(copy.deepcopy(head) for head in getattr(model, name))
            setattr(model, name, heads)
            if getattr(model.model.decoder, name) is not None:
                setattr(model.model.decoder, name, heads)
    for name, parameter in model.named_parameters():
        # Larger than at the start, so that every layer shows in the result.
        if parameter.dim() > 1:
            nn.init.normal_(
                parameter, std=1.0 if "position_emb" in name else 1.2 * parameter[0].numel() ** -0.5
            )
        else:
            nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model


def authors_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers under the names of the authors, without the backbone."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if ".backbone." in name:
            continue
        for pattern, new in AUTHORS_NAMES:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    for name in [n for n in renamed if ".q_proj." in n]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


def our_model(cfg: CfgNode, variant: str, theirs: Any) -> DeformableDETR:
    """Ours with the weights, and the very backbone, of theirs."""
    node = cfg.MODEL.DEFORMABLE_DETR
    node.VARIANT = variant
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = WIDTH, 4, 48
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 2, NUM_LAYERS
    node.NUM_QUERIES, node.NUM_CLASSES, node.DROPOUT = 20, NUM_CLASSES, 0.0
    backbone = TheirBackbone(theirs.model.backbone.model)
    model = DeformableDETR(
        backbone=backbone,
        neck=ChannelMapper(backbone.output_shape(), list(CHANNELS), embed_dim=WIDTH, num_levels=4),
        transformer=build_transformer(node),
        criterion=build_criterion(node),
        num_classes=NUM_CLASSES,
        max_detections_per_image=30,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    pairs = deformable_detr_transformer_pairs(variant, 2, NUM_LAYERS, num_levels=4)
    converted = Converter("", "", tuple(pairs)).to_detectron2(authors_names(theirs.state_dict()))
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    return model


@pytest.fixture(params=["plain", "refined", "two_stage"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def compared(cfg: CfgNode, variant: str) -> tuple[DeformableDETR, SetPredictions, Any, Targets]:
    """Our model and its predictions, and what transformers returns for the same batch."""
    theirs = their_model(variant)
    ours = our_model(cfg, variant, theirs)
    ours.train()
    theirs.train()
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator) for size in SIZES]
    targets = make_targets(ENTRIES, SIZES)
    predictions = ours.predict_padded(images, targets)
    pixels = torch.zeros(2, 3, 96, 130)
    mask = torch.zeros(2, 96, 130, dtype=torch.long)
    for i, (height, width) in enumerate(SIZES):
        pixels[i, :, :height, :width] = images[i]
        mask[i, :height, :width] = 1
    labels = [{"class_labels": x["labels"], "boxes": x["boxes"]} for x in ENTRIES]
    return ours, predictions, theirs(pixels, pixel_mask=mask, labels=labels), targets


def test_outputs_equal_transformers(compared: Any, variant: str) -> None:
    _, predictions, expected, _ = compared
    layers = [*expected.auxiliary_outputs, expected]
    boxes = torch.stack([x["pred_boxes"] for x in layers])
    logits = torch.stack([x["logits"] for x in layers])
    assert boxes[-1, 0].std(dim=0).min() > 0.01, "the queries must differ for this to be a test"
    # Measured: logits 3e-6, boxes 8e-7.
    assert largest_difference(predictions.decoder.logits, logits) < 2e-5
    assert largest_difference(predictions.decoder.boxes, boxes) < 5e-6
    if variant == "two_stage":
        assert predictions.encoder is not None
        proposed = expected.enc_outputs_coord_logits.sigmoid()
        assert largest_difference(predictions.encoder.logits[0], expected.enc_outputs_class) < 2e-5
        assert largest_difference(predictions.encoder.boxes[0], proposed) < 5e-6


def weighted(found: dict[str, Tensor], ours: str, suffix: str = "") -> float:
    """A loss of transformers, with our weight."""
    theirs, weight = {"class": ("ce", 2.0), "bbox": ("bbox", 5.0), "giou": ("giou", 2.0)}[ours]
    return weight * float(found[f"loss_{theirs}{suffix}"].detach())


def test_losses_equal_transformers(compared: Any) -> None:
    ours, predictions, expected, targets = compared
    losses = ours.criterion(predictions, targets)
    for name in ("class", "bbox", "giou"):
        last = weighted(expected.loss_dict, name)
        others = sum(weighted(expected.loss_dict, name, f"_{i}") for i in range(NUM_LAYERS - 1))
        # Measured: 2e-6 of the value.
        assert losses[f"loss_{name}"].item() == pytest.approx(last, rel=2e-5), name
        assert losses[f"loss_{name}_aux"].item() == pytest.approx(others, rel=2e-5), name


@pytest.mark.parametrize("variant", ["two_stage"], indirect=True)
def test_losses_of_the_proposals_equal_transformers(compared: Any) -> None:
    from transformers.loss import loss_deformable_detr as their_losses

    ours, predictions, expected, targets = compared
    matcher = their_losses.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = their_losses.DeformableDetrImageLoss(
        matcher, num_classes=NUM_CLASSES, focal_alpha=0.25, losses=["labels", "boxes"]
    )
    # transformers never computes this loss: its criterion gets the proposals, and labels of 0.
    proposals = {
        "logits": expected.enc_outputs_class,
        "pred_boxes": expected.enc_outputs_coord_logits.sigmoid(),
    }
    labels = [{"class_labels": torch.zeros_like(x["labels"]), "boxes": x["boxes"]} for x in ENTRIES]
    found = criterion(proposals, labels)
    losses = ours.criterion(predictions, targets)
    for name in ("class", "bbox", "giou"):
        value = losses[f"loss_{name}_enc"].item()
        assert value == pytest.approx(weighted(found, name), rel=2e-5), name
