# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from tests.detr.two_images import random_targets


@pytest.mark.parametrize("counts", [(1, 3, 0), (0, 0), (2, 2), (5,)])
@pytest.mark.parametrize("times", [1, 2, 6])
def test_repeated_targets_are_those_of_repeated_instances(
    counts: tuple[int, ...], times: int
) -> None:
    plain = random_targets(*counts, num_classes=80)
    made = plain.repeated(times)
    assert made.num_boxes == tuple(times * count for count in counts)
    assert made.filled.sum(dim=1).tolist() == list(made.num_boxes)
    for i, count in enumerate(counts):
        filled = made.filled[i]
        assert torch.equal(made.labels[i, filled], plain.labels[i, :count].repeat(times))
        assert torch.equal(made.boxes[i, filled], plain.boxes[i, :count].repeat(times, 1))
        assert (made.labels[i, ~filled] == 0).all()
        assert (made.boxes[i, ~filled] == torch.tensor([0.5, 0.5, 1.0, 1.0])).all()


def test_boxes_cannot_be_repeated_zero_times() -> None:
    with pytest.raises(ValueError, match="once or more often, got 0 times"):
        random_targets(2, num_classes=80).repeated(0)
