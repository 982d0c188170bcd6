# SPDX-License-Identifier: Apache-2.0
"""DINO beside the authors' code: outputs, losses and gradients of a small random model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import largest_difference
from tests.models.dino_reference import make_targets, read, small_dino
from torch import Tensor

from vastdet.detr.denoising import Noise
from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.models.dino.dino import DINO


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, Any]:
    return read(shared_data, "fixture_dino")


@pytest.fixture
def model(cfg: CfgNode, reference: dict[str, Any]) -> DINO:
    return small_dino(cfg, reference["state_dict"])


@pytest.fixture
def targets(reference: dict[str, Any]) -> Targets:
    return make_targets(reference["targets"], reference["inputs"]["sizes"])


def test_detections_equal_the_authors(model: DINO, reference: dict[str, Any]) -> None:
    expected = reference["eval"]["outputs"]
    model.eval()
    with torch.no_grad():
        predictions = model.predict_padded(reference["inputs"]["images"])
        found = model.detections(
            predictions.decoder, [tuple(s) for s in reference["inputs"]["sizes"]]
        )
    # Measured: logits 4e-6, boxes 5e-7.
    assert largest_difference(predictions.decoder.logits[-1], expected["pred_logits"]) < 2e-5
    assert largest_difference(predictions.decoder.boxes[-1], expected["pred_boxes"]) < 2e-6
    for ours, theirs in zip(found, reference["eval"]["detections_input_size"], strict=True):
        torch.testing.assert_close(ours.scores, theirs["scores"], atol=1e-5, rtol=0)
        assert torch.equal(ours.pred_classes, theirs["labels"])
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs["boxes"], atol=1e-3, rtol=0)


def stored_noise(
    targets: Targets, probability: Tensor, new_labels: Tensor, signs: Tensor, sizes: Tensor
) -> Noise:
    """The authors' draws, which go through the boxes of the batch image by image, in our slots."""
    num_images, num_slots = len(targets.num_boxes), max(targets.num_boxes)
    total = sum(targets.num_boxes)
    flip = probability < 0.25
    labels = torch.zeros(len(flip), dtype=torch.int64)
    labels[flip] = new_labels
    is_negative = torch.arange(len(flip)) // sum(targets.num_boxes) % 2
    moves = (signs.float() * 2 - 1) * (sizes + is_negative[:, None])
    flat = {"flip": flip, "labels": labels, "moves": moves}
    num_groups = len(flip) // (2 * total)
    image = torch.repeat_interleave(torch.arange(num_images), torch.tensor(targets.num_boxes))
    slot = torch.cat([torch.arange(n) for n in targets.num_boxes])
    fields = {}
    for name, values in flat.items():
        rows = values.view(num_groups, 2, total, *values.shape[1:])
        padded = rows.new_zeros(num_images, num_groups, 2, num_slots, *values.shape[1:])
        padded[image, :, :, slot] = rows.movedim(2, 0)
        fields[name] = padded
    return Noise(**fields)


