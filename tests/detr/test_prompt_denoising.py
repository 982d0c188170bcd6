# SPDX-License-Identifier: Apache-2.0
"""Denoising queries made from features of labels, or from positions of labels in their image."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from vastdet.detr.denoising import ContrastiveDenoising, ContrastiveGroups
from vastdet.detr.prompt_denoising import (
    PositionDenoising,
    PromptDenoising,
    positions_of_labels,
)
from vastdet.detr.structures import DenoisingQueries, Targets

NUM_LABELS, FEATURES, WIDTH = 30, 6, 8
LABELS = ([7, 3, 7, 29, 3], [12])


def targets(*labels: list[int]) -> Targets:
    counts = tuple(len(image) for image in labels)
    slots = max(1, *counts)
    table = torch.zeros(len(labels), slots, dtype=torch.int64)
    for row, image in zip(table, labels, strict=True):
        row[: len(image)] = torch.tensor(image, dtype=torch.int64)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).repeat(len(labels), slots, 1)
    return Targets(table, boxes, counts, tuple(map(str, counts)))


def features(num_labels: int = NUM_LABELS) -> Tensor:
    return torch.randn(num_labels, FEATURES, generator=torch.Generator().manual_seed(5))


def contents(made: DenoisingQueries) -> Tensor:
    """(B, R, 2, G, C)."""
    return made.queries.content.unflatten(1, (made.num_groups, 2, -1))


def test_a_content_is_the_projection_of_the_label_s_features() -> None:
    denoising = PromptDenoising(WIDTH, FEATURES, num_queries=10, label_noise=0.0)
    made = contents(denoising(targets(*LABELS), 4, features()))
    projection = denoising.label_embedding
    assert isinstance(projection, nn.Linear)
    for i, labels in enumerate(LABELS):
        for j in range(5):
            expected = torch.zeros(WIDTH)
            if j < len(labels):
                row = features()[labels[j]]
                expected = projection.weight @ row + projection.bias
            for group in made[i].flatten(0, 1):
                # Largest difference seen: 1e-7.
                torch.testing.assert_close(group[j], expected, atol=1e-6, rtol=0)


def test_all_but_the_contents_is_that_of_contrastive_denoising() -> None:
    made = []
    plain = ContrastiveDenoising(WIDTH, NUM_LABELS, num_queries=10)
    for part, extra in ((plain, ()), (PromptDenoising(WIDTH, FEATURES, num_queries=10), (1,))):
        torch.manual_seed(6)
        made.append(part(targets(*LABELS), 4, *(features() for _ in extra)))
    assert torch.equal(made[0].queries.boxes, made[1].queries.boxes)
    assert torch.equal(made[0].queries.blocked, made[1].queries.blocked)
    assert torch.equal(made[0].matched, made[1].matched)
    assert made[0].num_groups == made[1].num_groups


@pytest.mark.parametrize("num_labels", [13_204, 1_000_000])
def test_labels_are_drawn_from_all_and_only_their_rows_are_projected(num_labels: int) -> None:
    denoising = PromptDenoising(WIDTH, FEATURES, num_queries=4000)
    assert sum(p.numel() for p in denoising.parameters()) == WIDTH * FEATURES + WIDTH
    noise = denoising.draw_noise(targets([1]), 1, 4000, torch.empty(num_labels, 0))
    assert 0.9 * num_labels < noise.labels.max() < num_labels
    assert noise.flip.float().mean() == pytest.approx(0.25, abs=0.02)
    seen = []
    denoising.label_embedding.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    denoising(targets([num_labels - 1]), 4, torch.randn(num_labels, FEATURES))
    assert seen == [(1, 4000, 2, 1, WIDTH)]


def test_without_features_it_says_so() -> None:
    with pytest.raises(ValueError, match=r"has None; give PromptTokens label_features"):
        PromptDenoising(WIDTH, FEATURES)(targets(*LABELS), 4)


@pytest.mark.parametrize(
    "denoising", [PromptDenoising(WIDTH, FEATURES), PositionDenoising(WIDTH)], ids=type
)
def test_a_batch_without_boxes_keeps_every_parameter_in_the_graph(
    denoising: ContrastiveGroups,
) -> None:
    made = denoising(targets([], []), 4, features())
    assert made.queries.content.shape == (2, 0, WIDTH)
    made.queries.content.sum().backward()
    for parameter in denoising.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_number_format(dtype: torch.dtype) -> None:
    denoising = PromptDenoising(WIDTH, FEATURES, num_queries=10)
    made = denoising(targets(*LABELS), 4, features().to(dtype))
    assert made.queries.content.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert denoising(targets(*LABELS), 4, features().to(dtype)).queries.content.isfinite().all()


def test_gradients_reach_the_features_that_were_asked_for() -> None:
    table = features().requires_grad_()
    denoising = PromptDenoising(WIDTH, FEATURES, num_queries=10, label_noise=0.0)
    denoising(targets(*LABELS), 4, table).queries.content.sum().backward()
    assert table.grad is not None
    rows = {i for i in range(NUM_LABELS) if table.grad[i].any()}
    assert rows == {3, 7, 12, 29}


def test_positions_follow_the_order_of_appearance() -> None:
    generator = torch.Generator().manual_seed(7)
    images = [
        torch.randint(6, (count,), generator=generator).tolist() for count in (0, 1, 5, 12, 40)
    ]
    images.append([0, 4, 0])
    made = positions_of_labels(targets(*images))
    for row, labels in zip(made.tolist(), images, strict=True):
        order = list(dict.fromkeys(labels))
        expected = [order.index(label) for label in labels]
        assert row == expected + [0] * (40 - len(labels))


def test_categories_are_numbered_at_random() -> None:
    images = [[4, 9, 4, 2, 9], [7], []]
    denoising, seen = PositionDenoising(WIDTH), set()
    torch.manual_seed(0)
    for _ in range(100):
        first, second, empty = denoising.draw_positions(targets(*images)).tolist()
        assert first[0] == first[2]
        assert first[1] == first[4]
        assert second == empty == [0] * 5
        seen.add((first[0], first[1], first[3]))
    assert seen == set(itertools.permutations(range(3)))


def test_a_content_is_the_row_of_the_position() -> None:
    denoising = PositionDenoising(WIDTH, num_queries=10, label_noise=0.0)
    denoising.draw_positions = positions_of_labels  # type: ignore[method-assign]
    assert denoising.label_embedding.weight.shape == (256, WIDTH)
    made = contents(denoising(targets(*LABELS), 4))
    rows = denoising.label_embedding.weight
    for group in made[0].flatten(0, 1):
        assert torch.equal(group, rows[torch.tensor([0, 1, 0, 2, 1])])
    for group in made[1].flatten(0, 1):
        assert torch.equal(group[0], rows[0])
        assert not group[1:].any()


def test_any_position_may_be_drawn() -> None:
    noise = PositionDenoising(WIDTH, 5).draw_noise(targets([1]), 1, 1000)
    assert noise.labels.unique().tolist() == [0, 1, 2, 3, 4]


def test_more_categories_than_positions_are_an_error() -> None:
    denoising = PositionDenoising(WIDTH, 2)
    denoising(targets([4, 5, 4, 5]), 4)
    with pytest.raises(ValueError, match=r"boxes of 3 categories, more than the 2 positions"):
        denoising(targets([4, 5, 6]), 4)
