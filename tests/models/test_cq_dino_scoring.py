# SPDX-License-Identifier: Apache-2.0
"""Selection of prepared categories: the same as without, in flat memory, and never out of date."""

import copy
from typing import Any

import pytest
import torch
from tests.models.test_cq_dino_selection import random_tokens, small_selection
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vastdet.engine.benchmarking import measure_memory
from vastdet.models.cq_dino import (
    HALF_PRECISION,
    AsymmetricLoss,
    CategorySelection,
    ImageTokens,
    Scoring,
    SelectedCategories,
)


class Queries(nn.Module):
    """Rows that are learned, normalised; counts how often they are made."""

    def __init__(self, num_categories: int = 25) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(num_categories, 48))
        self.norm = nn.LayerNorm(48)
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.norm(self.rows)


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation makes; views are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.num_elements = max(self.num_elements, out.numel())
        return out


def selection_with(scoring: Scoring, num_selected: int = 12) -> CategorySelection:
    torch.manual_seed(0)
    selection = small_selection(num_selected=num_selected)
    selection.scoring = scoring
    return selection.eval()


def assert_same(got: SelectedCategories, expected: SelectedCategories) -> None:
    assert torch.equal(got.indices, expected.indices)
    # Measured: no difference.
    torch.testing.assert_close(got.queries, expected.queries, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("chunk_size", [1, 7, 200, 1024])
@pytest.mark.parametrize("num_selected", [1, 12, 200])
def test_prepared_equal_the_whole(chunk_size: int, num_selected: int) -> None:
    selection = selection_with(Scoring(chunk_size=chunk_size), num_selected)
    queries, tokens = torch.randn(200, 48), random_tokens(3)
    with torch.no_grad():
        expected = selection(queries, tokens)
    got = selection(selection.prepare(queries), tokens)
    assert_same(got, expected)
    assert got.all_logits is None
    assert not got.queries.requires_grad


@pytest.mark.parametrize("chunk_size", [7, 200])
def test_scores_of_all(chunk_size: int) -> None:
    selection = selection_with(Scoring(chunk_size=chunk_size))
    # Fewer than are to be selected can be scored as well.
    for num_categories in (200, 5):
        queries, tokens = torch.randn(num_categories, 48), random_tokens(3)
        with torch.no_grad():
            seen = selection.see(queries[None], selection.context(tokens))
            expected = selection.logits(seen)
        got = selection.score_all(selection.prepare_all(queries), tokens)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=5e-6)


def test_half_precision_with_a_margin_chooses_the_same() -> None:
    selection = selection_with(HALF_PRECISION, 100)
    queries, tokens = torch.randn(3000, 48), random_tokens(3)
    with torch.no_grad():
        expected = selection(queries, tokens)
    # Measured: without the margin 297 of 300 are the same.
    assert_same(selection(selection.prepare(queries), tokens), expected)
    selection.scoring = Scoring(torch.bfloat16)
    rounded = selection(selection.prepare(queries), tokens).indices
    agreeing = sum(
        len(set(a.tolist()) & set(b.tolist()))
        for a, b in zip(rounded, expected.indices, strict=True)
    )
    assert 285 <= agreeing < 300


def test_a_margin_past_the_end() -> None:
    selection = selection_with(Scoring(torch.bfloat16, margin=1000), 25)
    queries, tokens = torch.randn(25, 48), random_tokens()
    with torch.no_grad():
        assert_same(selection(selection.prepare(queries), tokens), selection(queries, tokens))


