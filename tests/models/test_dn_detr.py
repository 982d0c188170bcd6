# SPDX-License-Identifier: Apache-2.0
"""DN-DETR beside DAB-DETR of transformers, given the same queries and a mask between the groups.

A pattern of theirs plays the embedding of no label. That the denoising queries are those of the
authors is tested with DN-Deformable-DETR, which makes them by the same part.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import (
    assert_same_gradients,
    assert_same_predictions,
    largest_difference,
)
from tests.models.transformers_reference import (
    DAB_RENAMES,
    SIZES,
    OurHalf,
    assert_same_evaluation,
    labelled,
    padded_batch,
    random_dab_detr,
    weighted_losses,
    without_backbone,
)
from torch import Tensor, nn

from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, inverse_sigmoid
from vastdet.models.dn_detr.dn_detr import build_criterion, build_transformer

PATTERN = "transformer.query_source.patterns.weight"
LABELS = "transformer.denoising.label_embedding.weight"
NUM_GROUPS = 3


@pytest.fixture
def theirs() -> nn.Module:
    pytest.importorskip("transformers")
    model = random_dab_detr(num_patterns=1)
    with torch.no_grad():
        model.model.patterns.weight[:, -1] = 0  # the mark of matching queries
    return model


@pytest.fixture
def ours(cfg: CfgNode, theirs: nn.Module) -> OurHalf:
    node = cfg.MODEL.DN_DETR
    node.merge_from_other_cfg(CfgNode(SIZES))
    node.DENOISING.NUM_GROUPS = NUM_GROUPS
    torch.manual_seed(1)
    model = OurHalf(build_transformer(node))
    weights = without_backbone(theirs.state_dict(), DAB_RENAMES)
    labels = torch.randn(SIZES["NUM_CLASSES"] + 1, SIZES["EMBED_DIM"] - 1)
    labels[-1] = weights.pop(PATTERN)[0, :-1]
    model.load_state_dict({**weights, LABELS: labels})
    return model


def test_evaluation_starts_from_the_embedding_of_no_label(ours: OurHalf, theirs: nn.Module) -> None:
    features, _ = theirs.model.backbone(*padded_batch())
    assert assert_same_evaluation(ours, theirs, *features[-1]).denoising is None


def masked(layers: nn.ModuleList, blocked: Tensor) -> Iterator[Any]:
    """Let self-attention of their layers heed a mask, which their model offers no way to give."""
    added = torch.zeros(blocked.shape).masked_fill(blocked, float("-inf"))

    def add_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": added}

    for layer in layers:
        yield layer.self_attn.register_forward_pre_hook(add_mask, with_kwargs=True)


def their_layers(
    theirs: nn.Module, content: Tensor, box_logits: Tensor, blocked: Tensor
) -> LayerPredictions:
    """What all of their layers make of queries (B, Q, C) at boxes (B, Q, 4) before the sigmoid."""
    features, positions = theirs.model.backbone(*padded_batch())
    feature, mask = features[-1]
    tokens = theirs.model.input_projection(feature.detach()).flatten(2).transpose(1, 2)
    cells = {
        "object_queries": positions[-1].flatten(2).transpose(1, 2),
        "return_dict": True,
    }
    memory = theirs.model.encoder(inputs_embeds=tokens, attention_mask=mask.flatten(1), **cells)
    hooks = list(masked(theirs.model.decoder.layers, blocked))
    decoded = theirs.model.decoder(
        inputs_embeds=content,
        query_position_embeddings=box_logits,
        encoder_hidden_states=memory.last_hidden_state,
        memory_key_padding_mask=mask.flatten(1),
        **cells,
    )
    for hook in hooks:
        hook.remove()
    normed = decoded.intermediate_hidden_states
    moved = theirs.bbox_predictor(normed) + inverse_sigmoid(decoded.reference_points, 1e-5)
    return LayerPredictions(theirs.class_embed(normed), moved.sigmoid())


def restoring_losses(layers: LayerPredictions, targets: Targets) -> dict[str, Tensor]:
    """What the denoising queries have not restored, box by box."""
    ops = pytest.importorskip("torchvision").ops
    slots = max(targets.num_boxes)
    total = {name: torch.zeros(()) for name in ("class", "bbox", "giou")}
    weights = {"class": 1.0, "bbox": 5.0, "giou": 2.0}
    for logits, boxes in zip(layers.logits, layers.boxes, strict=True):
        for image, count in enumerate(targets.num_boxes):
            for group in range(NUM_GROUPS):
                for slot in range(count):
                    query = group * slots + slot
                    box, target = boxes[image, query], targets.boxes[image, slot]
                    pair = [cxcywh_to_xyxy(x)[None] for x in (box, target)]
                    label = torch.zeros(SIZES["NUM_CLASSES"])
                    label[targets.labels[image, slot]] = 1
                    total["bbox"] = total["bbox"] + (box - target).abs().sum()
                    total["giou"] = total["giou"] + 1 - ops.generalized_box_iou(*pair)[0, 0]
                    total["class"] = total["class"] + ops.sigmoid_focal_loss(
                        logits[image, query], label, reduction="sum"
                    )
    share = 1 / (NUM_GROUPS * sum(targets.num_boxes))
    return {f"loss_{name}_dn": weights[name] * share * x for name, x in total.items()}


def run(
    ours: OurHalf, theirs: nn.Module, targets: Targets
) -> tuple[SetPredictions, LayerPredictions]:
    """Training predictions of ours, and theirs of the same queries, denoising ones first."""
    feature, mask = theirs.model.backbone(*padded_batch())[0][-1]
    ours.train()
    levels = ours.neck({"res5": feature.detach()})
    found = ours.transformer(levels, [~mask.bool()], targets)
    noised = found.denoising.queries.queries
    marks = noised.content[..., -1].unique()
    assert marks.tolist() == [0.0, 1.0], "empty slots and marked queries"
    pattern = theirs.model.patterns.weight.expand(len(mask), SIZES["NUM_QUERIES"], -1)
    anchors = theirs.model.query_refpoint_embeddings.weight.expand(len(mask), -1, -1)
    content = torch.cat([noised.content.detach(), pattern], dim=1)
    logits = torch.cat([noised.boxes.logit(), anchors], dim=1)
    return found, their_layers(theirs, content, logits, noised.blocked)


def test_training_equals_transformers_behind_a_mask(
    ours: OurHalf, theirs: nn.Module, cfg: CfgNode
) -> None:
    labels, targets = labelled()
    found, expected = run(ours, theirs, targets)
    num_noised = NUM_GROUPS * max(targets.num_boxes)
    both = (
        (found.denoising.layers, expected.queries(0, num_noised)),
        (found.decoder, expected.queries(num_noised)),
    )
    for one, other in both:
        assert_same_predictions(one, other.logits, other.boxes)

    losses = build_criterion(cfg.MODEL.DN_DETR)(found, targets)
    noised, matching = (other for _, other in both)
    _, their_losses, _ = theirs.loss_function(
        matching.logits[-1],
        labels,
        torch.device("cpu"),
        matching.boxes[-1],
        theirs.config,
        matching.logits,
        matching.boxes,
    )
    their_total = weighted_losses(their_losses, class_weight=1.0)
    their_total |= restoring_losses(noised, targets)
    assert losses.keys() == their_total.keys()
    for name, value in their_total.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=2e-5), name

    sum(losses.values()).backward()
    theirs.zero_grad()
    sum(their_total.values()).backward()
    gradients = without_backbone({k: p.grad for k, p in theirs.named_parameters()}, DAB_RENAMES)
    parameters = dict(ours.named_parameters())
    labels_grad = parameters.pop(LABELS).grad
    assert labels_grad[:-1].any()
    assert largest_difference(labels_grad[-1:], gradients.pop(PATTERN)[:, :-1]) < 1e-4
    assert_same_gradients(parameters, gradients)
