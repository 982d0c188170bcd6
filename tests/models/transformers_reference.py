# SPDX-License-Identifier: Apache-2.0
"""Small random detectors of the transformers library, and their weights under our names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from tests.models.comparison import assert_same_predictions
from torch import Tensor, nn

from vastdet.detr.neck import MapProjection
from vastdet.detr.structures import SetPredictions, Targets
from vastdet.detr.transformer import SetTransformer

# What both sides are made of.
SIZES = {
    "NUM_CLASSES": 7,
    "EMBED_DIM": 32,
    "NUM_HEADS": 4,
    "FEEDFORWARD_DIM": 48,
    "NUM_ENCODER_LAYERS": 2,
    "NUM_DECODER_LAYERS": 3,
    "NUM_QUERIES": 12,
    "DROPOUT": 0.0,
}
MAP_CHANNELS = 24
Renames = Iterable[tuple[str, str]]
# What the dense detectors call alike: pattern and replacement, in order.
COMMON_RENAMES = (
    (r"^model\.input_projection", "neck.conv"),
    (r"^model\.decoder\.query_scale", "transformer.decoder.spatial_query.scale"),
    (r"^model\.decoder\.layernorm", "transformer.decoder.norm"),
    (r"^(bbox_predictor|model\.decoder\.bbox_embed)", "transformer.decoder.box_heads.0"),
    (r"^model\.(encoder|decoder)", r"transformer.\1"),
    (r"(\.mlp)?\.fc", ".ffn.linear"),
    (r"(\.mlp)?\.activation_fn", ".ffn.activation"),
    (r"(\.mlp)?\.final_layer_norm", ".ffn_norm"),
    (r"self_attn_layer_norm", "self_attn_norm"),
)
# What DAB-DETR names in a way of its own, then the above.
DAB_RENAMES = (
    (r"^model\.query_refpoint_embeddings", "transformer.query_source.box_logits"),
    (r"^model\.patterns", "transformer.query_source.patterns"),
    (r"^model\.encoder\.query_scale", "transformer.encoder.position_scale"),
    (r"^model\.decoder\.ref_point_head", "transformer.decoder.query_position.ref_point_head"),
    (r"^model\.decoder\.ref_anchor_head", "transformer.decoder.spatial_query.size_head"),
    (r"^class_embed", "transformer.decoder.class_heads.0"),
    # A block of theirs holds attention and norm, and names both after itself.
    (r"\.(self|cross)_attn\.\1_attn_layer_norm", r".\1_attn_norm"),
    (r"\.(self|cross)_attn\.\1_attn[._]", r".\1_attn."),
    (r"query_pos_sine_proj", "query_spatial"),
    (r"(query|key)_content_proj", r"\1_content"),
    (r"(query|key)_pos_proj", r"\1_position"),
    (r"value_proj", "value"),
    (r"output_proj", "out_proj"),
    *COMMON_RENAMES,
)


def small_config(config_class: type, width_name: str, **extra: Any) -> Any:
    """The configuration of a dense detector of the sizes above, on a tiny ResNet."""
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, MAP_CHANNELS],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    return config_class(
        backbone_config=backbone,
        num_labels=SIZES["NUM_CLASSES"],
        num_queries=SIZES["NUM_QUERIES"],
        encoder_layers=SIZES["NUM_ENCODER_LAYERS"],
        decoder_layers=SIZES["NUM_DECODER_LAYERS"],
        encoder_ffn_dim=SIZES["FEEDFORWARD_DIM"],
        decoder_ffn_dim=SIZES["FEEDFORWARD_DIM"],
        encoder_attention_heads=SIZES["NUM_HEADS"],
        decoder_attention_heads=SIZES["NUM_HEADS"],
        dropout=0.0,
        **{width_name: SIZES["EMBED_DIM"]},
        **extra,
    )


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights so large that every part shows in the result; those of the start are tiny."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                spread = (
                    1.0
                    if "embeddings" in name or "patterns" in name
                    else 1.2 * tensor[0].numel() ** -0.5
                )
                tensor.normal_(0.0, spread, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                tensor.uniform_(0.8, 1.2, generator=generator)
            else:
                tensor.normal_(0.0, 0.3, generator=generator)


def renamed(tensors: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """Tensors under our names; projections `q_proj`, `k_proj`, `v_proj` become one."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for name in [n for n in found if ".q_proj." in n]:
        parts = [found.pop(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        found[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return found


def without_backbone(tensors: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """Tensors of a whole model under the names of `OurHalf`."""
    return renamed({k: v for k, v in tensors.items() if "backbone" not in k}, renames)


class OurHalf(nn.Module):
    """Neck and transformer of ours, which read the map of another's backbone."""

    def __init__(self, transformer: SetTransformer) -> None:
        super().__init__()
        shapes = {"res5": ShapeSpec(channels=MAP_CHANNELS)}
        self.neck = MapProjection(shapes, "res5", embed_dim=SIZES["EMBED_DIM"])
        self.transformer = transformer

    def forward(self, feature: Tensor, mask: Tensor) -> SetPredictions:
        """A map (B, C, H, W) and a mask (B, H, W), 1 where an image is."""
        return self.transformer(self.neck({"res5": feature}), [~mask.bool()])


def padded_batch() -> tuple[Tensor, Tensor]:
    """Pixels (2, 3, 128, 160) and a mask (2, 128, 160), 1 where an image is; one is smaller."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, 128, 160, generator=generator)
    mask = torch.ones(2, 128, 160, dtype=torch.int64)
    mask[1, 90:], mask[1, :, 100:] = 0, 0
    return pixels * mask[:, None], mask


def labelled(num_boxes: tuple[int, ...] = (3, 1)) -> tuple[list[dict[str, Tensor]], Targets]:
    """Ground truth of two images as both sides want it."""
    generator = torch.Generator().manual_seed(5)
    labels, ours_labels, ours_boxes = [], [], []
    for count in num_boxes:
        classes = torch.randint(SIZES["NUM_CLASSES"], (count,), generator=generator)
        centers = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([centers, 0.1 + 0.4 * torch.rand(count, 2, generator=generator)], dim=1)
        labels.append({"class_labels": classes, "boxes": boxes})
        slots = max(num_boxes)
        ours_labels.append(torch.cat([classes, classes.new_zeros(slots - count)]))
        ours_boxes.append(torch.cat([boxes, boxes.new_full((slots - count, 4), 0.5)]))
    names = tuple(f"image {i}" for i in range(len(num_boxes)))
    return labels, Targets(torch.stack(ours_labels), torch.stack(ours_boxes), num_boxes, names)


def weighted_losses(losses: Mapping[str, Tensor], *, class_weight: float) -> dict[str, Tensor]:
    """Their losses, weighted and summed as ours are; earlier layers have numbers."""
    weights = {"class": ("ce", class_weight), "bbox": ("bbox", 5.0), "giou": ("giou", 2.0)}
    found = {}
    for ours, (theirs, weight) in weights.items():
        earlier = [v for k, v in losses.items() if re.fullmatch(rf"loss_{theirs}_\d+", k)]
        assert len(earlier) == SIZES["NUM_DECODER_LAYERS"] - 1
        found[f"loss_{ours}"] = weight * losses[f"loss_{theirs}"]
        found[f"loss_{ours}_aux"] = weight * torch.stack(earlier).sum()
    return found


def assert_same_evaluation(
    ours: OurHalf, theirs: nn.Module, feature: Tensor, mask: Tensor
) -> SetPredictions:
    """Predictions of ours at inference beside theirs, given the map of their `padded_batch`."""
    pixels, their_mask = padded_batch()
    ours.eval()
    with torch.no_grad():
        found = ours(feature, mask)
        output = theirs(pixel_values=pixels, pixel_mask=their_mask)
    assert_same_predictions(found.decoder, output.logits[None], output.pred_boxes[None])
    return found


def random_dab_detr(num_patterns: int) -> nn.Module:
    """Their DAB-DETR, which gives the outputs of all layers."""
    import transformers

    config = small_config(
        transformers.DabDetrConfig, "hidden_size", auxiliary_loss=True, num_patterns=num_patterns
    )
    model = transformers.DabDetrForObjectDetection(config).eval()
    randomise(model)
    return model
