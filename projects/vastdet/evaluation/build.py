# SPDX-License-Identifier: Apache-2.0
"""Evaluators by name: Metadata.evaluator_type picks one."""

import importlib.util
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from fvcore.common.registry import Registry

from vastdet.evaluation.coco import CocoEvaluator

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Evaluators by Metadata.evaluator_type: called as `name(cfg, dataset_name, output_folder)`.
"""

# How COCO's numbers must be read on datasets whose own metrics are not here yet.
NOTES = {
    "lvis": (
        "These are COCO's metrics on an LVIS dataset: a detection of a category that nobody looked "
        "for in its image counts as a false positive. They are not comparable with published LVIS "
        "AP."
    ),
    "v3det": (
        "These are COCO's metrics on a V3Det dataset: a detection of a parent or child of the "
        "labelled category counts as a false positive. V3Det's own AP, which ignores those, is "
        "higher: by 0.2 to 0.7 in published tables."
    ),
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None
) -> DatasetEvaluator:
    """The evaluator for a registered dataset, by its Metadata.evaluator_type ("coco" if unset).

    Results go to `output_folder` (None writes no files). Raises ValueError when no evaluator is
    registered for the type.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if kind not in EVALUATOR_REGISTRY:
        known = ", ".join(sorted(name for name, _ in EVALUATOR_REGISTRY))
        raise ValueError(
            f"no evaluator for the evaluator_type {kind!r} of dataset {dataset_name!r}; there are "
            f"{known}. Register one with vastdet.evaluation.EVALUATOR_REGISTRY"
        )
    return EVALUATOR_REGISTRY.get(kind)(cfg, dataset_name, output_folder)


def coco(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None) -> DatasetEvaluator:
    """COCO's metrics."""
    return CocoEvaluator(cfg, dataset_name, output_folder)


def lvis(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None) -> DatasetEvaluator:
    """COCO's metrics on LVIS annotations, with a note that they are not LVIS's."""
    return CocoEvaluator(cfg, dataset_name, output_folder, note=NOTES["lvis"])


def v3det(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None) -> DatasetEvaluator:
    """COCO's metrics on V3Det annotations, with a note that they are not V3Det's."""
    return CocoEvaluator(cfg, dataset_name, output_folder, note=NOTES["v3det"])


def pascal_voc(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None
) -> DatasetEvaluator:
    """Detectron2's evaluator of Pascal VOC; it returns its numbers and writes no files."""
    return PascalVOCDetectionEvaluator(dataset_name)


def coco_panoptic_seg(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None
) -> DatasetEvaluator:
    """Detectron2's evaluator of panoptic quality, by the models' `panoptic_seg`.

    Raises:
        ModuleNotFoundError: the package panopticapi, which it calls, is not installed.
    """
    if importlib.util.find_spec("panopticapi") is None:
        raise ModuleNotFoundError(
            f"panoptic quality on {dataset_name} needs the package panopticapi; install it with "
            "pip install git+https://github.com/cocodataset/panopticapi.git"
        )
    return COCOPanopticEvaluator(
        dataset_name, None if output_folder is None else str(output_folder)
    )


for builder in (coco, lvis, v3det, pascal_voc, coco_panoptic_seg):
    EVALUATOR_REGISTRY.register(builder)
