# SPDX-License-Identifier: Apache-2.0
"""The comparison of two networks: what counts as a difference, and that a wrong table shows."""

from dataclasses import replace

import torch
from torch import Tensor

from vastdet.engine.config_files import set_num_classes
from vastdet.model_zoo import get_config
from vastdet.model_zoo.convert_file import DETECTRON2_EPS
from vastdet.model_zoo.key_map import Converter, Pair
from vastdet.model_zoo.probe import (
    build_probe_model,
    compare,
    detection_differences,
    largest_difference,
    outputs_of,
    probe_image,
)
from vastdet.model_zoo.registry import find_converter


def found(boxes: list[list[float]], scores: list[float], classes: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "classes": torch.tensor(classes),
    }


def test_detections_are_compared_with_the_nearest_of_their_class() -> None:
    ours = found([[0, 0, 4, 4], [10, 10, 20, 20]], [0.5, 0.25], [0, 1])
    theirs = found([[10, 10, 20, 22], [0, 0, 4, 5]], [0.5, 0.5], [1, 0])
    assert detection_differences(ours, theirs) == {"boxes": 2.0, "scores": 0.25}
    other = {**theirs, "classes": torch.tensor([1, 1])}
    assert detection_differences(ours, other)["boxes"] == float("inf")
    fewer = {key: value[:1] for key, value in theirs.items()}
    assert detection_differences(ours, fewer)["scores"] == float("inf")
    assert detection_differences(found([], [], []), found([], [], [])) == {"boxes": 0, "scores": 0}


def test_tensors_of_two_shapes_are_infinitely_far() -> None:
    assert largest_difference(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 4.0])) == 2.0
    assert largest_difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert largest_difference(torch.zeros(0), torch.zeros(0)) == 0


def swapped(converter: Converter, first: str, second: str) -> Converter:
    """The table with the targets of two tensors exchanged."""
    exchange = {first: second, second: first}

    def wrong(pair: Pair) -> Pair:
        return replace(pair, detectron2=exchange.get(pair.detectron2, pair.detectron2))

    return replace(converter, pairs=tuple(wrong(pair) for pair in converter.pairs))


def test_two_exchanged_tensors_show() -> None:
    converter = find_converter("deformable_detr_R_50_plain_transformers")
    cfg = get_config(converter.config)
    for key, value in {"EMBED_DIM": 64, "FEEDFORWARD_DIM": 64, "NUM_QUERIES": 20}.items():
        cfg.MODEL.DEFORMABLE_DETR[key] = value
    for key, value in {"STEM_OUT_CHANNELS": 16, "RES2_OUT_CHANNELS": 32}.items():
        cfg.MODEL.RESNETS[key] = value
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    set_num_classes(cfg, 3)
    norms = [f"transformer.decoder.layers.0.{x}_attn_norm.weight" for x in ("self", "cross")]
    torch.manual_seed(0)
    ours = {
        key: torch.rand_like(value) + 0.5 if key.endswith(("running_var", *norms)) else value
        for key, value in build_probe_model(cfg, None).state_dict().items()
    }
    theirs = converter.from_detectron2(ours)
    right = compare(converter, cfg, ours, theirs, batch_norm_eps=DETECTRON2_EPS)
    assert set(right) == {"logits", "boxes"}
    assert max(right.values()) < 1e-5
    wrong = swapped(converter, *norms).to_detectron2(theirs)
    assert compare(converter, cfg, wrong, theirs, batch_norm_eps=DETECTRON2_EPS)["logits"] > 1e-3


def test_the_image_is_always_the_same() -> None:
    assert torch.equal(probe_image(), probe_image())


def test_dense_detectors_keep_detections_of_every_score() -> None:
    cfg = get_config("FCOS/fcos_R_50_FPN_1x")
    set_num_classes(cfg, 2)
    model = build_probe_model(cfg, None)
    with torch.no_grad():
        outputs = outputs_of(model, probe_image())
    assert len(outputs["boxes"]) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert float(outputs["scores"].max()) < cfg.MODEL.FCOS.SCORE_THRESH_TEST
