# SPDX-License-Identifier: Apache-2.0
"""Every architecture as a small model; a new one joins by one line in ARCHITECTURES."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from vastdet.vocabulary import CategoryHierarchy, CategorySpace

NUM_CLASSES = 3


def timm_pyramid(cfg: CfgNode, backbone: str, levels: list[str]) -> None:
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 64


def fcos(cfg: CfgNode) -> None:
    timm_pyramid(cfg, "build_timm_fpn_backbone", ["res3", "res4", "res5"])
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    cfg.MODEL.FCOS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [24, 48]
    cfg.MODEL.FCOS.NUM_CONVS = 1
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0


def fcos_p7(cfg: CfgNode) -> None:
    fcos(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_retinanet_fpn_backbone"
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [16, 32, 48, 64]
    cfg.MODEL.FCOS.LOC_LOSS_TYPE = "giou"
    cfg.MODEL.FCOS.CENTERNESS_ON_REG = True


def atss(cfg: CfgNode) -> None:
    timm_pyramid(cfg, "build_timm_fpn_backbone", ["res3", "res4", "res5"])
    cfg.MODEL.META_ARCHITECTURE = "ATSS"
    cfg.MODEL.ATSS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ATSS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ATSS.ANCHOR_SCALE = 4.0
    cfg.MODEL.ATSS.NUM_CONVS = 1
    cfg.MODEL.ATSS.SCORE_THRESH_TEST = 0.0


def retinanet(cfg: CfgNode) -> None:
    timm_pyramid(cfg, "build_timm_retinanet_fpn_backbone", ["res3", "res4", "res5"])
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [24], [32], [48], [64]]
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0


def rcnn(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 100
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50


def faster_rcnn_fpn(cfg: CfgNode) -> None:
    rcnn(cfg)
    timm_pyramid(cfg, "build_timm_fpn_backbone", ["res2", "res3", "res4", "res5"])
    levels = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12], [24], [48], [72], [96]]
    cfg.MODEL.RPN.IN_FEATURES = [*levels, "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = levels
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5


def faster_rcnn_c4(cfg: CfgNode) -> None:
    rcnn(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[24, 48, 96]]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7


def set_prediction(cfg: CfgNode, name: str, node: CfgNode) -> None:
    """A small member of the DETR family; `node` holds its config keys."""
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    node.NUM_CLASSES = NUM_CLASSES
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = 64, 4, 64
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 1, 2
    node.NUM_QUERIES, node.DROPOUT = 20, 0.0


def dino(cfg: CfgNode) -> None:
    set_prediction(cfg, "DINO", cfg.MODEL.DINO)
    cfg.MODEL.DINO.DENOISING.NUM_QUERIES = 10


def cq_dino(
    cfg: CfgNode, correlation: str = "tree", preset: str = "paper", prompt: str = "seen"
) -> None:
    node = cfg.MODEL.CQ_DINO
    set_prediction(cfg, "CQDINO", node)
    node.VOCABULARY = small_tree()
    node.PRESET = preset
    node.CATEGORY.EMBEDDINGS, node.CATEGORY.DIM = "random", 48
    node.CATEGORY.CORRELATION, node.CATEGORY.PROMPT = correlation, prompt
    node.SELECTION.NUM_SELECTED, node.SELECTION.IMAGE_DIM = 2, 32
    node.SELECTION.FEEDFORWARD_DIM, node.SELECTION.DROPOUT = 64, 0.0
    node.FUSION.DIM, node.FUSION.DROPOUT = 64, 0.0
    node.DENOISING.NUM_QUERIES = 10


def small_tree() -> str:
    """The name of a vocabulary in which the first of three categories is above the others."""
    name = "vastdet_small_tree"
    if name not in MetadataCatalog.list():
        hierarchy = CategoryHierarchy.from_ids(
            [("0", "1"), ("0", "2")], category_nodes=["0", "1", "2"]
        )
        MetadataCatalog.get(name).category_space = CategorySpace(
            names=("a", "b", "c"), dataset_ids=(1, 2, 3), synonyms=((),) * 3, hierarchy=hierarchy
        )
    return name


def prova(cfg: CfgNode, learned: bool) -> None:
    set_prediction(cfg, "Prova", cfg.MODEL.PROVA)
    cfg.MODEL.PROVA.DENOISING.NUM_QUERIES = 10
    cfg.MODEL.PROVA.TEXTUAL_PROTOTYPES = "random:24"
    cfg.MODEL.PROVA.VISUAL_PROTOTYPES = "random:16"
    cfg.MODEL.PROVA.LEARN_PROTOTYPES = learned


def relation_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "RelationDETR", cfg.MODEL.RELATION_DETR)
    cfg.MODEL.RELATION_DETR.DENOISING.NUM_QUERIES = 10
    cfg.MODEL.RELATION_DETR.ONE_TO_MANY.NUM_QUERIES = 30


def deformable_detr(cfg: CfgNode, variant: str) -> None:
    set_prediction(cfg, "DeformableDETR", cfg.MODEL.DEFORMABLE_DETR)
    cfg.MODEL.DEFORMABLE_DETR.VARIANT = variant


def h_deformable_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "HDeformableDETR", cfg.MODEL.H_DEFORMABLE_DETR)
    cfg.MODEL.H_DEFORMABLE_DETR.ONE_TO_MANY.NUM_QUERIES = 30


def rank_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "RankDETR", cfg.MODEL.RANK_DETR)
    cfg.MODEL.RANK_DETR.ONE_TO_MANY.NUM_QUERIES = 30


def deta(cfg: CfgNode) -> None:
    set_prediction(cfg, "DETA", cfg.MODEL.DETA)


def dab_deformable_detr(cfg: CfgNode, num_groups: int) -> None:
    set_prediction(cfg, "DABDeformableDETR", cfg.MODEL.DAB_DEFORMABLE_DETR)
    cfg.MODEL.DAB_DEFORMABLE_DETR.DENOISING.NUM_GROUPS = num_groups


def detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "DETR", cfg.MODEL.DETR)


def panoptic_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "PanopticDETR", cfg.MODEL.PANOPTIC_DETR)
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def rt_detr(cfg: CfgNode, num_points: list[int]) -> None:
    node = cfg.MODEL.RT_DETR
    set_prediction(cfg, "RTDETR", node)
    node.ENCODER_DIM, node.ENCODER_FEEDFORWARD_DIM, node.EXPANSION = 32, 64, 0.5
    node.NUM_POINTS = num_points
    node.DENOISING.NUM_QUERIES = 10


def conditional_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "ConditionalDETR", cfg.MODEL.CONDITIONAL_DETR)


def dab_detr(cfg: CfgNode) -> None:
    set_prediction(cfg, "DABDETR", cfg.MODEL.DAB_DETR)


def dn_detr(cfg: CfgNode, num_patterns: int) -> None:
    set_prediction(cfg, "DNDETR", cfg.MODEL.DN_DETR)
    cfg.MODEL.DN_DETR.DENOISING.NUM_GROUPS = 2
    cfg.MODEL.DN_DETR.NUM_PATTERNS = num_patterns


def cascade_rcnn(cfg: CfgNode) -> None:
    faster_rcnn_fpn(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True


def centernet2(cfg: CfgNode) -> None:
    cascade_rcnn(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CenterNetProposals"
    cfg.MODEL.ROI_HEADS.NAME = "ProbabilisticCascadeROIHeads"
    node = cfg.MODEL.CENTERNET2
    node.IN_FEATURES = ["p3", "p4", "p5"]
    node.SIZES_OF_INTEREST = [[0, 24], [16, 50], [40, 1000]]
    node.NUM_CONVS = 1
    node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST = 100, 50


def box_classifier(cfg: CfgNode) -> None:
    timm_pyramid(cfg, "build_timm_backbone", [])
    cfg.MODEL.META_ARCHITECTURE = "BoxClassifier"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.BOX_CLASSIFIER.NUM_CLASSES = NUM_CLASSES


def fast_rcnn(cfg: CfgNode) -> None:
    faster_rcnn_fpn(cfg)
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"


@dataclass(frozen=True)
class Architecture:
    """One entry of the suite."""

    name: str
    configure: Callable[[CfgNode], None]
    padding_invariant: bool = False  # whether other images of a batch may not change a result
    finds_boxes: bool = True  # whether there are detections to compare
    learning_rate: float = 0.02
    steps: int = 10  # after which the loss must be lower
    # Prefixes of parameters whose gradient is zero on images as small as these.
    idle: tuple[str, ...] = ()


# Where contents start at zero, all queries of the first layer hold the same: who looks at whom does
# not matter yet, and there is nothing to project.
EMPTY_CONTENTS = tuple(
    f"transformer.decoder.layers.0.self_attn.{name}"
    for name in ("query_content", "query_position", "key_content", "key_position", "value.weight")
)

ARCHITECTURES = [
    Architecture("FCOS", fcos),
    Architecture("FCOS-P7", fcos_p7),
    Architecture("ATSS", atss),
    Architecture("RetinaNet", retinanet),
    Architecture("DINO", dino, padding_invariant=True, learning_rate=0.005),
    *(
        Architecture(
            f"CQ-DINO {variant}",
            partial(cq_dino, **options),
            # The authors' code lets the selection see padding.
            padding_invariant=variant != "official",
            learning_rate=0.005,
            idle=idle,
        )
        for variant, options, idle in (
            ("tree", {}, ()),
            ("self-attention", {"correlation": "self_attention"}, ()),
            ("flat", {"correlation": "none", "prompt": "seen_and_own"}, ()),
            ("official", {"preset": "official"}, ()),
        )
    ),
    *(
        Architecture(
            name, partial(prova, learned=learned), padding_invariant=True, learning_rate=0.005
        )
        for name, learned in (("Prova", False), ("Prova with learned prototypes", True))
    ),
    Architecture("Relation-DETR", relation_detr, padding_invariant=True, learning_rate=0.005),
    *(
        Architecture(
            f"Deformable DETR {variant}",
            partial(deformable_detr, variant=variant),
            padding_invariant=True,
            learning_rate=0.005,
        )
        for variant in ("plain", "refined", "two_stage")
    ),
    Architecture(
        "H-Deformable-DETR", h_deformable_detr, padding_invariant=True, learning_rate=0.005
    ),
    Architecture("Rank-DETR", rank_detr, padding_invariant=True, learning_rate=0.005),
    Architecture("DETA", deta, padding_invariant=True, learning_rate=0.005),
    *(
        Architecture(
            name,
            configure,
            padding_invariant=True,
            learning_rate=0.005,
            # Contents start at zero, so the first layer has nothing to tell the queries of each
            # other.
            idle=("transformer.decoder.layers.0.self_attn.in_proj_weight",),
        )
        for name, configure in (("DETR", detr), ("Panoptic DETR", panoptic_detr))
    ),
    *(
        Architecture(
            name,
            partial(dab_deformable_detr, num_groups=num_groups),
            padding_invariant=True,
            learning_rate=0.005,
        )
        for name, num_groups in (("DAB-Deformable-DETR", 0), ("DN-Deformable-DETR", 2))
    ),
    *(
        Architecture(
            name,
            partial(rt_detr, num_points=num_points),
            padding_invariant=True,
            learning_rate=0.02,
        )
        for name, num_points in (("RT-DETR", [4, 4, 4]), ("RT-DETRv2", [4, 2, 1]))
    ),
    Architecture(
        "Conditional DETR",
        conditional_detr,
        padding_invariant=True,
        learning_rate=0.005,
        idle=EMPTY_CONTENTS,
    ),
    Architecture(
        "DAB-DETR", dab_detr, padding_invariant=True, learning_rate=0.005, idle=EMPTY_CONTENTS
    ),
    *(
        Architecture(
            name,
            partial(dn_detr, num_patterns=num_patterns),
            padding_invariant=True,
            learning_rate=0.005,
        )
        for name, num_patterns in (("DN-DETR", 0), ("DN-DETR with patterns", 3))
    ),
    Architecture("Faster R-CNN FPN", faster_rcnn_fpn),
    # Batch norm of two images makes its first steps rough.
    Architecture("Faster R-CNN C4", faster_rcnn_c4, steps=16),
    Architecture("Cascade R-CNN", cascade_rcnn),
    Architecture("CenterNet2", centernet2),
    Architecture("Box classifier", box_classifier, finds_boxes=False),
    # Boxes under 112 pixels are all pooled from p2.
    Architecture("Fast R-CNN", fast_rcnn, idle=("backbone.fpn_output", "backbone.fpn_lateral")),
]
