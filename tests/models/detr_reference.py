# SPDX-License-Identifier: Apache-2.0
"""transformers' DETR, small and with random weights, and its names in ours."""

import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.layers.boxes import cxcywh_to_xyxy

NUM_CLASSES, NUM_QUERIES, WIDTH, NUM_HEADS = 7, 12, 64, 8
SIZES = [(96, 70), (77, 128)]
PADDED = (96, 128)
BOXES = [
    torch.tensor([[0.3, 0.4, 0.2, 0.5], [0.7, 0.5, 0.4, 0.3], [0.5, 0.5, 0.9, 0.8]]),
    torch.tensor([[0.4, 0.6, 0.3, 0.6]]),
]
LABELS = [torch.tensor([0, 6, 3]), torch.tensor([2])]

# Patterns of transformers' names and what each becomes; attentions are packed first.
RENAMED = (
    (r"^detr\.(?=model|class|bbox)", ""),
    (r"^model\.backbone\.model\.embedder\.embedder\.", "backbone.stem.conv1."),
    (r"^model\.backbone\.model\.encoder\.stages\.0\.layers\.", "backbone.res2."),
    (r"^model\.backbone\.model\.encoder\.stages\.1\.layers\.", "backbone.res3."),
    (r"^model\.backbone\.model\.encoder\.stages\.2\.layers\.", "backbone.res4."),
    (r"^model\.backbone\.model\.encoder\.stages\.3\.layers\.", "backbone.res5."),
    (r"\.layer\.0\.", ".conv1."),
    (r"\.layer\.1\.", ".conv2."),
    (r"\.layer\.2\.", ".conv3."),
    (r"\.convolution\.", "."),
    (r"\.normalization\.", ".norm."),
    (r"^model\.input_projection\.", "neck.conv."),
    (r"^model\.query_position_embeddings\.", "transformer.query_source.embedding."),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_norm."),
    (r"\.self_attn_layer_norm\.", ".self_attn_norm."),
    (r"\.final_layer_norm\.", ".ffn_norm."),
    (r"\.layernorm\.", ".norm."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.fc(\d)\.", r".ffn.linear\1."),
    (r"^class_labels_classifier\.", "transformer.decoder.class_heads.0."),
    (r"^bbox_predictor\.", "transformer.decoder.box_heads.0."),
    (r"^bbox_attention\.q_proj\.", "attention_maps.query_proj."),
    (r"^bbox_attention\.k_proj\.", "attention_maps.key_proj."),
    (r"^mask_head\.conv1\.", "mask_head.convs.0."),
    (r"^mask_head\.conv2\.", "mask_head.convs.1."),
    (r"^mask_head\.fpn_stages\.0\.refine\.", "mask_head.convs.2."),
    (r"^mask_head\.fpn_stages\.1\.refine\.", "mask_head.convs.3."),
    (r"^mask_head\.fpn_stages\.2\.refine\.", "mask_head.convs.4."),
    (r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.", r"mask_head.adapters.\1."),
    (r"^mask_head\.output_conv\.", "mask_head.output."),
)


def our_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def our_state_dict(theirs: nn.Module) -> dict[str, Tensor]:
    """Their weights under our names; query, key and value of an attention in one tensor."""
    state_dict = dict(theirs.state_dict())
    packed = {}
    for name in [n for n in state_dict if "attn.q_proj." in n]:
        parts = [state_dict.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        packed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return {
        our_name(name): tensor
        for name, tensor in (state_dict | packed).items()
        if not name.endswith("num_batches_tracked")
    }


def their_config(**kwargs: Any) -> Any:
    """A DetrConfig with a ResNet like `tiny_resnet`."""
    import transformers

    return transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[64, 128, 256, 512],
            depths=[1, 1, 1, 1],
            layer_type="bottleneck",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        use_timm_backbone=False,
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=NUM_HEADS,
        decoder_attention_heads=NUM_HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        dropout=0.0,
        **kwargs,
    )


def set_node(node: CfgNode) -> None:
    """Our config keys of the same model."""
    node.NUM_CLASSES, node.NUM_QUERIES = NUM_CLASSES, NUM_QUERIES
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = WIDTH, NUM_HEADS, 48
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS, node.DROPOUT = 2, 3, 0.0


# Of the weights of a layer; 1 would keep the variance of what it reads. What all cells and all
# queries have in common must not hide their differences.
GAIN = 1.5
GAINS = {
    ".encoder.layers.": 0.4,
    "bbox_attention": 8.0,
    "class_labels_classifier": 4.0,
    "fpn_adapter": 0.01,
    "input_projection": 0.1,
    "query_position_embeddings": 24.0,
}


def randomize(model: nn.Module) -> None:
    """Weights with which no two queries predict alike, and norms whose channels differ."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() > 1:
            gain = next((gain for part, gain in GAINS.items() if part in name), GAIN)
            tensor.normal_(0.0, gain * tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)


def random_images() -> list[Tensor]:
    """Normalised images (3, H, W) of `SIZES`: patches of other brightness, with noise."""
    generator = torch.Generator().manual_seed(1)
    images = []
    for height, width in SIZES:
        patches = 3 * torch.randn(1, 3, height // 16, width // 16, generator=generator)
        smooth = F.interpolate(patches, (height, width))[0]
        images.append(smooth + torch.randn(3, height, width, generator=generator))
    return images


def padded_batch() -> tuple[Tensor, Tensor]:
    """The images as transformers takes them: (B, 3, H, W), and 1 where there is no padding."""
    pixels = torch.zeros(len(SIZES), 3, *PADDED)
    mask = torch.zeros(len(SIZES), *PADDED, dtype=torch.int64)
    for i, (image, (height, width)) in enumerate(zip(random_images(), SIZES, strict=True)):
        pixels[i, :, :height, :width] = image
        mask[i, :height, :width] = 1
    return pixels, mask


def ground_truth(numbers: list[int]) -> tuple[list[Instances], list[dict[str, Tensor]]]:
    """The first `numbers` boxes of each image, for us and for transformers."""
    instances, labels = [], []
    for boxes, classes, (height, width), n in zip(BOXES, LABELS, SIZES, numbers, strict=True):
        image = Instances((height, width))
        size = torch.tensor([width, height, width, height])
        image.gt_boxes = Boxes(cxcywh_to_xyxy(boxes[:n]) * size)
        image.gt_classes = classes[:n]
        instances.append(image)
        labels.append({"boxes": boxes[:n], "class_labels": classes[:n]})
    return instances, labels
