# SPDX-License-Identifier: Apache-2.0
"""Query sources: what comes from the image, and what is learned."""

import torch

from vastdet.detr.heads import box_head, class_head
from vastdet.detr.query_selection import ObjectnessSelection, TokenSelection
from vastdet.detr.query_source import (
    AnchorsWithContent,
    LearnedAnchors,
    LearnedCenters,
    MixedProposedBoxes,
    MixedQueries,
    PatternAnchors,
    SelectedQueries,
)
from vastdet.detr.tokens import Tokens, flatten_maps


def tokens(batch: int = 2) -> Tokens:
    maps = [torch.randn(batch, 32, 6, 8), torch.randn(batch, 32, 3, 4)]
    masks = [torch.zeros(batch, *m.shape[2:], dtype=torch.bool) for m in maps]
    return flatten_maps(maps, masks, [torch.zeros(batch, *m.shape[2:], 32) for m in maps])


def test_mixed_queries_learn_contents_and_take_boxes_from_the_image() -> None:
    torch.manual_seed(0)
    selection = TokenSelection(32, 5, class_head=class_head(32, 3), box_head=box_head(32))
    source = MixedQueries(selection, 32)
    memory = tokens()
    queries, proposals = source(memory)
    selected = selection(memory)
    assert torch.equal(queries.content[0], source.content.weight)
    assert torch.equal(queries.content[0], queries.content[1]), "the same for every image"
    assert torch.equal(queries.boxes, selected.boxes)
    assert not queries.boxes.requires_grad
    assert not torch.equal(queries.boxes[0], queries.boxes[1])
    assert proposals is not None
    assert torch.equal(proposals.logits, selected.predictions.logits)
    assert proposals.boxes.requires_grad


def test_selected_queries_are_the_best_tokens_without_a_gradient() -> None:
    torch.manual_seed(0)
    selection = TokenSelection(32, 5, class_head=class_head(32, 3), box_head=box_head(32))
    memory = tokens()
    queries, proposals = SelectedQueries(selection)(memory)
    selected = selection(memory)
    assert torch.equal(queries.content, selected.features)
    assert torch.equal(queries.boxes, selected.boxes)
    assert not queries.content.requires_grad
    assert not queries.boxes.requires_grad
    assert proposals is not None
    assert torch.equal(proposals.logits, selected.predictions.logits)
    assert proposals.logits.requires_grad


def test_centres_follow_from_learned_positions() -> None:
    torch.manual_seed(0)
    source = LearnedCenters(32, 5)
    queries, proposals = source(tokens())
    assert proposals is None
    assert not queries.content.any()
    assert torch.equal(queries.position[1], source.embedding.weight)
    expected = source.ref_point_head(source.embedding.weight).sigmoid()
    torch.testing.assert_close(queries.boxes, expected.expand(2, 5, 2))
    assert queries.boxes.requires_grad


def test_each_box_has_every_pattern() -> None:
    torch.manual_seed(0)
    source = PatternAnchors(32, 5, 3)
    queries, proposals = source(tokens())
    assert proposals is None
    for pattern in range(3):
        for box in range(5):
            query = 5 * pattern + box
            assert torch.equal(queries.content[1, query], source.patterns.weight[pattern])
            torch.testing.assert_close(
                queries.boxes[1, query], source.box_logits.weight[box].sigmoid()
            )
    assert queries.content.shape[1] == queries.boxes.shape[1] == 15


def test_anchors_are_learned_boxes() -> None:
    torch.manual_seed(0)
    source = LearnedAnchors(32, 5)
    queries, proposals = source(tokens())
    assert proposals is None
    assert queries.content.shape == (2, 5, 32)
    assert not queries.content.any()
    assert torch.equal(queries.boxes[1], source.box_logits.weight.sigmoid())
    assert queries.boxes.requires_grad


def test_mixed_proposed_boxes_have_contents_for_as_many_queries_as_the_mode_has() -> None:
    torch.manual_seed(0)
    heads = {"class_head": class_head(32, 3), "box_head": box_head(32)}
    selection = ObjectnessSelection(32, 5, num_training_queries=12, **heads)
    source, memory = MixedProposedBoxes(32, selection), tokens()
    queries, _ = source(memory)
    assert queries.boxes.shape == (2, 12, 4)
    assert torch.equal(queries.content[1], source.content.weight)
    described = source.describe(queries.boxes, memory.values)
    assert torch.equal(queries.position, described[..., :32])
    source.eval()
    fewer, _ = source(memory)
    assert torch.equal(fewer.boxes, queries.boxes[:, :5])
    assert torch.equal(fewer.content, queries.content[:, :5])
    torch.testing.assert_close(fewer.position, queries.position[:, :5])


def test_anchors_with_content_are_the_same_for_every_image() -> None:
    torch.manual_seed(0)
    source = AnchorsWithContent(32, 5, num_indicators=1)
    queries, proposals = source(tokens())
    assert proposals is None
    assert queries.content.shape == (2, 5, 32)
    assert torch.equal(queries.content[0, :, :-1], source.content.weight)
    assert torch.equal(queries.content[0], queries.content[1])
    assert not queries.content[..., -1].any(), "the indicator of a matching query is 0"
    assert torch.equal(queries.boxes[1], source.box_logits.weight.sigmoid())
    assert queries.boxes.requires_grad
    assert AnchorsWithContent(32, 5).content.weight.shape == (5, 32)
