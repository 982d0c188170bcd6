# SPDX-License-Identifier: Apache-2.0
"""A shortlist: the same as all where it holds all, and almost the same where it is short."""

from functools import partial

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tests.models.test_architectures import sample
from tests.models.test_cq_dino import small as small_detector
from tests.models.test_cq_dino_scoring import LargestTensor, Queries, assert_same
from tests.models.test_cq_dino_selection import random_tokens
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.models.cq_dino import (
    AsymmetricLoss,
    CategorySelection,
    ImageTokens,
    ScoredImages,
    Shortlist,
    ShortlistSelection,
    TokenMatch,
    build_selection,
    category_to_image_layers,
    fit_match,
    match_loss,
)

WIDTH = 48


def small(num_selected: int = 12, shortlist: Shortlist | None = None) -> ShortlistSelection:
    torch.manual_seed(0)
    layers = category_to_image_layers(
        embed_dim=WIDTH, context_dim=40, num_heads=4, feedforward_dim=96, dropout=0.0
    )
    return ShortlistSelection(
        layers,
        TokenMatch(WIDTH, 40, key_dim=16, num_vectors=8),
        embed_dim=WIDTH,
        num_selected=num_selected,
        shortlist=shortlist,
    ).eval()


@pytest.mark.parametrize("size", [300, 299, 1000])
def test_a_shortlist_of_all_equals_the_whole(size: int) -> None:
    selection = small(shortlist=Shortlist(size, 1000))
    queries, tokens = torch.randn(300, WIDTH), random_tokens(3)
    with torch.no_grad():
        expected = selection(queries, tokens)
    got = selection(selection.prepare(queries), tokens)
    # One category of 300 is left out where the shortlist holds 299: not one of the best 12 here.
    assert_same(got, expected)
    assert got.losses == {}
    assert got.all_logits is None


def test_those_that_match_best_are_scored() -> None:
    selection = small(shortlist=Shortlist(20, 300))
    queries, tokens = torch.randn(300, WIDTH), random_tokens(2)
    with torch.no_grad():
        scores = selection.match(queries, tokens)
        logits = selection(queries, tokens).all_logits
    got = selection(selection.prepare(queries), tokens)
    for i in range(2):
        shortlisted = sorted(range(300), key=lambda k: -scores[i, k].item())[:20]
        expected = sorted(shortlisted, key=lambda k: -logits[i, k].item())[:12]
        assert got.indices[i].tolist() == expected


def test_the_match_of_the_best_vector() -> None:
    match = TokenMatch(8, 6, key_dim=4, num_vectors=3)
    queries, tokens = torch.randn(5, 8), torch.randn(2, 3, 6)
    padding = torch.tensor([[False] * 3, [False, True, True]])
    scores = match(queries, ImageTokens(tokens, padding))
    first, _, last = match.key_mlp
    keys = match.key_proj(queries) + last(F.gelu(first(queries)))
    keys = keys / keys.norm(dim=1, keepdim=True)
    for i, seen in enumerate([[0, 1, 2], [0]]):
        values = match.token_norm(tokens[i, seen])
        vectors = []
        for p in range(3):
            logits = [4 * (match.pooling.weight[p] @ x + match.pooling.bias[p]) for x in values]
            weights = torch.stack(logits).softmax(0)
            pooled = sum(w * x for w, x in zip(weights, values, strict=True))
            vectors.append(
                match.vector_proj(F.gelu(match.hidden_proj(pooled) + match.vector_bias[p]))
            )
        for k in range(5):
            best = max((vector @ keys[k]).item() for vector in vectors)
            assert scores[i, k].item() == pytest.approx(best, abs=1e-5)


def test_few_vectors_bring_more_candidates_each() -> None:
    assert Shortlist(1000).num_each(32, 200) == 300
    assert Shortlist(1000).num_each(32, 350) == 350
    assert Shortlist(1000).num_each(2, 200) == 500
    assert Shortlist(1000).num_each(1, 200) == 1000
    with pytest.raises(ValueError, match="3 vectors and keys of 7 channels; expected"):
        TokenMatch(8, 8, key_dim=7, num_vectors=3)
    with pytest.raises(ValueError, match="0 vectors"):
        TokenMatch(8, 8, num_vectors=0)


def test_padding_changes_nothing() -> None:
    selection = small(shortlist=Shortlist(20, 100))
    prepared = selection.prepare(torch.randn(300, WIDTH))
    tokens = random_tokens(2)
    alone = ImageTokens(tokens.values[1:, :6], tokens.padding_mask[1:, :6])
    together = selection(prepared, tokens)
    assert torch.equal(together.indices[1:], selection(prepared, alone).indices)


