# SPDX-License-Identifier: Apache-2.0
"""The mapper against Detectron2's own, and what it does with records that make no sense."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from vastdet.data import BrokenRecordError, DetectionMapper

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A picture of 60x40 pixels with two boxes."""
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    boxes = [[5.0, 5.0, 20.0, 30.0], [30.5, 10.0, 29.0, 25.0]]
    annotations = [
        {"id": 7 + i, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": i}
        for i, box in enumerate(boxes)
    ]
    return {
        "file_name": str(path),
        "height": 40,
        "width": 60,
        "image_id": 3,
        "annotations": annotations,
    }


@pytest.fixture
def mapper(cfg: CfgNode) -> DetectionMapper:
    return DetectionMapper(cfg, True)


def test_what_a_detector_is_fed(record: dict[str, Any], cfg: CfgNode) -> None:
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    before = copy.deepcopy(record)
    fed = DetectionMapper(cfg, True)(record)
    assert record == before
    assert fed["image"].shape == (3, 80, 120)
    assert fed["image"].dtype == torch.uint8
    assert (fed["height"], fed["width"], fed["image_id"]) == (40, 60, 3)
    assert fed["file_name"] == record["file_name"]
    assert "annotations" not in fed
    expected = torch.tensor([[10.0, 10, 50, 70], [61, 20, 119, 70]])
    torch.testing.assert_close(fed["instances"].gt_boxes.tensor, expected)
    assert fed["instances"].gt_classes.tolist() == [0, 1]


def test_inference_has_no_ground_truth(record: dict[str, Any], cfg: CfgNode) -> None:
    record["annotations"][0]["bbox"] = [NAN] * 4
    fed = DetectionMapper(cfg, False)(record)
    assert "instances" not in fed
    assert "annotations" not in fed
    assert fed["image"].shape == (3, 800, 1200)


def test_no_annotations_and_none_left(record: dict[str, Any], mapper: DetectionMapper) -> None:
    record["annotations"] = []
    assert len(mapper(record)["instances"]) == 0
    assert mapper(record)["instances"].gt_boxes.tensor.shape == (0, 4)
    del record["annotations"]
    assert "instances" not in mapper(record)


def test_crowd_is_left_out(record: dict[str, Any], mapper: DetectionMapper) -> None:
    record["annotations"][0].update(iscrowd=1, bbox=[0, 0, 0, 0])
    assert mapper(record)["instances"].gt_classes.tolist() == [1]
    assert mapper.num_dropped_boxes == 0


def test_mixed_box_modes(record: dict[str, Any], mapper: DetectionMapper) -> None:
    plain = boxes_fed(mapper, record)
    record["annotations"][1].update(bbox=[30.5, 10, 59.5, 35], bbox_mode=BoxMode.XYXY_ABS)
    torch.testing.assert_close(boxes_fed(mapper, record), plain)


def boxes_fed(mapper: DetectionMapper, record: dict[str, Any]) -> torch.Tensor:
    seed_all_rng(0)
    return mapper(record)["instances"].gt_boxes.tensor


def with_crop(cfg: CfgNode) -> None:
    cfg.INPUT.CROP.ENABLED = True


def with_masks(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_ON = True


def with_vertical_flip(cfg: CfgNode) -> None:
    cfg.INPUT.RANDOM_FLIP = "vertical"


@pytest.mark.parametrize("change", [lambda cfg: None, with_crop, with_masks, with_vertical_flip])
def test_equals_detectron2(record: dict[str, Any], cfg: CfgNode, change: Any) -> None:
    change(cfg)
    for i, annotation in enumerate(record["annotations"]):
        annotation["segmentation"] = [[5.0, 5, 25 + i, 5, 25, 35]]
    ours, theirs = DetectionMapper(cfg, True), DatasetMapper(cfg, True)
    for seed in range(4):
        seed_all_rng(seed)
        fed = ours(record)
        seed_all_rng(seed)
        expected = theirs(record)
        assert torch.equal(fed["image"], expected["image"])
        assert fed.keys() == expected.keys()
        assert fed["instances"].get_fields().keys() == expected["instances"].get_fields().keys()
        torch.testing.assert_close(
            fed["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor
        )
        assert torch.equal(fed["instances"].gt_classes, expected["instances"].gt_classes)


@pytest.mark.parametrize("mask_on", [False, True])
def test_integer_boxes_keep_their_fractions(
    record: dict[str, Any], cfg: CfgNode, mask_on: bool
) -> None:
    cfg.MODEL.MASK_ON = mask_on
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (41,)
    record["annotations"] = record["annotations"][:1]
    record["annotations"][0].update(bbox=[5, 5, 20, 30], segmentation=[[5, 5, 25, 5, 25, 35]])
    fed = DetectionMapper(cfg, True)(record)
    x, y = fed["image"].shape[2] / 60, fed["image"].shape[1] / 40
    box = fed["instances"].gt_boxes.tensor
    torch.testing.assert_close(box, torch.tensor([[5 * x, 5 * y, 25 * x, 35 * y]]))
    assert y == 41 / 40


def test_equals_detectron2_on_photographs(shared_data: Path, cfg: CfgNode) -> None:
    bccd = shared_data / "bccd"
    records = load_coco_json(str(bccd / "annotations/val.json"), str(bccd / "images"))
    ours, theirs = DetectionMapper(cfg, True), DatasetMapper(cfg, True)
    for seed, record in enumerate(records[:12]):
        seed_all_rng(seed)
        fed = ours(record)
        seed_all_rng(seed)
        expected = theirs(record)
        assert torch.equal(fed["image"], expected["image"])
        torch.testing.assert_close(
            fed["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor
        )
        assert torch.equal(fed["instances"].gt_classes, expected["instances"].gt_classes)


def test_proposals(record: dict[str, Any], cfg: CfgNode) -> None:
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2
    record["proposal_boxes"] = np.array(
        [[0, 0, 30, 20], [1, 1, 1, 9], [5, 5, 60, 40], [0, 0, 9, 9]]
    )
    record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    record["proposal_objectness_logits"] = np.array([4.0, 3.0, 2.0, 1.0])
    seed_all_rng(1)
    fed = DetectionMapper(cfg, True)(record)
    seed_all_rng(1)
    expected = DatasetMapper(cfg, True)(record)
    ours, theirs = fed["proposals"], expected["proposals"]
    torch.testing.assert_close(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
    assert ours.objectness_logits.tolist() == [4.0, 2.0]
    record["proposal_boxes"] = np.array([[0, 0, NAN, 20.0]] * 4)
    with pytest.raises(BrokenRecordError, match=r"picture\.png: proposal_boxes has NaN"):
        DetectionMapper(cfg, True)(record)


@pytest.mark.parametrize("bad", [[NAN, 0, 5, 5], [0, 0, INF, 5], [-INF, 0, 5, 5]])
def test_a_box_that_is_not_finite(
    record: dict[str, Any], mapper: DetectionMapper, bad: list[float]
) -> None:
    record["annotations"][1]["bbox"] = bad
    with pytest.raises(
        BrokenRecordError, match=r"picture\.png: annotation 8 .*not finite.*(nan|inf)"
    ):
        mapper(record)
    del record["annotations"][1]["id"]
    with pytest.raises(BrokenRecordError, match=r"annotation no\. 1 "):
        mapper(record)


@pytest.mark.parametrize("bad", [[1, 2, 3], None, ["a", 1, 2, 3], [], [[1], 2, 3, 4]])
def test_a_box_that_is_no_box(record: dict[str, Any], mapper: DetectionMapper, bad: Any) -> None:
    record["annotations"][0]["bbox"] = bad
    with pytest.raises(BrokenRecordError, match=r"picture\.png: every annotation needs a bbox"):
        mapper(record)
    record["annotations"].pop()
    with pytest.raises(BrokenRecordError, match=r"picture\.png: every annotation needs a bbox"):
        mapper(record)


def test_missing_bbox_mode(record: dict[str, Any], mapper: DetectionMapper) -> None:
    del record["annotations"][0]["bbox_mode"]
    with pytest.raises(BrokenRecordError, match="bbox_mode"):
        mapper(record)


@pytest.mark.parametrize(
    "bad",
    [[5, 5, 0, 9], [5, 5, 9, -1], [5, 5, -3, -3], [60, 0, 9, 9], [-9, 0, 9, 9], [0, 99, 5, 5]],
)
def test_a_box_without_visible_area_is_dropped_and_counted(
    record: dict[str, Any],
    mapper: DetectionMapper,
    caplog: pytest.LogCaptureFixture,
    bad: list[float],
) -> None:
    record["annotations"][0]["bbox"] = bad
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            assert mapper(record)["instances"].gt_classes.tolist() == [1]
    assert mapper.num_dropped_boxes == 10
    messages = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert len(messages) == 2
    assert messages[0].startswith("1 boxes dropped so far")
    assert messages[1].startswith("10 boxes dropped so far")
    assert "picture.png" in messages[0]


@pytest.mark.parametrize("bad", [-1, 2, 1.5, None, "dog"])
def test_unknown_category(record: dict[str, Any], cfg: CfgNode, bad: Any) -> None:
    name = "mapper_test_two_categories"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    try:
        cfg.DATASETS.TRAIN = (name,)
        mapper = DetectionMapper(cfg, True)
        assert len(mapper(record)["instances"]) == 2
        record["annotations"][0]["category_id"] = bad
        with pytest.raises(BrokenRecordError, match=r"picture\.png: annotation 7 .*in \[0, 2\)"):
            mapper(record)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_negative_category_without_metadata(
    record: dict[str, Any], mapper: DetectionMapper
) -> None:
    record["annotations"][0]["category_id"] = -1
    with pytest.raises(BrokenRecordError, match="contiguous category ids are 0 or more"):
        mapper(record)


def test_wrong_recorded_size(record: dict[str, Any], mapper: DetectionMapper) -> None:
    record["width"] = 61
    with pytest.raises(BrokenRecordError, match=r"picture\.png.*\(60, 40\).*\(61, 40\)"):
        mapper(record)


def test_unreadable_image(record: dict[str, Any], mapper: DetectionMapper) -> None:
    Path(record["file_name"]).write_bytes(b"")
    with pytest.raises(BrokenRecordError, match=r"picture\.png: the file is empty"):
        mapper(record)
    Path(record["file_name"]).unlink()
    with pytest.raises(BrokenRecordError, match="no such image file"):
        mapper(record)


def test_one_pixel(tmp_path: Path, mapper: DetectionMapper) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    annotation = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    fed = mapper({"file_name": str(tmp_path / "dot.png"), "annotations": [annotation]})
    assert fed["image"].shape == (3, 800, 800)
    assert (fed["height"], fed["width"]) == (1, 1)
    assert fed["instances"].gt_boxes.tensor.tolist() == [[0, 0, 800, 800]]


def test_an_image_too_thin_to_resize(tmp_path: Path, mapper: DetectionMapper) -> None:
    Image.new("RGB", (30_000, 5)).save(tmp_path / "thin.png")
    with pytest.raises(BrokenRecordError, match=r"thin\.png: an image of 30000x5 pixels cannot"):
        mapper({"file_name": str(tmp_path / "thin.png"), "annotations": []})


def test_zooms_keep_boxes_inside(record: dict[str, Any], cfg: CfgNode) -> None:
    cfg.INPUT.ZOOM_IN.PROB = cfg.INPUT.ZOOM_OUT.PROB = 1.0
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.5
    mapper = DetectionMapper(cfg, True)
    for seed in range(5):
        seed_all_rng(seed)
        fed = mapper(record)
        height, width = fed["image"].shape[1:]
        boxes = fed["instances"].gt_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert fed["instances"].image_size == (height, width)
