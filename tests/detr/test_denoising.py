# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vastdet.detr.denoising import ContrastiveDenoising, group_mask, join_queries
from vastdet.detr.structures import DenoisingQueries, Queries, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy


def targets(counts: tuple[int, ...]) -> Targets:
    slots = max(1, *counts)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).repeat(len(counts), slots, 1)
    labels = torch.arange(slots).repeat(len(counts), 1) % 3
    return Targets(labels, boxes, counts, tuple(map(str, counts)))


def make(
    counts: tuple[int, ...], num_queries: int = 12, **options: float
) -> tuple[ContrastiveDenoising, DenoisingQueries]:
    torch.manual_seed(0)
    denoising = ContrastiveDenoising(8, 3, num_queries=num_queries, **options)
    return denoising, denoising(targets(counts), num_matching=5)


@pytest.mark.parametrize(
    ("counts", "num_queries", "groups"), [((3, 1), 12, 4), ((3,), 2, 1), ((1,), 7, 7)]
)
def test_groups(counts: tuple[int, ...], num_queries: int, groups: int) -> None:
    _, made = make(counts, num_queries)
    assert made.num_groups == groups
    assert made.queries.content.shape == (len(counts), groups * 2 * max(counts), 8)


def test_positives_come_before_negatives() -> None:
    _, made = make((3, 1))
    matched = made.matched.unflatten(1, (4, 2, 3))
    assert (matched[0, :, 0] == torch.arange(3)).all()
    assert (matched[1, :, 0] == torch.tensor([0, -1, -1])).all()
    assert (matched[:, :, 1] == -1).all()


def test_empty_slots_have_no_content() -> None:
    _, made = make((3, 1))
    content = made.queries.content.unflatten(1, (4, 2, 3))
    assert not content[1, :, :, 1:].any()
    assert content[0].any(dim=-1).all()
    assert (made.queries.boxes.unflatten(1, (4, 2, 3))[1, :, :, 1:] == 0.5).all()


def test_the_box_of_empty_slots_is_the_member_s() -> None:
    class Corner(ContrastiveDenoising):
        empty_box = 0.25

    made = Corner(8, 3, num_queries=12)(targets((3, 1)), num_matching=5)
    assert (made.queries.boxes.unflatten(1, (4, 2, 3))[1, :, :, 1:] == 0.25).all()


def test_moves_stay_within_their_reach() -> None:
    _, made = make((1,), 500, box_noise=0.4)
    corners = cxcywh_to_xyxy(made.queries.boxes.unflatten(1, (500, 2, 1)))[0, :, :, 0]
    moves = (corners - cxcywh_to_xyxy(torch.tensor([0.5, 0.5, 0.2, 0.1]))).abs()
    reach = 0.4 * torch.tensor([0.1, 0.05, 0.1, 0.05])
    # A negative's corners may cross, which turns the smallest sizes around.
    assert (moves[:, 0] <= reach + 1e-5).all()
    assert (moves[:, 1] >= reach - 1e-5).all()
    assert (moves[:, 1] <= 2 * reach + 1e-5).all()


def test_half_of_the_label_noise_is_drawn_anew() -> None:
    denoising, _ = make((1,))
    noise = denoising.draw_noise(targets((1,)), 1, 4000)
    assert noise.flip.float().mean() == pytest.approx(0.25, abs=0.02)
    _, kept = make((3,), label_noise=0.0)
    weights = make((3,), label_noise=0.0)[0].label_embedding.weight
    content = kept.queries.content.unflatten(1, (4, 2, 3))[0, 0, 0]
    torch.testing.assert_close(content, weights[:3])


def test_who_sees_whom() -> None:
    blocked = group_mask(2, 3, 4, torch.device("cpu"))
    assert blocked.shape == (10, 10)
    for row in range(10):
        for column in range(10):
            same_group = row // 3 == column // 3 if max(row, column) < 6 else False
            expected = column < 6 and not same_group
            assert blocked[row, column] == expected, (row, column)


def test_a_batch_without_boxes_keeps_the_embedding_in_the_graph() -> None:
    denoising, made = make((0, 0))
    assert made.matched.shape == (2, 0)
    joined = join_queries(made, Queries(torch.randn(2, 5, 8), torch.rand(2, 5, 4)))
    assert joined.content.shape == (2, 5, 8)
    joined.content.sum().backward()
    assert denoising.label_embedding.weight.grad is not None
    assert not denoising.label_embedding.weight.grad.any()


def test_without_denoising_the_queries_stay() -> None:
    queries = Queries(torch.randn(1, 2, 8), torch.rand(1, 2, 4))
    assert join_queries(None, queries) is queries
