# SPDX-License-Identifier: Apache-2.0
"""DINO beside the authors' code: outputs, losses and gradients of a small random model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import largest_difference
from tests.models.dino_reference import converter, small_dino
from tests.models.family_reference import (
    assert_same_inference,
    assert_same_matches,
    compare_gradients,
    read,
    some_targets,
    stack,
    stored_noise,
    summed_losses,
)
from torch import Tensor

from vastdet.detr.denoising import Noise
from vastdet.detr.structures import Targets
from vastdet.models.dino.dino import DINO

LOSSES = {
    "": ("loss_{}",),
    "_aux": ("loss_{}_0", "loss_{}_1"),
    "_enc": ("loss_{}_interm",),
    "_dn": ("loss_{}_dn", "loss_{}_dn_0", "loss_{}_dn_1"),
}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, Any]:
    return read(shared_data, "fixture_dino")


@pytest.fixture
def model(cfg: CfgNode, reference: dict[str, Any]) -> DINO:
    return small_dino(cfg, reference["state_dict"])


@pytest.fixture
def targets(reference: dict[str, Any]) -> Targets:
    return some_targets(reference, (None, None))


def test_detections_equal_the_authors(model: DINO, reference: dict[str, Any]) -> None:
    # Measured: logits 4e-6, boxes 5e-7.
    assert_same_inference(model, reference)


def authors_noise(
    targets: Targets, probability: Tensor, new_labels: Tensor, signs: Tensor, sizes: Tensor
) -> Noise:
    """What the authors drew, in our slots."""
    is_negative = torch.arange(len(probability)) // sum(targets.num_boxes) % 2
    moves = (signs.float() * 2 - 1) * (sizes + is_negative[:, None])
    return stored_noise(targets, 2, probability < 0.25, new_labels, moves)


@pytest.fixture
def training(
    model: DINO, reference: dict[str, Any], targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> Any:
    drawn = reference["train"]["dn"]
    draws = ("rng_label_p", "rng_new_label", "rng_sign01", "rng_part")
    noise = authors_noise(targets, *(drawn[name] for name in draws))
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


def test_matching_equals_the_authors(
    model: DINO, training: Any, targets: Targets, reference: dict[str, Any]
) -> None:
    assigner = model.criterion.assigner
    decoder = assigner.assign(training.decoder, targets)
    encoder = assigner.assign(training.encoder, targets)
    for ours, name in ((decoder[0], "aux_0"), (decoder[1], "aux_1"), (decoder[2], "final"),
                       (encoder[0], "interm")):  # fmt: skip
        assert_same_matches(ours, reference["train"]["matched"][name], name)


def test_losses_and_gradients_equal_the_authors(
    model: DINO, training: Any, targets: Targets, reference: dict[str, Any]
) -> None:
    expected = reference["train"]
    losses = model.criterion(training, targets)
    for name, value in summed_losses(expected["losses"], LOSSES).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    total = sum(losses.values())
    # Measured: 4e-7 of the total, 3e-5 of the norm of a gradient.
    assert total.item() == pytest.approx(float(expected["total"]), rel=1e-5)
    total.backward()
    assert compare_gradients(model, converter(), expected["grads"]) > 140


@pytest.mark.parametrize("case", ["first_empty", "second_empty", "all_empty"])
def test_images_without_objects(
    case: str,
    model: DINO,
    reference: dict[str, Any],
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = read(shared_data, "edge_dino")[case]
    targets = some_targets(reference, edge["n_gt"])
    if any(edge["n_gt"]):
        (probability, sizes), (new_labels, signs) = edge["rng"].values()
        noise = authors_noise(targets, probability, new_labels, signs, sizes)
        monkeypatch.setattr(model.transformer.denoising, "draw_noise", lambda *_: noise)
    model.train()
    predictions = model.predict_padded(reference["inputs"]["images"], targets)
    losses = model.criterion(predictions, targets)
    for name, value in summed_losses(edge["losses"], LOSSES).items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    sum(losses.values()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)
