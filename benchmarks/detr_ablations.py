# SPDX-License-Identifier: Apache-2.0
"""What denoising, two-stage queries and look forward twice do for DINO, and DINO beside DETR.

Every variant trains from random weights on the blood-cell photographs (bccd of
datasets/README.md) for the same time; see equal_time.py.

    DETECTRON2_DATASETS=FOLDER python benchmarks/detr_ablations.py --minutes 7 --seeds 1 2 3
"""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from equal_time import Study, argument_parser

from vastdet import model_zoo
from vastdet.detr.dino import LOGIT_EPS
from vastdet.detr.query_source import AnchorsWithContent
from vastdet.detr.refinement import IterativeRefinement
from vastdet.engine.config_files import choose_device, merge_opts
from vastdet.engine.model_benchmark import Workload
from vastdet.models.dino.dino import DINO

BATCH_SIZE, HEIGHT, WIDTH, NUM_QUERIES = 8, 96, 128, 60


@META_ARCH_REGISTRY.register()
class DINOFixedQueries(DINO):
    """DINO without its first stage: boxes and contents of the queries are learned."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `DINO`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """DINO's parts with another query source."""
        parts = super().from_config(cfg)
        node = cfg.MODEL.DINO
        parts["transformer"].query_source = AnchorsWithContent(node.EMBED_DIM, node.NUM_QUERIES)
        return parts


@META_ARCH_REGISTRY.register()
class DINOLookForwardOnce(DINO):
    """DINO whose layers each correct boxes that get no gradient from them."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `DINO`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """DINO's parts with another refinement."""
        parts = super().from_config(cfg)
        parts["transformer"].decoder.refinement = IterativeRefinement(LOGIT_EPS)
        return parts


# What DETR's config lacks to train on the same data as DINO's.
ON_BLOOD_CELLS = {
    "DATASETS.TRAIN": "('bccd_train',)",
    "DATASETS.TEST": "('bccd_val',)",
    "INPUT.COLOR_JITTER.BRIGHTNESS": 0.2,
    "INPUT.COLOR_JITTER.CONTRAST": 0.2,
    "INPUT.COLOR_JITTER.SATURATION": 0.2,
}
# Name -> config and its overrides.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DINO": ("quick/dino_bccd.yaml", {}),
    "DINO without denoising": ("quick/dino_bccd.yaml", {"MODEL.DINO.DENOISING.NUM_QUERIES": 0}),
    "DINO without two stages": (
        "quick/dino_bccd.yaml",
        {"MODEL.META_ARCHITECTURE": "DINOFixedQueries"},
    ),
    "DINO without look forward twice": (
        "quick/dino_bccd.yaml",
        {"MODEL.META_ARCHITECTURE": "DINOLookForwardOnce"},
    ),
    "DETR": ("quick/detr_generated.yaml", ON_BLOOD_CELLS),
}


def config_of(variant: str) -> CfgNode:
    """The config of a variant on small images, without schedule and seed."""
    file, overrides = VARIANTS[variant]
    node = "DETR" if variant == "DETR" else "DINO"
    cfg = model_zoo.get_config(file)
    settings = {
        "SOLVER.IMS_PER_BATCH": BATCH_SIZE,
        "SOLVER.REFERENCE_BATCH_SIZE": BATCH_SIZE,
        f"MODEL.{node}.NUM_QUERIES": NUM_QUERIES,
        f"MODEL.{node}.NUM_CLASSES": 3,
        "INPUT.MIN_SIZE_TRAIN": f"({HEIGHT - 8}, {HEIGHT}, {HEIGHT + 8})",
        "INPUT.MAX_SIZE_TRAIN": 2 * WIDTH,
        "INPUT.MIN_SIZE_TEST": HEIGHT,
        "INPUT.MAX_SIZE_TEST": 2 * WIDTH,
        "TEST.EVAL_PERIOD": 0,
        "SOLVER.CHECKPOINT_PERIOD": 10**6,
        "DATALOADER.NUM_WORKERS": 0,
        **overrides,
    }
    merge_opts(cfg, [part for pair in settings.items() for part in pair])
    return choose_device(cfg)


STUDY = Study(
    script=__file__,
    variants=tuple(VARIANTS),
    config_of=config_of,
    workload=Workload(BATCH_SIZE, (HEIGHT, WIDTH)),
    metrics=("bbox/AP", "bbox/AP50"),
)


if __name__ == "__main__":
    STUDY.main(
        argument_parser(
            __doc__.splitlines()[0], minutes=7, output="output/detr_ablations"
        ).parse_args()
    )
