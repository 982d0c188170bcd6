# SPDX-License-Identifier: Apache-2.0
"""Panoptic annotations: records beside Detectron2's, masks in the mapper, and their evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from PIL import Image

from vastdet.data import BrokenRecordError, DetectionMapper, category_space
from vastdet.data.panoptic import load_panoptic_records, panoptic_space, segment_ids, with_masks
from vastdet.evaluation import build_evaluator

NAME = "panoptic_test"
# Two things and two kinds of stuff, their ids in the file with gaps.
CATEGORIES = {
    "thing_dataset_id_to_contiguous_id": {1: 0, 7: 1},
    "stuff_dataset_id_to_contiguous_id": {92: 2, 100: 3},
    "thing_classes": ["cat", "dog", "sky", "grass"],
    "stuff_classes": ["cat", "dog", "sky", "grass"],
}
# Category in the file, and id of each segment; ids need all three colours.
SEGMENTS = {1: 5, 7: 300, 92: 70_000, 100: 9}
HEIGHT, WIDTH = 24, 30


def segment_map() -> np.ndarray:
    ids = np.full((HEIGHT, WIDTH), SEGMENTS[92])
    ids[16:] = SEGMENTS[100]
    ids[4:20, 2:10] = SEGMENTS[1]
    ids[8:22, 15:29] = SEGMENTS[7]
    ids[:2, :3] = 0  # nobody's
    return ids


def boxes_and_areas(ids: np.ndarray) -> list[dict[str, Any]]:
    infos = []
    for category, segment in SEGMENTS.items():
        y, x = (ids == segment).nonzero()
        size = (int(x.max() - x.min() + 1), int(y.max() - y.min() + 1))
        infos.append(
            {
                "id": segment,
                "category_id": category,
                "bbox": [int(x.min()), int(y.min()), *size],
                "area": len(x),
                "iscrowd": 0,
            }
        )
    return infos


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """One image, registered as Detectron2 does."""
    for folder in ("images", "segments"):
        (tmp_path / folder).mkdir()
    ids = segment_map()
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "segments" / "a.png")
    Image.fromarray(colours).save(tmp_path / "images" / "a.jpg")
    document = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"image_id": 3, "file_name": "a.png", "segments_info": boxes_and_areas(ids)}
        ],
        "categories": [
            {"id": i, "name": name, "isthing": int(i < 50), "color": [i, i, i]}
            for i, name in zip(SEGMENTS, CATEGORIES["thing_classes"], strict=True)
        ],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(document))
    register_coco_panoptic(
        NAME,
        CATEGORIES,
        str(tmp_path / "images"),
        str(tmp_path / "segments"),
        str(tmp_path / "panoptic.json"),
    )
    metadata = MetadataCatalog.get(NAME)
    metadata.category_space = panoptic_space(metadata)
    yield metadata
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_records_are_detectron2_s_with_sizes_and_boxes(dataset: Any) -> None:
    ours = load_panoptic_records(NAME)
    paths = (dataset.panoptic_json, dataset.image_root, dataset.panoptic_root)
    theirs = load_coco_panoptic_json(*paths, CATEGORIES)
    for record, other in zip(ours, theirs, strict=True):
        for key in ("file_name", "image_id", "pan_seg_file_name"):
            assert record[key] == other[key]
        assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
        for annotation, segment in zip(record["annotations"], other["segments_info"], strict=True):
            for key in ("id", "category_id", "bbox", "iscrowd"):
                assert annotation[key] == segment[key]


def test_the_mapper_gives_masks_of_things_and_stuff(dataset: Any, cfg: CfgNode) -> None:
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (HEIGHT,), "none"
    cfg.DATASETS.TRAIN = (NAME,)
    instances = DetectionMapper(cfg, True)(load_panoptic_records(NAME)[0])["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 2, 3]
    ids = torch.from_numpy(segment_map())
    expected = torch.stack([ids == segment for segment in SEGMENTS.values()])
    assert torch.equal(instances.gt_masks.tensor, expected)
    assert torch.equal(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor)
    cfg.MODEL.MASK_ON = False
    instances = DetectionMapper(cfg, True)(load_panoptic_records(NAME)[0])["instances"]
    assert not instances.has("gt_masks")
    assert len(instances) == 4


def test_broken_segments_are_named(dataset: Any) -> None:
    record = load_panoptic_records(NAME)[0]
    annotations = record["annotations"]
    with pytest.raises(BrokenRecordError, match=r"a\.jpg: segment 4 is not in .*a\.png"):
        with_masks(record, [{**annotations[0], "id": 4}])
    with pytest.raises(BrokenRecordError, match=r"an image of 31x24 pixels, but .* has 30x24"):
        with_masks({**record, "width": WIDTH + 1}, annotations)
    with pytest.raises(BrokenRecordError, match="there is no such image file"):
        with_masks({**record, "pan_seg_file_name": "none.png"}, annotations)
    document = json.loads(Path(dataset.panoptic_json).read_text())
    document["annotations"] = []
    Path(dataset.panoptic_json).write_text(json.dumps(document))
    with pytest.raises(ValueError, match="image 3 has no entry in 'annotations'"):
        load_panoptic_records(NAME)


def test_coco_s_133_categories() -> None:
    space = category_space("coco_2017_train_panoptic")
    assert len(space) == 133
    assert (space.names[0], space.names[79]) == ("person", "toothbrush")
    assert (space.dataset_ids[0], space.dataset_ids[80], space.dataset_ids[132]) == (1, 92, 200)
    separated = MetadataCatalog.get("coco_2017_train_panoptic_separated")
    with pytest.raises(ValueError, match="are not 0 to 53, each once"):
        panoptic_space(separated)


def test_ids_of_colours() -> None:
    assert segment_ids(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[1 + 2 * 256 + 3 * 256**2]]


# Segments that a model found: id in its map, contiguous category, whether a thing.
FOUND = {1: (0, True), 2: (1, True), 3: (0, True), 4: (2, False), 5: (3, False), 6: (1, True)}


def found_map() -> np.ndarray:
    """The cat moved, a part of the dog a cat, sky and grass parted higher up, a dog too many."""
    ids = np.full((HEIGHT, WIDTH), 4)
    ids[14:] = 5
    ids[5:20, 3:11] = 1
    ids[8:22, 15:24] = 2
    ids[8:22, 24:29] = 3
    ids[:2, :3] = 6  # where there is no truth, so no mistake either
    return ids


def infos_of(found: dict[int, tuple[int, bool]]) -> list[dict[str, Any]]:
    return [{"id": i, "category_id": c, "isthing": thing} for i, (c, thing) in found.items()]


def quality_by_loops(truth: np.ndarray, found: np.ndarray, category: int) -> float:
    """PQ of one contiguous category, by the formula of Kirillov et al. 2019, section 4."""
    void = truth == 0
    own = {s: k for k, s in enumerate(SEGMENTS.values())}
    wanted = [truth == s for s, k in own.items() if k == category]
    given = [found == i for i, (k, _) in FOUND.items() if k == category]
    given = [x for x in given if (x & void).sum() <= x.sum() / 2]
    ious = [(x & y).sum() / ((x | y) & ~(y & void)).sum() for x in wanted for y in given]
    hits = [iou for iou in ious if iou > 0.5]
    return sum(hits) / (len(hits) + (len(wanted) - len(hits)) / 2 + (len(given) - len(hits)) / 2)


def evaluator_of(cfg: CfgNode, folder: Path | None, ids: np.ndarray, infos: list[Any]) -> Any:
    evaluator = build_evaluator(cfg, NAME, folder)
    output = {"panoptic_seg": (torch.from_numpy(ids).int(), infos)}
    evaluator.process([load_panoptic_records(NAME)[0]], [output])
    return evaluator


def test_panoptic_quality_equals_loops(dataset: Any, cfg: CfgNode, tmp_path: Path) -> None:
    evaluator = evaluator_of(cfg, tmp_path / "out", found_map(), infos_of(FOUND))
    results = evaluator.evaluate()["panoptic_seg"]
    expected = [100 * quality_by_loops(segment_map(), found_map(), k) for k in range(4)]
    assert len(set(expected)) == 4
    print(f"differs by {abs(results['PQ'] - np.mean(expected)):.1e} of {expected}")
    assert results["PQ"] == pytest.approx(np.mean(expected))
    assert results["PQ_th"] == pytest.approx(np.mean(expected[:2]))
    assert results["PQ_st"] == pytest.approx(np.mean(expected[2:]))
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    (annotation,) = written["annotations"]
    assert [x["category_id"] for x in annotation["segments_info"]] == [1, 7, 1, 92, 100, 7]
    evaluator.reset()
    with pytest.raises(ValueError, match="no prediction for the image with id 3"):
        evaluator.evaluate()


def test_the_truth_scores_100(dataset: Any, cfg: CfgNode) -> None:
    truth = {s: (k, k < 2) for k, s in enumerate(SEGMENTS.values())}
    results = evaluator_of(cfg, None, segment_map(), infos_of(truth)).evaluate()["panoptic_seg"]
    assert len(results) == 9
    assert all(value == pytest.approx(100) for value in results.values())


def test_outputs_without_segments_are_refused(dataset: Any, cfg: CfgNode) -> None:
    evaluator = build_evaluator(cfg, NAME, None)
    (record,) = load_panoptic_records(NAME)
    for output in ({"instances": None}, {"panoptic_seg": (torch.zeros(2, 2), None)}):
        with pytest.raises(
            ValueError, match=r"output for image 3 has \['.*expected 'panoptic_seg'"
        ):
            evaluator.process([record], [output])
