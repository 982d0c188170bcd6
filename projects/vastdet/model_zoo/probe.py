# SPDX-License-Identifier: Apache-2.0
"""How far a converted network is from the one it was made of, on one fixed random image.

Q queries, K classes, N detections.
"""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from vastdet.detr.set_detector import SetDetector
from vastdet.engine.config_files import without_pretrained
from vastdet.model_zoo.key_map import Converter, StateDict

SIZE = (160, 192)  # height and width; no multiple of the largest stride
# Keys by which the families name the lowest score of a detection.
SCORE_THRESHOLD = "SCORE_THRESH_TEST"


def compare(
    converter: Converter,
    cfg: CfgNode,
    ours: StateDict,
    theirs: StateDict,
    *,
    batch_norm_eps: float,
) -> dict[str, float]:
    """The largest difference of each output, by name.

    Args:
        converter: with a `twin`.
        cfg: what our model is built from.
        ours: its weights.
        theirs: the weights under the other code base's names.
        batch_norm_eps: of the other code base's frozen batch norms.

    Raises:
        ImportError: the other code base is not installed.
    """
    assert converter.twin is not None
    # Reading the files of a model hub is no part of this.
    network = converter.twin(cfg, theirs, batch_norm_eps)
    model = build_probe_model(cfg, ours)
    image = probe_image()
    expected = network(image)
    with torch.no_grad():
        got = outputs_of(model, image)
    if "classes" in got:
        return detection_differences(got, expected)
    return {key: largest_difference(got[key], expected[key]) for key in expected}


def probe_image() -> Tensor:
    """A normalised random image (3, H, W), always the same."""
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0))


def build_probe_model(cfg: CfgNode, weights: StateDict | None) -> nn.Module:
    """Our model on the CPU, which takes normalised images and keeps detections of every score.

    Its weights are random where none are given.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    without_pretrained(cfg)
    for node in cfg.MODEL.values():
        if isinstance(node, CfgNode) and SCORE_THRESHOLD in node:
            node[SCORE_THRESHOLD] = 0.0
    model = build_model(cfg).eval()
    if weights is not None:
        model.load_state_dict(weights, strict=True)
    model.pixel_mean.zero_()
    model.pixel_std.fill_(1.0)
    return model


def outputs_of(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Logits and boxes (Q, 4) of the last layer of a set detector, detections of others.

    Boxes are CXCYWH as shares of the image, those of detections XYXY in pixels.
    """
    if isinstance(model, SetDetector):
        last = model.predict_padded([image]).decoder
        return {"logits": last.logits[-1, 0], "boxes": last.boxes[-1, 0]}
    (found,) = model([{"image": image, "height": image.shape[1], "width": image.shape[2]}])
    instances = found["instances"]
    return {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }


def largest_difference(got: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape; infinite for two shapes."""
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).abs().max()) if got.numel() else 0.0


def detection_differences(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Differences of each detection of ours to the nearest of theirs of its class.

    Infinite where they have none of a class, or another number in all.
    """
    if len(got["boxes"]) != len(expected["boxes"]):
        return {"boxes": float("inf"), "scores": float("inf")}
    if not len(got["boxes"]):
        return {"boxes": 0.0, "scores": 0.0}
    distance = (got["boxes"][:, None] - expected["boxes"]).abs().amax(dim=2)
    score_distance = (got["scores"][:, None] - expected["scores"]).abs()
    # Which of two boxes is the nearest is decided by both, so that ties do not matter.
    total = distance + score_distance
    total[got["classes"][:, None] != expected["classes"]] = float("inf")
    total, nearest = total.min(dim=1)
    if not bool(total.isfinite().all()):
        return {"boxes": float("inf"), "scores": float("inf")}
    rows = torch.arange(len(nearest))
    return {
        "boxes": float(distance[rows, nearest].max()),
        "scores": float(score_distance[rows, nearest].max()),
    }
