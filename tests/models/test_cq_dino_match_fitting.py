# SPDX-License-Identifier: Apache-2.0
"""A match learns from trained and from made-up categories."""

from functools import partial

import numpy as np
import pytest
import torch

from vastdet.models.cq_dino import (
    CategoryTree,
    FixedWeight,
    ImageTokens,
    ScoredImages,
    TokenMatch,
    fit_match,
    made_up_embeddings,
    match_fitting,
)
from vastdet.models.cq_dino.category_queries import (
    CategoryQueries,
    CategorySelfAttention,
    ReleasedSelfAttention,
    TreeCorrelation,
    no_correlation,
)
from vastdet.models.cq_dino.match_fitting import some_categories
from vastdet.vocabulary import CategoryHierarchy


def test_made_up_embeddings_are_like_the_trained_ones() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(400, 6) @ torch.randn(6, 6) + 3
    make = partial(made_up_embeddings, embedding, 20_000)
    normal = make("normal", torch.Generator().manual_seed(0))
    assert torch.allclose(normal.mean(0), embedding.mean(0), atol=0.15)
    assert torch.allclose(normal.T.cov(), embedding.T.cov(), rtol=0.1, atol=0.3)
    mixtures = make("mixtures", torch.Generator().manual_seed(0))
    assert (mixtures >= embedding.amin(0) - 1e-5).all()
    assert (mixtures <= embedding.amax(0) + 1e-5).all()
    assert torch.equal(mixtures, make("mixtures", torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="kind 'odd'; expected normal or mixtures"):
        make("odd", torch.Generator())


def test_few_categories_of_many_channels() -> None:
    for embedding in (torch.randn(80, 768), 10 * torch.randn(1, 16)):
        for kind in ("normal", "mixtures"):
            made_up = made_up_embeddings(embedding, 5, kind, torch.Generator().manual_seed(0))
            assert made_up.shape == (5, embedding.shape[1])
            assert made_up.isfinite().all()


def test_a_leaf_has_the_query_that_it_would_have_in_the_vocabulary() -> None:
    embedding = torch.randn(5, 8)
    # Category 0 is above 1 and 2; all others are leaves.
    hierarchy = CategoryHierarchy(
        node_ids=tuple("abcde"),
        node_names=tuple("abcde"),
        edges=np.array([[0, 1], [0, 2]]),
        category_nodes=np.arange(5),
    )
    for correlation in (
        no_correlation(8),
        TreeCorrelation(CategoryTree(hierarchy, weight=FixedWeight(0.5)), 8),
        ReleasedSelfAttention(8),
    ):
        queries = CategoryQueries(embedding, correlation=correlation)
        assert torch.allclose(queries.of_leaves(embedding[1:]), queries()[1:], atol=1e-6)
        same = torch.allclose(queries.of_leaves(embedding[:1]), queries()[:1], atol=1e-6)
        assert same != isinstance(correlation, TreeCorrelation)
    queries = CategoryQueries(embedding, correlation=CategorySelfAttention(8))
    with pytest.raises(ValueError, match="others have no queries without them"):
        queries.of_leaves(embedding)


def test_a_step_learns_from_those_that_score_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_fitting, "NUM_HARDEST", 4)
    monkeypatch.setattr(match_fitting, "NUM_RANDOM", 3)
    logits = torch.zeros(2, 50)
    # An image's own best counts, whatever others think of it.
    logits[0, [3, 40]] = torch.tensor([5.0, 9.0])
    logits[1, [20, 21]] = 2.0
    logits[1, 40] = -9.0
    draws = [some_categories(logits, torch.Generator().manual_seed(i)).tolist() for i in range(9)]
    for chosen in draws:
        assert {3, 20, 21, 40} <= set(chosen)
        assert 4 <= len(chosen) <= 7
        assert chosen == sorted(set(chosen))
    assert len(set().union(*draws)) > 15
    assert some_categories(logits[:, :7], torch.Generator()).tolist() == list(range(7))


def test_scored_images_are_joined_and_drawn() -> None:
    made_up = torch.randn(3, 4)

    def scored(num_images: int, num_tokens: int, start: float) -> ScoredImages:
        values = torch.randn(num_images, num_tokens, 4)
        tokens = ImageTokens(values, torch.zeros(num_images, num_tokens, dtype=torch.bool))
        numbers = torch.arange(start, start + num_images)
        return ScoredImages(tokens, made_up, numbers[:, None].expand(-1, 5))

    one, other = scored(2, 6, 0), scored(3, 4, 2)
    joined = ScoredImages.joined([one, other])
    assert joined.logits[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(joined.tokens.values[:2], one.tokens.values)
    assert torch.equal(joined.tokens.values[2:, :4], other.tokens.values)
    assert joined.tokens.padding_mask.sum(1).tolist() == [0, 0, 2, 2, 2]
    generator = torch.Generator().manual_seed(0)
    some = joined.some(3, generator)
    numbers = some.logits[:, 0].long()
    assert len(set(numbers.tolist())) == 3
    assert torch.equal(some.tokens.values, joined.tokens.values[numbers])
    assert torch.equal(some.tokens.padding_mask, joined.tokens.padding_mask[numbers])
    assert sorted(joined.some(9, generator).logits[:, 0].tolist()) == [0, 1, 2, 3, 4]


def test_made_up_categories_are_put_in_their_places() -> None:
    torch.manual_seed(0)
    trained, made_up = torch.randn(30, 16), torch.randn(200, 16)
    values = torch.randn(40, 4, 16)
    tokens = ImageTokens(values, torch.zeros(40, 4, dtype=torch.bool))
    # The true score of a category is its best product with a token.
    logits = (values @ torch.cat([trained, made_up]).T).amax(1)
    errors = []
    for num_made_up in (0, 100):
        torch.manual_seed(1)
        match = TokenMatch(16, 16, key_dim=16, num_vectors=8)
        batch = ScoredImages(tokens, made_up[:num_made_up], logits[:, : 30 + num_made_up])
        loss = fit_match(match, trained, [batch], num_steps=300)
        assert loss < 1
        # Those of the second half were seen by neither.
        with torch.no_grad():
            scores = match(torch.cat([trained, made_up[100:]]), tokens)
        expected = torch.cat([logits[:, :30], logits[:, 130:]], dim=1)
        best = scores.topk(20, dim=1).indices
        errors.append(1 - (expected.topk(5, 1).indices[..., None] == best[:, None]).any(-1).float())
    alone, together = (x.mean().item() for x in errors)
    print(f"missed of the five best: {alone:.3f} alone, {together:.3f} with made-up ones")
    assert together < 0.9 * alone
