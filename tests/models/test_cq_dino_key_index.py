# SPDX-License-Identifier: Apache-2.0
"""An index finds most of the keys that a full comparison finds."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vastdet.models.cq_dino import KeyIndex
from vastdet.models.cq_dino.key_index import distinct


def keys_around_kinds() -> torch.Tensor:
    """5,000 directions around 100 centres, as names around their kinds."""
    torch.manual_seed(0)
    kinds = F.normalize(torch.randn(100, 16), dim=1)
    return F.normalize(kinds.repeat_interleave(50, 0) + 0.1 * torch.randn(5000, 16), dim=1)


@pytest.mark.parametrize("num_vectors", [1, 20])
def test_few_scanned_keys_hold_most_of_the_best(num_vectors: int) -> None:
    keys = keys_around_kinds()
    index = KeyIndex.of(keys, 70)
    # They point at some keys, nearly.
    vectors = 2 * keys[torch.randperm(5000)[:num_vectors]] + 0.2 * torch.randn(num_vectors, 16)
    best = (vectors @ keys.T).topk(40, dim=1).indices.unique()
    shares = []
    for num_scanned in (5000, 1000):
        found = index.best(
            vectors, num_best=1000, num_each=120, num_scanned=num_scanned, num_needed=120
        )
        assert found.dtype == torch.int64
        assert len(found.unique()) == len(found) <= min(1000, 120 * num_vectors)
        scores = (vectors @ keys[found].T).amax(0)
        # Half precision rounds to 5e-4 of a key.
        assert (scores.diff() <= 5e-3).all()
        shares.append(torch.isin(best, found).float().mean().item())
    print(f"shares of the best that were found: {shares}")
    # By chance: 0.024 of each vector's.
    assert min(shares) >= 0.7


def test_the_same_keys_give_the_same_index() -> None:
    keys, vectors = keys_around_kinds(), torch.randn(8, 16)
    one, other = (
        KeyIndex.of(keys, 70).best(
            vectors, num_best=90, num_each=50, num_scanned=500, num_needed=50
        )
        for _ in range(2)
    )
    assert torch.equal(one, other)


def test_more_is_scanned_until_there_are_enough() -> None:
    keys = keys_around_kinds()
    index = KeyIndex.of(keys, 70)
    # One list holds about 70 keys; 1,000 are needed.
    limits = {"num_best": 1000, "num_each": 1000, "num_scanned": 70, "num_needed": 1000}
    assert len(index.best(keys[:1], **limits)) == 1000
    # Equal keys are all in one list.
    index = KeyIndex.of(torch.ones(640, 16), 10)
    limits = {"num_best": 700, "num_each": 640, "num_scanned": 64, "num_needed": 640}
    assert sorted(index.best(keys[:1], **limits).tolist()) == list(range(640))


def test_searching_leaves_the_index_as_it_was() -> None:
    # Threads may share it.
    keys = keys_around_kinds()
    index = KeyIndex.of(keys, 70)
    index.index.nprobe = 3
    index.best(keys[:2], num_best=90, num_each=50, num_scanned=2500, num_needed=50)
    assert index.index.nprobe == 3


def test_distinct_ids() -> None:
    ids = np.array([[7, -1, 3], [3, 0, -1]])
    assert distinct(ids).tolist() == [0, 3, 7]
    assert distinct(np.array([-1, -1])).tolist() == []


def test_what_it_keeps() -> None:
    # 16 channels of two bytes, 8 codes of half a byte, and a number of 8 bytes, for each key.
    assert KeyIndex.of(keys_around_kinds(), 70).num_bytes == 5000 * 44


def test_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="30 keys cannot be in 31 lists; give 1 to 30 lists"):
        KeyIndex.of(torch.ones(30, 4), 31)
    with pytest.raises(ValueError, match=r"keys of 5 channels .* give an even number"):
        KeyIndex.of(torch.ones(30, 5), 2)
    with pytest.raises(ValueError, match=r"15 keys .* at least 16 keys"):
        KeyIndex.of(torch.ones(15, 4), 2)
    with pytest.raises(ValueError, match="some keys are not finite"):
        KeyIndex.of(torch.full((30, 4), torch.nan), 2)
    limits = {"num_best": 5, "num_each": 5, "num_scanned": 30, "num_needed": 5}
    index = KeyIndex.of(torch.rand(30, 4), 2)
    with pytest.raises(ValueError, match="vectors are not finite"):
        index.best(torch.full((1, 4), torch.nan), **limits)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need the package faiss.*vastdet\[shortlist\]"):
        KeyIndex.of(torch.ones(30, 4), 2)