@pytest.fixture
def training(
    model: DINO, reference: dict[str, Any], targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> Any:
    drawn = reference["train"]["dn"]
    draws = ("rng_label_p", "rng_new_label", "rng_sign01", "rng_part")
    noise = stored_noise(targets, *(drawn[name] for name in draws))
    monkeypatch.setattr(model.transformer.denoising, "draw_noise", lambda *_: noise)
    model.train()
    return model.predict_padded(reference["inputs"]["images"], targets)


def test_denoising_queries_equal_the_authors(training: Any, reference: dict[str, Any]) -> None:
    drawn, ours = reference["train"]["dn"], training.denoising.queries
    assert ours.num_groups == drawn["num_dn_group"]
    assert ours.matched.shape[1] == drawn["pad_size"]
    assert torch.equal(ours.queries.blocked, drawn["attn_mask"])
    assert largest_difference(ours.queries.content, drawn["noised_label_embed"]) == 0
    # Measured: 1.2e-7.
    assert largest_difference(ours.queries.boxes, drawn["noised_box_logit"].sigmoid()) < 1e-6


def test_training_outputs_equal_the_authors(training: Any, reference: dict[str, Any]) -> None:
    expected = reference["train"]
    for ours, theirs in (
        (training.decoder, stack(expected["outputs"])),
        (training.denoising.layers, stack(expected["dn_outputs"])),
        (training.encoder, stack(expected["outputs"]["interm_outputs"])),
    ):
        # Measured: logits 5e-6, boxes 6e-7.
        assert largest_difference(ours.logits, theirs.logits) < 2e-5
        assert largest_difference(ours.boxes, theirs.boxes) < 2e-6


def stack(outputs: dict[str, Any]) -> LayerPredictions:
    layers = [*outputs.get("aux_outputs", []), outputs]
    return LayerPredictions(
        torch.stack([x["pred_logits"] for x in layers]),
        torch.stack([x["pred_boxes"] for x in layers]),
    )


def test_matching_equals_the_authors(
    model: DINO, training: Any, targets: Targets, reference: dict[str, Any]
) -> None:
    assigner = model.criterion.assigner
    decoder = assigner.assign(training.decoder, targets)
    encoder = assigner.assign(training.encoder, targets)
    for ours, name in ((decoder[0], "aux_0"), (decoder[1], "aux_1"), (decoder[2], "final"),
                       (encoder[0], "interm")):  # fmt: skip
        for image, (queries, slots) in enumerate(reference["train"]["matched"][name]):
            expected = torch.full((30,), -1)
            expected[queries] = slots
            assert torch.equal(ours[image], expected), name


def expected_losses(losses: dict[str, Tensor]) -> dict[str, float]:
    """The authors' losses, weighted and summed as ours are."""
    names = {"class": ("ce", 1.0), "bbox": ("bbox", 5.0), "giou": ("giou", 2.0)}
    expected = {}
    for ours, (theirs, weight) in names.items():

        def value(suffix: str, theirs: str = theirs, weight: float = weight) -> float:
            return weight * float(losses[f"loss_{theirs}{suffix}"])

        expected[f"loss_{ours}"] = value("")
        expected[f"loss_{ours}_aux"] = value("_0") + value("_1")
        expected[f"loss_{ours}_enc"] = value("_interm")
        expected[f"loss_{ours}_dn"] = value("_dn") + value("_dn_0") + value("_dn_1")
    return expected


def test_losses_and_gradients_equal_the_authors(
    model: DINO, training: Any, targets: Targets, reference: dict[str, Any]
) -> None:
    expected = reference["train"]
    losses = model.criterion(training, targets)
    for name, value in expected_losses(expected["losses"]).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    total = sum(losses.values())
    # Measured: 4e-7 of the total, 3e-5 of the norm of a gradient.
    assert total.item() == pytest.approx(float(expected["total"]), rel=1e-5)
    total.backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for pair in converted_names():
        if pair.source not in expected["grads"]:
            continue
        norm, dot = gradient_figures(parameters[pair.detectron2].grad)
        their_norm, their_dot = expected["grads"][pair.source].tolist()
        assert norm == pytest.approx(their_norm, rel=1e-3, abs=1e-5), pair.source
        assert dot == pytest.approx(their_dot, abs=1e-3 * their_norm + 1e-5), pair.source
        compared += 1
    assert compared > 140


def converted_names() -> Any:
    from tests.models.dino_reference import converter

    return converter().pairs


def gradient_figures(gradient: Tensor) -> tuple[float, float]:
    flat = gradient.flatten().double()
    return float(flat.norm()), float(flat @ torch.arange(len(flat)).double().cos())


@pytest.mark.parametrize("case", ["first_empty", "second_empty", "all_empty"])
def test_images_without_objects(
    case: str,
    model: DINO,
    reference: dict[str, Any],
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = read(shared_data, "edge_dino")[case]
    entries = [
        {key: entry[key][:count] for key in ("labels", "boxes")}
        for entry, count in zip(reference["targets"], edge["n_gt"], strict=True)
    ]
    targets = make_targets(entries, reference["inputs"]["sizes"])
    if any(edge["n_gt"]):
        (probability, sizes), (new_labels, signs) = edge["rng"].values()
        noise = stored_noise(targets, probability, new_labels, signs, sizes)
        monkeypatch.setattr(model.transformer.denoising, "draw_noise", lambda *_: noise)
    model.train()
    predictions = model.predict_padded(reference["inputs"]["images"], targets)
    losses = model.criterion(predictions, targets)
    for name, value in expected_losses(edge["losses"]).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    sum(losses.values()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)
