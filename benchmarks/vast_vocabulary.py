# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO beside DINO, and what its parts do, as the vocabulary grows: generated scenes.

Every variant trains for the same time (see equal_time.py); all start from the backbone in
--weights, such as that of quick/box_classifier_kinds.yaml, or from random weights. CQ-DINO trains
in the paper's two stages or, as `single stage`, in one.

    python benchmarks/vast_vocabulary.py --categories 500 --minutes 10 --weights BACKBONE.pth
    python benchmarks/vast_vocabulary.py --study ablations --categories 1000 --weights BACKBONE.pth
    python benchmarks/vast_vocabulary.py --study baselines --categories 1000 --weights BACKBONE.pth

The methods learn the plain sets, whose categories are all leaves of their tree; ablations and
baselines those in which shapes are categories above others. The baselines are those of the paper's
table 1: the quick configs of 24 categories with the changes that our recipes for V3Det make.
"""

import argparse
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from equal_time import Study, argument_parser

from vastdet import model_zoo
from vastdet.engine.config_files import choose_device, class_count_key, merge_opts
from vastdet.engine.model_benchmark import Workload
from vastdet.text import read_category_embeddings

BATCH_SIZE, SIZE = 8, 160
METRICS = ("bbox/AP", "bbox/AP50", "bbox/APr", "bbox/APc", "bbox/APf", "selection/ARC#")
CQ, DINO = "quick/cq_dino_kinds.yaml", "quick/dino_kinds.yaml"
CQ_FIRST_STAGE = "quick/cq_dino_kinds_stage1.yaml"
SINGLE_STAGE = {
    "MODEL.CQ_DINO.SELECTION.WARMUP_ITERS": 300,
    "MODEL.CQ_DINO.SELECTION.LOSS_WEIGHT": 0.2,
}
# Categories that are selected; all of a small vocabulary could be.
NUM_SELECTED = {50: 25, 500: 100, 1_000: 100, 5_000: 100, 13_000: 100}

# Stand for the number of categories, and for --embeddings.
ALL, EMBEDDINGS = -1, "EMBEDDINGS"

# Name -> config and its overrides.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "CQ-DINO": (CQ, {"MODEL.CQ_DINO.CATEGORY.CORRELATION": "none"}),
    "CQ-DINO, single stage": (CQ, {"MODEL.CQ_DINO.CATEGORY.CORRELATION": "none", **SINGLE_STAGE}),
    "DINO, alpha 0.25": (DINO, {"MODEL.DINO.LOSS.FOCAL_ALPHA": 0.25}),
    "DINO, alpha 0.5": (DINO, {"MODEL.DINO.LOSS.FOCAL_ALPHA": 0.5}),
}
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "tree": (CQ, {}),
    "no correlation": (CQ, {"MODEL.CQ_DINO.CATEGORY.CORRELATION": "none"}),
    "self-attention": (CQ, {"MODEL.CQ_DINO.CATEGORY.CORRELATION": "self_attention"}),
    "tree, fixed weight 0.5": (
        CQ,
        {
            "MODEL.CQ_DINO.CATEGORY.TREE_WEIGHT": "fixed",
            "MODEL.CQ_DINO.CATEGORY.TREE_STRENGTH": 0.5,
        },
    ),
    "tree, all selected": (CQ, {"MODEL.CQ_DINO.SELECTION.NUM_SELECTED": ALL}),
    "tree, 50 selected": (CQ, {"MODEL.CQ_DINO.SELECTION.NUM_SELECTED": 50}),
    "tree, 200 selected": (CQ, {"MODEL.CQ_DINO.SELECTION.NUM_SELECTED": 200}),
    "tree, seen alone": (CQ, {"MODEL.CQ_DINO.CATEGORY.PROMPT": "seen"}),
}

# As in quick/dino_kinds.yaml; what is below res5 starts from --weights and learns more slowly.
KINDS = {
    "SOLVER.IMS_PER_BATCH": BATCH_SIZE,
    "SOLVER.REFERENCE_BATCH_SIZE": BATCH_SIZE,
    "SOLVER.BASE_LR": 0.0005,
    "SOLVER.AMP.ENABLED": True,
}
PYRAMID = KINDS | {
    "SOLVER.LR_MULTIPLIERS": [[r"^backbone\.bottom_up\.body\.(conv1|bn1|layer[123])\.", 0.1]],
}
# As configs/Base-V3Det.yaml and the recipes on it: sigmoids, low thresholds.
TWO_STAGES = PYRAMID | {
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
}


def one_stage(node: str) -> dict[str, Any]:
    """The overrides of a dense detector."""
    return PYRAMID | {f"MODEL.{node}.SCORE_THRESH_TEST": 0.0001}


def transformer(node: str) -> dict[str, Any]:
    """The overrides of a detector of DINO's sizes."""
    maps = ["res3", "res4"]
    return KINDS | {
        "MODEL.TIMM.OUT_FEATURES": maps,
        f"MODEL.{node}.IN_FEATURES": maps,
        "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    }


BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "CQ-DINO": (CQ, {}),
    "DINO, alpha 0.25": METHODS["DINO, alpha 0.25"],
    "DINO, alpha 0.5": METHODS["DINO, alpha 0.5"],
    "Prova": (
        "quick/prova_generated.yaml",
        transformer("PROVA")
        | {
            "MODEL.PROVA.TEXTUAL_PROTOTYPES": EMBEDDINGS,
            "MODEL.PROVA.VISUAL_PROTOTYPES": "random:128",
        },
    ),
    "Deformable DETR": ("quick/deformable_detr_generated.yaml", transformer("DEFORMABLE_DETR")),
    "Faster R-CNN": (
        "quick/faster_rcnn_generated.yaml",
        TWO_STAGES | {"MODEL.ROI_HEADS.NAME": "PriorROIHeads"},
    ),
    "Cascade R-CNN": (
        "quick/cascade_rcnn_generated.yaml",
        TWO_STAGES | {"MODEL.ROI_HEADS.NAME": "PriorCascadeROIHeads"},
    ),
    "CenterNet2": (
        "quick/centernet2_generated.yaml",
        TWO_STAGES | {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02},
    ),
    "RetinaNet": ("quick/retinanet_generated.yaml", one_stage("RETINANET")),
    "FCOS": ("quick/fcos_generated.yaml", one_stage("FCOS")),
    "ATSS": ("quick/atss_generated.yaml", one_stage("ATSS")),
}
STUDIES = {"methods": METHODS, "ablations": ABLATIONS, "baselines": BASELINES}
# What they learn; the methods flat vocabularies.
DATA = {"methods": "generated", "ablations": "generated_kinds", "baselines": "generated_kinds"}


