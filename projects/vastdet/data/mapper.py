# SPDX-License-Identifier: Apache-2.0
"""The mapper: from a record of a dataset to what a detector is fed.

Shapes: N boxes of a record, C channels, H x W the augmented image.
"""

import copy
import logging
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from vastdet.data.augmentation import build_augmentations
from vastdet.data.errors import BrokenRecordError
from vastdet.data.image_io import read_image
from vastdet.data.panoptic import with_masks

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class DetectionMapper(DatasetMapper):
    """Detectron2's `DatasetMapper` with robust reading, checked boxes and more augmentations.

    A record that makes no sense raises `BrokenRecordError`: an unreadable image, a recorded size
    that is not the image's, a box that is not four finite numbers, an unknown category. A box
    without area, or wholly outside of its image, is dropped and the record is used; the log counts
    these. Crowd regions are left out, as in Detectron2. Panoptic segments are instances, those of
    stuff as well as those of things; other semantic segmentation is not mapped.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int | None = None,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        """Take the arguments of `DatasetMapper` and the number of categories.

        Args:
            is_train: whether to map annotations to `instances`.
            augmentations: applied in this order.
            image_format: see `vastdet.data.read_image`.
            num_classes: categories lie in [0, num_classes); None: only negative ones are unknown.
            use_instance_mask: whether to map masks.
            use_keypoint: whether to map keypoints.
            instance_mask_format: "polygon" or "bitmask".
            keypoint_hflip_indices: the keypoint that each becomes in a mirror.
            precomputed_proposal_topk: keep this many proposals of a record; None: map none.
            recompute_boxes: whether boxes are made to fit the cropped masks.
        """
        super().__init__(
            is_train,
            augmentations=augmentations,
            image_format=image_format,
            use_instance_mask=use_instance_mask,
            use_keypoint=use_keypoint,
            instance_mask_format=instance_mask_format,
            keypoint_hflip_indices=keypoint_hflip_indices,
            precomputed_proposal_topk=precomputed_proposal_topk,
            recompute_boxes=recompute_boxes,
        )
        self.num_classes = num_classes
        self.num_dropped_boxes = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from a config; the number of categories from the loaded training set."""
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = build_augmentations(cfg, is_train)
        zooms_in = is_train and cfg.INPUT.ZOOM_IN.PROB > 0
        arguments["recompute_boxes"] |= zooms_in and cfg.MODEL.MASK_ON
        if is_train and cfg.DATASETS.TRAIN:
            names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
            arguments["num_classes"] = None if names is None else len(names)
        return arguments

    def __call__(self, dataset_dict: Record) -> Record:
        """Map one record of Detectron2's dataset format, which is left as it is.

        Returns:
            The record without `annotations`, with `image` (CxHxW uint8), `height` and `width` of
            the file, in training `instances` (`gt_boxes` XYXY pixels of the augmented image,
            `gt_classes`, and `gt_masks` or `gt_keypoints` when asked for), and `proposals` when
            asked for.

        Raises:
            BrokenRecordError: see the class.
        """
        record = dict(dataset_dict)
        annotations = self._checked_annotations(record)
        if annotations and self.use_instance_mask and "pan_seg_file_name" in record:
            annotations = with_masks(record, annotations)
        boxes = boxes_of(record, annotations)
        image = read_image(record["file_name"], self.image_format)
        try:
            detection_utils.check_image_size(record, image)
        except detection_utils.SizeMismatchError as error:
            raise BrokenRecordError(f"{record['file_name']}: {error}") from error
        kept = self._inside(record, boxes)

        augmented = T.AugInput(image, boxes=boxes[kept])
        try:
            transforms = self.augmentations(augmented)
        except ValueError as error:
            raise BrokenRecordError(
                f"{record['file_name']}: an image of {image.shape[1]}x{image.shape[0]} pixels "
                f"cannot be augmented as configured: {error}"
            ) from error
        image_shape = augmented.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            self._transform_proposals(record, transforms, image_shape)
        if annotations is not None:
            annotations = [a for a, keep in zip(annotations, kept, strict=True) if keep]
            if self.use_instance_mask or self.use_keypoint:
                record["annotations"] = copy.deepcopy(annotations)
                # Detectron2 cuts the fractions off boxes whose coordinates are integers.
                for annotation, box in zip(record["annotations"], boxes[kept], strict=True):
                    annotation.update(bbox=box.tolist(), bbox_mode=BoxMode.XYXY_ABS)
                self._transform_annotations(record, transforms, image_shape)
            else:
                record["instances"] = instances_of(annotations, augmented.boxes, image_shape)
        return record

    def _checked_annotations(self, record: Record) -> list[Record] | None:
        """Take the annotations out of `record`; None in inference and where there are none."""
        annotations = record.pop("annotations", None)
        if not self.is_train or annotations is None:
            return None
        annotations = [a for a in annotations if not a.get("iscrowd", 0)]
        for index, annotation in enumerate(annotations):
            category = annotation.get("category_id")
            known = isinstance(category, int | np.integer) and category >= 0
            if not known or (self.num_classes is not None and category >= self.num_classes):
                limit = "0 or more" if self.num_classes is None else f"in [0, {self.num_classes})"
                raise BrokenRecordError(
                    f"{record['file_name']}: {name_of(annotation, index)} has the category "
                    f"{category!r}; contiguous category ids are {limit}"
                )
        return annotations

    def _inside(self, record: Record, boxes: np.ndarray) -> np.ndarray:
        """Which XYXY boxes (Nx4) show some area inside of the image; counts the others."""
        size = np.array([record["width"], record["height"]])
        corners = boxes.reshape(-1, 2, 2).clip(min=0, max=size)
        inside = np.all(corners[:, 1] > corners[:, 0], axis=1)
        if not inside.all():
            index = int(np.argmin(inside))
            before = self.num_dropped_boxes
            self.num_dropped_boxes += int((~inside).sum())
            # At the first, the tenth, the hundredth, ... of this process.
            if len(str(self.num_dropped_boxes)) > len(str(before)) or before == 0:
                logger.warning(
                    "%d boxes dropped so far: no area, or wholly outside of the image. The latest: "
                    "%s, XYXY %s in %dx%d pixels. tools/check_dataset.py lists them all.",
                    self.num_dropped_boxes,
                    record["file_name"],
                    boxes[index].tolist(),
                    *size,
                )
        return inside

    def _transform_proposals(
        self, record: Record, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        for key in ("proposal_boxes", "proposal_objectness_logits"):
            if key in record and not np.isfinite(record[key]).all():
                raise BrokenRecordError(f"{record['file_name']}: {key} has NaN or infinite values")
        detection_utils.transform_proposals(
            record, image_shape, transforms, proposal_topk=self.proposal_topk
        )


def boxes_of(record: Record, annotations: list[Record] | None) -> np.ndarray:
    """XYXY boxes in pixels, Nx4 float64, of annotations in any one `BoxMode` or several.

    Raises:
        BrokenRecordError: a box is missing, or is not made of finite numbers.
    """
    if not annotations:
        return np.zeros((0, 4))
    try:
        raw = np.array([a["bbox"] for a in annotations], dtype=np.float64)
        modes = np.array([a["bbox_mode"] for a in annotations])
        boxes = np.empty((len(raw), 4))
        for mode in set(modes.tolist()):
            chosen = modes == mode
            boxes[chosen] = BoxMode.convert(raw[chosen], BoxMode(mode), BoxMode.XYXY_ABS)
    except (KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
        shown = [(a.get("bbox"), a.get("bbox_mode")) for a in annotations[:3]]
        raise BrokenRecordError(
            f"{record['file_name']}: every annotation needs a bbox of four numbers and a bbox_mode "
            f"({error!r}); the first ones are {shown}"
        ) from error
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        index = int(np.argmin(finite))
        raise BrokenRecordError(
            f"{record['file_name']}: {name_of(annotations[index], index)} has a box that is not "
            f"finite: {annotations[index]['bbox']}"
        )
    return boxes


def instances_of(
    annotations: list[Record], boxes: np.ndarray, image_shape: tuple[int, int]
) -> Instances:
    """Ground truth of an image of (height, width) from annotations and augmented boxes.

    `boxes` are Nx4, XYXY in pixels; they are clipped to the image and those left empty go.
    """
    instances = Instances(image_shape)
    instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    instances.gt_boxes.clip(image_shape)
    classes = [int(annotation["category_id"]) for annotation in annotations]
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return detection_utils.filter_empty_instances(instances)


def name_of(annotation: Record, index: int) -> str:
    """How a message names an annotation: by its id, or by its place in the record."""
    return f"annotation {annotation['id']}" if "id" in annotation else f"annotation no. {index}"
