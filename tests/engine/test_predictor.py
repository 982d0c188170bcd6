# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from vastdet.engine.predictor import Predictor

NUM_CLASSES = 10


@pytest.fixture
def small_cfg(cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """A RetinaNet of a few weights, saved at random, for `generated_10_val`."""
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "resnet10t"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p5"]
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.DATASETS.TEST = ("generated_10_val",)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    torch.manual_seed(0)
    path = tmp_path / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    return cfg


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def test_boxes_lie_in_the_image_as_given(small_cfg: CfgNode, pixels: np.ndarray) -> None:
    instances = Predictor(small_cfg)(pixels)
    assert len(instances) > 0
    assert instances.image_size == (90, 120)
    boxes = instances.pred_boxes.tensor
    assert boxes.min() >= 0
    assert boxes[:, 0::2].max() <= 120
    assert boxes[:, 1::2].max() <= 90
    assert boxes[:, 2].max() > 64  # not left in the resized frame of 85 x 64
    assert not instances.scores.requires_grad


def test_bfloat16_stays_close_to_float32(small_cfg: CfgNode, pixels: np.ndarray) -> None:
    weights = torch.load(small_cfg.MODEL.WEIGHTS, weights_only=True)
    for name, tensor in weights["model"].items():
        if name.startswith(("head.cls_subnet", "head.cls_score.weight")):
            tensor.normal_(0, 0.2)  # or every score is the prior
    torch.save(weights, small_cfg.MODEL.WEIGHTS)
    plain = Predictor(small_cfg)(pixels)
    small_cfg.TEST.AMP.ENABLED = True
    predictor = Predictor(small_cfg)
    mixed = predictor(pixels)
    assert predictor.run([]) == []
    assert mixed.scores.dtype == mixed.pred_boxes.tensor.dtype == torch.float32
    assert not torch.equal(mixed.scores, plain.scores)
    gap = (mixed.scores - plain.scores).abs().mean()
    print(f"bf16 beside float32, {plain.scores[0]:.3f} to {plain.scores[-1]:.3f}: {gap:.1e}")
    assert gap < 2e-3  # measured: 1.8e-4 in the mean


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_a_file_and_its_array_agree(
    small_cfg: CfgNode, pixels: np.ndarray, tmp_path: Path, order: str
) -> None:
    small_cfg.INPUT.FORMAT = order
    Image.fromarray(pixels[:, :, ::-1]).save(tmp_path / "a.png")
    predictor = Predictor(small_cfg)
    inputs = predictor.prepare(tmp_path / "a.png")
    torch.testing.assert_close(inputs["image"], predictor.prepare(pixels)["image"])
    first = pixels[:, :, 0].mean() if order == "BGR" else pixels[:, :, 2].mean()
    assert abs(inputs["image"][0].float().mean() - first) < 1


def test_a_batch_equals_single_images(small_cfg: CfgNode, pixels: np.ndarray) -> None:
    # Keep every box: random weights score them nearly alike, and rounding would choose.
    small_cfg.MODEL.RETINANET.NMS_THRESH_TEST = 1.0
    small_cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = small_cfg.TEST.DETECTIONS_PER_IMAGE = 10**6
    predictor = Predictor(small_cfg)
    images = [pixels, pixels[::-1]]
    for alone, together in zip(map(predictor, images), predictor.predict(images), strict=True):
        assert len(alone) == len(together) > 100
        torch.testing.assert_close(alone.scores.sort()[0], together.scores.sort()[0])
        one, two = (r.pred_boxes.tensor.sort(dim=0)[0] for r in (alone, together))
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-4)
    assert predictor.predict([]) == []


def test_names_come_from_the_dataset_or_the_caller(small_cfg: CfgNode) -> None:
    predictor = Predictor(small_cfg)
    assert predictor.dataset == "generated_10_val"
    assert predictor.class_names == MetadataCatalog.get("generated_10_val").thing_classes
    given = Predictor(small_cfg, class_names="abcdefghij")
    assert (given.class_names, given.dataset) == (list("abcdefghij"), None)
    small_cfg.DATASETS.TEST = ("not_registered", "generated_24_val")
    assert Predictor(small_cfg).class_names == [f"class {i}" for i in range(NUM_CLASSES)]


def test_the_config_is_not_changed(small_cfg: CfgNode) -> None:
    small_cfg.MODEL.TIMM.PRETRAINED = True
    before = small_cfg.dump()
    small_cfg.freeze()
    Predictor(small_cfg)
    assert small_cfg.dump() == before


def test_wrong_arguments_are_explained(small_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="9 class names are given, but the model has 10"):
        Predictor(small_cfg, class_names="abcdefghi")
    with pytest.raises(FileNotFoundError, match=r"no weights at missing\.pth"):
        Predictor(small_cfg, "missing.pth")
    small_cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="no weights are given"):
        Predictor(small_cfg)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_a_wrong_array_is_refused(small_cfg: CfgNode, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="HxWx3 of uint8 in BGR order"):
        Predictor(small_cfg).prepare(array)


def test_images_become_squares(small_cfg: CfgNode) -> None:
    small_cfg.INPUT.SQUARE = True
    predictor = Predictor(small_cfg)
    for shape in ((90, 120, 3), (2, 1000, 3)):
        inputs = predictor.prepare(np.zeros(shape, np.uint8))
        assert inputs["image"].shape == (3, 64, 64)
        assert (inputs["height"], inputs["width"]) == shape[:2]


def test_thin_images(small_cfg: CfgNode) -> None:
    predictor = Predictor(small_cfg)
    assert predictor.prepare(np.zeros((1, 1, 3), np.uint8))["image"].shape == (3, 64, 64)
    with pytest.raises(ValueError, match="1000x2 pixels has no pixel left across"):
        predictor.prepare(np.zeros((2, 1000, 3), np.uint8))