def config_of(variant: str, options: argparse.Namespace) -> CfgNode:
    """The config of a variant, without schedule and seed; of its last stage, if it has two."""
    file, overrides = STUDIES[options.study][variant]
    return build_config(file, overrides, options)


def first_stage_of(variant: str, options: argparse.Namespace) -> CfgNode | None:
    """The config of the first stage of a variant that has one."""
    file, overrides = STUDIES[options.study][variant]
    if file != CQ or SINGLE_STAGE.items() <= overrides.items():
        return None
    return build_config(CQ_FIRST_STAGE, overrides | {"DATASETS.TEST": "()"}, options)


def build_config(file: str, overrides: dict[str, Any], options: argparse.Namespace) -> CfgNode:
    """A config of the model zoo on the study's data, with a variant's overrides."""
    cfg = model_zoo.get_config(file)
    data = DATA[options.study]
    settings: dict[str, Any] = {
        "DATASETS.TRAIN": f"('{data}_{options.categories}_train',)",
        "DATASETS.TEST": f"('{data}_{options.categories}_val',)",
        class_count_key(cfg): options.categories,
        "MODEL.WEIGHTS": options.weights,
        "TEST.EVAL_PERIOD": 0,
        "SOLVER.CHECKPOINT_PERIOD": 10**6,
    }
    if file in (CQ, CQ_FIRST_STAGE):
        settings |= {
            "MODEL.CQ_DINO.SELECTION.NUM_SELECTED": NUM_SELECTED[options.categories],
            "MODEL.CQ_DINO.CATEGORY.EMBEDDINGS": EMBEDDINGS,
        }
        if options.embeddings != "random":
            dim = read_category_embeddings(options.embeddings).dim
            settings["MODEL.CQ_DINO.CATEGORY.DIM"] = dim
    settings |= overrides
    if not options.weights:
        settings |= {"SOLVER.BACKBONE_MULTIPLIER": 1.0, "SOLVER.LR_MULTIPLIERS": []}
    for key, value in settings.items():
        if value == ALL:
            value = options.categories
        elif value == EMBEDDINGS:
            value = options.embeddings
        merge_opts(cfg, [key, value])
    return choose_device(cfg)


def main() -> None:
    """Measure, train, print."""
    parser = argument_parser(__doc__.splitlines()[0], minutes=10, output="output/vast_vocabulary")
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--categories", type=int, choices=NUM_SELECTED, required=True)
    parser.add_argument("--embeddings", default="random", help="what category queries start from")
    parser.add_argument("--weights", default="", help="of the backbone that all start from")
    options = parser.parse_args()
    dataset = f"{DATA[options.study]}_{options.categories}_train"
    if dataset not in DatasetCatalog.list():
        parser.error(f"--categories {options.categories}: there is no dataset {dataset}")
    own = ("study", "categories", "embeddings", "weights")
    options.output = options.output / f"{options.study}_{options.categories}"
    if options.one:
        options.output = options.output.parent
    arguments = [f"--{key}={getattr(options, key)}" for key in own]
    Study(
        script=__file__,
        variants=tuple(STUDIES[options.study]),
        config_of=partial(config_of, options=options),
        workload=Workload(BATCH_SIZE, (SIZE, SIZE)),
        metrics=METRICS,
        arguments=arguments,
        first_stage_of=partial(first_stage_of, options=options),
    ).main(options)


if __name__ == "__main__":
    main()
