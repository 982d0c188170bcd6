# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor, nn

from vastdet.detr.query_selection import TokenSelection, token_proposals
from vastdet.detr.tokens import Tokens, flatten_maps, padding_mask_of, resize_mask, valid_ratio

SIZES = ((4, 6), (2, 3))


def tokens(valid: tuple[int, int] = (4, 6), channels: int = 8) -> Tokens:
    """One image of which `valid` rows and columns of the finest level are no padding."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, channels, *size, generator=generator) for size in SIZES]
    fine = torch.ones(1, *SIZES[0], dtype=torch.bool)
    fine[:, : valid[0], : valid[1]] = False
    masks = [fine, resize_mask(fine, SIZES[1])]
    return flatten_maps(maps, masks, [torch.zeros(1, *size, channels) for size in SIZES])


def test_levels_follow_one_another() -> None:
    made = tokens()
    assert made.sizes == SIZES
    assert made.level_start_index.tolist() == [0, 24]
    assert made.spatial_shapes.tolist() == [[4, 6], [2, 3]]
    assert made.values.shape == (1, 30, 8)


def test_centers_are_shares_of_the_image_without_padding() -> None:
    fine, coarse = tokens((2, 4)).cell_centers()
    assert fine[0, 0].tolist() == pytest.approx([0.5 / 4, 0.5 / 2])
    assert fine[0, 6 + 3].tolist() == pytest.approx([3.5 / 4, 1.5 / 2])
    assert coarse[0, 0].tolist() == pytest.approx([0.5 / 2, 0.5 / 1])


def test_references_are_shares_of_each_level_with_its_padding() -> None:
    made = tokens((2, 4))
    references = made.cell_references()
    assert references.shape == (1, 30, 2, 2)
    assert references[0, 0, 0].tolist() == pytest.approx([0.5 / 6, 0.5 / 4])
    box = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]])
    level = made.level_references(box)[0, 0]
    assert level[0].tolist() == pytest.approx([0.5 * 4 / 6, 0.25, 4 / 6, 0.5])
    assert made.level_references(box[..., :2]).shape == (1, 1, 2, 2)


def test_masks() -> None:
    mask = padding_mask_of([(2, 3), (4, 4)], (4, 5))
    assert (~mask).sum(dim=(1, 2)).tolist() == [6, 16]
    assert valid_ratio(mask).tolist() == [pytest.approx([0.6, 0.5]), pytest.approx([0.8, 1.0])]


def test_proposals() -> None:
    logits, valid = token_proposals(tokens((2, 4)))
    assert logits.shape == (1, 30, 4)
    boxes = logits.sigmoid()
    assert valid[0, :4].all()
    assert not valid[0, 4:6].any()  # padding
    assert boxes[0, 0].tolist() == pytest.approx([0.125, 0.25, 0.05, 0.05])
    assert boxes[0, 24].tolist() == pytest.approx([0.25, 0.5, 0.1, 0.1])
    assert (boxes[0, 4] == 1).all()


class FirstChannels(nn.Module):
    """The first channels of the features as they are."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.count]


def selection(num_queries: int) -> TokenSelection:
    torch.manual_seed(0)
    return TokenSelection(8, num_queries, class_head=FirstChannels(3), box_head=FirstChannels(4))


def test_selects_the_tokens_with_the_highest_class_logit() -> None:
    made = tokens()
    chosen = selection(5)(made)
    best = selection(30)(made)
    scores = best.predictions.logits[0, 0].amax(dim=-1)
    assert (scores.diff() <= 0).all()
    assert torch.equal(chosen.indices, best.indices[:, :5])
    torch.testing.assert_close(chosen.predictions.boxes[0], best.predictions.boxes[0, :, :5])
    assert chosen.boxes.requires_grad is False
    assert chosen.predictions.boxes.requires_grad


def test_an_image_that_is_too_small_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"30 cells in all, fewer than the 31 queries; .*MIN_SIZE"):
        selection(31)(tokens())