def test_padding_changes_nothing() -> None:
    selection = selection_with(Scoring())
    prepared = selection.prepare(torch.randn(25, 48))
    tokens = random_tokens(2)
    alone = ImageTokens(tokens.values[1:, :6], tokens.padding_mask[1:, :6])
    together, single = selection(prepared, tokens), selection(prepared, alone)
    assert torch.equal(together.indices[1:], single.indices)
    torch.testing.assert_close(together.queries[1:], single.queries, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("scoring", [Scoring(chunk_size=64), Scoring(torch.bfloat16, 10, 64)])
def test_memory_does_not_grow_with_the_categories(scoring: Scoring) -> None:
    selection = selection_with(scoring)
    largest = []
    for num_categories in (1000, 4000):
        prepared = selection.prepare(torch.randn(num_categories, 48))
        with LargestTensor() as counted:
            selection(prepared, random_tokens())
        largest.append(counted.num_elements)
    # The feed-forward block is the widest: 64 categories of 96 channels.
    assert largest == [64 * 96] * 2
    with LargestTensor() as counted, torch.no_grad():
        selection(prepared.queries, random_tokens())
    assert counted.num_elements == 2 * 4000 * 96


@pytest.mark.slow
def test_a_million_categories_in_flat_memory() -> None:
    selection = selection_with(Scoring(torch.bfloat16, margin=100), 100)
    prepared = selection.prepare(torch.randn(1_000_000, 48))
    tokens = random_tokens(1)
    _, growth = measure_memory(lambda: selection(prepared, tokens), "cpu")
    # Measured: 15 MB, 25 where other tests ran before. In bfloat16 the states of all categories are
    # 96 MB, those of the feed-forward block 192.
    assert growth is None or growth < 48e6


@pytest.mark.slow
def test_training_memory_is_that_of_a_piece() -> None:
    torch.manual_seed(0)
    growths = {}
    for chunk_size in (None, 1024):
        selection = small_selection(num_selected=100, chunk_size=chunk_size)
        queries = torch.randn(100_000, 48, requires_grad=True)
        tokens, present = random_tokens(1), torch.zeros(1, 100_000, dtype=torch.bool)

        def step(
            selection: CategorySelection = selection,
            queries: Tensor = queries,
            tokens: ImageTokens = tokens,
            present: Tensor = present,
        ) -> None:
            AsymmetricLoss()(selection(queries, tokens).all_logits, present).backward()

        _, growth = measure_memory(step, "cpu")
        if growth is None:
            pytest.skip("this system does not tell the peak of a process's memory")
        growths[chunk_size] = growth
    # Measured: 470 and 65 MB; the gradient of the queries is 19 MB.
    assert growths[1024] < growths[None] / 4


def test_queries_are_made_once() -> None:
    selection, queries = selection_with(Scoring()), Queries()
    first = selection.prepared(queries)
    assert selection.prepared(queries) is first
    with torch.inference_mode():
        assert selection.prepared(queries) is first
    assert queries.calls == 1


def test_prepared_in_inference_mode_serve_outside_of_it() -> None:
    selection, queries = selection_with(Scoring()), Queries()
    with torch.inference_mode():
        prepared = selection.prepared(queries)
    tokens = random_tokens()
    values = tokens.values.requires_grad_()
    selection(queries(), ImageTokens(values, tokens.padding_mask)).logits.sum().backward()
    assert not prepared.queries.is_inference()
    assert selection(selection.prepared(queries), tokens).indices.shape == (2, 12)


@pytest.mark.parametrize("changed", ["queries", "norm", "first layer", "score"])
def test_prepared_follow_the_weights(changed: str) -> None:
    selection, queries = selection_with(Scoring()), Queries()
    tokens = random_tokens()
    before = selection(selection.prepared(queries), tokens)
    weight = {
        "queries": queries.rows,
        "norm": queries.norm.bias,
        "first layer": selection.layers[0].cross_attn.query_proj.weight,
        "score": selection.score.weight,
    }[changed]
    with torch.no_grad():
        weight.add_(torch.randn_like(weight))
        expected = selection(queries(), tokens)
    got = selection(selection.prepared(queries), tokens)
    assert_same(got, expected)
    assert (got.logits - before.logits).abs().max() > 1e-3


def test_training_and_loading_drop_what_is_kept() -> None:
    selection, queries = selection_with(Scoring()), Queries()
    first = selection.prepared(queries)
    # What autograd does not see, such as an optimizer that writes to `data`, happens in training.
    selection.train()
    queries.rows.data.add_(1)
    selection.eval()
    second = selection.prepared(queries)
    assert second is not first
    state = {name: value * 1.5 for name, value in selection.state_dict().items()}
    selection.load_state_dict(state)
    assert selection.prepared(queries) is not second
    assert "cache" not in " ".join(selection.state_dict())


def test_a_copy_prepares_for_itself() -> None:
    selection, queries = selection_with(Scoring()), Queries()
    first = selection.prepared(queries)
    assert copy.deepcopy(selection).prepared(queries) is not first
    assert selection.prepared(queries) is first


def test_wrong_use() -> None:
    selection, queries = selection_with(Scoring()), Queries()
    prepared = selection.prepared(queries)
    selection.train()
    with pytest.raises(ValueError, match=r"are for inference, without gradients; call eval\(\)"):
        selection(prepared, random_tokens())
    with pytest.raises(ValueError, match=r"are for inference, without gradients; call eval\(\)"):
        selection.prepared(queries)
    selection.eval()
    with pytest.raises(ValueError, match="12 categories are to be selected of 11"):
        selection.prepare(torch.randn(11, 48))
    with pytest.raises(ValueError, match="margin -1 and chunk_size 1024"):
        Scoring(margin=-1)
    with pytest.raises(ValueError, match="margin 0 and chunk_size 0"):
        Scoring(chunk_size=0)
