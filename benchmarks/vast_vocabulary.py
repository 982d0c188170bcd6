# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO beside DINO, and what its parts do, as the vocabulary grows: generated scenes.

Every variant trains for the same time (see equal_time.py); all start from the backbone in
--weights, such as that of quick/box_classifier_kinds.yaml, or from random weights. CQ-DINO trains
in the paper's two stages or, as `single stage`, in one.

    python benchmarks/vast_vocabulary.py --categories 500 --minutes 10 --weights BACKBONE.pth
    python benchmarks/vast_vocabulary.py --study ablations --categories 1000 --weights BACKBONE.pth

The methods learn the plain sets, whose categories are all leaves of their tree; the ablations those
in which shapes are categories above others.
"""

import argparse
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from equal_time import Study, argument_parser

from vastdet import model_zoo
from vastdet.engine.config_files import choose_device, merge_opts
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

# Stands for the number of categories.
ALL = -1

# Name -> config and its overrides.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "CQ-DINO": (CQ, {"MODEL.CQ_DINO.CATEGORY.CORRELATION": "none"}),
    "CQ-DINO, single stage": (CQ, {"MODEL.CQ_DINO.CATEGORY.CORRELATION": "none", **SINGLE_STAGE}),
    "DINO, alpha 0.25": (DINO, {}),
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
STUDIES = {"methods": METHODS, "ablations": ABLATIONS}


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
    node = "DINO" if file == DINO else "CQ_DINO"
    data = "generated_kinds" if options.study == "ablations" else "generated"
    settings: dict[str, Any] = {
        "DATASETS.TRAIN": f"('{data}_{options.categories}_train',)",
        "DATASETS.TEST": f"('{data}_{options.categories}_val',)",
        f"MODEL.{node}.NUM_CLASSES": options.categories,
        "MODEL.WEIGHTS": options.weights,
        "TEST.EVAL_PERIOD": 0,
        "SOLVER.CHECKPOINT_PERIOD": 10**6,
    }
    if not options.weights:
        settings["SOLVER.BACKBONE_MULTIPLIER"] = 1.0
    if node == "CQ_DINO":
        settings |= {
            "MODEL.CQ_DINO.SELECTION.NUM_SELECTED": NUM_SELECTED[options.categories],
            "MODEL.CQ_DINO.CATEGORY.EMBEDDINGS": options.embeddings,
        }
        if options.embeddings != "random":
            dim = read_category_embeddings(options.embeddings).dim
            settings["MODEL.CQ_DINO.CATEGORY.DIM"] = dim
    settings |= {k: options.categories if v == ALL else v for k, v in overrides.items()}
    cfg = model_zoo.get_config(file)
    merge_opts(cfg, [part for pair in settings.items() for part in pair])
    return choose_device(cfg)


def main() -> None:
    """Measure, train, print."""
    parser = argument_parser(__doc__.splitlines()[0], minutes=10, output="output/vast_vocabulary")
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--categories", type=int, choices=NUM_SELECTED, required=True)
    parser.add_argument("--embeddings", default="random", help="what category queries start from")
    parser.add_argument("--weights", default="", help="of the backbone that all start from")
    options = parser.parse_args()
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
