# SPDX-License-Identifier: Apache-2.0
"""The denoising of DN-DETR: what is made of the boxes, how far it may move, what counts."""

import pytest
import torch
from tests.detr.test_denoising import targets

from vastdet.detr.dn_denoising import DNDenoising, with_indicator
from vastdet.detr.structures import DenoisingQueries


def make(counts: tuple[int, ...], **options: float) -> tuple[DNDenoising, DenoisingQueries]:
    torch.manual_seed(0)
    denoising = DNDenoising(8, 3, **options)  # type: ignore[arg-type]
    return denoising, denoising(targets(counts), num_matching=5)


@pytest.mark.parametrize("counts", [(3, 1), (60,), (1,)])
def test_groups_do_not_depend_on_the_boxes(counts: tuple[int, ...]) -> None:
    _, made = make(counts)
    assert made.num_groups == 5
    assert made.queries.content.shape == (len(counts), 5 * max(counts), 8)
    matched = made.matched.unflatten(1, (5, max(counts)))
    for image, count in enumerate(counts):
        assert (matched[image, :, :count] == torch.arange(count)).all()
        assert (matched[image, :, count:] == -1).all()


def test_empty_slots_count_for_nothing() -> None:
    _, made = make((3, 1))
    assert made.counted is not None
    assert torch.equal(made.counted, made.matched >= 0)
    empty = made.queries.content[~made.counted]
    assert not empty.any(), "neither label nor indicator"
    assert (made.queries.boxes[~made.counted] == 0.5).all()


def test_the_last_channel_tells_denoising_queries() -> None:
    denoising, made = make((3,), label_noise=0.0)
    content = made.queries.content.unflatten(1, (5, 3))[0]
    assert (content[..., -1] == 1).all()
    weights = denoising.label_embedding.weight
    assert torch.equal(content[2, :, :-1], weights[:3])
    matching = with_indicator(weights[-1], 0.0)
    assert torch.equal(matching, torch.cat([weights[-1], torch.zeros(1)]))


def test_moves_stay_within_their_reach() -> None:
    _, made = make((1,), num_groups=500, box_noise=0.4)
    moves = (made.queries.boxes[0] - torch.tensor([0.5, 0.5, 0.2, 0.1])).abs()
    reach = 0.4 * torch.tensor([0.1, 0.05, 0.2, 0.1])
    assert (moves <= reach + 1e-5).all()
    assert (moves.amax(dim=0) > 0.95 * reach).all(), "and use it"


def test_moved_boxes_stay_in_the_image() -> None:
    denoising, _ = make((1,), box_noise=5.0)
    boxes = torch.tensor([0.95, 0.5, 0.1, 0.9]).expand(1, 1, 1, 1, 4)
    moved = denoising.move(boxes, torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, -1.0, 0.0]]))
    expected = torch.tensor([[1.0, 0.5, 0.1, 1.0], [0.95, 0.5, 0.0, 0.9]])
    torch.testing.assert_close(moved.squeeze(), expected)


def test_all_of_the_label_noise_is_drawn_anew() -> None:
    denoising, _ = make((1,))
    noise = denoising.draw_noise(targets((1,)), 1, 4000)
    assert noise.flip.float().mean() == pytest.approx(0.2, abs=0.02)
    assert set(noise.labels.unique().tolist()) == {0, 1, 2}


def test_a_batch_without_boxes_keeps_the_embedding_in_the_graph() -> None:
    denoising, made = make((0, 0))
    assert made.matched.shape == (2, 0)
    made.queries.content.sum().backward()
    assert denoising.label_embedding.weight.grad is not None
