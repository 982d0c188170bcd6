# SPDX-License-Identifier: Apache-2.0
"""The same network in another code base, where that is installed, built from our config.

Each function takes our config, weights under the other code base's newest names and the epsilon of
its frozen batch norms, and returns a `Network`. It raises ImportError where the code base is not
installed. `vastdet.model_zoo.probe` compares the networks with ours.

Q queries, K classes, N detections.
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from vastdet.engine.config_files import class_count_key, value_of
from vastdet.model_zoo.key_map import Network, StateDict

# Blocks of each stage, by the depth of the ResNet (He et al. 2016, table 1).
STAGES = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
BATCH_NORMS = ("FrozenBatchNorm2d", "BatchNorm2d")


def transformers_deformable_detr(
    cfg: CfgNode, weights: StateDict, batch_norm_eps: float
) -> Network:
    """Deformable DETR of transformers: logits (Q, K) and boxes (Q, 4), CXCYWH shares."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    node = cfg.MODEL.DEFORMABLE_DETR
    config = DeformableDetrConfig(
        **_transformer_sizes(cfg, node, node.IN_FEATURES),
        encoder_n_points=node.NUM_POINTS,
        decoder_n_points=node.NUM_POINTS,
        num_feature_levels=node.NUM_LEVELS,
        two_stage_num_proposals=node.NUM_QUERIES,
        with_box_refine=node.VARIANT != "plain",
        two_stage=node.VARIANT == "two_stage",
        disable_custom_kernels=True,
    )
    return TransformersNetwork(DeformableDetrForObjectDetection(config), weights, batch_norm_eps)


def transformers_detr(cfg: CfgNode, weights: StateDict, batch_norm_eps: float) -> Network:
    """DETR of transformers: logits (Q, K+1) and boxes (Q, 4), CXCYWH shares."""
    from transformers import DetrConfig, DetrForObjectDetection

    node = cfg.MODEL.DETR
    config = DetrConfig(**_transformer_sizes(cfg, node, [node.IN_FEATURE]))
    return TransformersNetwork(DetrForObjectDetection(config), weights, batch_norm_eps)


def transformers_rt_detr(
    version: int, cfg: CfgNode, weights: StateDict, batch_norm_eps: float
) -> Network:
    """RT-DETR (`version` 1) or RT-DETRv2 (2) of transformers: logits (Q, K) and boxes (Q, 4).

    Boxes are CXCYWH shares. It has one number of points for all levels, the first of ours.
    """
    import transformers

    node = cfg.MODEL.RT_DETR
    depth = int(cfg.MODEL.TIMM.NAME.removeprefix("resnet").removesuffix("d"))
    widths = [(64 if depth < 50 else 256) * 2**i for i in range(4)]
    resnet: dict[str, Any] = {
        "hidden_sizes": widths,
        "depths": STAGES[depth],
        "layer_type": "basic" if depth < 50 else "bottleneck",
        "out_features": [f"stage{int(name[-1]) - 1}" for name in node.IN_FEATURES],
    }
    kind = "V2" if version == 2 else ""
    config = getattr(transformers, f"RTDetr{kind}Config")(
        backbone_config=transformers.RTDetrResNetConfig(**resnet),
        encoder_in_channels=widths[1:],
        encoder_hidden_dim=node.ENCODER_DIM,
        encoder_ffn_dim=node.ENCODER_FEEDFORWARD_DIM,
        encoder_layers=node.NUM_ENCODER_LAYERS,
        encoder_attention_heads=node.NUM_HEADS,
        hidden_expansion=node.EXPANSION,
        d_model=node.EMBED_DIM,
        decoder_in_channels=[node.ENCODER_DIM] * len(node.IN_FEATURES),
        decoder_ffn_dim=node.FEEDFORWARD_DIM,
        decoder_attention_heads=node.NUM_HEADS,
        decoder_layers=node.NUM_DECODER_LAYERS,
        decoder_n_points=node.NUM_POINTS[0],
        num_queries=node.NUM_QUERIES,
        num_labels=node.NUM_CLASSES,
    )
    model = getattr(transformers, f"RTDetr{kind}ForObjectDetection")(config)
    # The first version has no copies of the heads, unlike its older releases.
    known = model.state_dict()
    copies = ("class_embed.", "bbox_embed.")
    weights = {n: t for n, t in weights.items() if n in known or not n.startswith(copies)}
    return TransformersNetwork(model, weights, batch_norm_eps)


