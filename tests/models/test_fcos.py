# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import ImageList
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection._utils import BoxLinearCoder

from vastdet.models.fcos.distances import MAX_DISTANCE, exp_distance
from vastdet.models.fcos.fcos import FCOS

K = 3


@pytest.fixture
def fcos_cfg(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FCOS.NUM_CLASSES = K
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.FCOS.SIZES_OF_INTEREST = [64, 128]
    cfg.MODEL.FCOS.NUM_CONVS = 1
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LOC_LOSS_TYPE", "l1", r"LOC_LOSS_TYPE is 'l1'; expected one of .*'giou'"),
        ("LOC_LOSS_WEIGHTING", "iou", "LOC_LOSS_WEIGHTING is 'iou'.*'centerness_mean'"),
        ("SCORE_TYPE", "sum", "SCORE_TYPE is 'sum'.*'product', 'sqrt'"),
        ("DISTANCE_ACTIVATION", "gelu", "DISTANCE_ACTIVATION is 'gelu'.*'exp', 'relu'"),
        ("SIZES_OF_INTEREST", [64], r"SIZES_OF_INTEREST is \[64\]; expected 2 increasing"),
        ("SIZES_OF_INTEREST", [64, 32], "expected 2 increasing"),
        ("IN_FEATURES", ["p3", "p4", "p7"], r"names \['p7'\], but the backbone returns \['p3'"),
    ],
)
def test_a_wrong_config_says_what_is_expected(
    fcos_cfg: CfgNode, key: str, value: object, message: str
) -> None:
    fcos_cfg.MODEL.FCOS[key] = value
    with pytest.raises(ValueError, match=message):
        build_model(fcos_cfg)


def test_exp_distance_cannot_overflow() -> None:
    x = torch.tensor([0.0, 1000.0], requires_grad=True)
    distances = exp_distance(x)
    distances.sum().backward()
    torch.testing.assert_close(distances.detach(), torch.tensor([1.0, MAX_DISTANCE]))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_norms_of_the_head(fcos_cfg: CfgNode, norm: str) -> None:
    fcos_cfg.MODEL.FCOS.NORM = norm
    model = build_model(fcos_cfg).eval()
    with torch.no_grad():
        output = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert output[0]["instances"].image_size == (64, 64)


def test_bfloat16_stays_close_to_float32(fcos_cfg: CfgNode) -> None:
    torch.manual_seed(0)
    model = build_model(fcos_cfg).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = [f[0] for f in model.head(list(model.backbone(image).values())[:3])]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = [f[0] for f in model.head(list(model.backbone(image).values())[:3])]
    assert rough[1].dtype == torch.float32
    for one, other in zip(exact, rough, strict=True):
        torch.testing.assert_close(one, other.float(), atol=0.05, rtol=0.05)


def random_predictions(batch: int, sizes: list[int]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(batch, channels, s, s, generator=generator) for s in sizes]
        for channels in (K, 4, 1)
    ]


def test_inference_equals_torchvisions(fcos_cfg: CfgNode) -> None:
    """The same head outputs through both post-processings, torchvision's conventions set."""
    fcos_cfg.MODEL.FCOS.POINT_OFFSET = 0.0
    fcos_cfg.MODEL.FCOS.SCORE_TYPE = "sqrt"
    fcos_cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.4
    fcos_cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 50
    model: FCOS = build_model(fcos_cfg).eval()
    sizes = [16, 8, 4]
    logits, deltas, centerness = random_predictions(2, sizes)
    distances = [6 * d.sigmoid() for d in deltas]
    features = [torch.zeros(2, 1, s, s) for s in sizes]
    images = ImageList(torch.zeros(2, 3, 128, 128), [(120, 128), (128, 101)])
    ours = model.forward_inference(images, features, (logits, distances, centerness))

    def flat(levels: list[Tensor]) -> list[Tensor]:
        return [level.flatten(2).transpose(1, 2) for level in levels]

    theirs_model = detection.FCOS.__new__(detection.FCOS)
    torch.nn.Module.__init__(theirs_model)
    theirs_model.score_thresh = 0.4
    theirs_model.topk_candidates = 50
    theirs_model.nms_thresh = 0.6
    theirs_model.detections_per_img = 100
    theirs_model.box_coder = BoxLinearCoder(normalize_by_size=True)
    anchors = [a.tensor for a in model.anchor_generator(features)]
    theirs = theirs_model.postprocess_detections(
        {
            "cls_logits": flat(logits),
            "bbox_regression": flat(distances),
            "bbox_ctrness": flat(centerness),
        },
        [anchors, anchors],
        images.image_sizes,
    )
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == len(other["boxes"]) > 20
        torch.testing.assert_close(one.pred_boxes.tensor, other["boxes"])
        torch.testing.assert_close(one.scores, other["scores"])
        assert torch.equal(one.pred_classes, other["labels"])


def test_nothing_above_the_threshold_gives_no_detections(fcos_cfg: CfgNode) -> None:
    fcos_cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.99
    model = build_model(fcos_cfg).eval()
    with torch.no_grad():
        instances = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]["instances"]
    assert len(instances) == 0
    assert instances.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize(
    "name",
    [
        "FCOS/fcos_R_50_FPN_1x",
        "FCOS/fcos_improved_R_50_FPN_1x",
        "quick/fcos_generated",
        "quick/fcos_bccd",
    ],
)
def test_the_configs_build(cfg: CfgNode, repository: Path, name: str) -> None:
    path = repository / "configs" / f"{name}.yaml"
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert isinstance(model, FCOS)
    build_optimizer(cfg, model)  # Detectron2's own must read the config too
    assert path.read_text().startswith("# FCOS")
