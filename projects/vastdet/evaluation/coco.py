# SPDX-License-Identifier: Apache-2.0
"""Detectron2's evaluator interface over the scoring protocols, in one process or many."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from vastdet.evaluation.detections import Detections, from_instances
from vastdet.evaluation.ground_truth import GroundTruth, ground_truth_of_dataset
from vastdet.evaluation.metrics import Scores
from vastdet.evaluation.protocols import (
    Protocol,
    ProtocolBuilder,
    coco_protocols,
    score_protocols,
)
from vastdet.evaluation.report import ReportOptions, log_scores, write_report
from vastdet.evaluation.results_file import write_results
from vastdet.evaluation.selected import (
    SelectedCategories,
    selection_scores,
    write_selection,
)
from vastdet.evaluation.spool import DetectionSpool

# Beyond this many categories `AP-name` is left to the files: every key becomes a training scalar.
MAX_CATEGORY_KEYS = 500

logger = logging.getLogger(__name__)


class DetectionEvaluator(DatasetEvaluator):
    """Box AP, and mask AP when the model predicts masks, by the protocols of a dataset.

    `protocols` builds them (`vastdet.evaluation.protocols`); by default they are COCO's.

    `process` keeps the detections as bytes, on disk where there is an output folder. `evaluate`
    gathers them on the main process, which writes the results file (`write_results` says which),
    what the model selects (`write_selection`), `metrics.json`, `per_category.csv` and pictures into
    the output folder and returns {"bbox": {"AP": ..., ...}} in percent as Detectron2's evaluator
    does, with an entry for each further protocol, and "selection" where the model selects
    categories (other processes return {}). An image that several processes saw, as padded
    samplers make them, counts once; an image that none saw counts as having no detections.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        *,
        output_folder: str | Path | None,
        protocols: ProtocolBuilder = coco_protocols,
        engine: str = "hotcoco",
        plots: bool = False,
        confusion_score: float = 0.3,
    ) -> None:
        self.dataset_name = dataset_name
        self.output_folder = None if output_folder is None else Path(output_folder)
        self.build_protocols = protocols
        self.engine = engine
        self.options = ReportOptions(plots=plots, confusion_score=confusion_score)
        self._ground_truth: GroundTruth | None = None
        self._protocols: dict[str, list[Protocol]] = {}
        self._spool = DetectionSpool(self.output_folder)
        self._selected = SelectedCategories()
        self.reset()

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        output_folder: str | Path | None,
        protocols: ProtocolBuilder | None = None,
    ) -> dict[str, Any]:
        """Arguments from cfg.TEST; without `protocols`, COCO's at cfg.TEST.MAX_DETS."""
        return {
            "dataset_name": dataset_name,
            "output_folder": output_folder,
            "protocols": protocols or partial(coco_protocols, max_dets=tuple(cfg.TEST.MAX_DETS)),
            "engine": cfg.TEST.COCO_ENGINE,
            "plots": plots_are_due(cfg),
            "confusion_score": cfg.TEST.CONFUSION_SCORE_THRESH,
        }

    @property
    def ground_truth(self) -> GroundTruth:
        """The dataset's ground truth, read when first needed."""
        if self._ground_truth is None:
            self._ground_truth = ground_truth_of_dataset(self.dataset_name)
            if self._ground_truth.annotated:
                # What cannot be scored is refused before the model has seen the whole dataset.
                self.protocols("bbox")
        return self._ground_truth

    def protocols(self, iou_type: str) -> list[Protocol]:
        """The protocols for "bbox" or "segm"."""
        if iou_type not in self._protocols:
            self._protocols[iou_type] = self.build_protocols(
                self.ground_truth, iou_type=iou_type, engine=self.engine
            )
        return self._protocols[iou_type]

    def reset(self) -> None:
        """Forget the detections."""
        self._spool.close()
        self._selected.reset()
        self._seen: set[int] = set()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the detections of a batch.

        Each input has "image_id", each output "instances" with pred_boxes (XYXY absolute pixels of
        the original image), scores, pred_classes in [0, K), and perhaps pred_masks. Raises
        ValueError for an image id that the dataset lacks, for a class outside [0, K), for numbers
        that are not finite and for an output without "instances".
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = image["image_id"]
            if "instances" not in output:
                raise ValueError(
                    f"the model's output for image {image_id!r} has {sorted(output)}, expected "
                    "'instances'; box proposals alone are scored by detectron2.evaluation"
                )
            index = self.ground_truth.index_of_image.get(image_id)
            if index is None:
                raise ValueError(
                    f"image id {image_id!r} is not in the ground truth of {self.dataset_name}; "
                    "the loader and the evaluator must read the same dataset"
                )
            if index in self._seen:
                continue
            self._seen.add(index)
            part = from_instances(output["instances"], index)
            check_part(part, image_id, self.ground_truth.num_categories)
            self._spool.add(part)
            self._selected.add(index, output)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather, score, write the files; {} on other processes and without annotations."""
        seen = comm.gather(np.array(sorted(self._seen), dtype=np.int64))
        gathered = self._spool.gather()
        selected = self._selected.gather()
        if not comm.is_main_process():
            return OrderedDict()
        detections = merge_processes(list(zip(seen, gathered, strict=True)))
        del gathered
        self._report_coverage(seen, detections)
        if self.output_folder is not None:
            write_results(
                self.output_folder, detections, self.ground_truth, dataset=self.dataset_name
            )
            write_selection(self.output_folder, selected, self.ground_truth)
        if not self.ground_truth.annotated:
            logger.info("%s has no annotations: results were written only.", self.dataset_name)
            return OrderedDict()
        protocols = self._protocols_for(detections)
        scores = score_protocols(protocols, self.ground_truth, detections)
        for protocol in protocols:
            log_scores(scores[protocol.key], protocol)
        recall = None if selected is None else selection_scores(self.ground_truth, selected)
        if self.output_folder is not None:
            write_report(
                self.output_folder,
                protocols,
                scores,
                self.ground_truth,
                detections,
                dataset=self.dataset_name,
                engine=self.engine,
                options=self.options,
                selection=recall,
            )
        results = OrderedDict(
            (key, detectron2_keys(result, self.ground_truth)) for key, result in scores.items()
        )
        if recall is not None:
            results["selection"] = recall
        return results

    def _protocols_for(self, detections: Detections) -> list[Protocol]:
        """The protocols for boxes, and for masks where every object and detection has one."""
        truth = self.ground_truth.segmentations
        both = detections.masks is not None and truth is not None and None not in truth
        return self.protocols("bbox") + (self.protocols("segm") if both else [])

    def _report_coverage(self, seen: Sequence[np.ndarray], detections: Detections) -> None:
        total, distinct = len(self.ground_truth.image_ids), len(np.unique(np.concatenate(seen)))
        if distinct < total:
            logger.warning(
                "%d of %d images of %s were not given to the evaluator; they count as images "
                "without detections.",
                total - distinct,
                total,
                self.dataset_name,
            )
        if not len(detections):
            logger.warning("The model detected nothing in %s.", self.dataset_name)


CocoEvaluator = DetectionEvaluator  # its default protocols are COCO's


def plots_are_due(cfg: CfgNode) -> bool:
    """Whether an evaluator built now should draw, by cfg.TEST.PLOTS; ValueError for another value.

    "final" means outside of training, or once Detectron2's event storage is at the last iteration.
    """
    choice = cfg.TEST.PLOTS
    if choice not in ("never", "final", "always"):
        raise ValueError(f"TEST.PLOTS is {choice!r}, expected 'never', 'final' or 'always'")
    if choice != "final" or not has_event_storage():
        return choice != "never"
    return get_event_storage().iter + 1 >= cfg.SOLVER.MAX_ITER


def check_part(part: Detections, image_id: int | str, num_categories: int) -> None:
    """Raise ValueError when a model's detections of an image cannot be scored."""
    if not len(part):
        return
    if not (np.isfinite(part.boxes).all() and np.isfinite(part.scores).all()):
        raise ValueError(
            f"the model gave a box or score that is not finite for image {image_id!r}; its "
            "training has diverged or its input is not finite"
        )
    largest, smallest = int(part.category_index.max()), int(part.category_index.min())
    if smallest < 0 or largest >= num_categories:
        raise ValueError(
            f"the model predicts class {largest if smallest >= 0 else smallest} for image "
            f"{image_id!r}, but the dataset has {num_categories} classes "
            f"(0..{num_categories - 1}); set the model's NUM_CLASSES to the dataset's"
        )


def merge_processes(gathered: Sequence[tuple[np.ndarray, Detections]]) -> Detections:
    """All detections, ordered by image; an image that several processes saw is the first one's."""
    parts, taken = [], np.zeros(0, dtype=np.int64)
    for seen, part in gathered:
        parts.append(part[~np.isin(part.image_index, taken)])
        taken = np.union1d(taken, seen)
    merged = Detections.concatenate(parts)
    return merged[np.argsort(merged.image_index, kind="stable")]


def detectron2_keys(scores: Scores, ground_truth: GroundTruth) -> dict[str, float]:
    """The flat dictionary that Detectron2's evaluator returns."""
    flat = dict(scores.summary)
    if 1 < ground_truth.num_categories <= MAX_CATEGORY_KEYS:
        labels = ground_truth.labels
        flat.update(
            (f"AP-{label}", float(ap))
            for label, ap in zip(labels, scores.categories.ap, strict=True)
        )
    return flat
