# SPDX-License-Identifier: Apache-2.0
"""Ground truth of a dataset as arrays, from a COCO-format file or from dataset dicts.

Shapes: N images, M annotated boxes, K categories, P pairs of an image and a category.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from vastdet.data import category_space
from vastdet.files import read_json
from vastdet.vocabulary import CategorySpace

ImageId = int | str
# LVIS's lists of categories about an image (arXiv 1908.03195).
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class GroundTruth:
    """Images and annotated boxes of one dataset.

    Images are numbered 0..N-1 in the order of their sorted ids, which is COCO's order; categories
    carry their contiguous ids 0..K-1. The original ids appear only when files are read or written.

    Attributes:
        space: the K categories.
        image_ids: (N,) the dataset's ids, sorted.
        image_sizes: (N, 2) height and width in pixels; 0 where the file does not say.
        image_index: (M,) int64 in [0, N).
        category_index: (M,) int64 in [0, K).
        boxes: (M, 4) float64 XYWH absolute pixels of the original image.
        areas: (M,) float64 square pixels, of the mask where there is one.
        is_crowd: (M,) bool, regions where detections count neither way.
        segmentations: (M,) polygons or RLE, or None where the dataset has boxes only.
        annotated: False for a test set whose file lists images only.
        absent: (P, 2) int64, pairs (image number, contiguous category) that were looked for and not
            found, or None where every category was looked for in every image (LVIS's negatives).
        incomplete: (P, 2) int64, pairs whose boxes are not all annotated (LVIS's not exhaustive
            categories), or None.
    """

    space: CategorySpace
    image_ids: tuple[ImageId, ...]
    image_sizes: np.ndarray
    image_index: np.ndarray
    category_index: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    segmentations: list[Any] | None = None
    annotated: bool = True
    absent: np.ndarray | None = None
    incomplete: np.ndarray | None = None
    source: str = field(default="", compare=False)

    @cached_property
    def index_of_image(self) -> dict[ImageId, int]:
        """Image id to its number in [0, N)."""
        return {image_id: index for index, image_id in enumerate(self.image_ids)}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """(K,) names made unique: a name that several categories share is followed by its id."""
        counts = Counter(self.space.names)
        return tuple(
            name if counts[name] == 1 else f"{name} ({dataset_id})"
            for name, dataset_id in zip(self.space.names, self.space.dataset_ids, strict=True)
        )

    @property
    def num_categories(self) -> int:
        """K."""
        return len(self.space)

    def take(self, rows: np.ndarray) -> "GroundTruth":
        """The same images and categories with some of the boxes, by their positions."""
        masks = self.segmentations
        return replace(
            self,
            image_index=self.image_index[rows],
            category_index=self.category_index[rows],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
            segmentations=None if masks is None else [masks[row] for row in rows.tolist()],
        )


def ground_truth_of_dataset(dataset_name: str) -> GroundTruth:
    """Ground truth of a registered dataset.

    It comes from the file that `Metadata.json_file` names, else from the records of
    `DatasetCatalog`. Raises FileNotFoundError for a missing file, ValueError for a broken one and
    for a dataset that is not registered.
    """
    space = category_space(dataset_name)
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if json_file is None:
        return from_records(DatasetCatalog.get(dataset_name), space, source=dataset_name)
    return from_json(json_file, space)


def from_json(json_file: str | Path, space: CategorySpace | None = None) -> GroundTruth:
    """Ground truth of a COCO-format annotation file.

    `space` gives the contiguous ids; without it the file's own categories do, by ascending id.
    Raises FileNotFoundError when there is no such file and ValueError when it is not COCO's format
    or names a category or an image that it does not list.
    """
    content = read_json(json_file)
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise ValueError(
            f"{json_file} is not a COCO annotation file: expected an object with the keys images, "
            f"annotations and categories, got {describe(content)}"
        )
    return from_coco(content, space, source=str(json_file))


def with_training_counts(ground_truth: GroundTruth, training: str | Path) -> GroundTruth:
    """The ground truth, its categories knowing how much of each a training set has.

    Categories without frequency groups get those that LVIS's thresholds give their image counts.

    Args:
        ground_truth: of the set that is evaluated.
        training: a COCO-format annotation file with the same category ids.

    Raises:
        ValueError, FileNotFoundError: as `from_json`; also for a file without annotations.
    """
    seen = from_json(training, ground_truth.space)
    if not seen.annotated:
        raise ValueError(f"{training} lists no annotations, so it says nothing of the training set")
    counted = ~seen.is_crowd
    image, category = seen.image_index[counted], seen.category_index[counted]
    size = ground_truth.num_categories
    pairs = np.unique(image * size + category)
    space = ground_truth.space.with_counts(
        image_counts=np.bincount(pairs % size, minlength=size).tolist(),
        instance_counts=np.bincount(category, minlength=size).tolist(),
    )
    if not any(space.frequency):
        space = space.with_frequency_groups()
    return replace(ground_truth, space=space)


def describe(content: Any) -> str:
    """A few words on what a JSON file holds, for an error message."""
    if isinstance(content, dict):
        return f"an object with the keys {', '.join(sorted(content)[:8]) or '(none)'}"
    return f"a {type(content).__name__}"


def from_coco(
    content: Mapping[str, Any], space: CategorySpace | None = None, *, source: str = ""
) -> GroundTruth:
    """Ground truth of a COCO-format dictionary; `from_json` says what is checked."""
    space = space or CategorySpace.from_coco({"categories": content["categories"]})
    images = sorted(content["images"], key=lambda image: sort_key(image["id"]))
    image_ids = tuple(image["id"] for image in images)
    check_unique(image_ids, source)
    annotations = content.get("annotations")
    index_of_image = {image_id: index for index, image_id in enumerate(image_ids)}
    rows = annotations or []
    masks = [row.get("segmentation") or None for row in rows]
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    absent, incomplete = (federated_pairs(images, key, space, source) for key in FEDERATED_KEYS)
    return GroundTruth(
        space=space,
        image_ids=image_ids,
        image_sizes=np.array(
            [(i.get("height", 0), i.get("width", 0)) for i in images], dtype=np.int64
        ).reshape(-1, 2),
        image_index=look_up(index_of_image, rows, "image_id", source),
        category_index=look_up(space.dataset_id_to_contiguous_id, rows, "category_id", source),
        boxes=boxes,
        areas=np.array(
            [row.get("area", b[2] * b[3]) for row, b in zip(rows, boxes, strict=True)],
            dtype=np.float64,
        ),
        is_crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=bool),
        segmentations=masks if any(masks) else None,
        annotated=annotations is not None,
        absent=absent,
        incomplete=incomplete,
        source=source,
    )


def federated_pairs(
    images: Sequence[Mapping[str, Any]], key: str, space: CategorySpace, source: str
) -> np.ndarray | None:
    """(P, 2) pairs (image number, contiguous category) under an LVIS key; None where none has it.

    Raises ValueError for a category that the file does not list.
    """
    if not any(key in image for image in images):
        return None
    rows = [
        {"image": number, key: category}
        for number, image in enumerate(images)
        for category in image.get(key) or ()
    ]
    categories = look_up(space.dataset_id_to_contiguous_id, rows, key, source, what="images")
    numbers = np.array([row["image"] for row in rows], dtype=np.int64)
    return np.stack([numbers, categories], axis=1)


def from_records(
    records: Sequence[Mapping[str, Any]], space: CategorySpace, *, source: str = ""
) -> GroundTruth:
    """Ground truth of Detectron2's standard dataset dicts, with contiguous category ids.

    A record without `image_id` gets its number in the list; LVIS's lists of categories hold
    contiguous ids too, as `vastdet.data` loads them. Areas are those of the masks where they are
    given, else of the boxes, as in Detectron2's own conversion to COCO.
    """
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number, record in enumerate(records):
        image_id = record.get("image_id", number)
        size = (record.get("height", 0), record.get("width", 0))
        image = {"id": image_id, "height": size[0], "width": size[1]}
        for key in FEDERATED_KEYS:
            if key in record:
                image[key] = [space.to_dataset(index) for index in record[key]]
        content["images"].append(image)
        for annotation in record.get("annotations", ()):
            index = annotation["category_id"]
            if not 0 <= index < len(space):
                raise ValueError(
                    f"image {image_id!r} of {source or 'the dataset'} has category {index}, "
                    f"expected 0..{len(space) - 1}: {len(space)} categories are registered"
                )
            row = {"image_id": image_id, "category_id": space.to_dataset(index)}
            content["annotations"].append({**row, **annotation_shape(annotation, size)})
    return from_coco(content, space, source=source)


def annotation_shape(annotation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Box, area, crowd flag and mask of an annotation of a dataset dict in COCO's form."""
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    box = BoxMode.convert(list(map(float, annotation["bbox"])), mode, BoxMode.XYWH_ABS)
    row = {
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": annotation.get("iscrowd", 0),
    }
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return row
    if isinstance(segmentation, list):
        parts = mask_util.frPyObjects(segmentation, *size)
        row["area"] = float(mask_util.area(mask_util.merge(parts)))
    else:
        row["area"] = float(mask_util.area(segmentation))
    return {**row, "segmentation": segmentation}


def look_up(
    index: Mapping[Any, int],
    rows: Sequence[Mapping[str, Any]],
    key: str,
    source: str,
    *,
    what: str = "annotations",
) -> np.ndarray:
    """The numbers of the ids under `key`; ValueError names the first unknown one and the count."""
    unknown = [row[key] for row in rows if row[key] not in index]
    if unknown:
        raise ValueError(
            f"{source or 'the ground truth'}: {len(unknown)} {what} have a {key} that the "
            f"file does not list, the first {unknown[0]!r}; tools/check_dataset.py --fix drops them"
        )
    return np.array([index[row[key]] for row in rows], dtype=np.int64)


def check_unique(image_ids: Sequence[ImageId], source: str) -> None:
    """Raise ValueError when two images share an id."""
    repeated = [value for value, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{source or 'the ground truth'}: image id {repeated[0]!r} is listed more than once "
            f"({len(repeated)} such ids); ids must be unique"
        )


def sort_key(image_id: ImageId) -> tuple[bool, Any]:
    """Orders integer ids by value and before text ids."""
    return isinstance(image_id, str), image_id
