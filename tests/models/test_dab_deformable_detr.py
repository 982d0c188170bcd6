# SPDX-License-Identifier: Apache-2.0
"""DN-Deformable-DETR beside the authors' code, on a small random model; without denoising too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import largest_difference
from tests.models.family_reference import (
    NUM_DECODER,
    NUM_ENCODER,
    NUM_LEVELS,
    assert_same_inference,
    assert_same_matches,
    compare_gradients,
    read,
    small_converter,
    small_model,
    some_targets,
    stack,
    stored_noise,
    summed_losses,
)
from torch import Tensor

from vastdet.detr.denoising import Noise
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.structures import Targets
from vastdet.model_zoo.dab_deformable_models import dn_deformable_transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.models.dab_deformable_detr.dab_deformable_detr import (
    DABDeformableDETR,
    build_criterion,
    build_transformer,
)

LOSSES = {
    "": ("loss_{}",),
    "_aux": ("loss_{}_0", "loss_{}_1"),
    "_dn": ("tgt_loss_{}", "tgt_loss_{}_0", "tgt_loss_{}_1"),
}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, Any]:
    return read(shared_data, "fixture_dndeformable")


def converter() -> Converter:
    pairs = dn_deformable_transformer_pairs(NUM_ENCODER, NUM_DECODER, num_levels=NUM_LEVELS)
    return small_converter("small DN-Deformable-DETR", pairs)


def build(cfg: CfgNode, num_groups: int) -> SetDetector:
    node = cfg.MODEL.DAB_DEFORMABLE_DETR
    node.DENOISING.NUM_GROUPS = num_groups
    return small_model(DABDeformableDETR, node, build_transformer, build_criterion, 100)


@pytest.fixture
def model(cfg: CfgNode, reference: dict[str, Any]) -> SetDetector:
    model = build(cfg, num_groups=5)
    model.load_state_dict(converter().to_detectron2(reference["state_dict"]))
    return model


@pytest.fixture
def targets(reference: dict[str, Any]) -> Targets:
    return some_targets(reference, (None, None))


def test_detections_equal_the_authors(model: SetDetector, reference: dict[str, Any]) -> None:
    # Measured: logits 3.9e-6, boxes 1.8e-7.
    assert_same_inference(model, reference)


def test_queries_without_denoising_are_those_with_it(
    cfg: CfgNode, model: SetDetector, reference: dict[str, Any]
) -> None:
    # The last channel of the contents is the indicator, which matching queries have as 0.
    plain = build(cfg, num_groups=0)
    weights = {k: v for k, v in model.state_dict().items() if ".denoising." not in k}
    name = "transformer.query_source.content.weight"
    weights[name] = torch.cat([weights[name], torch.zeros(30, 1)], dim=1)
    plain.load_state_dict(weights)
    plain.eval()
    with torch.no_grad():
        predictions = plain.predict_padded(reference["inputs"]["images"]).decoder
    expected = reference["eval"]["outputs"]
    assert largest_difference(predictions.logits[-1], expected["pred_logits"]) < 2e-5
    assert largest_difference(predictions.boxes[-1], expected["pred_boxes"]) < 2e-6


def authors_noise(
    targets: Targets, probability: Tensor, new_labels: Tensor, shares: Tensor
) -> Noise:
    """What the authors drew, in our slots."""
    return stored_noise(targets, 1, probability < 0.2, new_labels, shares * 2 - 1)


@pytest.fixture
def training(
    model: SetDetector,
    reference: dict[str, Any],
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    drawn = reference["train"]["dn"]
    noise = authors_noise(
        targets, *(drawn[name] for name in ("rng_label_p", "rng_new_label", "rng_box"))
    )
    monkeypatch.setattr(model.transformer.denoising, "draw_noise", lambda *_: noise)
    model.train()
    return model.predict_padded(reference["inputs"]["images"], targets)


def test_queries_equal_the_authors(
    model: SetDetector, training: Any, reference: dict[str, Any]
) -> None:
    expected, ours = reference["train"], training.denoising.queries
    drawn, pad = expected["dn"], expected["dn"]["pad_size"]
    assert ours.num_groups == drawn["scalar"]
    assert ours.matched.shape[1] == pad
    assert torch.equal(ours.queries.blocked, expected["attn_mask"])
    content, logits = expected["query_label"], expected["query_box_logit"]
    assert largest_difference(ours.queries.content, content[:, :pad]) == 0
    # Measured: 1.8e-7.
    assert largest_difference(ours.queries.boxes, logits[:, :pad].sigmoid()) < 1e-6
    used = torch.zeros(2, pad, dtype=torch.bool)
    used[drawn["batch_idx"].repeat(drawn["scalar"]), drawn["map_known_indice"]] = True
    assert torch.equal(ours.counted, used)
    source = model.transformer.query_source
    assert torch.equal(content[0, pad:, :-1], source.content.weight)
    assert torch.equal(logits[0, pad:], source.box_logits.weight)


def test_training_outputs_equal_the_authors(training: Any, reference: dict[str, Any]) -> None:
    expected = reference["train"]
    theirs = stack(expected["outputs"])
    denoised = expected["dn"]["out_known_logits"], expected["dn"]["out_known_boxes"]
    for ours, logits, boxes in (
        (training.decoder, theirs.logits, theirs.boxes),
        (training.denoising.layers, *denoised),
    ):
        # Measured: logits 3.7e-6, boxes 2.4e-7.
        assert largest_difference(ours.logits, logits) < 2e-5
        assert largest_difference(ours.boxes, boxes) < 2e-6


def test_matching_equals_the_authors(
    model: SetDetector, training: Any, targets: Targets, reference: dict[str, Any]
) -> None:
    matched = model.criterion.assigner.assign(training.decoder, targets)
    for ours, name in zip(matched, ("aux_0", "aux_1", "final"), strict=True):
        assert_same_matches(ours, reference["train"]["matched"][name], name)


def test_losses_and_gradients_equal_the_authors(
    model: SetDetector, training: Any, targets: Targets, reference: dict[str, Any]
) -> None:
    expected = reference["train"]
    losses = model.criterion(training, targets)
    theirs = summed_losses(expected["losses"], LOSSES)
    assert losses.keys() == theirs.keys()
    for name, value in theirs.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    total = sum(losses.values())
    assert total.item() == pytest.approx(float(expected["total"]), rel=1e-5)
    total.backward()
    assert compare_gradients(model, converter(), expected["grads"]) == len(expected["grads"])


@pytest.mark.parametrize("case", ["first_empty", "second_empty", "all_empty"])
def test_images_without_objects(
    case: str,
    model: SetDetector,
    reference: dict[str, Any],
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = read(shared_data, "edge_dndeformable")[case]
    targets = some_targets(reference, edge["n_gt"])
    if any(edge["n_gt"]):
        (probability, shares), (new_labels,) = edge["rng"].values()
        noise = authors_noise(targets, probability, new_labels, shares)
        monkeypatch.setattr(model.transformer.denoising, "draw_noise", lambda *_: noise)
    model.train()
    predictions = model.predict_padded(reference["inputs"]["images"], targets)
    assert predictions.denoising.queries.matched.shape[1] == edge["dn"]["pad_size"]
    losses = model.criterion(predictions, targets)
    for name, value in summed_losses(edge["losses"], LOSSES).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