def transformers_conditional_detr(
    cfg: CfgNode, weights: StateDict, batch_norm_eps: float
) -> Network:
    """Conditional DETR of transformers: logits (Q, K) and boxes (Q, 4), CXCYWH shares."""
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

    node = cfg.MODEL.CONDITIONAL_DETR
    config = ConditionalDetrConfig(**_transformer_sizes(cfg, node, [node.IN_FEATURE]))
    return TransformersNetwork(ConditionalDetrForObjectDetection(config), weights, batch_norm_eps)


def transformers_dab_detr(cfg: CfgNode, weights: StateDict, batch_norm_eps: float) -> Network:
    """DAB-DETR of transformers: logits (Q, K) and boxes (Q, 4), CXCYWH shares."""
    from transformers import DabDetrConfig, DabDetrForObjectDetection

    node = cfg.MODEL.DAB_DETR
    sizes = _transformer_sizes(cfg, node, [node.IN_FEATURE])
    config = DabDetrConfig(hidden_size=sizes.pop("d_model"), **sizes)
    return TransformersNetwork(DabDetrForObjectDetection(config), weights, batch_norm_eps)


def torchvision_detector(
    name: str, cfg: CfgNode, weights: StateDict, batch_norm_eps: float
) -> Network:
    """A detector of torchvision: boxes (N, 4) in XYXY pixels, scores (N,) and classes (N,).

    It keeps detections of every score.
    """
    import torchvision

    has_background = name.startswith("fasterrcnn")
    num_rows = value_of(cfg, class_count_key(cfg)) + int(has_background)
    build = getattr(torchvision.models.detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=num_rows)
    (model.roi_heads if has_background else model).score_thresh = 0.0
    model.transform.image_mean, model.transform.image_std = [0.0] * 3, [1.0] * 3
    model.transform.resize = lambda image, target=None: (image, target)
    _load(model, weights, batch_norm_eps)

    @torch.no_grad()
    def network(image: Tensor) -> dict[str, Tensor]:
        (found,) = model([image])
        classes = found["labels"] - 1 if has_background else found["labels"]
        boxes = found["boxes"]
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        outputs = {"boxes": boxes, "scores": found["scores"], "classes": classes}
        return {key: value[has_area] for key, value in outputs.items()}

    return network


def _transformer_sizes(cfg: CfgNode, node: CfgNode, maps: list[str]) -> dict[str, Any]:
    """What the configs of transformers have in common; `maps` of the ResNet are named res2 to res5.

    `node` is that of the detector.
    """
    from transformers import ResNetConfig

    resnet: dict[str, Any] = {
        "embedding_size": cfg.MODEL.RESNETS.STEM_OUT_CHANNELS,
        "hidden_sizes": [cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2**i for i in range(4)],
        "depths": STAGES[cfg.MODEL.RESNETS.DEPTH],
        "out_features": [f"stage{int(name[-1]) - 1}" for name in maps],
    }
    return {
        "backbone_config": ResNetConfig(**resnet),
        "d_model": node.EMBED_DIM,
        "encoder_layers": node.NUM_ENCODER_LAYERS,
        "decoder_layers": node.NUM_DECODER_LAYERS,
        "encoder_attention_heads": node.NUM_HEADS,
        "decoder_attention_heads": node.NUM_HEADS,
        "encoder_ffn_dim": node.FEEDFORWARD_DIM,
        "decoder_ffn_dim": node.FEEDFORWARD_DIM,
        "num_queries": node.NUM_QUERIES,
        "num_labels": node.NUM_CLASSES,
    }


class TransformersNetwork:
    """A detector of transformers as a `Network`; `model` is the detector itself."""

    def __init__(self, model: nn.Module, weights: StateDict, batch_norm_eps: float) -> None:
        """Load `weights`, which must be complete."""
        _load(model, weights, batch_norm_eps)
        self.model = model

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Logits (Q, K) and boxes (Q, 4) of one normalised image (3, H, W)."""
        mask = torch.ones(1, *image.shape[1:], dtype=torch.long)
        outputs = self.model(pixel_values=image[None], pixel_mask=mask)
        return {"logits": outputs.logits[0], "boxes": outputs.pred_boxes[0]}


def _load(model: nn.Module, weights: StateDict, batch_norm_eps: float) -> None:
    # What no weights hold: counters of norms, and scales that follow from the number of points.
    fixed = ("num_batches_tracked", "n_points_scale")
    kept = {n: t for n, t in model.state_dict().items() if n.endswith(fixed)}
    model.load_state_dict(weights | kept, strict=True)
    for module in model.modules():
        if type(module).__name__ in BATCH_NORMS and hasattr(module, "eps"):
            module.eps = batch_norm_eps
    model.eval()
