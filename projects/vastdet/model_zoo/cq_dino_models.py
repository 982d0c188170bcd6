# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO under the names of the authors' code (RedAIGC/CQ-DINO), a fork of MMDetection 3.

Names were read off the state dicts of its four detectors. Its patch merging puts its inputs in the
order of Microsoft's Swin, other than MMDetection's. Buffers that follow from the size of a window
are left out, on the way back too.
"""

from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from vastdet.backbones.swin import SIZES
from vastdet.model_zoo.deformable_models import NUM_BOX_LAYERS, LayerNames, mlp_pairs, stack_pairs
from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.mmdet_models import FEEDFORWARD, MMDET, NUM_LAYERS, SELECTION, neck_pairs
from vastdet.model_zoo.swin_models import BUFFERS, swin_pairs
from vastdet.model_zoo.swin_models import MMDET as MMDET_SWIN
from vastdet.model_zoo.torchvision_models import weight_and_bias
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

NUM_SELECTION_LAYERS = 2
# As MMDetection's, with a look at the prompt.
LAYERS = LayerNames(
    encoder=MMDET.encoder,
    decoder={
        "self_attn": "self_attn.attn",
        "self_attn_norm": "norms.0",
        "prompt_attn": "cross_attn_text.attn",
        "prompt_attn_norm": "norms.1",
        "cross_attn": "cross_attn",
        "cross_attn_norm": "norms.2",
        **FEEDFORWARD,
        "ffn_norm": "norms.3",
    },
)
FUSION = {
    "layer_norm_v": "image_norm",
    "layer_norm_l": "prompt_norm",
    "attn.v_proj": "attention.image_proj",
    "attn.l_proj": "attention.prompt_proj",
    "attn.values_v_proj": "attention.image_value_proj",
    "attn.values_l_proj": "attention.prompt_value_proj",
    "attn.out_v_proj": "attention.image_out_proj",
    "attn.out_l_proj": "attention.prompt_out_proj",
}
# A layer of BERT without its self-attention.
SELECTION_LAYER = {
    "crossattention.self.query": "cross_attn.query_proj",
    "crossattention.self.key": "cross_attn.key_proj",
    "crossattention.self.value": "cross_attn.value_proj",
    "crossattention.output.dense": "cross_attn.out_proj",
    "crossattention.output.LayerNorm": "cross_attn_norm",
    "intermediate.dense": "ffn.linear1",
    "output.dense": "ffn.linear2",
    "output.LayerNorm": "ffn_norm",
}


def head_pairs(index: int, ours: str) -> list[Pair]:
    """The bias of the alignment, and the box head, number `index`.

    `ours` has a place for "class_head" or "box_head".
    """
    bias = Pair(f"bbox_head.cls_branches.{index}.bias", f"{ours.format('class_head')}.bias")
    return [bias] + [
        pair
        for i in range(NUM_BOX_LAYERS)
        for pair in weight_and_bias(
            f"bbox_head.reg_branches.{index}.{2 * i}", f"{ours.format('box_head')}.layers.{i}"
        )
    ]


def fusion_pairs(num_layers: int) -> list[Pair]:
    """The fusion of image and categories before each encoder layer."""
    pairs: list[Pair] = []
    for i in range(num_layers):
        theirs, ours = f"encoder.fusion_layers.{i}", f"transformer.encoder.fusion_layers.{i}"
        pairs.append(Pair(f"{theirs}.gamma_v", f"{ours}.image_gamma"))
        pairs.append(Pair(f"{theirs}.gamma_l", f"{ours}.prompt_gamma"))
        for old, new in FUSION.items():
            pairs += weight_and_bias(f"{theirs}.{old}", f"{ours}.{new}")
    return pairs


def transformer_pairs(num_encoder: int, num_decoder: int, *, num_maps: int) -> list[Pair]:
    """Neck and transformer; there is one level more than maps."""
    return [
        *neck_pairs(num_maps, num_maps + 1, bias=True),
        Pair("level_embed", "transformer.to_tokens.level_embedding"),
        *stack_pairs(LAYERS, num_encoder, num_decoder, source=""),
        *fusion_pairs(num_encoder),
        *weight_and_bias("decoder.norm", "transformer.decoder.norm"),
        *mlp_pairs(
            "decoder.ref_point_head", "transformer.decoder.query_position.ref_point_head", 2
        ),
        Pair("query_embedding.weight", "transformer.query_source.content.weight"),
        *weight_and_bias("memory_trans_fc", f"{SELECTION}.output"),
        *weight_and_bias("memory_trans_norm", f"{SELECTION}.output_norm"),
        Pair(
            "dn_query_generator.label_embedding.weight",
            "transformer.denoising.label_embedding.weight",
        ),
        *(
            pair
            for i in range(num_decoder)
            for pair in head_pairs(i, f"transformer.decoder.{{}}s.{i}")
        ),
        *head_pairs(num_decoder, f"{SELECTION}.{{}}"),
    ]


def category_pairs(*, self_attention: bool) -> list[Pair]:
    """Queries of the categories and their selection; else than by self-attention, by a tree."""
    theirs, queries, selection = "language_model", "categories.queries", "categories.selection"
    pairs = [
        Pair(f"{theirs}.label_embed", f"{queries}.embedding", classes=ClassRows()),
        *weight_and_bias(f"{theirs}.wordvec_proj", f"{queries}.proj"),
        *weight_and_bias(f"{theirs}.image_proj", "categories.image_tokens.proj"),
        *weight_and_bias(f"{theirs}.fc", f"{selection}.score"),
        *weight_and_bias("text_feat_map", "prompt_proj"),
    ]
    if self_attention:
        old, new = f"{theirs}.label_attn", f"{queries}.correlation"
        pairs += [
            Pair(f"{old}.self_attn.in_proj_{t}", f"{new}.self_attn.in_proj_{t}")
            for t in ("weight", "bias")
        ]
        pairs += weight_and_bias(f"{old}.self_attn.out_proj", f"{new}.self_attn.out_proj")
        pairs += weight_and_bias(f"{old}.norm", f"{new}.norm")
    else:
        pairs += weight_and_bias(f"{theirs}.label_norm", f"{queries}.correlation.norm")
    for i in range(NUM_SELECTION_LAYERS):
        layer = f"{theirs}.tagging_head.encoder.layer.{i}"
        for old, new in SELECTION_LAYER.items():
            pairs += weight_and_bias(f"{layer}.{old}", f"{selection}.layers.{i}.{new}")
    return pairs


def number_categories(cfg: CfgNode) -> None:
    """Let a config's categories be numbers with a tree that has no edges, in place.

    Then no data is needed.
    """
    node = cfg.MODEL.CQ_DINO
    node.VOCABULARY = f"cq_dino_numbered_{node.NUM_CLASSES}"
    names = [str(k) for k in range(node.NUM_CLASSES)]
    MetadataCatalog.get(node.VOCABULARY).set(
        category_space=CategorySpace(
            names=tuple(names),
            dataset_ids=tuple(range(node.NUM_CLASSES)),
            synonyms=((),) * node.NUM_CLASSES,
            hierarchy=CategoryHierarchy.from_ids([], category_nodes=names),
        )
    )


def cq_dino_converter(
    size: str, config: str, title: str, *, num_maps: int = 3, self_attention: bool = False
) -> Converter:
    """A detector of the authors.

    Args:
        size: of its Swin.
        config: our name of it.
        title: what tells it from the others.
        num_maps: that it reads, the last ones.
        self_attention: whether its categories look at each other, not at a tree.
    """
    depths = SIZES[size].depths
    stages = range(len(depths) - num_maps, len(depths))
    return Converter(
        name=f"CQ-DINO {title} (RedAIGC/CQ-DINO)",
        config=f"CQDINO/{config}_official.yaml",
        pairs=(
            *swin_pairs(MMDET_SWIN, depths, "backbone.", "backbone.", output_norms=stages),
            *transformer_pairs(NUM_LAYERS, NUM_LAYERS, num_maps=num_maps),
            *category_pairs(self_attention=self_attention),
        ),
        ignored=BUFFERS,
        without_data=number_categories,
    )


CONVERTERS = {
    "cq_dino_swin_B": partial(
        cq_dino_converter, "B", "cq_dino_swin_B_24ep_v3det", "Swin-B 1k, V3Det"
    ),
    "cq_dino_swin_B_22k": partial(
        cq_dino_converter, "B", "cq_dino_swin_B_22k_24ep_v3det", "Swin-B 22k, V3Det"
    ),
    "cq_dino_swin_L": partial(
        cq_dino_converter, "L", "cq_dino_swin_L_24ep_v3det", "Swin-L, V3Det", num_maps=4
    ),
    "cq_dino_swin_L_coco": partial(
        cq_dino_converter,
        "L",
        "cq_dino_swin_L_24ep",
        "Swin-L, COCO",
        num_maps=4,
        self_attention=True,
    ),
}
