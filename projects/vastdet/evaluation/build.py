# SPDX-License-Identifier: Apache-2.0
"""Evaluators by name: Metadata.evaluator_type picks one."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from fvcore.common.registry import Registry

from vastdet.evaluation.coco import DetectionEvaluator
from vastdet.evaluation.panoptic import PanopticEvaluator
from vastdet.evaluation.protocols import lvis_protocols, v3det_protocols

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Evaluators by Metadata.evaluator_type: called as `name(cfg, dataset_name, output_folder)`.
"""


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
    """COCO's AP at cfg.TEST.MAX_DETS."""
    return DetectionEvaluator(cfg, dataset_name, output_folder)


def lvis(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None) -> DatasetEvaluator:
    """LVIS's AP and Fixed-AP."""
    return DetectionEvaluator(cfg, dataset_name, output_folder, protocols=lvis_protocols)


def v3det(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None) -> DatasetEvaluator:
    """V3Det's plain and tree-aware AP."""
    return DetectionEvaluator(cfg, dataset_name, output_folder, protocols=v3det_protocols)


def pascal_voc(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None
) -> DatasetEvaluator:
    """Detectron2's evaluator of Pascal VOC; it returns its numbers and writes no files."""
    return PascalVOCDetectionEvaluator(dataset_name)


def coco_panoptic_seg(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None
) -> DatasetEvaluator:
    """Panoptic quality, by the models' `panoptic_seg`."""
    return PanopticEvaluator(dataset_name, output_folder=output_folder)


for builder in (coco, lvis, v3det, pascal_voc, coco_panoptic_seg):
    EVALUATOR_REGISTRY.register(builder)