@pytest.mark.parametrize("num_categories", [3000, 5000])
def test_the_index_finds_what_matches_best(num_categories: int) -> None:
    # 5,000 are more than are compared one by one.
    selection = small(shortlist=Shortlist(400, 5000))
    kinds = torch.randn(50, WIDTH).repeat_interleave(num_categories // 50, 0)
    queries, tokens = kinds + 0.3 * torch.randn(num_categories, WIDTH), random_tokens(1)
    prepared = selection.prepare(queries)
    assert (prepared.index is None) == (num_categories == 3000)
    alone = tokens.values[0, ~tokens.padding_mask[0]]
    with torch.no_grad():
        expected = selection.match(queries, tokens)[0].topk(100).indices
        got = selection.shortlist(prepared, alone)
    # Where vectors bring the same candidates, an index finds fewer than there is room for.
    assert 300 <= len(got.unique()) == len(got) <= 400
    found = torch.isin(expected, got).float().mean().item()
    print(f"found {found:.3f}")
    assert found >= (0.8 if num_categories == 5000 else 1)


def test_time_and_memory_are_those_of_the_shortlist() -> None:
    selection = small(shortlist=Shortlist(64, 256))
    largest = []
    for num_categories in (5000, 20000):
        prepared = selection.prepare(torch.randn(num_categories, WIDTH))
        with LargestTensor() as counted:
            selection(prepared, random_tokens())
        largest.append(counted.num_elements)
    # 64 categories of 96 channels, or 8 vectors' 112 candidates of 16: not the 80,000 of all keys.
    assert max(largest) <= 8 * 112 * 16


def test_only_the_match_learns_from_its_loss() -> None:
    selection = small().train()
    tokens = random_tokens()
    queries = torch.randn(25, WIDTH, requires_grad=True)
    values = tokens.values.requires_grad_()
    selected = selection(queries, ImageTokens(values, tokens.padding_mask))
    assert list(selected.losses) == ["loss_shortlist"]
    selected.losses["loss_shortlist"].backward()
    with_gradient = {n for n, p in selection.named_parameters() if p.grad is not None}
    assert with_gradient == {f"match.{n}" for n, _ in selection.match.named_parameters()}
    assert queries.grad is None
    assert values.grad is None
    with torch.no_grad():
        whole = CategorySelection.forward(selection, queries, tokens)
    assert torch.equal(whole.all_logits, selected.all_logits)


def test_the_loss_is_the_divergence() -> None:
    scores, logits = torch.randn(2, 7), torch.randn(2, 7)
    p, q = logits.double().softmax(-1), scores.double().softmax(-1)
    expected = (p * (p.log() - q.log())).sum() / 2
    assert match_loss(scores, logits).item() == pytest.approx(expected.item(), rel=1e-5)
    assert match_loss(logits + 3, logits).item() == pytest.approx(0, abs=1e-6)


def test_prepared_follow_the_match() -> None:
    selection, queries = small(shortlist=Shortlist(20, 20)), Queries(300)
    first = selection.prepared(queries)
    assert selection.prepared(queries) is first
    with torch.no_grad():
        selection.match.key_proj.weight.neg_()
    assert selection.prepared(queries) is not first


def separable(queries: Tensor, num_images: int, generator: torch.Generator) -> tuple:
    """Images of 4 categories; three tokens show the query of each, with as much noise, and five
    show noise alone."""
    num_categories, width = queries.shape
    shown = torch.randint(num_categories, (num_images, 4), generator=generator)
    present = torch.zeros(num_images, num_categories, dtype=torch.bool).scatter(1, shown, True)
    values = torch.randn(num_images, 17, width, generator=generator)
    values[:, :12] += queries[shown.repeat_interleave(3, dim=1)]
    return ImageTokens(values, torch.zeros(num_images, 17, dtype=torch.bool)), present


def recall(indices: Tensor, present: Tensor) -> float:
    return float((present.gather(1, indices).sum(1) / present.sum(1)).mean()) * 100


def test_recall_of_a_trained_match() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    # 60 kinds of categories, of which 300 are known in training and 5,700 come after it.
    kinds = torch.randn(60, 32)[torch.randint(60, (6000,))]
    queries = F.layer_norm(kinds + 0.7 * torch.randn(6000, 32), (32,))
    known = queries[:300]
    layers = category_to_image_layers(
        embed_dim=32, context_dim=32, num_heads=2, feedforward_dim=64, dropout=0.0
    )
    for layer in layers:
        # Learning what to look at takes a thousand steps; here it is where it looks at the start.
        nn.init.eye_(layer.cross_attn.query_proj.weight)
        nn.init.eye_(layer.cross_attn.key_proj.weight)
    selection = ShortlistSelection(
        layers, TokenMatch(32, 32, key_dim=32), embed_dim=32, num_selected=20
    )
    optimizer = torch.optim.AdamW(selection.parameters(), 5e-3)
    loss = AsymmetricLoss()
    make = partial(separable, known, 8, generator)
    for _ in range(80):
        tokens, present = make()
        optimizer.zero_grad()
        loss(selection(known, tokens).all_logits, present).backward()
        nn.utils.clip_grad_norm_(selection.parameters(), 1.0)
        optimizer.step()
    selection.eval()
    with torch.no_grad():
        batches = []
        for images in (make()[0] for _ in range(100)):
            others = known.mean(0) + known.std(0) * torch.randn(300, 32, generator=generator)
            logits = selection(torch.cat([known, others]), images).all_logits
            batches.append(ScoredImages(images, others, logits))
    fit_match(selection.match, known, batches, num_steps=400)
    tokens, present = separable(known, 40, torch.Generator().manual_seed(1))
    for all_queries, limits in ((known, Shortlist(60, 300)), (queries, Shortlist(400, 2000))):
        with torch.no_grad():
            whole = selection(all_queries, tokens)
        selection.limits = limits
        short = selection(selection.prepare(all_queries), tokens)
        labels = F.pad(present, (0, len(all_queries) - 300))
        expected, got = recall(whole.indices, labels), recall(short.indices, labels)
        print(f"recall {expected:.1f}, with a shortlist {got:.1f}")
        # By chance: 6.7 and 0.3. A shortlist may find more than all, where what matches badly would
        # have scored well.
        assert expected > 15
        assert got >= expected - 5


def test_in_the_detector(cfg: CfgNode) -> None:
    exact = small_detector(cfg.clone()).eval()
    model = small_detector(cfg, NAME="shortlist", SCORING="bfloat16")
    with EventStorage():
        losses = model.train()([sample()])
    assert losses["loss_shortlist"] > 0
    with torch.no_grad():
        model.load_state_dict(exact.state_dict(), strict=False)
        (expected,), (got,) = exact([sample()]), model.eval()([sample()])
    assert isinstance(model.categories.selection, ShortlistSelection)
    assert torch.equal(got["selected_categories"], expected["selected_categories"])
    # Products of other sizes may round otherwise.
    largest = (got["instances"].scores - expected["instances"].scores).abs().max().item()
    print(f"largest difference of a score {largest:.1e}")
    assert largest < 1e-6


def test_selections_by_name() -> None:
    layers = partial(category_to_image_layers, embed_dim=WIDTH, context_dim=40, feedforward_dim=96)
    build = partial(build_selection, embed_dim=WIDTH, context_dim=40)
    exact = build("exact", layers(), num_selected=7, chunk_size=5)
    assert type(exact) is CategorySelection
    assert (exact.num_selected, exact.chunk_size, exact.scoring.dtype) == (7, 5, None)
    short = build("shortlist", layers(), scoring="bfloat16", key_dim=12)
    assert isinstance(short, ShortlistSelection)
    assert short.scoring.dtype is torch.bfloat16
    assert short.match.key_proj.out_features == 12
    for name, scoring in (("beam", "full"), ("exact", "int8")):
        with pytest.raises(ValueError, match=f"selection '{name}' .* with scoring '{scoring}'"):
            build(name, layers(), scoring=scoring)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="size 10 from 9 scanned keys"):
        Shortlist(10, 9)
    with pytest.raises(ValueError, match="shortlist of 11 for 12 selected categories and a margin"):
        small(shortlist=Shortlist(11, 100))
    selection = small()
    with pytest.raises(ValueError, match="12 categories are to be selected of 11"):
        selection.prepare(torch.randn(11, WIDTH))
    prepared = CategorySelection.prepare(selection, torch.randn(2000, WIDTH))
    with pytest.raises(ValueError, match="prepared by another selection"):
        selection(prepared, random_tokens())
    required = torch.zeros(2, 25, dtype=torch.bool)
    with pytest.raises(ValueError, match="no prepared category can be required"):
        selection(selection.prepare(torch.randn(25, WIDTH)), random_tokens(), required)
