# SPDX-License-Identifier: Apache-2.0
"""The panoptic merge beside loops over pixels, and beside transformers where both mean the same."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vastdet.models.detr.panoptic_merge import PanopticMerger, first_of_stuff

NUM_THINGS, NUM_CLASSES = 3, 6
MERGER = PanopticMerger(NUM_THINGS, score_threshold=0.5)


def random_case(seed: int, num_segments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, classes and smooth masks, some of them weak or of a kind of stuff twice."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_segments, generator=generator)
    classes = torch.randint(0, NUM_CLASSES, (num_segments,), generator=generator)
    coarse = torch.randn(num_segments, 1, 4, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (20, 30), mode="bilinear")[:, 0]
    # The last one is the strongest in a corner of a few pixels only.
    masks[-1] -= 10
    masks[-1, :2, :1] += 20
    return scores, classes, masks


def by_loops(
    scores: Tensor, classes: Tensor, masks: Tensor, size: tuple[int, int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The authors' procedure in words: own, merge stuff, resize, drop what is small, again."""
    alive = list(range(len(scores)))
    merge_stuff = True
    while True:
        height, width = masks.shape[1:]
        owner = np.zeros((height, width), np.uint8)
        for y in range(height):
            for x in range(width):
                best = max(range(len(alive)), key=lambda k: float(masks[alive[k], y, x]))
                if merge_stuff and classes[alive[best]] >= NUM_THINGS:
                    best = next(
                        k for k, a in enumerate(alive) if classes[a] == classes[alive[best]]
                    )
                owner[y, x] = best
        picture = Image.fromarray(owner).resize((size[1], size[0]), Image.Resampling.NEAREST)
        owner = np.asarray(picture)
        area = [int((owner == k).sum()) for k in range(len(alive))]
        small = [k for k, pixels in enumerate(area) if pixels <= MERGER.max_small_area]
        if not small:
            break
        alive = [a for k, a in enumerate(alive) if k not in small]
        merge_stuff = False
        if not alive:
            return np.zeros(size, int), []
    records = [
        {
            "id": k + 1,
            "isthing": bool(classes[a] < NUM_THINGS),
            "category_id": int(classes[a]),
            "score": float(scores[a]),
            "area": area[k],
        }
        for k, a in enumerate(alive)
    ]
    return owner.astype(int) + 1, records


@pytest.mark.parametrize("size", [(20, 30), (33, 41), (11, 60)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(seed: int, size: tuple[int, int]) -> None:
    case = random_case(seed, num_segments=9)
    ids, records = MERGER.merge(*case, size)
    expected_ids, expected_records = by_loops(*case, size)
    assert ids.dtype == torch.int32
    assert np.array_equal(ids.numpy(), expected_ids)
    assert records == expected_records
    assert len(records) < 9, "nothing was merged or dropped"


def test_all_too_small_and_none_at_all() -> None:
    scores, classes = torch.ones(2), torch.tensor([0, 4])
    for n in (2, 0):
        ids, records = MERGER.merge(scores[:n], classes[:n], torch.randn(n, 1, 4), (1, 4))
        assert ids.tolist() == [[0, 0, 0, 0]]
        assert records == []


def test_stuff_is_merged_and_things_are_not() -> None:
    classes = torch.tensor([4, 0, 4, 0, 5, 4])
    assert first_of_stuff(classes, NUM_THINGS).tolist() == [0, 1, 0, 3, 4, 0]
    assert first_of_stuff(classes[:0], NUM_THINGS).tolist() == []


def test_no_object_and_low_scores_take_no_part() -> None:
    logits = torch.full((4, NUM_CLASSES + 1), -10.0)
    logits[0, 2] = logits[1, NUM_CLASSES] = logits[2, 5] = 10.0
    logits[3] = 0.0
    queries, scores, classes = MERGER.select(logits)
    assert queries.tolist() == [0, 2]
    assert classes.tolist() == [2, 5]
    torch.testing.assert_close(scores, torch.ones(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers_on_clear_masks(seed: int) -> None:
    # transformers weighs masks with their scores and drops those that others cover: not so where
    # each pixel has one clear mask. Where it fuses two masks of stuff it gives the next segment an
    # id that is taken (version 5.23), so each kind of stuff is there once.
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(seed)
    num_queries = 8
    coarse = torch.randint(0, num_queries, (4, 6), generator=generator)
    owner = coarse.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)
    masks = torch.where(torch.arange(num_queries)[:, None, None] == owner, 12.0, -12.0)
    masks = masks + torch.randn(masks.shape, generator=generator)
    classes = torch.tensor([0, 1, 1, 2, 0, 3, 4, 5])
    classes = classes[torch.randperm(num_queries, generator=generator)]
    logits = torch.randn(num_queries, NUM_CLASSES + 1, generator=generator)
    logits[torch.arange(num_queries), classes] += 8.0
    expected = transformers.DetrImageProcessor().post_process_panoptic_segmentation(
        SimpleNamespace(logits=logits[None], pred_masks=masks[None]),
        threshold=MERGER.score_threshold,
        label_ids_to_fuse=set(range(NUM_THINGS, NUM_CLASSES)),
        target_sizes=[(32, 48)],
    )[0]
    queries, scores, found = MERGER.select(logits)
    ids, records = MERGER.merge(scores, found, masks[queries], (32, 48))
    assert torch.equal(ids, expected["segmentation"])
    theirs = expected["segments_info"]
    assert [r["id"] for r in records] == [s["id"] for s in theirs]
    assert [r["category_id"] for r in records] == [s["label_id"] for s in theirs]
    assert [r["score"] for r in records] == pytest.approx([s["score"] for s in theirs], abs=1e-5)
    assert len(records) > 3
